//! What is remembered: one struct per table, stored as JSON. Never a wire type: the wire may change without the store, and the
//! store without the wire. A changed record is a new table version with a migration.

mod node;

use crate::access::{Refusal, Role};
use lorikeet_api::jobfile::{
    start::{Start, Wants},
    sweep::{StopRule, Values},
};
use lorikeet_protocol::{
    agent::{Checkpoint, Progress},
    file::{FileManifest, NamedFile},
    id::{
        AttemptId, AttemptToken, BaseId, DatasetId, DeviceId, Hash, JobId, ModelId, NodeId, RequestId, SweepId,
        TokenId, UnixMillis, UserId,
    },
    inspect::{BaseFindings, DatasetFindings, DatasetFormat, Fault, JobFindings},
    job::{AttemptPhase, FailureClass, Intent, JobSpec, Outcome, Phase, StopCause},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

pub use crate::cluster::job::JobState;
pub(crate) use node::TRIED_AGAIN;
pub use node::{Became, Closed, Drain, Drained, JoinSecret, Node, NodeTrust, Probation};

/// A person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Unique, case-folded.
    pub email: String,
    /// What people call them.
    pub name: String,
    /// What they may.
    pub role: Role,
    /// When they came.
    pub created: UnixMillis,
}

/// A bearer token; its secret is nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// Whose.
    pub owner: UserId,
    /// What for.
    pub name: String,
    /// BLAKE3 of the secret.
    pub hash: Hash,
    /// When it was made.
    pub created: UnixMillis,
    /// When it ends.
    pub expires: Option<UnixMillis>,
    /// When it was withdrawn.
    pub deleted_at: Option<UnixMillis>,
}

/// What a user has used of the devices, for fair share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Who.
    pub user: UserId,
    /// Device-milliseconds; every seven days they count half.
    pub device_millis: u64,
    /// As of when.
    pub at: UnixMillis,
}

/// Where a dataset is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DatasetState {
    /// Its bytes are on their way.
    Uploading,
    /// `lorikeet inspect dataset` reads it.
    Validating,
    /// It can be trained on.
    Ready,
    /// It cannot.
    Error,
}

/// An uploaded training file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    /// Its id.
    pub id: DatasetId,
    /// Whose.
    pub owner: UserId,
    /// 1–200 characters.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// As uploaded; never used as a path.
    pub file_name: String,
    /// As declared.
    pub size: u64,
    /// As declared; `None`: find out.
    pub declared_format: Option<DatasetFormat>,
    /// Where it is.
    pub state: DatasetState,
    /// Its bytes, once they are here.
    pub manifest: Option<FileManifest>,
    /// What was found in it.
    pub findings: Option<DatasetFindings>,
    /// Why it could not be read at all.
    pub faults: Vec<Fault>,
    /// When it was made.
    pub created: UnixMillis,
    /// When its bytes were complete.
    pub uploaded_at: Option<UnixMillis>,
    /// When it was last judged.
    pub validated_at: Option<UnixMillis>,
    /// When it was deleted.
    pub deleted_at: Option<UnixMillis>,
}

/// Where a base model is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum BaseState {
    /// `lorikeet inspect base` reads its headers; its files are hashed.
    Validating,
    /// It can be trained on.
    Ready,
    /// It cannot.
    Error,
    /// Its files are no longer what was registered.
    Changed,
}

/// A registered base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// Its id.
    pub id: BaseId,
    /// Unique.
    pub name: String,
    /// Who registered it.
    pub owner: UserId,
    /// Where it lies, under one of the config's `base_roots`.
    pub path: PathBuf,
    /// Where it is.
    pub state: BaseState,
    /// What it is.
    pub findings: Option<BaseFindings>,
    /// The files a worker needs.
    pub files: Vec<NamedFile>,
    /// Why it cannot be used.
    pub faults: Vec<Fault>,
    /// When it was registered.
    pub created: UnixMillis,
    /// When it was removed.
    pub deleted_at: Option<UnixMillis>,
}

/// What was asked for, and where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Whose.
    pub owner: UserId,
    /// What to do.
    pub spec: JobSpec,
    /// The base that `spec.base` stood for.
    pub base: BaseId,
    /// The dataset that `spec.dataset` stood for.
    pub dataset: DatasetId,
    /// The dataset that `spec.validation_dataset` stood for.
    #[serde(default)]
    pub validation: Option<DatasetId>,
    /// The files of the adapter that `spec.init_adapter` stood for.
    #[serde(default)]
    pub init_adapter: Vec<NamedFile>,
    /// When it may start.
    #[serde(default)]
    pub start: Start,
    /// Whether somebody has let it go, if it was to be held.
    #[serde(default)]
    pub released: bool,
    /// Of the jobs to start after, those that are not over.
    #[serde(default)]
    pub waits_for: Vec<Dependency>,
    /// The job this is another try of.
    pub parent: Option<JobId>,
    /// The sweep it belongs to.
    #[serde(default)]
    pub sweep: Option<SweepId>,
    /// What its owner wants.
    pub intent: Intent,
    /// Where it is.
    pub state: JobState,
    /// The last attempt's number.
    pub attempts: u32,
    /// Ends that nobody's data or settings were to blame for, in a row without a new checkpoint.
    pub infrastructure_failures: u32,
    /// Ends that the job was to blame for.
    pub user_failures: u32,
    /// Nodes on which it ended badly, and how often.
    pub blamed: BTreeMap<NodeId, u32>,
    /// What it comes to; without the rendered examples.
    pub findings: Option<JobFindings>,
    /// How far it is.
    pub progress: Option<Progress>,
    /// Where the next attempt goes on.
    pub checkpoint: Option<Checkpoint>,
    /// The base's files that it was validated with, and that this checkpoint was made on.
    #[serde(default)]
    pub base_files: Vec<Hash>,
    /// Time its devices were held.
    pub held: Duration,
    /// What they drew for it, as far as its attempts' ends have said.
    #[serde(default)]
    pub energy_joules: Option<u64>,
    /// When it was submitted.
    pub created: UnixMillis,
    /// When it first waited for a device.
    #[serde(default)]
    pub queued_at: Option<UnixMillis>,
    /// When its first attempt ran.
    pub started_at: Option<UnixMillis>,
    /// When it ended.
    pub completed_at: Option<UnixMillis>,
    /// The owner's reason for a cancel.
    pub cancel_reason: Option<String>,
}

/// Many jobs that were asked for at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// Its id.
    pub id: SweepId,
    /// Whose.
    pub owner: UserId,
    /// What people call it.
    pub name: String,
    /// Its jobs.
    pub children: Vec<SweepChild>,
    /// So many of them hold devices at once.
    pub max_parallel: Option<u32>,
    /// Which of them end early.
    pub stop: Option<StopRule>,
    /// Validation losses by rung, in the order in which they came.
    pub rungs: Vec<Vec<(JobId, f64)>>,
    /// Whether it was cancelled as a whole.
    pub cancelled: bool,
    /// When it was submitted.
    pub created: UnixMillis,
    /// When its last child ended.
    pub completed_at: Option<UnixMillis>,
}

/// One job of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepChild {
    /// Which.
    pub job: JobId,
    /// What makes it another one.
    pub values: Values,
    /// The step after which it was stopped, if it was not among the best.
    pub stopped_at: Option<u64>,
    /// How it ended.
    pub end: Option<ChildEnd>,
}

/// How a job of a sweep ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ChildEnd {
    /// In a word.
    pub phase: Phase,
    /// The last step's loss.
    pub loss: Option<f64>,
    /// The last evaluation's.
    pub validation_loss: Option<f64>,
}

/// A job that has to end before another starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Which.
    pub job: JobId,
    /// How.
    pub wants: Wants,
}

/// Devices of one node that an attempt holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which node.
    pub node: NodeId,
    /// Which of its devices.
    pub devices: Vec<DeviceId>,
}

/// One placement of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its id.
    pub id: AttemptId,
    /// Whose job.
    pub owner: UserId,
    /// What it holds; today one.
    pub members: Vec<Member>,
    /// Memory that the plan allows it on each device.
    pub planned_bytes: u64,
    /// Where it is.
    pub phase: AttemptPhase,
    /// The step it went on from.
    pub from_step: Option<u64>,
    /// When it was offered.
    pub offered_at: UnixMillis,
    /// When its worker started.
    pub running_at: Option<UnixMillis>,
    /// Why it was asked to leave, if it was.
    #[serde(default)]
    pub leave: Option<StopCause>,
    /// What its devices drew, where its end says.
    #[serde(default)]
    pub energy_joules: Option<u64>,
    /// How it ended.
    pub end: Option<AttemptEnd>,
}

impl Attempt {
    /// How many it holds.
    pub(crate) fn devices(&self) -> u32 {
        self.members.iter().map(|member| member.devices.len() as u32).sum()
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptEnd {
    /// In one word.
    pub outcome: Outcome,
    /// The trainer's own class.
    pub class: Option<FailureClass>,
    /// For people.
    pub message: Option<String>,
    /// When.
    pub at: UnixMillis,
    /// Time its devices were held.
    pub held: Duration,
    /// The `seq` of its last event.
    #[serde(default)]
    pub last_event: u64,
}

/// A checkpoint whose every file is here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredCheckpoint {
    /// Who made it.
    pub attempt: AttemptId,
    /// Whose job.
    pub owner: UserId,
    /// What it is.
    pub checkpoint: Checkpoint,
    /// When it was here.
    pub at: UnixMillis,
    /// Made under a token that was no longer current: kept, never used.
    pub orphan: bool,
    /// When newer ones took its place; its files go with the next sweep.
    #[serde(default)]
    pub removed_at: Option<UnixMillis>,
}

/// A finished adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Its id: the job's own digits, so that one job never has two.
    pub id: ModelId,
    /// Whose.
    pub owner: UserId,
    /// What made it.
    pub job: JobId,
    /// Under which token.
    pub token: AttemptToken,
    /// What people call it.
    pub name: String,
    /// `1.0.0`.
    pub version: String,
    /// For people.
    pub description: Option<String>,
    /// Its files.
    pub files: Vec<NamedFile>,
    /// `training_summary.json`.
    pub summary: Option<String>,
    /// What it was trained on.
    pub dataset: DatasetId,
    /// And on which base.
    pub base: BaseId,
    /// How, once its job is forgotten; until then the job says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Box<JobSpec>>,
    /// When.
    pub created: UnixMillis,
    /// When it was deleted.
    pub deleted_at: Option<UnixMillis>,
}

/// A result that came under a token that was no longer current, or after a cancel: kept, never applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Orphan {
    /// Under which token.
    pub attempt: AttemptId,
    /// How it ended.
    pub outcome: Outcome,
    /// Its files.
    pub files: Vec<NamedFile>,
    /// When it came.
    pub at: UnixMillis,
    /// Why it was not applied.
    pub reason: String,
}

/// One change: who, what, when, from where, before and after.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// Counts from 1 without gaps.
    pub number: u64,
    /// When.
    pub time: UnixMillis,
    /// Who; `None` is the coordinator itself.
    pub actor: Option<UserId>,
    /// In which request.
    pub request: Option<RequestId>,
    /// From which address.
    pub from: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub subject: String,
    /// How it was.
    pub before: Option<String>,
    /// How it is.
    pub after: Option<String>,
}

/// An answer that a repeated request gets again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// Whose key: two users may choose the same.
    pub owner: Option<UserId>,
    /// The key.
    pub key: String,
    /// Of the request.
    pub body: Hash,
    /// What was said; never a secret.
    pub answer: Result<Receipt, Refusal>,
    /// Until when it is kept.
    pub expires: UnixMillis,
}

/// What a command made or changed, by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Receipt {
    /// Nothing to name.
    Done,
    /// A user.
    User(UserId),
    /// A token.
    Token(TokenId),
    /// A node.
    Node(NodeId),
    /// A dataset.
    Dataset(DatasetId),
    /// A base model.
    Base(BaseId),
    /// A job.
    Job(JobId),
    /// A sweep.
    Sweep(SweepId),
    /// A model.
    Model(ModelId),
    /// A certificate authority, by its hash.
    Authority(Hash),
}

/// A row to be written.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are the tables")]
pub enum Record {
    User(User),
    Token(Token),
    JoinSecret(JoinSecret),
    Node(Node),
    Dataset(Dataset),
    Base(Base),
    Job(Box<Job>),
    Attempt(Attempt),
    Checkpoint(StoredCheckpoint),
    Model(Model),
    Orphan(Orphan),
    Audit(Audit),
    Replay(Replay),
    Usage(Usage),
    Sweep(Box<Sweep>),
    /// Not a row: this job's goes, with those of its attempts, checkpoints and orphans.
    Forgotten(Box<Job>),
}
