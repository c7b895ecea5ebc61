//! Arguments of the commands that take a model of this machine and no server.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// A base model and, if there is one, an adapter on it.
#[derive(Debug, Args)]
pub(crate) struct LocalModel {
    /// The base model's directory, as Hugging Face lays it out
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// An adapter's directory, as PEFT lays it out; the base alone when not given
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    pub(crate) model: LocalModel,
    #[command(flatten)]
    pub(crate) said: Said,
    /// What comes before the message of --chat
    // A requirement that is in conflict with what was given is none to clap.
    #[arg(long, value_name = "TEXT", requires = "chat", conflicts_with = "prompt")]
    pub(crate) system: Option<String>,
    /// 0 takes the likeliest token each time; higher is freer
    #[arg(long, value_name = "T", default_value_t = 0.7, value_parser = temperature)]
    pub(crate) temperature: f64,
    /// Choose among so many of the likeliest tokens; all when not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) top_k: Option<u32>,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability)]
    pub(crate) top_p: f64,
    /// The same seed says the same
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,
    /// Tokens at most
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) max_tokens: u32,
}

/// What the model goes on from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Said {
    /// A text to go on with, as it stands; - reads standard input
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// A message to answer, through the model's chat template; - reads standard input
    #[arg(long, value_name = "TEXT")]
    pub(crate) chat: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    #[command(flatten)]
    pub(crate) model: LocalModel,
    /// The file; every example in it counts
    #[arg(long, value_name = "FILE")]
    pub(crate) dataset: PathBuf,
    /// What is counted: assistant, last, completion or all
    #[arg(long, value_name = "WHAT", default_value = "assistant", hide_possible_values = true)]
    pub(crate) supervise: Supervised,
    /// Cut examples to this many tokens, as training.max_seq_length does
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(64..=131_072))]
    pub(crate) max_seq_length: u32,
    /// Let the model answer, too, and count the answers that are the file's to the letter
    #[arg(long)]
    pub(crate) exact_match: bool,
}

/// Where a merged model goes.
#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// The base model's directory, unquantised
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// The adapter's directory
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// The folder to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Begin another file when one would grow larger
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = shard_size)]
    pub(crate) max_shard_size: u64,
}

/// What is written for llama.cpp.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The file to write; must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) gguf: PathBuf,
    /// The base model's directory
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// The adapter's directory
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,
    /// The whole model with the adapter in its weights, instead of the adapter alone
    #[arg(long)]
    pub(crate) merged: bool,
    /// How weights are stored: f32, f16 or bf16; f32 for an adapter, the base's own type for a model when not given
    #[arg(long = "type", value_name = "TYPE", hide_possible_values = true)]
    pub(crate) stored: Option<Stored>,
    /// What llama.cpp calls the tokenizer's way of splitting text; found out when not given
    #[arg(long, value_name = "NAME", requires = "merged")]
    pub(crate) tokenizer_pre: Option<String>,
}

/// A type of numbers in a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stored {
    F32,
    F16,
    Bf16,
}

/// Which tokens are targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Supervised {
    Assistant,
    Last,
    Completion,
    All,
}

impl From<Supervised> for lorikeet_dataset::Supervise {
    fn from(supervised: Supervised) -> Self {
        match supervised {
            Supervised::Assistant => Self::Assistant,
            Supervised::Last => Self::Last,
            Supervised::Completion => Self::Completion,
            Supervised::All => Self::All,
        }
    }
}

fn shard_size(text: &str) -> Result<u64, String> {
    let size = text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()).filter(|bytes| *bytes >= 1 << 20);
    size.ok_or_else(|| "expected a size of at least 1 MiB, like 5GB".to_owned())
}

fn temperature(text: &str) -> Result<f64, String> {
    within(text, 0.0..=100.0, "0…100")
}

fn probability(text: &str) -> Result<f64, String> {
    within(text, 1e-6..=1.0, "0.000001…1")
}

fn within(text: &str, range: std::ops::RangeInclusive<f64>, words: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("expected a number {words}"))
}
