//! The ways out of an attempt: a worker that was asked or killed, its last word, and what still has to reach the coordinator.

use super::{Action, Fault, Now};
use lorikeet_protocol::{
    agent::StopHow,
    file::NamedFile,
    id::AttemptId,
    job::{FailureClass, Outcome, StopCause},
};
use std::time::Duration;

/// A worker on its way out.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Leave {
    /// It was asked, and is killed at this time.
    Asked { how: StopHow, cause: StopCause, kill_at: Duration },
    /// It was killed, and this is why.
    Killed(Fault),
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
    /// Its devices are free.
    Gone,
}

impl Leave {
    /// When patience ends.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Asked { kill_at, .. } => Some(*kill_at),
            Self::Killed(_) => None,
        }
    }

    /// What a further order changes: saving may become discarding, never the other way round.
    pub(super) fn urged(old: Option<&Self>, how: StopHow, cause: StopCause, kill_at: Duration) -> Option<Self> {
        match (old, how) {
            (None, _) | (Some(Self::Asked { how: StopHow::Save, .. }), StopHow::Discard) => {
                Some(Self::Asked { how, cause, kill_at })
            }
            (Some(Self::Asked { .. } | Self::Killed(_)), _) => None,
        }
    }

    /// Kills what was asked and stayed.
    pub(super) fn kill_if_due(&mut self, id: AttemptId, now: Now, out: &mut Vec<Action>) {
        let Self::Asked { cause, kill_at, .. } = self else { return };
        if *kill_at <= now.mono {
            let message = "the worker did not leave in time and was killed".to_owned();
            *self = Self::Killed(Fault { outcome: outcome_of(*cause), message });
            out.push(Action::Kill(id));
        }
    }
}

impl Word {
    /// Something broke.
    pub(super) fn fault(fault: Fault, step: u64) -> Self {
        Self { outcome: fault.outcome, class: None, message: Some(fault.message), step }
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
