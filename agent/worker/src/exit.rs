//! How a worker ended, as whoever started it sees it: the exit code, which follows from the outcome.

use std::process::ExitCode;

use lorikeet_protocol::job::FailureClass;
use lorikeet_protocol::worker::WorkerEvent;

/// How a worker ended; each has its own exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: every adapter is complete.
    Finished,
    /// 2: a directory is missing or cannot be used.
    Unusable,
    /// 5: data, settings or base are at fault.
    Failed,
    /// 20: stopped, the state is saved.
    Stopped,
    /// 21: stopped, nothing was saved.
    Discarded,
    /// 22: another worker holds the lock.
    Held,
    /// 23: out of memory.
    OutOfMemory,
    /// 24: the disk is full, or events could not be written.
    DiskFull,
    /// 25: the device failed.
    Hardware,
    /// 70: our bug.
    Internal,
}

impl Exit {
    /// The number the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Finished => 0,
            Exit::Unusable => 2,
            Exit::Failed => 5,
            Exit::Stopped => 20,
            Exit::Discarded => 21,
            Exit::Held => 22,
            Exit::OutOfMemory => 23,
            Exit::DiskFull => 24,
            Exit::Hardware => 25,
            Exit::Internal => 70,
        }
    }

    pub(crate) fn of(outcome: &WorkerEvent) -> Exit {
        match outcome {
            WorkerEvent::Finished { .. } => Exit::Finished,
            WorkerEvent::Stopped { checkpoint: Some(_), .. } => Exit::Stopped,
            WorkerEvent::Stopped { checkpoint: None, .. } => Exit::Discarded,
            WorkerEvent::Failed { class, .. } => match class {
                FailureClass::OutOfMemory => Exit::OutOfMemory,
                FailureClass::DiskFull => Exit::DiskFull,
                FailureClass::Hardware => Exit::Hardware,
                FailureClass::Internal => Exit::Internal,
                FailureClass::NonFinite | FailureClass::Dataset | FailureClass::Base | FailureClass::Settings => {
                    Exit::Failed
                }
            },
            WorkerEvent::Stage { .. }
            | WorkerEvent::Plan(_)
            | WorkerEvent::Log { .. }
            | WorkerEvent::Step(_)
            | WorkerEvent::Eval { .. }
            | WorkerEvent::Checkpoint { .. }
            | WorkerEvent::Sample { .. } => Exit::Internal,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}
