//! Memory of a training step, from shapes alone: printed before loading, used by the scheduler, compared with what was used.
//!
//! Counted is what the tape keeps per layer (layer input, q, k, v, attention output, log-sum-exp, middle residual, gate, up,
//! and `x·A` of every adapted module; q and k before their norm, and what goes into a norm behind a half, where the model has
//! such); other norms and the activation are computed again in the backward pass.

use serde::{Deserialize, Serialize};

use crate::{ModelConfig, Module, parameters};

/// Rows of logits that the head holds at a time, forward and backward.
pub const HEAD_CHUNK_ROWS: usize = 256;

/// How the frozen weights lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseDtype {
    /// 32-bit floats; what the CPU computes with.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// 8-bit integers with a scale per row; embeddings and norms stay bf16.
    Int8,
    /// 4-bit normal floats in blocks of 64; embeddings and norms stay bf16.
    Nf4,
}

impl BaseDtype {
    /// Bits of one number in a linear layer, its share of the scales included.
    const fn linear_bits(self) -> f64 {
        match self {
            BaseDtype::F32 => 32.0,
            BaseDtype::Bf16 => 16.0,
            BaseDtype::Int8 => 8.03,
            BaseDtype::Nf4 => 4.13,
        }
    }

    /// Bytes of one number everywhere else, activations included.
    pub const fn plain_bytes(self) -> u64 {
        match self {
            BaseDtype::F32 => 4,
            BaseDtype::Bf16 | BaseDtype::Int8 | BaseDtype::Nf4 => 2,
        }
    }
}

/// What one adapter adds, over all modules that it sits on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterShape {
    /// Numbers it trains.
    pub parameters: u64,
    /// Numbers it holds and does not train.
    pub constants: u64,
    /// Numbers kept per token for its backward: the ranks of its products, with DoRA the outputs too.
    pub products: usize,
    /// Multiplications per token of its forward pass.
    pub operations: u64,
}

impl AdapterShape {
    /// Of one rank on these projections of every layer.
    pub fn uniform(config: &ModelConfig, rank: usize, modules: &[Module]) -> AdapterShape {
        let per_layer = |module: &Module| rank * (module.in_features(config) + module.out_features(config));
        let layers = config.num_hidden_layers;
        let parameters = (layers * modules.iter().map(per_layer).sum::<usize>()) as u64;
        AdapterShape { parameters, constants: 0, products: layers * rank * modules.len(), operations: parameters }
    }
}

/// What a micro-batch looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Adapters trained together; today one.
    pub adapters: Vec<AdapterShape>,
    /// How the frozen weights lie in memory.
    pub base_dtype: BaseDtype,
    /// Tokens of one forward pass.
    pub tokens_per_micro: usize,
    /// Tokens of the longest segment in it.
    pub longest_segment: usize,
    /// Tokens of it that are targets.
    pub supervised_rows: usize,
}

/// Bytes by what they are for. `total` is their sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Frozen weights.
    pub weights: u64,
    /// Adapter weights and their gradients.
    pub adapters: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward.
    pub activations: u64,
    /// Final norm, logits and their gradient, one chunk at a time.
    pub head: u64,
    /// Buffers that one layer needs while it runs.
    pub workspace: u64,
    /// All of them.
    pub total: u64,
}

/// Predicts the memory of one training step.
pub fn plan(config: &ModelConfig, settings: &Settings) -> MemoryPlan {
    let trained: u64 = settings.adapters.iter().map(|adapter| adapter.parameters).sum();
    let constants: u64 = settings.adapters.iter().map(|adapter| adapter.constants).sum();
    let mut plan = MemoryPlan {
        weights: weight_bytes(config, settings.base_dtype),
        adapters: 2 * 4 * trained + 4 * constants,
        optimizer: 2 * 4 * trained,
        activations: activation_bytes(config, settings),
        head: head_bytes(config, settings),
        workspace: workspace_bytes(config, settings),
        total: 0,
    };
    plan.total = plan.weights + plan.adapters + plan.optimizer + plan.activations + plan.head + plan.workspace;
    plan
}

fn weight_bytes(config: &ModelConfig, dtype: BaseDtype) -> u64 {
    let linear = linear_parameters(config) * config.num_hidden_layers as u64;
    let rest = parameters(config) - linear;
    (linear as f64 * dtype.linear_bits() / 8.0).ceil() as u64 + rest * dtype.plain_bytes()
}

/// Numbers in the projections of one layer.
pub(crate) fn linear_parameters(config: &ModelConfig) -> u64 {
    Module::of(config).iter().map(|module| (module.in_features(config) * module.out_features(config)) as u64).sum()
}

fn activation_bytes(config: &ModelConfig, settings: &Settings) -> u64 {
    let plain =
        2 * config.hidden_size + 2 * config.query_size() + 2 * config.key_value_size() + 2 * config.intermediate_size;
    let unnormed = if config.qk_norm { config.query_size() + config.key_value_size() } else { 0 };
    let kept = plain + unnormed + if config.post_norms { 2 * config.hidden_size } else { 0 };
    let products = settings.adapters.iter().map(|adapter| adapter.products).max().unwrap_or(0);
    let plain = kept as u64 * settings.base_dtype.plain_bytes();
    // log-sum-exp and the low-rank products stay in f32 whatever the base
    let layers = config.num_hidden_layers as u64;
    settings.tokens_per_micro as u64 * (layers * (plain + 4 * config.num_attention_heads as u64) + 4 * products as u64)
}

fn head_bytes(config: &ModelConfig, settings: &Settings) -> u64 {
    let chunk = settings.supervised_rows.min(HEAD_CHUNK_ROWS);
    4 * (2 * settings.supervised_rows * config.hidden_size + 2 * chunk * config.vocab_size) as u64
}

/// The widest moment of a layer's backward: gradients of gate, up and their product beside two of hidden width.
fn workspace_bytes(config: &ModelConfig, settings: &Settings) -> u64 {
    let hidden = if config.post_norms { 4 } else { 3 } * config.hidden_size;
    let mlp = 3 * config.intermediate_size + hidden;
    let attention = 3 * config.query_size() + 4 * config.key_value_size() + hidden;
    settings.tokens_per_micro as u64 * mlp.max(attention) as u64 * 4
}
