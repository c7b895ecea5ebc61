//! How a job itself is, whatever befalls it from outside; and so how it may end.

use lorikeet_coordinator::{cluster::job::JobState, record::Job};
use lorikeet_protocol::job::{FailureClass, OnLost};

/// What is wrong with a job, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    /// Nothing: it ends well, unless somebody thinks better of it.
    Sound,
    /// Its inspection refuses it.
    Unfit,
    /// Its data end it at a step.
    BadData,
    /// Its process dies at a step, wherever it runs.
    Poison,
    /// It comes to no end within its time.
    Endless,
    /// It takes more memory than there is.
    Hungry,
    /// It fails by itself once, and not again.
    Fickle,
}

impl Nature {
    /// Whether a job of this nature may end so, by itself.
    pub(super) fn may_end(self, job: &Job) -> bool {
        match (&job.state, self) {
            (JobState::Succeeded { .. }, Self::Sound | Self::Fickle)
            | (JobState::Rejected { .. }, Self::Unfit)
            | (JobState::Expired, Self::Endless) => true,
            (JobState::Failed(failure), Self::BadData) => {
                failure.class == FailureClass::Dataset || lost(job, failure.class)
            }
            (JobState::Failed(failure), Self::Poison) => {
                failure.class == FailureClass::Internal || lost(job, failure.class)
            }
            (JobState::Failed(failure), Self::Hungry) => {
                failure.class == FailureClass::OutOfMemory || lost(job, failure.class)
            }
            (JobState::Failed(failure), Self::Sound | Self::Endless | Self::Fickle) => lost(job, failure.class),
            _ => false,
        }
    }
}

/// Its owner would rather have it failed than placed again.
fn lost(job: &Job, class: FailureClass) -> bool {
    job.spec.policy.on_lost == OnLost::Fail && class == FailureClass::Hardware
}
