//! Floating-point operations of LoRA training per token, for estimates before anything ran.

use serde::{Deserialize, Serialize};

use crate::memory::linear_parameters;
use crate::{Layer, ModelConfig, Settings};

/// Operations for one token of a training step (a multiply and an add are two).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flops {
    /// Forward pass.
    pub forward: u64,
    /// Backward pass: gradients of activations and adapters, none of frozen weights.
    pub backward: u64,
}

impl Flops {
    /// Both passes.
    pub const fn total(self) -> u64 {
        self.forward + self.backward
    }
}

/// Operations per token of a micro-batch like `settings`: linear layers, causal attention over half the longest segment on
/// average (less where a layer has a window), adapters, and the head on the supervised share of rows.
pub fn flops_per_token(config: &ModelConfig, settings: &Settings) -> Flops {
    let layers = config.num_hidden_layers as u64;
    let linear = 2 * layers * linear_parameters(config);
    let adapters = 2 * settings.adapters.iter().map(|adapter| adapter.operations).sum::<u64>();
    // scores and their product with the values: two GEMMs of 2·d·s/2 each; the backward does five such
    let attention = config.query_size() as u64
        * config.layers.iter().map(|layer| seen(*layer, settings.longest_segment)).sum::<u64>();
    let head = head_share(config, settings);
    Flops { forward: linear + adapters + 2 * attention + head, backward: linear + 2 * adapters + 5 * attention + head }
}

/// Twice the keys that a query of a segment sees on average.
fn seen(layer: Layer, segment: usize) -> u64 {
    let window = layer.window.map_or(segment, |window| window.min(segment));
    (2 * window - window * window / segment.max(1)) as u64
}

fn head_share(config: &ModelConfig, settings: &Settings) -> u64 {
    let whole = 2 * config.hidden_size as u128 * config.vocab_size as u128;
    let share = whole * settings.supervised_rows as u128 / settings.tokens_per_micro.max(1) as u128;
    u64::try_from(share).unwrap_or(u64::MAX)
}
