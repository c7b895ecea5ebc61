//! How a worker ended, as whoever started it sees it: the exit code, which follows from the outcome. Where a worker could not
//! write its outcome down, for the disk was full or events could not be written, the code is all that is known.

use super::WorkerEvent;
use crate::job::FailureClass;
use std::process::ExitCode;

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

const ALL: [Exit; 10] = [
    Exit::Finished,
    Exit::Unusable,
    Exit::Failed,
    Exit::Stopped,
    Exit::Discarded,
    Exit::Held,
    Exit::OutOfMemory,
    Exit::DiskFull,
    Exit::Hardware,
    Exit::Internal,
];

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

    /// The one that has this number.
    pub fn of_code(code: i32) -> Option<Exit> {
        ALL.into_iter().find(|exit| i32::from(exit.code()) == code)
    }

    /// What follows from the last event.
    pub fn of(outcome: &WorkerEvent) -> Exit {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_means_one_end() {
        for exit in ALL {
            assert_eq!(Exit::of_code(exit.code().into()), Some(exit));
        }
        assert_eq!(Exit::of_code(101), None, "a panic of Rust's is none of ours");
    }
}
