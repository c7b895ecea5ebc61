//! Why a model's configuration cannot be used: always the key, what was found there and what would have been right.

use thiserror::Error;

/// A `config.json` that cannot be planned for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The text is not JSON.
    #[error("read config.json: line {line}, column {column}: {message}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The parser's words.
        message: String,
    },
    /// A key that every model of the family has is absent.
    #[error("read config.json: key {key:?} is missing, expected {expected}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What should stand there.
        expected: &'static str,
    },
    /// A key holds another kind of value.
    #[error("read config.json: key {key:?} holds {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A number makes no sense, alone or beside the others.
    #[error("read config.json: key {key:?} is {found}, expected {expected}")]
    OutOfRange {
        /// The key.
        key: String,
        /// What would be right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The model is sound but asks for something that is not built.
    #[error("use this model: {key} = {value} is not supported ({supported})")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is supported there.
        supported: &'static str,
    },
}
