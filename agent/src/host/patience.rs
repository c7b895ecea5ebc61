//! How long a killed process is waited for: the kernel lets none go while a driver or a disk holds it.
//!
//! It is killed again and again, for an order may have reached nobody, and given up after so many kills rather than at a time: a
//! machine that slept in between has waited for nothing.

use super::Now;
use std::time::Duration;

/// Between two kills of a process that is still there.
const AGAIN: Duration = Duration::from_secs(5);
/// Kills after the first, until it is given up a minute after that one.
const KILLS: u32 = 11;

/// A process that was killed and may still be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    due: Duration,
    kills: u32,
}

/// What is to be done with a process now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    Kill,
    /// It cannot be killed: nobody waits for it any more.
    GiveUp,
}

impl Patience {
    /// It was killed for the first time.
    pub(super) fn new(now: Now) -> Self {
        Self { due: now.mono + AGAIN, kills: KILLS }
    }

    /// What is due.
    pub(super) fn tick(&mut self, now: Now) -> Due {
        if now.mono < self.due {
            return Due::Nothing;
        }
        if self.kills == 0 {
            return Due::GiveUp;
        }
        (self.due, self.kills) = (now.mono + AGAIN, self.kills - 1);
        Due::Kill
    }

    /// When something is.
    pub(super) fn deadline(&self) -> Duration {
        self.due
    }
}
