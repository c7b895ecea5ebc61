//! Memory of a training run, from shapes alone: printed before loading, used by the scheduler, compared with what was used.
//!
//! ```text
//! total = weights + adapters + optimizer + activations + max(head, layer) + program
//! ```
//! *activations* is what the forward pass keeps for the backward, *head* and *layer* what is in use beside it at the two moments
//! when most is: between the passes, and inside the widest backward of a layer (`memory/live.rs`). Both take turns with the
//! same memory, so the larger one counts. *program* is what a process holds that trains nothing.

mod fit;
mod live;
mod weights;

use serde::{Deserialize, Serialize};

use crate::{ModelConfig, Module};

pub use fit::{Fitted, Remedy, Shortfall, Wish, fit};
pub(crate) use weights::linear_parameters;
pub use weights::{QUANT_BLOCK, QUANT_NESTED_BLOCK, SCRATCH_NUMBERS};

/// Rows that an adapter's products take at a time; each block has sums of its own for the gradients of A and B.
pub const ADAPTER_BLOCK_ROWS: usize = 128;
/// Rows of logits that the head holds at a time, forward and backward.
pub const HEAD_CHUNK_ROWS: usize = 256;
/// Logits that exist at a time on a GPU, in numbers: 512 MiB of brain floats.
pub const GPU_LOGITS: usize = 1 << 28;

/// Columns of A that the parts of its gradient have on a GPU together at most, where there is dropout.
pub const GPU_PART_COLUMNS: usize = 528 * 64;
/// Rows that such a part has at least, and those whose part of the gradient of row lengths is added up by itself.
pub const GPU_PART_ROWS: usize = 256;

/// Parts in which a GPU sums over the rows of a micro-batch what gains and biases of a trained model get, at most.
pub const GPU_SUM_PARTS: usize = 128;
/// The same of gains of norms over heads, of which every row has many.
pub const GPU_HEAD_PARTS: usize = 2048;

/// How the frozen weights lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
    /// 8-bit integers with a scale per row; embedding, head and norms stay as they are.
    Int8,
    /// 4-bit normal floats in blocks of 64; embedding, head and norms stay as they are.
    Nf4,
}

impl BaseDtype {
    /// Every one, the largest first.
    pub const ALL: [BaseDtype; 4] = [BaseDtype::F32, BaseDtype::Bf16, BaseDtype::Int8, BaseDtype::Nf4];

    /// As settings spell it.
    pub const fn name(self) -> &'static str {
        match self {
            BaseDtype::F32 => "f32",
            BaseDtype::Bf16 => "bf16",
            BaseDtype::Int8 => "int8",
            BaseDtype::Nf4 => "nf4",
        }
    }

    /// Whether a projection is stored in fewer bits than it is computed with and has to be taken apart for every product.
    pub const fn is_quantised(self) -> bool {
        matches!(self, BaseDtype::Int8 | BaseDtype::Nf4)
    }
}

/// What computes: decides how activations lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Processor {
    /// In 32-bit floats, whatever the weights are stored as.
    Cpu,
    /// In 16-bit brain floats, unless the weights are 32-bit floats.
    Cuda,
}

/// What one adapter adds, over all modules that it sits on; or the model itself, where that is trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterShape {
    /// Numbers it trains.
    pub parameters: u64,
    /// Numbers it holds and does not train.
    pub constants: u64,
    /// Numbers kept per token for its backward, over all blocks: the ranks of its products, with DoRA the outputs too.
    pub products: usize,
    /// The largest rank.
    pub rank: usize,
    /// The lowest block that it, or a gradient on the way to it, reaches; blocks below keep nothing.
    pub lowest: usize,
    /// Bytes of one bit per input that dropout may mask, per token and over all blocks; 0 without dropout.
    pub masks: usize,
    /// Its rank on the head; 0 where it has none there.
    pub head_rank: usize,
    /// Bytes of one bit per input of the head that dropout may mask, per row; 0 without.
    pub head_masks: usize,
    /// Rows whose length it trains (DoRA), over all blocks; 0 without.
    pub lengths: usize,
    /// The same on the head.
    pub head_lengths: usize,
    /// It is the model itself.
    pub whole: bool,
    /// Multiplications per token of its forward pass.
    pub operations: u64,
}

impl AdapterShape {
    /// Of one rank on these projections of every layer.
    pub fn uniform(config: &ModelConfig, rank: usize, modules: &[Module]) -> AdapterShape {
        let per_layer = |module: &Module| rank * (module.in_features(config) + module.out_features(config));
        let layers = config.num_hidden_layers;
        let parameters = (layers * modules.iter().map(per_layer).sum::<usize>()) as u64;
        let products = layers * rank * modules.len();
        AdapterShape { parameters, products, rank, operations: parameters, ..AdapterShape::default() }
    }
}

/// What a step looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Adapters trained together; today one.
    pub adapters: Vec<AdapterShape>,
    /// How the frozen weights lie in memory.
    pub base_dtype: BaseDtype,
    /// What computes.
    pub processor: Processor,
    /// Tokens of the largest micro-batch.
    pub tokens_per_micro: usize,
    /// Tokens of the longest segment in it.
    pub longest_segment: usize,
    /// Tokens of it that are targets.
    pub supervised_rows: usize,
    /// How many of the blocks that keep anything, from the lowest up, keep only their input and are computed again.
    pub recompute: usize,
}

impl Settings {
    /// Bytes of one activation.
    const fn activation_bytes(&self) -> u64 {
        match (self.processor, self.base_dtype) {
            (Processor::Cpu, _) | (Processor::Cuda, BaseDtype::F32) => 4,
            (Processor::Cuda, BaseDtype::Bf16 | BaseDtype::Int8 | BaseDtype::Nf4) => 2,
        }
    }

    /// Whether the model itself is trained.
    fn whole(&self) -> bool {
        self.adapters.iter().any(|adapter| adapter.whole)
    }

    /// The lowest block that keeps anything.
    fn lowest(&self) -> usize {
        self.adapters.iter().map(|adapter| adapter.lowest).min().unwrap_or(0)
    }
}

/// Bytes by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Frozen weights.
    pub weights: u64,
    /// What is trained and its gradient; and one moment as bytes, while a checkpoint is written, or on a GPU the copy of an adapter that products take.
    pub adapters: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward.
    pub activations: u64,
    /// What one token keeps in one block that is not computed again; a part of `activations`.
    pub token_and_layer: u64,
    /// Between the passes: the last block's output and its gradient, the final norm, logits one chunk at a time.
    pub head: u64,
    /// In the widest backward of a block: the gradients that are in use at once.
    pub layer: u64,
    /// The program itself with its libraries, threads and open files.
    pub program: u64,
    /// `weights + adapters + optimizer + activations + max(head, layer) + program`.
    pub total: u64,
}

/// What a process holds before it has read anything: its text and libraries, a stack and the packed panels of a matrix product
/// for each of a few threads. Measured on Linux: `docs/memory.md`.
pub const PROGRAM_BYTES: u64 = 24 << 20;

/// What a process takes of a GPU before a run has: the driver's context, the kernels, cuBLAS and cuBLASLt with their room. Not measured yet.
pub const GPU_PROGRAM_BYTES: u64 = 512 << 20;

/// Predicts the memory of one training run: on a GPU what it takes of the card.
pub fn plan(config: &ModelConfig, settings: &Settings) -> MemoryPlan {
    let trained: u64 = settings.adapters.iter().map(|adapter| adapter.parameters).sum();
    let constants: u64 = settings.adapters.iter().map(|adapter| adapter.constants).sum();
    let live = live::Live::new(config, settings);
    let mut plan = MemoryPlan {
        weights: weights::bytes(config, settings),
        adapters: match settings.processor {
            Processor::Cpu => 3 * 4 * trained + 4 * constants,
            // what products take are the model's weights, which are counted
            Processor::Cuda if settings.whole() => (4 + 4) * trained,
            // itself, what products take, and the gradient
            Processor::Cuda => (4 + 2) * (trained + constants) + 4 * trained,
        },
        optimizer: 2 * 4 * trained,
        activations: live.kept(),
        token_and_layer: live.token_and_layer(),
        head: live.head(),
        layer: live.layer(),
        program: match settings.processor {
            Processor::Cpu => PROGRAM_BYTES,
            Processor::Cuda => GPU_PROGRAM_BYTES,
        },
        total: 0,
    };
    let held = plan.weights + plan.adapters + plan.optimizer + plan.activations + plan.program;
    plan.total = held + plan.head.max(plan.layer);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SmolLM2-135M.
    pub(super) fn smollm2() -> ModelConfig {
        let text = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": true}"#;
        ModelConfig::parse(text).expect("a supported model")
    }

    #[test]
    fn a_model_that_is_trained_itself_takes_eighteen_bytes_a_number_of_a_gpu() {
        let config = smollm2();
        let parameters = crate::parameters(&config);
        let of = |processor, base_dtype| {
            let whole = AdapterShape { parameters, whole: true, ..AdapterShape::default() };
            let (adapters, tokens) = (vec![whole], 512);
            let settings = Settings {
                adapters,
                base_dtype,
                processor,
                tokens_per_micro: tokens,
                longest_segment: tokens,
                supervised_rows: tokens,
                recompute: 0,
            };
            plan(&config, &settings)
        };
        let held = |plan: &MemoryPlan| plan.weights + plan.adapters + plan.optimizer;
        // gains stay 32-bit floats in the model as well: two of a block, and the last
        let gains = 61 * 576;
        assert_eq!(held(&of(Processor::Cuda, BaseDtype::Bf16)), 18 * parameters + 2 * gains);
        assert_eq!(held(&of(Processor::Cpu, BaseDtype::F32)), 24 * parameters);
    }
}
