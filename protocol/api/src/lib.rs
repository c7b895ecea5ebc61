//! The HTTP API of Lorikeet as types, shared by the server and the command line: one file per resource.
//!
//! Every answer is an [`Envelope`] or an [`ErrorEnvelope`]; names are camelCase, enum values upper case, times RFC 3339 in UTC,
//! money integer micro-dollars. The one exception is the job file ([`jobfile`]): its keys are the same in TOML and in JSON.
//! Nothing here does I/O; the paths of all routes stand in [`route`].

pub mod base;
pub mod ca;
pub mod dataset;
pub mod envelope;
pub mod job;
pub mod jobfile;
pub mod model;
pub mod name;
pub mod node;
pub mod route;
pub mod server;
pub mod sweep;
pub mod timestamp;
pub mod token;

pub use envelope::{Envelope, ErrorBody, ErrorCode, ErrorEnvelope, LinesEnvelope, Meta, Pagination};
pub use jobfile::{FieldError, JobFile, Presets};
pub use timestamp::Timestamp;
