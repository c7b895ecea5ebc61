//! Why an adapter cannot be used: a setting that fits no module, or files that are not what they should be.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::WEIGHTS_FILE;
use crate::TrainError;

/// Why an adapter cannot be placed, read or written.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// No module has such a name.
    #[error("target_modules {targets} match no module of the base model")]
    NothingMatched {
        /// The setting.
        targets: String,
    },
    /// A module matched on which no adapter can sit.
    #[error("target_modules {targets} match {module}, which cannot carry an adapter (linear layers and embedding can)")]
    CannotCarry {
        /// The setting.
        targets: String,
        /// The first such module.
        module: String,
    },
    /// The string is no regular expression.
    #[error("{key} {pattern:?} is not a regular expression that is understood here: {reason}")]
    Pattern {
        /// The setting.
        key: &'static str,
        /// Its value.
        pattern: String,
        /// The parser's words.
        reason: String,
    },
    /// One item of a setting does nothing.
    #[error("{key} {item:?} matches no module of the base model that could be meant{}", several(item))]
    Unmatched {
        /// The setting.
        key: &'static str,
        /// The name or expression.
        item: String,
    },
    /// Two expressions say different things of one module.
    #[error("{key} {:?} and {:?} say different things of {module}", patterns[0], patterns[1])]
    Ambiguous {
        /// The setting.
        key: &'static str,
        /// The module.
        module: String,
        /// Both expressions.
        patterns: [String; 2],
    },
    /// A rank that makes no sense on a module: what files say is not bounded by anything else.
    #[error("rank {rank} on {module}, expected 1 to {most}")]
    Rank {
        /// The module.
        module: String,
        /// What is asked for.
        rank: usize,
        /// The most it can use.
        most: usize,
    },
    /// The layers make no sense.
    #[error("layers_to_transform {reason}")]
    Layers {
        /// What is wrong with them.
        reason: String,
    },
    /// A module matched that cannot carry this kind of adapter.
    #[error("no adapter on {module}: {reason}")]
    Unfit {
        /// The module.
        module: String,
        /// Why not.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{verb} {}: {source}", path.display())]
    Io {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The directory holds a pickle, which is never opened: reading one runs code.
    #[error("{}: adapters are read from {WEIGHTS_FILE} only, never from pickles", path.display())]
    Pickle {
        /// The pickle.
        path: PathBuf,
    },
    /// `adapter_config.json` says something else than the job.
    #[error("{}: {key} is {found}, expected {expected}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What stands there.
        found: String,
        /// What the job says, or what is supported.
        expected: String,
    },
    /// The tensors' file is not what it says it is.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing, or one too many is there.
    #[error("{}: tensor {name} is {state}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// `missing` or `not part of this adapter`.
        state: &'static str,
    },
    /// A tensor has another shape or type.
    #[error("{}: tensor {name} is {found}, expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type and shape.
        found: String,
        /// What they should be.
        expected: String,
    },
}

/// A list that was written as one text.
fn several(item: &str) -> String {
    let names: Vec<String> = item.split(',').map(|name| format!("{:?}", name.trim())).collect();
    if names.len() > 1 { format!("; a list is written [{}]", names.join(", ")) } else { String::new() }
}

/// A setting of the adapter by its full name.
fn setting(key: &str) -> &'static str {
    let known = ["lora.exclude_modules", "lora.rank_pattern", "lora.alpha_pattern"];
    known.into_iter().find(|name| name.ends_with(key)).unwrap_or("lora.target_modules")
}

fn is_theirs(error: &std::io::Error) -> bool {
    [ErrorKind::NotFound, ErrorKind::InvalidData, ErrorKind::InvalidInput, ErrorKind::PermissionDenied]
        .contains(&error.kind())
}

impl From<LoraError> for TrainError {
    fn from(error: LoraError) -> TrainError {
        let at = |path: &Path, reason: String| TrainError::Adapter { path: path.into(), reason };
        match error {
            LoraError::NothingMatched { .. } | LoraError::CannotCarry { .. } | LoraError::Unfit { .. } => {
                TrainError::Config { key: "lora.target_modules", reason: error.to_string() }
            }
            LoraError::Rank { .. } => TrainError::Config { key: "lora.rank", reason: error.to_string() },
            LoraError::Layers { .. } => {
                TrainError::Config { key: "lora.layers_to_transform", reason: error.to_string() }
            }
            LoraError::Pattern { key, .. } | LoraError::Unmatched { key, .. } | LoraError::Ambiguous { key, .. } => {
                TrainError::Config { key: setting(key), reason: error.to_string() }
            }
            // what stands there is the person's; what a disk refuses is the machine's
            LoraError::Io { verb: "read", path, source } if is_theirs(&source) => {
                at(&path, format!("cannot be read: {source}"))
            }
            LoraError::Io { verb, path, source } => TrainError::Io { verb, path, source },
            LoraError::Pickle { path } => at(&path, "a pickle, which is never opened: expected safetensors".into()),
            LoraError::Malformed { path, reason } => at(&path, reason),
            LoraError::Setting { path, key, found, expected } => {
                at(&path, format!("{key} is {found}, expected {expected}"))
            }
            LoraError::Tensor { path, name, state } => at(&path, format!("tensor {name} is {state}")),
            LoraError::Shape { path, name, found, expected } => {
                at(&path, format!("tensor {name} is {found}, expected {expected}"))
            }
        }
    }
}
