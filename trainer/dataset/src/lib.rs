//! Training files to examples: formats, chat templates, tokens and masks, streamed and judged by line.

mod cache;
mod encode;
mod error;
mod fault;
mod format;
mod prepare;
mod read;
mod record;
mod template;
mod tokenizer;

pub use cache::{CacheWriter, Entry, TokenCache};
pub use encode::{Cut, Encoder, Example, Piece, RenderedSample, Supervise};
pub use error::DatasetError;
pub use fault::{Fault, Faults, LISTED_FAULTS};
pub use format::Format;
pub use prepare::{CutTotal, Examples, Filters, OnFault, PrepareConfig, PrepareReport, Prepared, Progress, prepare};
pub use read::{Item, MAX_RECORD_BYTES, Summary, read};
pub use record::{Key, Message, Record, Role, Target};
pub use tokenizer::{TemplateSource, Tokenizer, TokenizerError, train_tokenizer, write_byte_tokenizer};
