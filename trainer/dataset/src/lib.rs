//! Training files to examples: formats, chat templates, tokens and masks, streamed and judged by line.

mod cache;
mod encode;
mod error;
mod fault;
mod format;
mod prepare;
mod record;
mod tokenizer;

pub use cache::{CacheWriter, Entry, TokenCache};
pub use encode::{Cut, Example, Supervise};
pub use error::DatasetError;
pub use fault::{Fault, Faults, LISTED_FAULTS};
pub use format::Format;
pub use prepare::{CutTotal, Examples, Filters, OnFault, PrepareConfig, PrepareReport, Prepared, Progress, prepare};
pub use record::{Key, Message, Record, Role, Target};
pub use tokenizer::{Tokenizer, TokenizerError};
