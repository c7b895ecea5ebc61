//! The control connection between agent and coordinator: one bidirectional stream of frames, and datagrams for telemetry.
//!
//! State moves in [`Report`]s: numbered per node, kept on the agent's disk until [`ToAgent::Acknowledged`], applied at most once
//! by the coordinator, in order. Everything the coordinator wants follows from desired state at every (re)connect, so `ToAgent`
//! needs no outbox: a lost message is said again in the next welcome.

pub mod former;
mod telemetry;

pub use telemetry::{Foreign, RemappedRows, Telemetry, ThrottleReason};

use crate::{
    file::NamedFile,
    id::{AttemptId, BootId, DeviceId, Hash, NodeId, UnixMillis},
    job::{AttemptPhase, Device, FailureClass, JobSpec, Outcome, StopCause},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Labels of one node at most: each is looked at for every job that waits.
pub const LABELS: usize = 64;
/// Bytes of a label's key or value, or of a device's id, at most.
pub const WORD: usize = 256;

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum FromAgent {
    /// First of all on a new connection.
    Hello(Box<Hello>),
    /// Nothing new, still here. Any other message renews the lease as well.
    Heartbeat,
    /// The devices as they are now; sent when something other than free memory changed, and every minute.
    Devices(Vec<Device>),
    /// An offer is taken.
    Accepted(AttemptId),
    /// An offer is not taken, and why.
    Declined {
        /// The offer.
        attempt: AttemptId,
        /// For the job's history.
        reason: String,
    },
    /// Something that changes state.
    Report(Report),
    /// Lines of an attempt's events file, whole, in order, not acknowledged yet.
    Events(EventLines),
    /// A certificate for the next seven days, please: PKCS #10 request, DER.
    Renew(Vec<u8>),
    /// What is trusted there, durably: after the welcome, and whenever it has changed. Only from `lorikeet-control/2` on.
    Trusts(Trusts),
}

/// CAs that a node trusts at most: the one that signs and the one before it.
pub const AUTHORITIES: usize = 2;

/// Which CAs a node trusts. It says so only of what a power cut would leave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trusts {
    /// BLAKE3 of the CAs' certificates (DER), at most [`AUTHORITIES`].
    pub authorities: Vec<Hash>,
    /// Which of them signed the certificate that the node holds; `None`: none of them.
    pub issuer: Option<Hash>,
}

/// Who is calling, and what is alive there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// This start of the machine.
    pub boot: BootId,
    /// This start of the agent: two that alternate under one certificate are two machines with one key.
    pub instance: BootId,
    /// The agent's version, for people.
    pub version: String,
    /// The machine's name, for people.
    pub name: String,
    /// From its config.
    pub labels: BTreeMap<String, String>,
    /// What it can train on.
    pub devices: Vec<Device>,
    /// Attempts it knows and has not been told to forget.
    pub attempts: Vec<KnownAttempt>,
    /// Hashes of the files in its cache, at most 4,096, for placement near the data.
    pub cached: Vec<Hash>,
    /// Reports through this one were acknowledged to it and are gone. A coordinator that knows fewer was restored from an older
    /// copy, and does not wait for them.
    pub acknowledged: u64,
}

/// An attempt that an agent knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownAttempt {
    /// Which.
    pub id: AttemptId,
    /// Where it is.
    pub phase: AttemptPhase,
}

/// Files that one report may name.
pub const REPORT_FILES: usize = 256;
/// Bytes of a training summary that a report may carry; they are some KiB.
pub const SUMMARY_BYTES: usize = 256 << 10;

/// A numbered message that changes state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Counts from 1 per node, without gaps, over restarts of the agent.
    pub number: u64,
    /// Whose.
    pub attempt: AttemptId,
    /// When, by the node's clock.
    pub time: UnixMillis,
    /// What.
    pub body: ReportBody,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ReportBody {
    /// Fetching files.
    Preparing,
    /// The worker holds its lock and trains.
    Running {
        /// The step it goes on from; 0 from the start.
        from_step: u64,
    },
    /// How far it is; at most one per attempt and second, and the newest replaces those not sent yet.
    Progress(Progress),
    /// A checkpoint whose every file was uploaded and verified.
    Checkpoint(Checkpoint),
    /// The worker is done; its files are uploaded next.
    Finalizing,
    /// Over.
    Ended(Ended),
    /// Over, and what its devices drew. Only from `lorikeet-control/4` on; before, it is said without that.
    Metered(Metered),
}

impl ReportBody {
    /// The end, if it is one.
    pub fn end(&self) -> Option<&Ended> {
        match self {
            Self::Ended(ended) | Self::Metered(Metered { ended, .. }) => Some(ended),
            Self::Preparing | Self::Running { .. } | Self::Progress(_) | Self::Checkpoint(_) | Self::Finalizing => None,
        }
    }

    /// The same, to be changed.
    pub fn end_mut(&mut self) -> Option<&mut Ended> {
        match self {
            Self::Ended(ended) | Self::Metered(Metered { ended, .. }) => Some(ended),
            Self::Preparing | Self::Running { .. } | Self::Progress(_) | Self::Checkpoint(_) | Self::Finalizing => None,
        }
    }

    /// The files that it names.
    pub fn files(&self) -> &[NamedFile] {
        match self {
            Self::Checkpoint(checkpoint) => &checkpoint.files,
            Self::Preparing
            | Self::Running { .. }
            | Self::Progress(_)
            | Self::Finalizing
            | Self::Ended(_)
            | Self::Metered(_) => self.end().map_or(&[], |ended| &ended.files),
        }
    }

    /// As a peer of before `lorikeet-control/4` reads it.
    pub fn unmetered(self) -> Self {
        match self {
            Self::Metered(Metered { ended, .. }) => Self::Ended(ended),
            other @ (Self::Preparing
            | Self::Running { .. }
            | Self::Progress(_)
            | Self::Checkpoint(_)
            | Self::Finalizing
            | Self::Ended(_)) => other,
        }
    }
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Of so many.
    pub total_steps: u64,
    /// Passes over the data, as a fraction.
    pub epoch: f64,
    /// The last step's loss.
    pub loss: f64,
    /// The last step's learning rate.
    pub learning_rate: f64,
    /// Over the last steps.
    pub tokens_per_second: f64,
    /// The last evaluation's loss.
    pub validation_loss: Option<f64>,
}

/// A checkpoint as files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// After this step.
    pub step: u64,
    /// The loss of that step.
    pub loss: f64,
    /// Why it was made.
    pub kind: CheckpointKind,
    /// Its files, manifest included.
    pub files: Vec<NamedFile>,
}

/// Why a checkpoint was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CheckpointKind {
    /// It was time, or an epoch ended.
    Periodic,
    /// The best evaluation so far.
    Best,
    /// After the last step.
    Final,
    /// The worker was told to save, or to leave.
    Emergency,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// In one word.
    pub outcome: Outcome,
    /// The trainer's own class of a failure.
    pub class: Option<FailureClass>,
    /// For people: what happened, with a hint where one is known.
    pub message: Option<String>,
    /// The last whole step.
    pub step: u64,
    /// How long its devices were held; zero where nobody is to be charged or blamed: the coordinator lacked a file, or the end was lost.
    pub held: Duration,
    /// The adapter's files, uploaded and verified; only with `Outcome::Ok`.
    pub files: Vec<NamedFile>,
    /// `training_summary.json` of the adapter, for the model's record; only with `Outcome::Ok`.
    pub summary: Option<String>,
    /// The `seq` of its last event, 0 without any: lines up to this one may still be on their way.
    pub last_event: u64,
}

/// How an attempt ended, and what its devices drew from its acceptance to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metered {
    /// How.
    pub ended: Ended,
    /// Of all its devices; of a device that others held too, its part.
    pub energy_joules: u64,
}

/// A run of an attempt's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLines {
    /// Whose.
    pub attempt: AttemptId,
    /// The `seq` of the first line; the others follow without gaps.
    pub first: u64,
    /// The JSON lines, without their line ends.
    pub lines: Vec<String>,
}

/// What the coordinator says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// The answer to a hello.
    Welcome(Box<Welcome>),
    /// Please run this.
    Offer(Box<Offer>),
    /// Stop an attempt.
    Stop {
        /// Which.
        attempt: AttemptId,
        /// With or without its state.
        how: StopHow,
        /// Why.
        cause: StopCause,
    },
    /// Save a checkpoint now and go on.
    SaveNow(AttemptId),
    /// Reports up to this number are durable here; forget them.
    Acknowledged {
        /// The last one.
        through: u64,
    },
    /// Events of an attempt up to this `seq` are durable here.
    EventsAcknowledged {
        /// Whose.
        attempt: AttemptId,
        /// The last one.
        through: u64,
    },
    /// The attempt is over and recorded: its directory may go.
    Forget(AttemptId),
    /// The new certificate, DER.
    Renewed(Vec<u8>),
    /// The session ends here.
    Goodbye(Farewell),
    /// The CAs to trust from now on and no others, DER. The first one signs: a certificate of another is to be renewed at once. Only
    /// from `lorikeet-control/2` on.
    Trust(Vec<Vec<u8>>),
    /// This node was sent away for ever: connections with it end, whoever reads over them. Only from `lorikeet-control/3` on.
    Expelled(NodeId),
}

/// Whether a stopped worker saves its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopHow {
    /// After the last whole step, with a checkpoint.
    Save,
    /// At once, without.
    Discard,
}

/// Why the coordinator ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Farewell {
    /// A newer session of the same identity.
    Superseded,
    /// Two machines alternate under one identity; both stay out until a person decides.
    TwoMachines,
    /// The node's certificate was revoked.
    Revoked,
    /// The coordinator leaves; come back.
    ShuttingDown,
    /// A message that makes no sense.
    Misbehaved,
}

/// The coordinator's answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Who you are here.
    pub node: NodeId,
    /// Counts the sessions of this node.
    pub session: u64,
    /// Say something at least this often.
    pub heartbeat: Duration,
    /// The last report applied; go on after it.
    pub last_report: u64,
    /// One verdict for each attempt of the hello.
    pub verdicts: Vec<(AttemptId, Verdict)>,
    /// The `seq` up to which each adopted or reported attempt's events are durable here.
    pub events: Vec<(AttemptId, u64)>,
}

/// What to do with an attempt that the agent knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It is current: go on.
    Adopt,
    /// It is not: stop it, say how it ended, then forget it.
    Stop,
    /// It is over: only its reports are missing.
    Report,
    /// Nothing of it is wanted: its directory may go.
    Forget,
}

/// Everything an agent needs to run an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Under this token.
    pub attempt: AttemptId,
    /// What to do.
    pub job: JobSpec,
    /// On these devices.
    pub devices: Vec<DeviceId>,
    /// Memory that the plan allows it on each device.
    pub planned_bytes: u64,
    /// The base model's files.
    pub base: Vec<NamedFile>,
    /// The training file.
    pub dataset: NamedFile,
    /// The file to evaluate on, if not a part of the training file.
    pub validation: Option<NamedFile>,
    /// The files of the adapter to begin with; none for a fresh one.
    pub init_adapter: Vec<NamedFile>,
    /// Where to go on, if not from the start.
    pub resume: Option<Checkpoint>,
    /// What is left of the job's time limit.
    pub time_left: Duration,
}

impl Offer {
    /// Every file that the agent has to have before it starts a worker.
    pub fn inputs(&self) -> impl Iterator<Item = &NamedFile> {
        self.base.iter().chain([&self.dataset]).chain(&self.validation).chain(&self.init_adapter)
    }
}
