//! How much may pass in a time: a bucket that fills steadily and holds a burst. Time is passed in; who takes more than is there waits
//! for as long as it says, so that nothing is lost and nothing comes faster than agreed.

use std::time::Duration;

/// One for each thing that is bounded.
#[derive(Debug, Clone)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    level: f64,
    /// When the level was that.
    at: Duration,
}

impl Bucket {
    /// Full at first.
    pub fn new(per_second: u64, burst: u64) -> Self {
        let (per_second, burst) = (per_second.max(1) as f64, burst.max(1) as f64);
        Self { per_second, burst, level: burst, at: Duration::ZERO }
    }

    /// Takes `amount`, more than there is if need be; how long to wait until that was there. Nothing does not wait for what others owe.
    pub fn take(&mut self, amount: u64, now: Duration) -> Duration {
        if amount == 0 {
            return Duration::ZERO;
        }
        self.fill(now);
        self.level -= amount as f64;
        Duration::from_secs_f64((-self.level).max(0.0) / self.per_second)
    }

    /// The same, but nothing is taken where others wait for longer than `most` already.
    pub fn take_behind(&mut self, amount: u64, most: Duration, now: Duration) -> Option<Duration> {
        (self.owed(now) <= most).then(|| self.take(amount, now))
    }

    /// How long those wait who have taken most of what was not there.
    pub fn owed(&mut self, now: Duration) -> Duration {
        self.fill(now);
        Duration::from_secs_f64((-self.level).max(0.0) / self.per_second)
    }

    /// Takes `amount` if it is there.
    pub fn take_if_there(&mut self, amount: u64, now: Duration) -> bool {
        let is_there = self.holds(amount, now);
        if is_there {
            self.level -= amount as f64;
        }
        is_there
    }

    /// Whether `amount` is there; nothing is taken.
    pub fn holds(&mut self, amount: u64, now: Duration) -> bool {
        self.fill(now);
        self.level >= amount as f64
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.level = (self.level + passed * self.per_second).min(self.burst);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_what_is_more_waits_its_time() {
        let mut bucket = Bucket::new(100, 50);
        let start = Duration::from_secs(9);
        assert_eq!(bucket.take(50, start), Duration::ZERO);
        assert_eq!(bucket.take(10, start), Duration::from_millis(100));
        assert_eq!(bucket.take(0, start + Duration::from_millis(100)), Duration::ZERO);
        assert_eq!(bucket.take(50, start + Duration::from_secs(60)), Duration::ZERO, "it holds no more than a burst");
        assert_eq!(bucket.take(200, start + Duration::from_secs(60)), Duration::from_secs(2));
        assert_eq!(
            bucket.take(0, start + Duration::from_secs(60)),
            Duration::ZERO,
            "a word does not wait behind bytes"
        );
    }

    #[test]
    fn who_would_wait_behind_too_many_takes_nothing() {
        let (mut bucket, most) = (Bucket::new(10, 10), Duration::from_secs(60));
        let start = Duration::from_secs(9);
        let waits: Vec<_> = (0..1_000).map_while(|_| bucket.take_behind(100, most, start)).collect();
        assert_eq!(waits.len(), 7, "{waits:?}");
        assert!(waits.is_sorted() && waits[6] == Duration::from_secs(69), "{waits:?}");
        assert_eq!(bucket.take_behind(100, most, start + Duration::from_secs(8)), None, "61 s are owed");
        let later = start + Duration::from_secs(9);
        assert_eq!(bucket.take_behind(100, most, later), Some(Duration::from_secs(70)), "those refused owe nothing");
        let alone = Bucket::new(1, 1).take_behind(301, most, start);
        assert_eq!(alone, Some(Duration::from_secs(300)), "who is alone waits for itself only");
    }

    #[test]
    fn what_may_be_lost_is_taken_only_if_it_is_there() {
        let mut bucket = Bucket::new(10, 2);
        let now = Duration::from_secs(1);
        let taken = (0..100).filter(|_| bucket.take_if_there(1, now)).count();
        assert_eq!(taken, 2);
        assert!(bucket.take_if_there(1, now + Duration::from_millis(100)));
    }
}
