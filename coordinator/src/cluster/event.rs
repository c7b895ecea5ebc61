//! What happens to the cluster, and what follows: plain data, moved once from queue to turn to driver.

use super::{
    ReplyKey, Shown,
    command::{Answer, Command, Query},
    share::Announced,
};
use crate::{
    access::{Actor, Context, Refusal},
    record::{Job, Model, Record},
};
use lorikeet_protocol::{
    agent::{Farewell, FromAgent, Hello, Report, ToAgent},
    file::{FileManifest, NamedFile},
    id::{BaseId, DatasetId, Hash, JobId, NodeId, UserId},
    inspect::{DatasetFormat, Inspection},
    job::JobSpec,
};
use std::path::PathBuf;

/// What happened.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "events are moved once, from the queue into the turn")]
pub enum Event {
    /// Memory was rebuilt from the store: what was under way starts again.
    Booted,
    /// A request that changes something.
    Requested {
        /// Who waits.
        reply: ReplyKey,
        /// Who asks.
        context: Context,
        /// For what.
        command: Command,
        /// Rows of finished things that the command names.
        rows: Rows,
    },
    /// A question that memory answers.
    Asked {
        /// Who waits.
        reply: ReplyKey,
        /// Who asks.
        actor: Actor,
        /// What.
        query: Query,
    },
    /// An agent said hello.
    SessionOpened {
        /// Who waits.
        reply: ReplyKey,
        /// By its certificate.
        node: NodeId,
        /// The certificate.
        shown: Shown,
        /// What it said.
        hello: Box<Hello>,
    },
    /// A connection ended.
    SessionClosed {
        /// Whose.
        node: NodeId,
        /// Which session.
        session: u64,
        /// What no agent says, if the node said that and the session ended by it.
        nonsense: Option<&'static str>,
    },
    /// An agent said something else.
    Heard {
        /// Who.
        node: NodeId,
        /// In which session.
        session: u64,
        /// What.
        message: FromAgent,
    },
    /// An agent reported of an attempt that no record places on it.
    Stray {
        /// Who.
        node: NodeId,
        /// In which session.
        session: u64,
        /// What.
        report: Report,
    },
    /// An agent said what is in its cache.
    Announced {
        /// Who.
        node: NodeId,
        /// In which session.
        session: u64,
        /// What.
        said: Announced,
    },
    /// `lorikeet inspect` has an answer.
    Inspected {
        /// About what.
        subject: Subject,
        /// What it printed, or why it printed nothing.
        result: Result<Inspection, Trouble>,
        /// The files of a base model, hashed.
        files: Vec<NamedFile>,
    },
    /// Time passed; comes at the end of every batch as well.
    Ticked,
}

/// Rows that left memory and that a command names; the driver reads them right before the batch.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// A finished job.
    pub job: Option<Job>,
    /// Jobs that a submission is to start after, live ones too.
    pub named: Vec<Job>,
    /// A model.
    pub model: Option<Model>,
    /// Models that a job's `init_adapter` may mean, oldest first.
    pub adapters: Vec<Model>,
    /// Jobs that are to be forgotten, each with its model.
    pub old: Vec<(Job, Option<Model>)>,
}

/// Why an inspection brought no answer; for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The coordinator's own: a program that does not start, a disk that cannot be read.
    Ours(String),
    /// The process ended without an answer, and may do so for what it looks at.
    Theirs(String),
}

/// What is inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A dataset.
    Dataset(DatasetId),
    /// A base model.
    Base(BaseId),
    /// A job.
    Job(JobId),
}

/// What `lorikeet inspect` is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Inspect {
    /// What is in a training file.
    Dataset {
        /// Its id.
        id: DatasetId,
        /// Whose it is.
        owner: UserId,
        /// Its bytes.
        file: Hash,
        /// As declared.
        format: Option<DatasetFormat>,
    },
    /// What a base model is; its files are hashed too.
    Base {
        /// Its id.
        id: BaseId,
        /// Where it lies.
        path: PathBuf,
    },
    /// What a job comes to.
    Job {
        /// Its id.
        id: JobId,
        /// Whose it is.
        owner: UserId,
        /// Its settings.
        spec: Box<JobSpec>,
        /// Where its base lies.
        base: PathBuf,
        /// Its training file.
        dataset: FileManifest,
        /// The file it is evaluated on, if it has one of its own.
        validation: Option<FileManifest>,
    },
}

impl Inspect {
    /// About what.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Dataset { id, .. } => Subject::Dataset(*id),
            Self::Base { id, .. } => Subject::Base(*id),
            Self::Job { id, .. } => Subject::Job(*id),
        }
    }

    /// Who waits for the answer; for a base model everybody does.
    pub fn owner(&self) -> Option<UserId> {
        match self {
            Self::Dataset { owner, .. } | Self::Job { owner, .. } => Some(*owner),
            Self::Base { .. } => None,
        }
    }
}

/// What follows.
#[derive(Debug, Clone)]
pub enum Action {
    /// Write this row in the batch's transaction.
    Put(Box<Record>),
    /// Answer.
    Reply {
        /// Whom.
        reply: ReplyKey,
        /// With what.
        result: Result<Answer, Refusal>,
    },
    /// Let an agent in.
    Admit {
        /// Who waits.
        reply: ReplyKey,
        /// Who it is.
        node: NodeId,
        /// Its session.
        session: u64,
    },
    /// Do not let an agent in.
    TurnAway {
        /// Who waits.
        reply: ReplyKey,
        /// Why.
        farewell: Farewell,
    },
    /// Tell an agent; lost if it is not connected, and said again in the next welcome.
    Send {
        /// Whom.
        node: NodeId,
        /// What.
        message: ToAgent,
    },
    /// End a session.
    Close {
        /// Whose.
        node: NodeId,
        /// Which.
        session: u64,
        /// Why.
        farewell: Farewell,
    },
    /// Run `lorikeet inspect`.
    Inspect(Inspect),
    /// A job's row changed: its watchers want to know.
    JobChanged(JobId),
}
