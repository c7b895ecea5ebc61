//! The adapter: which linear layers carry one, where its numbers lie, how it begins.
//!
//! A layer `y = W x` with an adapter computes
//!
//! ```text
//! y = W x + s · B (A · dropout(x))      A: [rank, in], B: [out, rank], s = alpha / rank  (rsLoRA: alpha / √rank)
//! ```
//!
//! and only A and B are trained (with DoRA the lengths of the adapted weight's rows too, `ops/dora.rs`). All of them lie in one
//! flat `f32` buffer, in PEFT's order (layers, then modules in forward order, A before B), which optimizer, checkpoint and
//! gradient share: [`LoraLayout`] is the map. Which modules are meant is decided in `lora/target.rs` by PEFT's rules; what they
//! begin with in `lora/start.rs`; the files are read and written in `lora/file.rs`.

mod config;
mod error;
mod file;
mod layout;
mod matched;
mod start;
mod svd;
mod target;

pub use config::{Init, LoraConfig};
pub use error::LoraError;
pub use file::{AdapterMeta, CONFIG_FILE, WEIGHTS_FILE, load, open, read_config, save};
pub use layout::{LoraEntry, LoraLayout, Site};
pub use matched::Matched;
pub(crate) use start::complete;
pub use start::init;
pub use target::Targets;

use crate::ops::machine::Params;

/// One adapter as a pass over the model sees it.
#[derive(Debug, Clone, Copy)]
pub struct AdapterView<'a> {
    /// Where its matrices lie.
    pub layout: &'a LoraLayout,
    /// The flat buffer.
    pub params: Params<'a>,
    /// Dropout in this pass; none outside training.
    pub dropout: Option<Dropout>,
}

/// Dropout of one adapter. Which inputs fall out depends on the seed, epoch, example, token within the example, layer,
/// module and channel, and on nothing else: the same whatever shares the micro-batch and however many threads work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of falling out, below 1.
    pub p: f64,
    /// The job's seed.
    pub seed: u64,
}
