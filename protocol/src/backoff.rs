//! How long to wait before asking again: twice as long each time, capped, and anywhere below that ("full jitter"), so that
//! a thousand agents that lost one coordinator together do not come back together.

use std::time::Duration;

/// Starts afresh only when told that a connection truly worked.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is at most `first`; none is longer than `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The next wait, by a number drawn evenly from all of `u64`.
    pub fn wait(&mut self, random: u64) -> Duration {
        let ceiling = self.first.saturating_mul(1 << self.failures.min(20)).min(self.longest);
        self.failures += 1;
        ceiling.mul_f64(random as f64 / u64::MAX as f64)
    }

    /// The connection truly worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_start_afresh_after_a_welcome() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..6).map(|_| backoff.wait(u64::MAX).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.wait(u64::MAX), Duration::from_millis(100));
    }

    #[test]
    fn a_wait_lies_anywhere_below_its_ceiling() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1));
        assert_eq!(backoff.wait(0), Duration::ZERO);
        assert_eq!(backoff.wait(u64::MAX / 2).as_millis(), 500);
    }
}
