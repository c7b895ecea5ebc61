//! What was asked for ([`JobSpec`]) and the words for what became of it.
//!
//! A `JobSpec` is what a job file is resolved into: every field present, every value in its range, presets already applied.
//! It is stored, sent to agents and written into attempt directories; it has no behaviour.

use crate::id::DeviceId;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, time::Duration};

/// One job, complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What people call it, 1–200 characters.
    pub name: String,
    /// The base model as the person named it; the job's record holds the id it stood for.
    pub base: String,
    /// The dataset as the person named it; the job's record holds the id it stood for.
    pub dataset: String,
    /// A dataset to evaluate on, by name or id; then nothing is held out of the first.
    #[serde(default)]
    pub validation_dataset: Option<String>,
    /// The adapter that training begins with, by the name or id of its model; none: a fresh one.
    #[serde(default)]
    pub init_adapter: Option<String>,
    /// The preset that filled what the file left open.
    pub preset: String,
    /// 0–100; higher goes first.
    pub priority: u8,
    /// What to do.
    pub task: Task,
    /// What it needs.
    pub resources: Resources,
    /// What happens when something goes wrong.
    pub policy: Policy,
}

/// What a worker is asked to do. Export and evaluation join later as variants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Task {
    /// Fine-tune an adapter.
    Train(Train),
}

/// A fine-tuning: how to train, and what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// The optimisation.
    pub training: Training,
    /// Which records of the dataset are used.
    pub data: DataFilter,
    /// The adapter.
    pub lora: Lora,
}

/// Which records are used; every filter that is set has to admit one. For datasets that mark their pairs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DataFilter {
    /// The lowest score.
    pub quality_min: Option<f64>,
    /// Tiers; empty admits all, as in the lists below.
    pub tiers: Vec<String>,
    /// Whether a person must have looked at it, or must not.
    pub human_reviewed: Option<bool>,
    /// Personas, by key or name.
    pub personas: Vec<String>,
    /// Emotional arcs, by key or name.
    pub arcs: Vec<String>,
    /// Topics, by key or name.
    pub topics: Vec<String>,
}

/// How to train. Ranges stand in `lorikeet-api`, where a job file becomes this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// What is trained.
    pub method: Method,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Examples per optimizer step, over all GPUs.
    pub batch_size: u32,
    /// Tokens per forward pass: changes speed and memory, not the mathematics.
    pub micro_tokens: MicroTokens,
    /// When it is done.
    pub length: TrainingLength,
    /// Tokens per example at most; history is cut from its oldest side.
    pub max_seq_length: u32,
    /// The learning rate's course.
    pub schedule: Schedule,
    /// AdamW's first decay.
    pub adam_beta1: f64,
    /// AdamW's second decay.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Share of the steps over which the learning rate rises.
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    pub max_grad_norm: f64,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// Of order, dropout and initial weights.
    pub seed: u64,
    /// Share of the conversations held out for evaluation.
    pub validation_fraction: f64,
    /// Which tokens the loss counts.
    pub supervise: Supervise,
    /// When the held-out split is evaluated.
    pub eval_every: Every,
    /// When the state is saved, besides each epoch's end.
    pub checkpoint_every: Every,
    /// How the frozen weights are held.
    pub base_dtype: BaseDtype,
    /// Ends it after so many evaluations in a row without a better one; the best state is what comes out.
    #[serde(default)]
    pub early_stopping: Option<u32>,
    /// Messages that the model answers at every evaluation.
    #[serde(default)]
    pub sample_prompts: Vec<String>,
    /// The gradient's norm by module at every step.
    #[serde(default)]
    pub grad_norms: bool,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// An adapter.
    Lora,
    /// Every weight of the model.
    Full,
}

/// Tokens per forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MicroTokens {
    /// Chosen from the memory plan.
    Auto,
    /// At most this many.
    Tokens(u32),
}

/// When training is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrainingLength {
    /// After this many passes over the examples.
    Epochs(u32),
    /// After this many optimizer steps.
    Steps(u32),
}

/// The learning rate's course, step for step as transformers computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine down to zero.
    Cosine,
    /// A straight line down to zero.
    Linear,
    /// No decay.
    Constant,
    /// No decay at first, then half a cosine down to zero over the last tenth of all steps.
    Wsd,
}

/// Which tokens the loss counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Supervise {
    /// Every assistant turn.
    Assistant,
    /// The last assistant turn.
    Last,
    /// The completion of a prompt.
    Completion,
    /// Everything.
    All,
}

/// When something recurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Every {
    /// At each epoch's end.
    Epoch,
    /// Every so many optimizer steps.
    Steps(u32),
}

/// How the frozen weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseDtype {
    /// bf16 on CUDA; f32 arithmetic on the CPU, whatever the file holds.
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats, and products in them with sums in 32 bits: half the memory, and faster where the processor has them.
    Bf16,
    /// 8-bit integers with a scale a row.
    Int8,
    /// 4-bit normal floats in blocks of 64, their scales in 8 bits.
    Nf4,
}

/// The adapter's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Rank of the update.
    pub rank: u32,
    /// The update is scaled by alpha / rank (alpha / √rank with `rslora`).
    pub alpha: f64,
    /// Dropout on the adapter's input.
    pub dropout: f64,
    /// Where adapters sit.
    pub target_modules: TargetModules,
    /// And where not, though they would.
    pub exclude_modules: Option<TargetModules>,
    /// In these layers only; all where there are none.
    pub layers_to_transform: Vec<u32>,
    /// Other ranks, by expressions for the end of a module's name.
    pub rank_pattern: BTreeMap<String, u32>,
    /// Other alphas, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Scale by alpha / √rank.
    pub rslora: bool,
    /// The adapted weight's rows keep a trained length of their own.
    pub dora: bool,
    /// What it begins with.
    pub init: LoraInit,
    /// B's learning rate over A's (LoRA+).
    pub plus_ratio: Option<f64>,
}

impl Lora {
    /// On every linear layer, the same on each, with nothing else switched on.
    pub fn plain(rank: u32, alpha: f64, dropout: f64) -> Self {
        Self {
            rank,
            alpha,
            dropout,
            target_modules: TargetModules::AllLinear,
            exclude_modules: None,
            layers_to_transform: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            rslora: false,
            dora: false,
            init: LoraInit::Default,
            plus_ratio: None,
        }
    }
}

/// What an adapter begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoraInit {
    /// A random, B zero.
    Default,
    /// The principal singular vectors of the weight.
    Pissa,
}

/// Where adapters sit, by PEFT's rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetModules {
    /// Every linear layer but the head.
    AllLinear,
    /// Modules with these names or endings.
    Names(Vec<String>),
    /// Modules whose whole name matches this regular expression.
    Pattern(String),
}

/// What a job needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// Devices, all of one node.
    pub gpus: u8,
    /// Which devices will do.
    pub gpu: GpuRequest,
    /// The oldest driver that will do; a CPU slot has none.
    #[serde(default)]
    pub min_driver: Option<Driver>,
    /// Labels that a node must have.
    pub labels: BTreeMap<String, String>,
    /// What it would rather have, and does without.
    #[serde(default)]
    pub prefer: Prefer,
    /// Whether it wants its devices for itself.
    pub exclusive: bool,
    /// Time running, over all attempts.
    pub max_runtime: Duration,
}

/// What a job would rather have: among the nodes that will do, those that have more of it come first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefer {
    /// Such devices.
    pub gpu: Option<GpuRequest>,
    /// Nodes with these labels; each counts.
    pub labels: BTreeMap<String, String>,
}

/// Which devices will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GpuRequest {
    /// Any that this binary can train on, the CPU slot included.
    Any,
    /// By its name, as NVML gives it, or a part of it; case does not matter.
    Named(String),
    /// By what it can do.
    Least {
        /// Memory in all.
        min_memory_bytes: Option<u64>,
        /// Compute capability (major, minor).
        min_compute: Option<(u8, u8)>,
    },
}

/// What happens when something goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Tries again after the user's own failures; infrastructure does not count.
    pub retries: u32,
    /// How long a silent attempt is believed alive.
    pub lost_after: Duration,
    /// And what then.
    pub on_lost: OnLost,
    /// Ends the job when its cost reaches this, in micro-dollars.
    pub max_cost_micros: Option<u64>,
}

/// What happens to a job whose attempt is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLost {
    /// Placed again, from the last verified checkpoint.
    Requeue,
    /// Waits for the node, for ever: at most one running copy, always.
    Wait,
    /// Fails.
    Fail,
}

/// Where a job is: what is observed, apart from what is wanted ([`Intent`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Recorded, not yet looked at.
    Submitted,
    /// `lorikeet inspect job` computes examples, steps and tokens.
    Validating,
    /// Waits for a device.
    Queued,
    /// Waits for something that no free device would change.
    Blocked,
    /// Stays where it is until resumed.
    Paused,
    /// Devices are reserved, the offer is out.
    Assigned,
    /// The agent fetches files and starts the worker.
    Preparing,
    /// The worker trains.
    Running,
    /// The worker is done; its files are on their way.
    Finalizing,
    /// A cancel is on its way to the worker.
    Cancelling,
    /// The adapter is here. Terminal.
    Succeeded,
    /// It will not be tried again. Terminal.
    Failed,
    /// Its files or settings do not fit together. Terminal.
    Rejected,
    /// Its time limit is over. Terminal.
    Expired,
    /// As asked. Terminal.
    Cancelled,
}

impl Phase {
    /// Whether the phase is never left.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Rejected | Self::Expired | Self::Cancelled)
    }
}

/// What the user wants of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// That it goes on.
    Run,
    /// That it saves its state and waits.
    Pause,
    /// That it ends.
    Cancel,
}

/// Where an attempt is, as the agent sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptPhase {
    /// The offer is out.
    Offered,
    /// The agent has taken it.
    Accepted,
    /// Files are fetched, the worker started.
    Preparing,
    /// The worker trains.
    Running,
    /// The worker is done, its files are uploaded.
    Finalizing,
    /// Over.
    Done,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The adapter is complete and uploaded.
    Ok,
    /// Stopped with a checkpoint because it was asked to make room or pause.
    Preempted,
    /// Files could not be fetched or the worker not started.
    PrepareFailed,
    /// The node or the process vanished.
    Lost,
    /// The device failed.
    Hardware,
    /// Out of device or main memory.
    Oom,
    /// The node's disk is full, or does not do its work.
    DiskFull,
    /// The time limit is over.
    TimedOut,
    /// Data or settings: the same again would fail the same way.
    UserError,
    /// As asked.
    Cancelled,
    /// A newer attempt took its place.
    Superseded,
    /// No answer to the offer.
    Withdrawn,
}

impl Outcome {
    /// Whether nobody's data or settings are to blame: such an end costs the user no retry.
    pub fn is_infrastructure(self) -> bool {
        matches!(
            self,
            Self::Preempted
                | Self::PrepareFailed
                | Self::Lost
                | Self::Hardware
                | Self::DiskFull
                | Self::Superseded
                | Self::Withdrawn
        )
    }
}

/// What a worker's failure was, told by the trainer itself and never guessed from a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// GPU or main memory did not suffice.
    OutOfMemory,
    /// Loss or gradient was not finite.
    NonFinite,
    /// The dataset.
    Dataset,
    /// The base model's files.
    Base,
    /// The settings.
    Settings,
    /// The disk is full, or does not do its work.
    DiskFull,
    /// The device.
    Hardware,
    /// Our own bug.
    Internal,
}

impl FailureClass {
    /// How an attempt that failed this way ended.
    pub fn outcome(self) -> Outcome {
        match self {
            Self::OutOfMemory => Outcome::Oom,
            Self::DiskFull => Outcome::DiskFull,
            Self::Hardware => Outcome::Hardware,
            Self::NonFinite | Self::Dataset | Self::Base | Self::Settings | Self::Internal => Outcome::UserError,
        }
    }
}

/// Why an attempt is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// The user cancelled the job.
    Cancel,
    /// The user paused the job.
    Pause,
    /// A job of higher priority needs the device.
    Preempt,
    /// The node is drained or its agent told to leave no work behind.
    Drain,
    /// The time limit is over.
    TimeLimit,
    /// A newer attempt took its place.
    Superseded,
    /// A signal from outside.
    Signal,
}

/// A device as the agent finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name on its node.
    pub id: DeviceId,
    /// What it is called: `NVIDIA H200`, or the processor's name.
    pub name: String,
    /// GPU or CPU slot.
    pub kind: DeviceKind,
    /// Memory in all: the GPU's, or the machine's.
    pub memory_bytes: u64,
    /// Memory nobody uses at this moment, foreign processes counted.
    pub free_bytes: u64,
    /// Whether this binary can train on it, and if not, why.
    pub usable: Result<(), String>,
}

/// GPU or CPU slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// The processor and its memory, as one slot.
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Compute capability (major, minor).
        compute: (u8, u8),
        /// Where it says.
        driver: Option<Driver>,
    },
}

/// The version of NVIDIA's driver, as it writes it: `580.65.06`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Driver(pub u16, pub u16, pub u16);

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{:02}", self.0, self.1, self.2)
    }
}

impl Driver {
    /// One to three numbers with dots between them; what is missing is 0.
    pub fn parse(text: &str) -> Option<Self> {
        let parts = text.trim().split('.').map(str::parse).collect::<Result<Vec<u16>, _>>().ok()?;
        match parts[..] {
            [major] => Some(Self(major, 0, 0)),
            [major, minor] => Some(Self(major, minor, 0)),
            [major, minor, patch] => Some(Self(major, minor, patch)),
            _ => None,
        }
    }
}
