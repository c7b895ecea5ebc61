//! What `lorikeet inspect dataset|base|job` prints: one JSON object, the only thing the coordinator ever learns of a user's file.
//!
//! The child process runs with open file descriptors, without network, under limits of memory, time and output. It always
//! prints an [`Inspection`]; a process that ends without one is itself a finding (killed by a limit, or our bug).

use crate::job::JobSpec;
use serde::{Deserialize, Serialize};

/// How many faults are named; beyond that only their number is told.
pub const NAMED_FAULTS: usize = 100;

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Inspection {
    /// Of `inspect dataset`.
    Dataset(DatasetFindings),
    /// Of `inspect base`.
    Base(BaseFindings),
    /// Of `inspect job`.
    Job(JobFindings),
    /// The files cannot be used at all.
    Refused {
        /// Whose fault: a file's, or the settings'.
        faults: Vec<Fault>,
    },
}

/// Something wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Line in the file, from 1, where it has lines.
    pub line: Option<u64>,
    /// JSON path (`$.messages[3].content`), tensor or file name.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Fault {
    /// About the whole, not one place in it.
    pub fn whole(message: impl Into<String>) -> Self {
        Self { line: None, path: String::new(), message: message.into() }
    }
}

/// Training file formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the names are the formats'")]
pub enum DatasetFormat {
    BrightrunLoraV4,
    ChatMessages,
    Sharegpt,
    Alpaca,
    PromptCompletion,
    Text,
}

/// What is in a training file. Token counts belong to a tokenizer: they come with `inspect job`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetFindings {
    /// `None`: no format fits.
    pub format: Option<DatasetFormat>,
    /// Conversations.
    pub conversations: u64,
    /// Pairs, with or without a target.
    pub pairs: u64,
    /// Pairs that can be trained on.
    pub trainable_pairs: u64,
    /// Turns per conversation.
    pub average_turns: f64,
    /// With the base that was named, if one was.
    pub tokens: Option<u64>,
    /// Worth knowing, not wrong.
    pub warnings: Vec<String>,
    /// The first [`NAMED_FAULTS`].
    pub errors: Vec<Fault>,
    /// All of them.
    pub error_count: u64,
    /// The first conversations, before rendering.
    pub samples: Vec<Vec<SampleMessage>>,
}

/// A message of a sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleMessage {
    /// system, user or assistant.
    pub role: String,
    /// At most 2,000 characters.
    pub content: String,
    /// Whether the loss counts it.
    pub supervised: bool,
}

/// What a base model is, from its config and the headers of its files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseFindings {
    /// `LlamaForCausalLM`, …
    pub architecture: String,
    /// Parameters in all.
    pub parameters: u64,
    /// The config as `lorikeet-plan` reads it, for the scheduler's memory plans: `config.json`'s text.
    pub config_json: String,
    /// `BF16`, `F16` or `F32`: what most weights are stored as.
    pub dtype: String,
    /// Entries of the tokenizer.
    pub vocabulary: u64,
    /// Whether it brings a chat template of its own.
    pub chat_template: bool,
    /// The files a worker needs, by name.
    pub files: Vec<String>,
}

/// What a job comes to: dataset × base × settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobFindings {
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
    /// Planned memory on a CPU slot, f32.
    pub cpu_bytes: u64,
    /// Planned memory on a GPU, bf16 weights.
    pub cuda_bytes: u64,
    /// Three examples as the model sees them.
    pub rendered: Vec<RenderedExample>,
}

/// An example as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedExample {
    /// In order; together the whole text.
    pub parts: Vec<RenderedPart>,
}

/// A run of text that is supervised or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedPart {
    /// The text.
    pub text: String,
    /// Whether the loss counts it.
    pub supervised: bool,
}

/// What `lorikeet inspect job` reads from its standard input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobQuestion {
    /// The settings.
    pub job: JobSpec,
}
