//! The attempt directory: the interface between agent and worker, and what `lorikeet train` leaves behind.
//!
//! ```text
//! job_…-1.3/
//!   spec.json       what to do (Spec), written before the worker starts
//!   lock            held exclusively by the worker for life: the proof of life
//!   worker.json     who holds it (Holder), written by the worker
//!   events.jsonl    what happened: one EventLine a line, append-only; the last, synced, is the outcome
//!   stop.json       asks for a stop of this attempt alone (StopRequest)
//!   checkpoints/    step-00000100/… each complete or not there
//!   metrics.jsonl   a line per step, evaluation and sample; tensorboard/ the same for TensorBoard
//!   adapter/        the result
//!   worker.log      what the process printed
//! ```
//!
//! Signals: SIGTERM saves the state after the last whole step and leaves; SIGUSR2 leaves and saves nothing; SIGUSR1 saves
//! now and goes on. A free lock without an outcome at the end of `events.jsonl` means that the process was lost.
//!
//! After a crash the file goes on behind its last whole line, so a step that is trained again has a second line. Of two lines
//! for one step the later is the one that counts; both hold the same numbers.

mod exit;

pub use exit::Exit;

use crate::{
    agent::CheckpointKind,
    id::{AttemptId, BootId, DeviceId, Hash, UnixMillis},
    job::{FailureClass, JobSpec, StopCause},
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a worker's `--burn-in` begins to say that it cannot tell: a device's name follows. The device has neither passed nor failed.
pub const NO_TEST: &str = "this program has no test for ";

/// Name of the spec in the directory.
pub const SPEC: &str = "spec.json";
/// Name of the lock.
pub const LOCK: &str = "lock";
/// Name of the holder's file.
pub const HOLDER: &str = "worker.json";
/// Name of the events file.
pub const EVENTS: &str = "events.jsonl";
/// Name of the stop request.
pub const STOP: &str = "stop.json";
/// Name of the folder of checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
/// Name of the folder of the result.
pub const ADAPTER: &str = "adapter";
/// Name of the log.
pub const LOG: &str = "worker.log";

/// `spec.json`: everything a worker needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Which attempt; `lorikeet train` has none.
    pub attempt: Option<AttemptId>,
    /// What to do.
    pub job: JobSpec,
    /// The base model's directory, read-only.
    pub base: PathBuf,
    /// The training file, read-only.
    pub dataset: PathBuf,
    /// A file to evaluate on instead of a part of the first, read-only.
    #[serde(default)]
    pub validation: Option<PathBuf>,
    /// An adapter to start from instead of a fresh one.
    pub init_adapter: Option<PathBuf>,
    /// Where token caches may be kept.
    pub cache: PathBuf,
    /// Which devices to use.
    pub devices: Vec<DeviceId>,
    /// CPU threads; `None`: all cores.
    pub threads: Option<u32>,
}

/// `worker.json`: who holds the lock. A pid alone is not a name; with its start time and the boot it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Its start time, in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_ticks: u64,
    /// The boot in which the two above mean something (`/proc/sys/kernel/random/boot_id`).
    pub boot: BootId,
}

/// `stop.json`: asks for a stop of this attempt, whoever else the worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Whether to save first.
    pub save: bool,
    /// Why.
    pub cause: StopCause,
}

/// One line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// Counts from 1 without gaps, over restarts of the worker.
    pub seq: u64,
    /// By the node's clock.
    pub time: UnixMillis,
    /// What happened.
    #[serde(flatten)]
    pub event: WorkerEvent,
}

/// What happens in a worker. JSON only: `type` names the variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum WorkerEvent {
    /// A stage begins.
    Stage {
        /// Which.
        stage: Stage,
    },
    /// What will be done, before it begins.
    Plan(Plan),
    /// A word for people.
    Log {
        /// How loud.
        level: Level,
        /// What.
        message: String,
    },
    /// One optimizer step.
    Step(Step),
    /// The held-out split was evaluated.
    Eval {
        /// After this step; 0: before the first.
        step: u64,
        /// Mean over the split's supervised tokens.
        loss: f64,
        /// exp(loss).
        perplexity: f64,
        /// The loss of the base without an adapter, over the same tokens.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        base_loss: Option<f64>,
        /// Supervised tokens.
        tokens: u64,
        /// How long it took.
        seconds: f64,
    },
    /// A checkpoint is complete on disk.
    Checkpoint {
        /// After this step.
        step: u64,
        /// The loss of that step.
        loss: f64,
        /// Why.
        kind: CheckpointKind,
        /// Its folder, relative to the attempt directory.
        path: String,
    },
    /// Text generated on the way.
    Sample {
        /// After this step.
        step: u64,
        /// What was asked.
        prompt: String,
        /// What came.
        text: String,
    },
    /// Last: the adapter is complete in `adapter/`.
    Finished {
        /// The last step.
        step: u64,
        /// Every file of `adapter/`.
        files: Vec<WrittenFile>,
    },
    /// Last: stopped as asked.
    Stopped {
        /// The last whole step.
        step: u64,
        /// The checkpoint's folder, if one was saved.
        checkpoint: Option<String>,
        /// Why.
        cause: StopCause,
    },
    /// Last: it cannot go on.
    Failed {
        /// Whose fault.
        class: FailureClass,
        /// What happened.
        message: String,
        /// What would help.
        hint: Option<String>,
    },
}

impl WorkerEvent {
    /// Whether nothing follows.
    pub fn is_outcome(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Stopped { .. } | Self::Failed { .. })
    }
}

/// What a worker is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Reads and tokenises the dataset.
    Data,
    /// Reads the base model.
    Loading,
    /// Trains.
    Training,
    /// Evaluates.
    Validating,
    /// Writes a checkpoint or the adapter.
    Saving,
}

/// What will be done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Training examples.
    pub examples: u64,
    /// Held-out examples.
    pub validation_examples: u64,
    /// Conversations in all.
    pub conversations: u64,
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
    /// Trainable parameters.
    pub trainable_parameters: u64,
    /// Frozen parameters.
    pub base_parameters: u64,
    /// Tokens per micro-batch.
    pub micro_tokens: u64,
    /// Planned memory.
    pub memory_bytes: u64,
    /// What of it is for what.
    #[serde(default)]
    pub memory: Memory,
    /// Blocks that are computed twice to save memory.
    #[serde(default)]
    pub recompute: u64,
    /// What the adapter sits on; nothing where the model itself is trained.
    #[serde(default)]
    pub modules: Vec<Modules>,
    /// The step it goes on from; 0 from the start.
    pub from_step: u64,
    /// What was told of that step; nothing from the start, and from a worker of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Reached>,
}

/// What is told of the step at which a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    /// Passes over the data after it, as a fraction.
    pub epoch: f64,
    /// Mean over the step's supervised tokens.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
}

/// Planned bytes by what they are for. Head and layer take turns with the same memory, so the larger one counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Frozen weights.
    pub weights: u64,
    /// Adapter weights and their gradients.
    pub adapters: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
    /// What the forward pass keeps.
    pub activations: u64,
    /// What one token keeps in one block; a part of `activations`.
    pub token_and_layer: u64,
    /// The last block's output, and logits one chunk at a time.
    pub head: u64,
    /// The widest backward of a block.
    pub layer: u64,
    /// The process itself.
    pub program: u64,
}

/// Adapted modules of one name, rank and shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Modules {
    /// `q_proj`, `embed_tokens`, …
    pub module: String,
    /// Their blocks, like `0-29`; empty for what is in no block.
    pub layers: String,
    /// How many.
    pub count: u64,
    /// The adapter's rank.
    pub rank: u64,
    /// Its alpha.
    pub alpha: f64,
    /// Numbers that go in.
    pub inputs: u64,
    /// Numbers that come out.
    pub outputs: u64,
    /// Trained numbers of all of them.
    pub parameters: u64,
}

/// One optimizer step. `tokens` and `seconds` are of this step alone, `loss` is the whole step's before its update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Counts from 1.
    pub step: u64,
    /// Passes over the data after it, as a fraction.
    pub epoch: f64,
    /// Mean over the step's supervised tokens.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens.
    pub tokens: u64,
    /// Of them supervised.
    pub supervised_tokens: u64,
    /// Wall time.
    pub seconds: f64,
}

/// How loud a word is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// For the record.
    Info,
    /// Worth a look.
    Warning,
    /// Wrong.
    Error,
}

/// A file of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenFile {
    /// Relative to `adapter/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// BLAKE3.
    pub hash: Hash,
}
