//! Why a dataset cannot be used at all. What is wrong *inside* a file is a [`Fault`](crate::Fault), not an error.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::{Faults, Format};

/// Reading, preparing or caching a dataset failed.
#[derive(Debug, Error)]
pub enum DatasetError {
    /// The file cannot be opened or read.
    #[error("read dataset {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing known was recognised.
    #[error("recognise the format of {}: {found}; expected {expected}", path.display())]
    UnknownFormat {
        /// Which file.
        path: PathBuf,
        /// What stands at its beginning.
        found: String,
        /// The formats and what they are known by.
        expected: &'static str,
    },
    /// Filters were asked of a format that marks nothing.
    #[error("filter dataset {}: the keys of [data] ask for marks of BRIGHTRUN_LORA_V4, the file is {format}", path.display())]
    Filters {
        /// Which file.
        path: PathBuf,
        /// What it is.
        format: Format,
    },
    /// Faults were found and are not to be skipped.
    #[error("use dataset {}: {}", path.display(), faults_in_words(faults))]
    Faulty {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        faults: Faults,
    },
    /// Nothing is left to train on.
    #[error("use dataset {}: it holds no trainable example", path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// A split is not possible.
    #[error("split {conversations} conversation(s): {reason}")]
    Split {
        /// How many there are.
        conversations: u64,
        /// Why not.
        reason: String,
    },
    /// More examples than a cache has numbers for.
    #[error("use dataset {}: {examples} examples, expected at most {}", path.display(), u32::MAX)]
    TooMany {
        /// Which file.
        path: PathBuf,
        /// How many there are.
        examples: u64,
    },
    /// The token cache cannot be written or opened: the disk's doing, not the dataset's.
    #[error("{verb} token cache {}", path.display())]
    Cache {
        /// `write` or `open`.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The token cache is not what was written.
    #[error("read token cache {}: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The caller's stop was answered.
    #[error("prepare the dataset: stopped")]
    Stopped,
}

fn faults_in_words(faults: &Faults) -> String {
    match faults.listed.first() {
        Some(first) => {
            let more = if faults.count > 1 { format!(" (and {} more)", faults.count - 1) } else { String::new() };
            format!("line {}, {}: {}{more}", first.line, first.path, first.message)
        }
        None => format!("{} faults", faults.count),
    }
}
