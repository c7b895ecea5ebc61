//! What can go wrong in training, told apart by whose doing it is: the person's settings or data, the machine, or ourselves.

use std::any::Any;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lorikeet_plan::Remedy;
use serde::{Deserialize, Serialize};

/// Every way in which the trainer fails. Texts can follow "failed to train: …".
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The caller asked for the pass to end; nothing was changed.
    #[error("stopped on request")]
    Stopped,
    /// A setting, or a combination of settings, that cannot work.
    #[error("setting {key}: {reason}")]
    Config {
        /// The setting, as the job file spells it.
        key: &'static str,
        /// Value found and what was expected.
        reason: String,
    },
    /// The base model's directory cannot be used.
    #[error("base model {}: {reason}", path.display())]
    Base {
        /// The file or directory at fault.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// An adapter's files cannot be used.
    #[error("adapter {}: {reason}", path.display())]
    Adapter {
        /// The file or directory at fault.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// The training data cannot be used.
    #[error("dataset: {reason}")]
    Dataset {
        /// Line and path where known, and what was found.
        reason: String,
    },
    /// A checkpoint does not fit this job.
    #[error("checkpoint {}: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What was expected and found.
        reason: String,
    },
    /// None of the checkpoints that are there can be gone on from.
    #[error("checkpoints {}: none of them is whole: {reason}", path.display())]
    NoCheckpoint {
        /// Where they lie.
        path: PathBuf,
        /// What is wrong with each.
        reason: String,
    },
    /// Loss or gradient norm was not finite; weights and moments are those of the step before.
    #[error("step {step}: {what} is {value}; {}", last_good(checkpoint))]
    NotFinite {
        /// The step that was not taken.
        step: u64,
        /// `loss`, `gradient norm` or `held-out loss`.
        what: &'static str,
        /// What it was.
        value: f64,
        /// Name of the newest checkpoint of a state before that; none where nothing was saved yet.
        checkpoint: Option<String>,
    },
    /// A tensor of the adapter learns nothing.
    #[error("step {step}: no gradient has reached {tensor} ({count} tensors have had none)")]
    Unreached {
        /// After this step.
        step: u64,
        /// The first of them.
        tensor: String,
        /// How many.
        count: usize,
    },
    /// The system refused memory in a pass, of which nothing is left.
    #[error("out of memory: {} needed for {what}, and the system refused them", wanted(*bytes))]
    Refused {
        /// What the memory was for.
        what: String,
        /// How much was asked for at once; 0 where nobody says.
        bytes: u64,
    },
    /// The plan takes more memory than there is.
    #[error(
        "out of memory: {} needed for {what}, {} available: {} too few",
        size(*needed_bytes), size(*available_bytes), size(needed_bytes.saturating_sub(*available_bytes))
    )]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// How much it takes.
        needed_bytes: u64,
        /// How much there is.
        available_bytes: u64,
        /// Settings each of which would make it fit.
        remedies: Vec<Remedy>,
    },
    /// One of the processes that train together cannot go on, and said why.
    #[error("rank {rank}: {why}")]
    Rank {
        /// Which.
        rank: usize,
        /// Whose doing it is.
        class: FailureClass,
        /// In its own words.
        why: String,
    },
    /// One of them is gone without a word; the run goes on from here with new ones.
    #[error("rank {rank} is lost: {why}")]
    RankLost {
        /// Which; 0 leads.
        rank: usize,
        /// How that was seen.
        why: String,
    },
    /// A file could not be read or written.
    #[error("{verb} {}: {source}", path.display())]
    Io {
        /// `read`, `write`, …
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The GPU cannot be used, or refused something that is not memory.
    #[error("gpu: {reason}")]
    Device {
        /// In its driver's words.
        reason: String,
    },
    /// The receiver of events refused one: what is not recorded must not go on.
    #[error("deliver an event: {0}")]
    Report(std::io::Error),
    /// Our own mistake.
    #[error("internal: {0}")]
    Internal(String),
}

#[cfg(feature = "cuda")]
impl From<crate::ops::cuda::GpuError> for TrainError {
    fn from(error: crate::ops::cuda::GpuError) -> TrainError {
        if error.is_out_of_memory() {
            return TrainError::Refused { what: "a GPU".into(), bytes: error.wanted_bytes() };
        }
        TrainError::Device { reason: error.to_string() }
    }
}

/// Whose doing a failure is; decides exit codes, retries and what a person is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureClass {
    /// A setting.
    Config,
    /// The base model's files.
    Base,
    /// The training data.
    Dataset,
    /// A checkpoint or starting adapter that does not fit.
    Checkpoint,
    /// The numbers ran away.
    NotFinite,
    /// Memory.
    OutOfMemory,
    /// The disk is full.
    DiskFull,
    /// Any other trouble with files.
    Io,
    /// A GPU, its driver or its libraries.
    Device,
    /// A process of several that train together went missing.
    RankLost,
    /// Our own mistake.
    Internal,
}

impl TrainError {
    /// Builds the `Io` variant: `.map_err(TrainError::io("read", path))`.
    pub fn io(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.to_owned();
        move |source| TrainError::Io { verb, path, source }
    }

    /// Our own mistake, as a panic that was caught tells it.
    pub fn of_panic(panic: &(dyn Any + Send)) -> TrainError {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        TrainError::Internal(words.unwrap_or("a panic without words").to_owned())
    }

    /// Whose doing it is.
    pub fn class(&self) -> FailureClass {
        match self {
            TrainError::Config { .. } | TrainError::Unreached { .. } => FailureClass::Config,
            TrainError::Base { .. } => FailureClass::Base,
            TrainError::Dataset { .. } => FailureClass::Dataset,
            TrainError::Adapter { .. } | TrainError::Checkpoint { .. } | TrainError::NoCheckpoint { .. } => {
                FailureClass::Checkpoint
            }
            TrainError::NotFinite { .. } => FailureClass::NotFinite,
            TrainError::OutOfMemory { .. } | TrainError::Refused { .. } => FailureClass::OutOfMemory,
            TrainError::Io { source, .. } | TrainError::Report(source) => io_class(source),
            TrainError::Rank { class, .. } => *class,
            TrainError::RankLost { .. } => FailureClass::RankLost,
            TrainError::Device { .. } => FailureClass::Device,
            TrainError::Stopped | TrainError::Internal(_) => FailureClass::Internal,
        }
    }

    /// What to do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        if let TrainError::OutOfMemory { remedies, .. } = self
            && !remedies.is_empty()
        {
            return Some(would_do(remedies));
        }
        if let TrainError::Unreached { .. } = self {
            let hint =
                "target other modules, or look at the data: an answer of one token teaches the first layers nothing";
            return Some(hint.to_owned());
        }
        let hint = match self.class() {
            FailureClass::NotFinite if matches!(self, TrainError::NotFinite { step: 0, .. }) => Some(
                "nothing was learnt yet: look at the base's own numbers, and at those of the adapter that it began with",
            ),
            FailureClass::NotFinite => Some("lower the learning rate, or look at the data of this step"),
            FailureClass::OutOfMemory => Some("use a smaller batch, a shorter sequence, a lower rank or a 4-bit base"),
            FailureClass::DiskFull => Some("free space where it was to be written"),
            FailureClass::Checkpoint if matches!(self, TrainError::Checkpoint { .. }) => {
                Some("a run goes on only with the base, the data and the settings of the adapter that it began with")
            }
            FailureClass::Dataset => Some("`lorikeet dataset check FILE --base DIR` names every fault"),
            FailureClass::Device => Some("`lorikeet doctor` names what a GPU is missing"),
            FailureClass::Internal => Some("this is a bug in lorikeet: please report it"),
            FailureClass::Config
            | FailureClass::Base
            | FailureClass::Checkpoint
            | FailureClass::Io
            | FailureClass::RankLost => None,
        };
        hint.map(str::to_owned)
    }
}

/// `training.base_dtype = nf4 would take 1.2 GiB; lora.rank = 4 …`
fn would_do(remedies: &[Remedy]) -> String {
    let one = |remedy: &Remedy| format!("{} = {} would take {}", remedy.key, remedy.value, size(remedy.bytes));
    format!("each of these would fit: {}", remedies.iter().map(one).collect::<Vec<_>>().join("; "))
}

fn wanted(bytes: u64) -> String {
    if bytes == 0 { "some bytes".into() } else { size(bytes) }
}

/// Bytes as a person reads them.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / (1 << 20) as f64;
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

fn io_class(error: &std::io::Error) -> FailureClass {
    let is = |kinds: &[ErrorKind]| kinds.contains(&error.kind());
    // a limit on the size of files is room that is not there, too
    if is(&[ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge]) {
        FailureClass::DiskFull
    } else if is(&[ErrorKind::OutOfMemory]) {
        FailureClass::OutOfMemory
    } else {
        FailureClass::Io
    }
}

fn last_good(checkpoint: &Option<String>) -> String {
    match checkpoint {
        Some(name) => format!("the last good state is {name}"),
        None => "nothing was saved yet".to_owned(),
    }
}
