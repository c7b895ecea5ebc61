//! What a run tells while it works, and how it ends.

use std::collections::BTreeMap;

pub use lorikeet_plan::MemoryPlan;
use serde::{Deserialize, Serialize};

use crate::lora::Matched;

/// Something happened. Delivered in order to the callback of [`train`](crate::train); a callback that fails ends the run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A stage begins.
    Stage(Stage),
    /// What will be done, before the first step.
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
    Eval(Eval),
    /// A checkpoint is complete on disk.
    Checkpoint(Checkpoint),
    /// What the model answers at this point.
    Sample(Sample),
    /// The norm of a step's gradient by module, before clipping.
    GradNorms {
        /// Which step.
        step: u64,
        /// By the module's name, in all layers together.
        norms: BTreeMap<String, f64>,
    },
}

/// What the model answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// After this step; 0: before the first.
    pub step: u64,
    /// The message.
    pub prompt: String,
    /// The likeliest answer, cut off after a few dozen tokens.
    pub text: String,
}

/// What a run is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reads and tokenises the data.
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

/// How loud a word is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// For the record.
    Info,
    /// Worth a look.
    Warning,
}

/// What will be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Training examples.
    pub examples: u64,
    /// Held-out examples.
    pub validation_examples: u64,
    /// Conversations in all.
    pub conversations: u64,
    /// Optimizer steps.
    pub total_steps: u64,
    /// Of them with a rising rate.
    pub warmup_steps: u64,
    /// Tokens of one epoch.
    pub epoch_tokens: u64,
    /// Targets of one epoch.
    pub supervised_tokens: u64,
    /// Tokens of the longest example.
    pub longest_tokens: u64,
    /// Examples that lost history to the length limit.
    pub cut_examples: u64,
    /// Tokens lost that way.
    pub cut_tokens: u64,
    /// Numbers that are trained.
    pub trainable_parameters: u64,
    /// Numbers that are frozen.
    pub base_parameters: u64,
    /// Tokens per micro-batch.
    pub micro_tokens: u64,
    /// Blocks that are computed twice to save memory.
    pub recompute: u64,
    /// Planned memory.
    pub memory: MemoryPlan,
    /// What the adapter sits on; nothing where the model itself is trained.
    pub modules: Vec<Matched>,
    /// The step it goes on from; 0 from the start.
    pub from_step: u64,
    /// What was told of that step; nothing from the start.
    pub reached: Option<Reached>,
}

/// What is told of the step at which a run goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reached {
    /// Passes over the data after it.
    pub epoch: f64,
    /// Mean over the step's targets, before its update.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
}

/// One optimizer step; tokens and seconds are of this step alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Counts from 1.
    pub step: u64,
    /// Passes over the data after it.
    pub epoch: f64,
    /// Mean over the step's targets, before its update.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens.
    pub tokens: u64,
    /// Targets among them.
    pub supervised_tokens: u64,
    /// Wall time.
    pub seconds: f64,
}

/// One evaluation of the held-out split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Eval {
    /// After this step; 0: before the first.
    pub step: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean over the split's targets.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// The loss of the base without an adapter.
    pub base_loss: Option<f64>,
    /// Targets.
    pub tokens: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Why a checkpoint was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointKind {
    /// It was time, or an epoch ended.
    Periodic,
    /// The best evaluation so far.
    Best,
    /// After the last step.
    Final,
    /// Told to save, to leave, or unable to go on.
    Emergency,
}

/// A checkpoint that is complete on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// After this step.
    pub step: u64,
    /// The loss of that step.
    pub loss: f64,
    /// Why it was made.
    pub kind: CheckpointKind,
    /// Name of its folder in `checkpoints/`.
    pub name: String,
    /// Every file in it but the manifest.
    pub files: Vec<FileRecord>,
}

/// A file and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name in its directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// BLAKE3, in hexadecimal.
    pub blake3: String,
}

/// How a run ended that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The adapter is complete in `adapter/`.
    Finished {
        /// The last step.
        step: u64,
        /// Every file of `adapter/`.
        files: Vec<FileRecord>,
    },
    /// It was told to stop.
    Stopped {
        /// The last whole step.
        step: u64,
        /// Name of the checkpoint that holds the state after it; none when it was told to discard, or nothing was done.
        checkpoint: Option<String>,
    },
}
