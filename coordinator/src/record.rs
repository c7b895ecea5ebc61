//! What is remembered: one struct per table, stored as JSON. Never a wire type: the wire may change without the store, and the
//! store without the wire. A changed record is a new table version with a migration.

use crate::access::{Refusal, Role};
use lorikeet_api::jobfile::{
    start::{Start, Wants},
    sweep::{StopRule, Values},
};
use lorikeet_protocol::{
    agent::{Checkpoint, Progress},
    file::{FileManifest, NamedFile},
    id::{
        AttemptId, AttemptToken, BaseId, BootId, DatasetId, DeviceId, Hash, JobId, ModelId, NodeId, RequestId, SweepId,
        TokenId, UnixMillis, UserId,
    },
    inspect::{BaseFindings, DatasetFindings, DatasetFormat, Fault, JobFindings},
    job::{AttemptPhase, FailureClass, Intent, JobSpec, Outcome, Phase, StopCause},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

pub use crate::cluster::job::JobState;

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

/// A secret that makes one machine a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinSecret {
    /// BLAKE3 of the secret.
    pub hash: Hash,
    /// Until when it works.
    pub expires: UnixMillis,
    /// The first public key that used it, and the node it became.
    pub used: Option<(Hash, NodeId)>,
}

/// A machine with an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
    /// When it joined.
    pub joined: UnixMillis,
    /// Serial numbers of its certificates, newest last; only these are let in.
    pub serials: Vec<String>,
    /// BLAKE3 of its public key (SPKI): only certificates for it are let in, and it never changes. `None`: the row is of a version that
    /// did not keep it; it is learnt at the next hello.
    #[serde(default)]
    pub key: Option<Hash>,
    /// Why nothing is placed on it, if nothing is.
    pub quarantine: Option<String>,
    /// The machine's last known start.
    pub boot: Option<BootId>,
    /// Counts its sessions.
    pub sessions: u64,
    /// The last report applied.
    pub last_report: u64,
    /// Why it takes nothing new, if a person wants it so.
    #[serde(default)]
    pub closed: Option<Closed>,
    /// Jobs that ended badly on it and nowhere else, since the last thing that went well there.
    #[serde(default)]
    pub suspected_by: Vec<JobId>,
    /// What follows if too many of them did.
    #[serde(default)]
    pub probation: Option<Probation>,
    /// What its agent said last of the CAs it trusts; `None`: it has never said so.
    #[serde(default)]
    pub trust: Option<NodeTrust>,
    /// When a person sent it away for ever; rows of before do not say so.
    #[serde(default)]
    pub gone_at: Option<UnixMillis>,
    /// The last drain, until the node is opened or drained again.
    #[serde(default)]
    pub drain: Option<Drain>,
}

impl Node {
    /// Whether its agent trusts none of these CAs, by what it said last.
    pub fn is_strange_to(&self, authorities: &[Hash]) -> bool {
        let said = self.trust.as_ref().map_or(&[][..], |trust| &trust.authorities);
        !said.is_empty() && !said.iter().any(|hash| authorities.contains(hash))
    }
}

/// What became of what was placed on a node when it was drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// When it was ordered.
    pub started: UnixMillis,
    /// What has not left by then is stopped.
    pub until: UnixMillis,
    /// When the last had left, or the time was up.
    pub ended: Option<UnixMillis>,
    /// All that was placed there.
    pub attempts: Vec<Drained>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Which.
    pub attempt: AttemptId,
    /// What became of it.
    pub became: Became,
    /// The step of the checkpoint that its job had when it had left.
    pub checkpoint: Option<u64>,
    /// When it had left.
    pub left: Option<UnixMillis>,
}

/// What becomes of an attempt whose node is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Became {
    /// It was asked to save its state and leave.
    Leaving,
    /// It has, after its last step, and its job goes on from there.
    Saved,
    /// It has left without that; its job goes on from the checkpoint before.
    Requeued,
    /// Its job ended, or a person took it from the queue.
    Over,
    /// It had not left in time and was stopped as it was.
    Stopped,
}

/// Which CAs a node trusts, durably there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTrust {
    /// BLAKE3 of their certificates (DER).
    pub authorities: Vec<Hash>,
    /// Which of them signed the certificate that it holds.
    pub issuer: Option<Hash>,
}

/// Several jobs in a row ended badly on a node: nothing new is placed on it for a while, then it is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probation {
    /// For people.
    pub reason: String,
    /// Closed until then; `None`: it is being tried.
    pub until: Option<UnixMillis>,
    /// How often in a row; each time is twice as long as the one before.
    pub times: u32,
}

impl Node {
    /// Whether it is closed for what ended badly on it, and why.
    pub fn fault(&self) -> Option<String> {
        let Probation { reason, until: Some(until), .. } = self.probation.as_ref()? else { return None };
        Some(format!("{reason}; it is tried again at {}", lorikeet_api::Timestamp(*until)))
    }

    /// Whether a person has sent it away for ever.
    pub(crate) fn is_gone(&self) -> bool {
        self.closed == Some(Closed::Retired)
    }
}

/// What a person has decided about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Closed {
    /// What is there goes on; nothing new comes.
    Cordoned,
    /// What is there saves its state and goes elsewhere.
    Draining {
        /// What has not left by then is stopped.
        until: UnixMillis,
    },
    /// It will not come back.
    Retired,
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
    /// The base's files that this checkpoint was made on.
    #[serde(default)]
    pub base_files: Vec<Hash>,
    /// Time its devices were held.
    pub held: Duration,
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
