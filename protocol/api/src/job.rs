//! `/api/training-jobs`: what was asked for and what became of it.

use crate::{dataset::DatasetFault, jobfile::JobFile, model::FileView, timestamp::Timestamp};
use lorikeet_protocol::{
    agent::CheckpointKind,
    id::{AttemptId, BaseId, DatasetId, JobId, ModelId, NodeId, SweepId, UserId},
    inspect::{JobFindings, RenderedExample},
    job::{FailureClass, Intent, Phase},
    worker::Level,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A job's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// `job_…`
    #[schema(value_type = String)]
    pub id: JobId,
    /// Whose.
    #[schema(value_type = String)]
    pub owner: UserId,
    /// What people call it.
    pub name: String,
    /// The coarse view of `phase`.
    pub status: JobStatus,
    /// Where it is, exactly.
    #[schema(value_type = String)]
    pub phase: Phase,
    /// What its owner wants.
    #[schema(value_type = String)]
    pub intent: Intent,
    /// What it is busy with.
    pub stage: JobStage,
    /// 0–100.
    pub progress: f64,
    /// Optimizer steps done and saved or reported.
    pub step: u64,
    /// Of so many, once validated.
    pub total_steps: Option<u64>,
    /// Passes over the data, as a fraction.
    pub epoch: Option<f64>,
    /// The last step's.
    pub loss: Option<f64>,
    /// The last evaluation's.
    pub validation_loss: Option<f64>,
    /// The last step's.
    pub learning_rate: Option<f64>,
    /// Over the last steps.
    pub tokens_per_second: Option<f64>,
    /// At that speed.
    pub seconds_left: Option<f64>,
    /// What it will cost, in micro-dollars.
    pub estimated_cost_micros: Option<u64>,
    /// What it has cost, in micro-dollars.
    pub current_cost_micros: u64,
    /// What its devices drew in all attempts that are over, in kWh; of a device that others held too, its part. An attempt whose end did not say –
    /// its node was lost, or a device says nothing of its energy – is not in it; null: none said.
    #[serde(default)]
    pub energy_kwh: Option<f64>,
    /// The placement that runs, or ran last: that of a job that waits, or is over, is over.
    #[schema(value_type = Option<String>)]
    pub attempt: Option<AttemptId>,
    /// Where that is.
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeId>,
    /// What people call it.
    pub node_name: Option<String>,
    /// Why it waits or stands still.
    pub reason: Option<String>,
    /// It waits for a device, and as machines and limits are it will never get one.
    #[serde(default)]
    pub never: bool,
    /// Why it failed.
    pub error: Option<JobError>,
    /// Own failures tried again so far.
    pub retries: u32,
    /// Ends that nobody's data or settings were to blame for, in a row without a new checkpoint; they cost no retry.
    #[serde(default)]
    pub infrastructure_failures: u32,
    /// What this one repeats.
    #[schema(value_type = Option<String>)]
    pub parent: Option<JobId>,
    /// The sweep it belongs to.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub sweep: Option<SweepId>,
    /// The base model.
    #[schema(value_type = String)]
    pub base_id: BaseId,
    /// Its name.
    pub base: String,
    /// The dataset.
    #[schema(value_type = String)]
    pub dataset_id: DatasetId,
    /// Its name.
    pub dataset: String,
    /// What came out.
    #[schema(value_type = Option<String>)]
    pub model: Option<ModelId>,
    /// 0–100; higher goes first.
    pub priority: u8,
    /// The job file with every key filled.
    pub spec: JobFile,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When it was found good.
    pub queued_at: Option<Timestamp>,
    /// When its first step could begin.
    pub started_at: Option<Timestamp>,
    /// When it ended, however it ended.
    pub completed_at: Option<Timestamp>,
}

/// The coarse view of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "`of` says which phases each stands for")]
pub enum JobStatus {
    Queued,
    Initializing,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl JobStatus {
    /// What a phase looks like from afar.
    pub fn of(phase: Phase) -> Self {
        match phase {
            Phase::Submitted | Phase::Validating | Phase::Blocked | Phase::Queued | Phase::Paused => Self::Queued,
            Phase::Assigned | Phase::Preparing => Self::Initializing,
            Phase::Running | Phase::Finalizing | Phase::Cancelling => Self::Running,
            Phase::Succeeded => Self::Completed,
            Phase::Failed | Phase::Rejected | Phase::Expired => Self::Failed,
            Phase::Cancelled => Self::Cancelled,
        }
    }

    /// Whether nothing follows.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// What a job is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the words say it")]
pub enum JobStage {
    Queued,
    Initializing,
    Training,
    Validating,
    Saving,
    Completed,
}

impl JobStage {
    /// What a phase is busy with, as far as the phase alone tells.
    pub fn of(phase: Phase) -> Self {
        match phase {
            Phase::Submitted | Phase::Validating | Phase::Blocked | Phase::Queued | Phase::Paused => Self::Queued,
            Phase::Assigned | Phase::Preparing => Self::Initializing,
            Phase::Running => Self::Training,
            Phase::Finalizing | Phase::Cancelling => Self::Saving,
            Phase::Succeeded | Phase::Failed | Phase::Rejected | Phase::Expired | Phase::Cancelled => Self::Completed,
        }
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobError {
    /// The trainer's class, where it was the trainer who said so.
    #[schema(value_type = Option<String>)]
    pub class: Option<FailureClass>,
    /// What happened.
    pub message: String,
    /// What would help.
    pub hint: Option<String>,
}

/// `POST /api/training-jobs/{id}/cancel`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CancelJob {
    /// For the record.
    #[serde(default)]
    pub reason: CancelReason,
}

/// Why a job is cancelled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words say it")]
pub enum CancelReason {
    CostConcern,
    PoorPerformance,
    WrongConfig,
    NoLongerNeeded,
    #[default]
    Other,
}

/// `GET /api/training-jobs/{id}/why`: why a job is where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// Where it is.
    #[schema(value_type = String)]
    pub phase: Phase,
    /// For programs.
    #[serde(default)]
    pub code: WhyCode,
    /// In one sentence.
    pub summary: String,
    /// No machine can ever take it, as machines and limits are now.
    #[serde(default)]
    pub never: bool,
    /// Jobs that have to end first, as `job_…:ok`.
    #[serde(default)]
    pub waits_for: Vec<String>,
    /// Its place in line, from 1, where it waits.
    pub position: Option<u64>,
    /// When devices will be free for it, if attempts last as long as they say. Null where nobody knows: how long the jobs ahead of it will
    /// have theirs is known of none that has not begun.
    pub expected_start: Option<Timestamp>,
    /// What its owner has had, which decides among jobs of one priority.
    #[serde(default)]
    pub fair_share: Option<FairShare>,
    /// What each node says to it.
    pub nodes: Vec<NodeReason>,
}

/// How a user stands among the others: who has least of `deviceSeconds / weight` goes first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FairShare {
    /// Device time used; what is a week old counts half.
    pub device_seconds: u64,
    /// From the coordinator's `[scheduler.weights]`; 1 of who is not named there.
    pub weight: f64,
}

/// What a job waits for, in a word for programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhyCode {
    /// Nothing: it would start now.
    Free,
    /// Devices; `nodes` says what each says.
    Devices,
    /// A limit of its owner.
    Limit,
    /// Its last attempt ended badly.
    BackOff,
    /// Other jobs: `waitsFor`.
    After,
    /// A hand that lets it go.
    Held,
    /// A moment: `expectedStart`.
    NotBefore,
    /// The files of its base model.
    BaseChanged,
    /// Its machine is silent.
    Unreachable,
    /// Nothing else than its phase says.
    #[default]
    Phase,
}

/// `PATCH /api/training-jobs/{id}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PatchJob {
    /// 0–100; higher goes first.
    pub priority: u8,
}

/// What one node says to a waiting job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeReason {
    /// Which.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// Whether it would take the job now.
    pub fits: bool,
    /// For programs: `busy`, `memory`, `labels`, `gpu`, `unreachable`, …
    pub code: String,
    /// For people.
    pub message: String,
}

/// The answer to `POST /api/training-jobs?dry_run=true`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DryRun {
    /// What would be submitted: the job file with every key filled.
    pub spec: JobFile,
    /// What dataset, base and settings come to; null if they do not fit together, and then `faults` says why.
    pub findings: Option<Findings>,
    /// Why they do not fit together.
    pub faults: Vec<DatasetFault>,
    /// Whether it would be placed now.
    pub why: Why,
}

/// What a job comes to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Training examples.
    pub examples: u64,
    /// Held-out examples.
    pub validation_examples: u64,
    /// Optimizer steps.
    pub total_steps: u64,
    /// Tokens of one epoch.
    pub epoch_tokens: u64,
    /// Supervised tokens of one epoch.
    pub supervised_tokens: u64,
    /// The longest example.
    pub longest_tokens: u64,
    /// Examples that lost history to the length limit.
    pub cut_examples: u64,
    /// Tokens lost that way.
    pub cut_tokens: u64,
    /// Planned memory on a CPU slot.
    pub cpu_bytes: u64,
    /// Planned memory on a GPU.
    pub cuda_bytes: u64,
    /// Three examples as the model sees them, each a list of parts.
    pub rendered: Vec<Vec<TextPart>>,
}

/// A run of text that is supervised or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TextPart {
    /// The text.
    pub text: String,
    /// Whether the loss counts it.
    pub supervised: bool,
}

impl From<JobFindings> for Findings {
    fn from(found: JobFindings) -> Self {
        Self {
            examples: found.examples,
            validation_examples: found.validation_examples,
            total_steps: found.total_steps,
            epoch_tokens: found.epoch_tokens,
            supervised_tokens: found.supervised_tokens,
            longest_tokens: found.longest_tokens,
            cut_examples: found.cut_examples,
            cut_tokens: found.cut_tokens,
            cpu_bytes: found.cpu_bytes,
            cuda_bytes: found.cuda_bytes,
            rendered: found.rendered.into_iter().map(text_parts).collect(),
        }
    }
}

fn text_parts(example: RenderedExample) -> Vec<TextPart> {
    example.parts.into_iter().map(|part| TextPart { text: part.text, supervised: part.supervised }).collect()
}

/// What was measured after one step. An evaluation is a point of its own, without a training loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricsPoint {
    /// By which placement.
    #[schema(value_type = String)]
    pub attempt: AttemptId,
    /// After this step; 0: before the first.
    pub step: u64,
    /// Passes over the data, as a fraction.
    pub epoch: Option<f64>,
    /// When, by the node's clock.
    pub time: Timestamp,
    /// The step's, before its update.
    pub training_loss: Option<f64>,
    /// Over the held-out split.
    pub validation_loss: Option<f64>,
    /// The step's.
    pub learning_rate: Option<f64>,
    /// Before clipping.
    pub gradient_norm: Option<f64>,
    /// The step's.
    pub tokens_per_second: Option<f64>,
    /// Of its GPUs on average, 0–100. This and the three that follow are what they said when the line came; absent where they did not, or where it came
    /// too late for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_utilization_percent: Option<f32>,
    /// In use of its GPUs in all, by anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_memory_bytes: Option<u64>,
    /// Of the hottest of its GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_temperature_celsius: Option<f32>,
    /// Drawn by its GPUs in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_power_watts: Option<f32>,
}

/// A word of the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// Of which placement.
    #[schema(value_type = String)]
    pub attempt: AttemptId,
    /// Its place in the placement's events.
    pub seq: u64,
    /// When, by the node's clock.
    pub time: Timestamp,
    /// How loud.
    #[schema(value_type = String)]
    pub level: Level,
    /// What.
    pub message: String,
}

/// Lines of a placement's events that cannot be read here: the coordinator's disk has not kept them, or, at the end, they have not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MissingLines {
    /// Of which placement.
    #[schema(value_type = String)]
    pub attempt: AttemptId,
    /// The first of them, as `seq` of a log's lines.
    pub from: u64,
    /// The last; null: nobody knows how many there were.
    pub through: Option<u64>,
}

/// A verified checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointView {
    /// By which placement.
    #[schema(value_type = String)]
    pub attempt: AttemptId,
    /// After this step.
    pub step: u64,
    /// The loss of that step.
    pub loss: f64,
    /// Of the evaluation at that step, where there was one; in an event it is null.
    #[serde(default)]
    pub validation_loss: Option<f64>,
    /// Why it was made.
    #[schema(value_type = String)]
    pub kind: CheckpointKind,
    /// Bytes of all files.
    pub size_bytes: u64,
    /// Its files.
    pub files: Vec<FileView>,
    /// When it came, if that is known.
    pub created_at: Option<Timestamp>,
}

/// `GET /api/training-jobs/{id}/events`: one server-sent event. `type` is also the event's name; the stream ends after `complete`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum JobEvent {
    /// The job's state changed, or it has come further.
    Progress(Box<Job>),
    /// A step or an evaluation.
    Metrics(MetricsPoint),
    /// The worker is busy with something else.
    Stage {
        /// With what.
        stage: JobStage,
    },
    /// A word of the worker.
    Log(LogLine),
    /// Lines that should stand here; what is missing at an attempt's end comes just before `complete`.
    Missing(MissingLines),
    /// What it has cost.
    Cost {
        /// So far, in micro-dollars.
        #[serde(rename = "currentCostMicros")]
        current_cost_micros: u64,
    },
    /// A checkpoint was verified and kept.
    Checkpoint(CheckpointView),
    /// Last: the job is COMPLETED, FAILED or CANCELLED.
    Complete(Box<Job>),
    /// The stream itself cannot go on.
    Error {
        /// Why.
        message: String,
    },
}

impl JobEvent {
    /// The event's name in the stream.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Progress(_) => "progress",
            Self::Metrics(_) => "metrics",
            Self::Stage { .. } => "stage",
            Self::Log(_) => "log",
            Self::Missing(_) => "missing",
            Self::Cost { .. } => "cost",
            Self::Checkpoint(_) => "checkpoint",
            Self::Complete(_) => "complete",
            Self::Error { .. } => "error",
        }
    }
}
