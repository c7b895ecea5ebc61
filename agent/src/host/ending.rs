//! The ways out of an attempt: a worker that was asked or killed, its last word, and what still has to reach the coordinator.

use super::{
    Fault, Now,
    patience::{Due, Patience},
};
use lorikeet_protocol::{
    agent::StopHow,
    file::NamedFile,
    job::{FailureClass, Outcome, StopCause},
};
use std::time::Duration;

/// A worker on its way out.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Leave {
    /// It was asked, and is killed at this time.
    Asked { how: StopHow, cause: StopCause, kill_at: Duration },
    /// It was killed, and this is why; what is still there is killed again, and given up in the end.
    Killed { fault: Fault, patience: Patience },
}

/// How an attempt ends, before its files are uploaded.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Word {
    pub(super) outcome: Outcome,
    pub(super) class: Option<FailureClass>,
    pub(super) message: Option<String>,
    pub(super) step: u64,
}

/// The result's way to the coordinator.
#[derive(Debug, PartialEq)]
pub(super) enum Adapter {
    /// There is none.
    None,
    /// There is none, and whether the inputs were what they should be is not known yet.
    Doubted,
    /// On its way.
    Uploading,
    /// There.
    Uploaded { files: Vec<NamedFile>, summary: Option<String> },
}

/// A worker that said its last word.
#[derive(Debug, PartialEq)]
pub(super) enum Process {
    /// It is killed at this time.
    Alive { kill_at: Duration },
    /// It was killed.
    Killed(Patience),
    /// It cannot be killed, and nobody waits for it any more.
    Stuck,
    /// Its devices are free.
    Gone,
}

impl Process {
    /// What is due: one that said its last word and stayed is killed, one that was killed and stayed is killed again.
    pub(super) fn tick(&mut self, now: Now) -> Due {
        match self {
            Self::Alive { kill_at } if *kill_at <= now.mono => {
                *self = Self::Killed(Patience::new(now));
                Due::Kill
            }
            Self::Killed(patience) => patience.tick(now),
            Self::Alive { .. } | Self::Stuck | Self::Gone => Due::Nothing,
        }
    }

    /// When something is.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Alive { kill_at } => Some(*kill_at),
            Self::Killed(patience) => Some(patience.deadline()),
            Self::Stuck | Self::Gone => None,
        }
    }

    /// Whether nobody waits for it.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Stuck | Self::Gone)
    }
}

impl Leave {
    /// When patience ends.
    pub(super) fn deadline(&self) -> Duration {
        match self {
            Self::Asked { kill_at, .. } => *kill_at,
            Self::Killed { patience, .. } => patience.deadline(),
        }
    }

    /// What a further order changes: saving may become discarding, never the other way round.
    pub(super) fn urged(old: Option<&Self>, how: StopHow, cause: StopCause, kill_at: Duration) -> Option<Self> {
        match (old, how) {
            (None, _) | (Some(Self::Asked { how: StopHow::Save, .. }), StopHow::Discard) => {
                Some(Self::Asked { how, cause, kill_at })
            }
            (Some(Self::Asked { .. } | Self::Killed { .. }), _) => None,
        }
    }

    /// It is killed now.
    pub(super) fn killed(fault: Fault, now: Now) -> Self {
        Self::Killed { fault, patience: Patience::new(now) }
    }

    /// What is due: one that was asked and stayed is killed, one that was killed and stayed is killed again.
    pub(super) fn tick(&mut self, now: Now) -> Due {
        match self {
            Self::Asked { cause, kill_at, .. } if *kill_at <= now.mono => {
                let message = "the worker did not leave in time and was killed".to_owned();
                *self = Self::killed(Fault::new(outcome_of(*cause), message), now);
                Due::Kill
            }
            Self::Asked { .. } => Due::Nothing,
            Self::Killed { patience, .. } => patience.tick(now),
        }
    }
}

impl Word {
    /// Something broke.
    pub(super) fn fault(fault: Fault, step: u64) -> Self {
        Self { outcome: fault.outcome, class: fault.class, message: Some(fault.message), step }
    }

    /// Somebody wanted it.
    pub(super) fn cause(cause: StopCause, step: u64) -> Self {
        Self { outcome: outcome_of(cause), class: None, message: None, step }
    }

    /// Whether another attempt will go on from what this one saved.
    pub(super) fn has_a_successor(&self) -> bool {
        !matches!(self.outcome, Outcome::Cancelled | Outcome::Superseded)
    }
}

fn outcome_of(cause: StopCause) -> Outcome {
    match cause {
        StopCause::Cancel => Outcome::Cancelled,
        StopCause::Pause | StopCause::Preempt | StopCause::Drain | StopCause::Signal => Outcome::Preempted,
        StopCause::TimeLimit => Outcome::TimedOut,
        StopCause::Superseded => Outcome::Superseded,
    }
}
