//! LoRA (and full) fine-tuning as a library; has never heard of a cluster.
//!
//! Four doors over one [`model::Model`]: [`train`] runs a [`Config`] to its end and tells [`event::Event`]s ([`lead`] and [`follow`] do so
//! with several processes), [`evaluate`] is
//! the loss of a set of examples, [`generate`] continues a prompt, [`export`] writes what the ecosystem reads. [`merge`] and
//! [`gguf`] make of a base and an adapter what others load.
//!
//! ```text
//! run ──► step ──► model (forward, backward by hand) ──► ops
//!  │        └──► data (order, packing), optim, schedule
//!  └──► eval, checkpoint, export
//! ```
//! Same binary, same kind of processor, same micro-batch plan: same bits, whatever the number of threads and however often the
//! run was killed and resumed.

pub mod checkpoint;
pub mod config;
pub mod data;
mod error;
mod eval;
pub mod event;
pub mod export;
pub mod full;
pub mod generate;
pub mod gguf;
mod gpu_test;
pub mod lora;
pub mod merge;
mod merged;
pub mod model;
pub mod ops;
pub mod optim;
pub mod quant;
mod random;
mod ranks;
mod record;
mod run;
pub mod schedule;
mod staged;
mod step;
mod stop;
mod tensor_file;
mod tensorboard;
mod trained;
pub mod trainee;

pub use config::Config;
pub use error::{FailureClass, TrainError};
pub use eval::evaluate;
pub use gpu_test::test_gpu;
pub use run::fingerprint::of_weights as weights_fingerprint;
pub use run::{Course, EvalPoint, Events, Run, State, follow, lead, train};
pub use step::{Taken, step};
pub use stop::{Stop, Wish};
pub use trained::Trained;
