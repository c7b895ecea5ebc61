//! Whether a worker hangs: it holds its lock, so it lives, and says nothing for longer than anything it did so far explains.

use std::time::{Duration, Instant};

/// A pause this many times as long as the longest so far has another cause.
const SCALE: u32 = 4;

/// The pauses between a worker's events.
#[derive(Debug)]
pub(super) struct Stall {
    after: Duration,
    since: Instant,
    longest: Duration,
    told: bool,
}

impl Stall {
    /// Nothing was said yet; `after` is how long every pause may be.
    pub(super) fn new(after: Duration, now: Instant) -> Self {
        Self { after, since: now, longest: Duration::ZERO, told: false }
    }

    /// It said something.
    pub(super) fn spoke(&mut self, now: Instant) {
        self.longest = self.longest.max(now - self.since);
        (self.since, self.told) = (now, false);
    }

    /// How long it has been silent, once, when that is too long.
    pub(super) fn look(&mut self, now: Instant) -> Option<Duration> {
        let quiet = now - self.since;
        let too_long = quiet > self.after.max(self.longest * SCALE) && !self.told;
        self.told |= too_long;
        too_long.then_some(quiet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_measured_by_the_longest_that_ended_well() {
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        let mut stall = Stall::new(30 * minute, start);
        assert_eq!(stall.look(start + 30 * minute), None);
        assert_eq!(stall.look(start + 31 * minute), Some(31 * minute));
        assert_eq!(stall.look(start + 32 * minute), None, "told once");
        // Steps of twenty minutes: eighty may pass.
        let mut stall = Stall::new(30 * minute, start);
        stall.spoke(start + 20 * minute);
        assert_eq!(stall.look(start + 99 * minute), None);
        assert_eq!(stall.look(start + 101 * minute), Some(81 * minute));
        stall.spoke(start + 102 * minute);
        assert_eq!(stall.look(start + 103 * minute), None);
    }
}
