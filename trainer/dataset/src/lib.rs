//! Training files to examples: formats, chat templates, tokens and masks, streamed and judged by line.
//!
//! ```text
//! file ── format, reader ──► Record ── chat template, tokenizer ──► Example ── token cache ──► train | validation
//!              └─ Fault {line, path, message}       └─ Fault
//! ```
//! [`check`] says what a file holds, [`check_job`] what a job on it comes to, [`prepare`] makes the examples. None of them
//! holds a file in memory, and none trusts it: what is wrong is named, counted, and refused unless told otherwise.

mod cache;
mod check;
mod encode;
mod error;
mod fault;
mod filter;
mod format;
mod guard;
mod job;
mod json;
mod memo;
mod pipeline;
mod prepare;
mod preview;
mod read;
mod record;
mod split;
mod template;
mod tokenizer;

pub use cache::{CacheWriter, TokenCache};
pub use check::{Check, Sample, SampleMessage, check};
pub use encode::{Cut, Encoder, Example, Piece, RenderedSample, Supervise};
pub use error::DatasetError;
pub use fault::{Fault, Faults, LISTED_FAULTS, TooLong};
pub use filter::Filters;
pub use format::Format;
pub use job::{JobCheck, check_job};
pub use json::Json;
pub use prepare::{CutTotal, Examples, OnFault, PrepareConfig, PrepareReport, Prepared, Progress, prepare};
pub use preview::{Preview, preview};
pub use read::{Item, MAX_RECORD_BYTES, Summary, read};
pub use record::{Body, Key, Marks, Message, Record, Role, Target};
pub use tokenizer::{TemplateSource, Tokenizer, TokenizerError, train_tokenizer, write_byte_tokenizer};
