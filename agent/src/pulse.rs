//! Whether the driver still takes turns: it counts them, and the link looks whether the count goes on.
//!
//! A disk that hangs in a sync holds the driver and nobody else; without this the link would say for it, for ever, that all is well.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The driver's side.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pulse(Arc<AtomicU64>);

/// The link's side.
#[derive(Debug)]
pub(crate) struct Listener {
    pulse: Pulse,
    heard: u64,
    since: Instant,
}

impl Pulse {
    /// A turn begins.
    pub(crate) fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Listens from now on.
    pub(crate) fn listen(&self, now: Instant) -> Listener {
        Listener { pulse: self.clone(), heard: self.0.load(Ordering::Relaxed), since: now }
    }
}

impl Listener {
    /// For how long, as far as anybody looked, there has been no turn.
    pub(crate) fn silence(&mut self, now: Instant) -> Duration {
        let count = self.pulse.0.load(Ordering::Relaxed);
        if count != self.heard {
            (self.heard, self.since) = (count, now);
        }
        now - self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_from_the_last_look_that_found_a_turn() {
        let (pulse, start, second) = (Pulse::default(), Instant::now(), Duration::from_secs(1));
        let mut listener = pulse.listen(start);
        assert_eq!(listener.silence(start + 5 * second), 5 * second);
        pulse.beat();
        assert_eq!(listener.silence(start + 6 * second), Duration::ZERO);
        assert_eq!(listener.silence(start + 8 * second), 2 * second);
    }
}
