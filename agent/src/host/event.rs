//! What the [`Host`](super::Host) hears and what it answers: plain data.

use super::{CheckpointMade, Reasons, Record, Seen, Unfit};
use lorikeet_protocol::{
    agent::{Checkpoint, FromAgent, Offer, ReportBody, StopHow, ToAgent},
    file::NamedFile,
    id::{AttemptId, DeviceId, UnixMillis},
    job::{FailureClass, Outcome, StopCause},
    worker::{EventLine, Exit, WrittenFile},
};
use std::{sync::Arc, time::Duration};

/// The two times of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since the machine booted: comparable over restarts of the agent, deaf to changes of the wall clock.
    pub mono: Duration,
    /// For records and people.
    pub wall: UnixMillis,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The coordinator said something.
    Heard(ToAgent),
    /// Every report of this attempt is acknowledged.
    Delivered(AttemptId),
    /// The coordinator waits for the end of this attempt, and the report of it is nowhere.
    EndMissing(AttemptId),
    /// The attempt's files and directory are complete.
    Prepared(AttemptId),
    /// They never will be.
    PrepareFailed(AttemptId, Fault),
    /// They never will be, because the coordinator itself does not have them whole; and what fails for want of them.
    Unprovided(AttemptId, Fault, FailureClass),
    /// News of a worker.
    Worker(AttemptId, News),
    /// An attempt's inputs were read again: those that are not what they were when they came.
    InputsRead(AttemptId, Vec<String>),
    /// The checkpoint of the event with this `seq` is uploaded whole.
    CheckpointUploaded(AttemptId, u64, Box<Checkpoint>),
    /// It never will be, and why; without a reason: its worker has removed it, as it does when there are newer ones.
    CheckpointGivenUp(AttemptId, u64, Option<String>),
    /// The adapter is uploaded whole; with its training summary.
    AdapterUploaded(AttemptId, Vec<NamedFile>, Option<String>),
    /// It never will be.
    AdapterGivenUp(AttemptId, Fault),
    /// The devices as they are.
    Looked(Seen),
    /// A device was tested: it computes as it should, or why that is not known.
    Tested(DeviceId, Result<(), Unfit>),
    /// The agent is told to leave no work behind.
    Leave,
    /// A deadline passed.
    Tick,
}

/// Why an attempt cannot go on, in the words of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// In one word.
    pub outcome: Outcome,
    /// Whose settings, data or code it was, where that is known.
    pub class: Option<FailureClass>,
    /// For people.
    pub message: String,
}

impl Fault {
    /// Whose fault it was is not known, or nobody's.
    pub fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        Self { outcome, class: None, message: message.into() }
    }
}

/// News of one worker, in order; nothing follows `Gone`.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// It holds its lock.
    Holds {
        /// The process that does.
        pid: u32,
    },
    /// Processes of its group that were not seen before.
    Joined {
        /// Who.
        pids: Vec<u32>,
    },
    /// A line of its events file.
    Event(Box<EventLine>),
    /// Its process group is larger than allowed.
    TooLarge {
        /// Resident bytes.
        resident: u64,
        /// Allowed bytes.
        limit: u64,
    },
    /// It wrote more than it may, and what.
    Overgrown {
        /// For people: `it wrote more than 1073741824 bytes of events`.
        what: String,
    },
    /// It holds its lock and says nothing any more.
    Stalled {
        /// For how long.
        quiet: Duration,
    },
    /// It left with this exit code.
    Exited(Exit),
    /// It left, and this process of its group was killed again and again and is still there.
    Stuck {
        /// The process.
        pid: u32,
    },
    /// Its process group is no more; every event was told before.
    Gone {
        /// How, as far as known: `exit status: 3`.
        how: String,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Say this if there is a session; if not, the next welcome makes it needless.
    Tell(FromAgent),
    /// Queue a report.
    Report(AttemptId, ReportBody),
    /// Make the record last.
    Keep(Box<Record>),
    /// Fetch files and write the attempt directory.
    Prepare(Arc<Offer>),
    /// Stop preparing and uploading.
    Abandon(AttemptId),
    /// Start the worker.
    Start(Arc<Offer>),
    /// Follow a worker that an earlier agent started.
    Adopt(Arc<Offer>),
    /// Ask the worker for something.
    Ask(AttemptId, Ask),
    /// Kill its process group.
    Kill(AttemptId),
    /// Upload a checkpoint.
    UploadCheckpoint(AttemptId, CheckpointMade),
    /// Upload the adapter, which is these files.
    UploadAdapter(AttemptId, Vec<WrittenFile>),
    /// Read its inputs again, as far as a failure of this class may come from them.
    ReadInputs(Arc<Offer>, FailureClass),
    /// Remove whatever is left of it.
    Forget(AttemptId),
    /// Make it last which devices are out.
    KeepQuarantine(Reasons),
    /// Test a device in a process of its own.
    Test(DeviceId),
}

/// What a worker can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Save a checkpoint and go on.
    SaveNow,
    /// Leave.
    Stop(StopHow, StopCause),
}
