//! What a step has in use at once: a walk over the passes of the trainer's `model/`, buffer by buffer.
//!
//! ```text
//! kept per block    x, qkv, out, lse, mid, gate|up, u of every adapter, on a GPU its masks; q|k before their norm, what goes into norms behind
//! throughout        on a GPU row lengths of every adapter
//! between passes    the last output, its gradient, its supervised rows thrice, one chunk of logits; on a GPU u, s dy B and masks of an adapter
//!                   there, and with DoRA v, dv and sums for the row lengths
//! block, backward   MLP exit:  dx, act, dact                        attention exit:   dx, dout
//!                   MLP entry: dx, dact, h, dh                      attention:        dx, dout, dqkv, on a CPU the heads' gradients
//!                                                                   attention entry:  dx, dout, dqkv, h, dh
//!                   beside each product with an adapter: sums for A and B of each block of rows, with DoRA dv and the masked input; on a GPU
//!                   its sums for the row lengths
//!                   on a GPU where the model itself is trained: the parts of sums over rows, for gains and biases
//! ```
//! Every buffer has a row per token. What is given back is taken again before anything new is asked for, so that the most in use
//! is the most held. A test of the trainer counts the buffers of real passes on a CPU against this page.

use super::{
    ADAPTER_BLOCK_ROWS, AdapterShape, BaseDtype, GPU_HEAD_PARTS, GPU_LOGITS, GPU_PART_COLUMNS, GPU_PART_ROWS,
    GPU_SUM_PARTS, HEAD_CHUNK_ROWS, Processor, Settings,
};
use crate::{ModelConfig, Module};

/// The widths of a model as a step sees them; all in numbers per token unless they say otherwise.
pub(super) struct Live<'a> {
    config: &'a ModelConfig,
    settings: &'a Settings,
    hidden: usize,
    queries: usize,
    qkv: usize,
    mlp: usize,
}

impl<'a> Live<'a> {
    pub(super) fn new(config: &'a ModelConfig, settings: &'a Settings) -> Live<'a> {
        Live {
            config,
            settings,
            hidden: config.hidden_size,
            queries: config.query_size(),
            qkv: config.query_size() + 2 * config.key_value_size(),
            mlp: config.intermediate_size,
        }
    }

    /// Bytes that the forward pass keeps, over all blocks.
    pub(super) fn kept(&self) -> u64 {
        let blocks = self.blocks();
        let again = (self.settings.recompute as u64).min(blocks);
        let input = self.tokens() * self.activation(self.hidden);
        again * input + (blocks - again) * self.tokens() * self.token_and_layer() + self.lengths()
    }

    /// Bytes that one token keeps in one block.
    pub(super) fn token_and_layer(&self) -> u64 {
        let unnormed = if self.config.qk_norm { self.queries + self.config.key_value_size() } else { 0 };
        let behind = if self.config.post_norms { 2 * self.hidden } else { 0 };
        let plain = 2 * self.hidden + self.qkv + unnormed + self.queries + 2 * self.mlp + behind;
        let products = self.settings.adapters.iter().map(|adapter| adapter.products).max().unwrap_or(0);
        let blocks = self.blocks().max(1) as usize;
        // what dropout keeps, bit by bit; a CPU has it beside its buffers
        let masks = if self.settings.processor == Processor::Cuda { self.masks().div_ceil(blocks) } else { 0 };
        // log-sum-exp stays in f32 whatever the rest is
        self.activation(plain + products.div_ceil(blocks)) + (masks + 4 * self.config.num_attention_heads) as u64
    }

    /// Bytes of all row lengths, which a GPU has twice: as they are, and as factors. A CPU has them beside its buffers.
    fn lengths(&self) -> u64 {
        let all: usize = self.settings.adapters.iter().map(|adapter| adapter.lengths + adapter.head_lengths).sum();
        if self.settings.processor == Processor::Cpu { 0 } else { 8 * all as u64 }
    }

    /// Bytes in use between the passes, beside what is kept.
    pub(super) fn head(&self) -> u64 {
        let rows = self.settings.supervised_rows;
        let vocabulary = self.config.vocab_size;
        let chunk = match self.settings.processor {
            Processor::Cpu => rows.min(HEAD_CHUNK_ROWS),
            Processor::Cuda => rows.min((GPU_LOGITS / vocabulary).max(1)),
        };
        let plain = self.activation(3 * rows * self.hidden + chunk * vocabulary);
        self.tokens() * self.activation(2 * self.hidden) + plain + self.beside_head(chunk)
    }

    /// Bytes that an adapter on the head has in use for a chunk of rows on a GPU; a CPU's blocks of them are too small to be counted.
    fn beside_head(&self, chunk: usize) -> u64 {
        let of = |adapter: &AdapterShape| {
            let (rank, masks, lengths) = (adapter.head_rank, adapter.head_masks, adapter.head_lengths);
            let parts = if masks > 0 { rank * part_columns(chunk, self.hidden) } else { 0 };
            let masked = if masks > 0 && lengths > 0 { self.hidden } else { 0 };
            // u, v and dv; and of what comes one after another the most
            let held = self.activation(chunk * (rank + 2 * lengths)) + (chunk * masks) as u64;
            let of_pair = self.activation(chunk * rank) + 4 * parts as u64;
            let of_lengths = 4 * (lengths * chunk.div_ceil(GPU_PART_ROWS)) as u64;
            held + of_pair.max(of_lengths).max(self.activation(chunk * masked))
        };
        match self.settings.processor {
            Processor::Cpu => 0,
            Processor::Cuda => self.settings.adapters.iter().map(of).max().unwrap_or(0),
        }
    }

    /// Bytes in use in the widest backward of a block, beside what is kept.
    pub(super) fn layer(&self) -> u64 {
        let (hidden, mlp, queries, qkv) = (self.hidden, self.mlp, self.queries, self.qkv);
        let behind = if self.config.post_norms { hidden } else { 0 };
        let wide =
            |modules: &[Module]| modules.iter().map(|module| module.out_features(self.config)).max().unwrap_or(0);
        let [gate_up, of_qkv] = [Module::of_gate_up(self.config), Module::of_qkv(self.config)].map(wide);
        let of_heads = if self.settings.processor == Processor::Cpu { 3 * queries } else { 0 };
        // each with the input of the adapters there, for DoRA's masks, and their widest output, for its dv
        let moments = [
            (2 * mlp + behind, mlp, hidden),
            (mlp + 2 * hidden, hidden, gate_up),
            (queries + behind, queries, hidden),
            (queries + qkv + of_heads, 0, 0),
            (queries + qkv + 2 * hidden, hidden, of_qkv),
        ];
        let masked = |input: usize| if self.masks() > 0 && self.any_lengths() { input } else { 0 };
        let lengths = |output: usize| if self.any_lengths() { output } else { 0 };
        let of = |(plain, input, output): (usize, usize, usize)| plain + masked(input) + lengths(output);
        let widest = moments.into_iter().map(of).max().unwrap_or(0) + hidden;
        // the highest block is the first: where it is computed again it keeps what it would have kept, but its input, which was
        // there; before a lower one is, the blocks above have given back more than it keeps
        let again = self.settings.recompute as u64 >= self.blocks();
        let whole = if again { self.token_and_layer() - self.activation(hidden) } else { 0 };
        self.tokens() * (self.activation(widest) + whole) + self.sums() + self.widened()
    }

    /// Bytes of the one weight in few bits that a GPU has made brain floats for a product.
    fn widened(&self) -> u64 {
        let few_bits = matches!(self.settings.base_dtype, BaseDtype::Int8 | BaseDtype::Nf4);
        if self.settings.processor == Processor::Cpu || !few_bits {
            return 0;
        }
        let widest = [self.hidden * self.qkv, self.queries * self.hidden, 2 * self.hidden * self.mlp];
        2 * widest.into_iter().max().unwrap_or(0) as u64
    }

    /// Blocks that keep anything.
    fn blocks(&self) -> u64 {
        self.config.num_hidden_layers.saturating_sub(self.settings.lowest()) as u64
    }

    fn tokens(&self) -> u64 {
        self.settings.tokens_per_micro as u64
    }

    fn activation(&self, numbers: usize) -> u64 {
        numbers as u64 * self.settings.activation_bytes()
    }

    /// Bytes per token of what dropout keeps, over all blocks.
    fn masks(&self) -> usize {
        self.settings.adapters.iter().map(|adapter| adapter.masks).max().unwrap_or(0)
    }

    fn rank(&self) -> usize {
        self.settings.adapters.iter().map(|adapter| adapter.rank).max().unwrap_or(0)
    }

    fn any_lengths(&self) -> bool {
        self.settings.adapters.iter().any(|adapter| adapter.lengths > 0)
    }

    fn widest_input(&self) -> usize {
        Module::of(self.config).iter().map(|module| module.in_features(self.config)).max().unwrap_or(0)
    }

    /// Rows of the widest module that has lengths.
    fn widest_length(&self) -> usize {
        let widest = Module::of(self.config).iter().map(|module| module.out_features(self.config)).max();
        if self.any_lengths() { widest.unwrap_or(0) } else { 0 }
    }

    /// Bytes of the gradients of one A and B, which on a CPU every block of rows has its own of.
    fn sums(&self) -> u64 {
        if self.settings.processor == Processor::Cuda {
            return self.sums_on_gpu();
        }
        let both = |module: &Module| module.in_features(self.config) + module.out_features(self.config);
        let widest = Module::of(self.config).iter().map(both).max().unwrap_or(0);
        4 * self.tokens().div_ceil(ADAPTER_BLOCK_ROWS as u64) * (self.rank() * widest) as u64
    }

    /// Attention has a number per row and head; adapters have s dy B, and add gradients up where they belong: those of A where there is dropout
    /// and those of row lengths in parts.
    fn sums_on_gpu(&self) -> u64 {
        let parts = self.settings.tokens_per_micro.div_ceil(GPU_PART_ROWS);
        let columns = part_columns(self.settings.tokens_per_micro, self.widest_input());
        let of_masked = if self.masks() > 0 { self.rank() * columns } else { 0 };
        let of_adapters = self.tokens() * self.activation(self.rank()) + 4 * of_masked as u64;
        let of_lengths = 4 * (parts * self.widest_length()) as u64;
        let of_attention = 4 * self.tokens() * self.config.num_attention_heads as u64;
        of_attention.max(of_adapters).max(of_lengths).max(self.parts_of_rows())
    }

    /// Bytes of the parts in which a GPU sums over rows where the model itself is trained, and a factor for each row of a norm.
    fn parts_of_rows(&self) -> u64 {
        if !self.settings.whole() {
            return 0;
        }
        let of_heads = if self.config.qk_norm { 2 * GPU_HEAD_PARTS * self.config.head_dim } else { 0 };
        let parts = (GPU_SUM_PARTS * self.hidden.max(self.qkv).max(self.mlp)).max(of_heads);
        4 * (self.tokens() + parts as u64)
    }
}

/// Columns that the parts of one A's gradient have together on a GPU, where there is dropout.
fn part_columns(rows: usize, inputs: usize) -> usize {
    (rows.div_ceil(GPU_PART_ROWS) * inputs).min(GPU_PART_COLUMNS.max(inputs))
}

#[cfg(test)]
mod tests {
    use super::super::tests::smollm2;
    use super::*;

    #[test]
    fn an_adapter_on_the_head_counts_on_a_gpu_with_one_chunk_of_rows() {
        let config = smollm2();
        let head = |processor, rows, head_rank, head_masks, head_lengths| {
            let shape = AdapterShape { rank: 16, head_rank, head_masks, head_lengths, ..AdapterShape::default() };
            let settings = Settings {
                adapters: vec![shape],
                base_dtype: BaseDtype::Bf16,
                processor,
                tokens_per_micro: rows,
                longest_segment: rows,
                supervised_rows: rows,
                recompute: 0,
            };
            Live::new(&config, &settings).head()
        };
        let more = |processor, rows, masks| head(processor, rows, 16, masks, 0) - head(processor, rows, 0, 0, 0);
        assert_eq!(more(Processor::Cuda, 100, 0), 100 * 2 * (16 + 16), "u and s dy B");
        let chunk = (GPU_LOGITS / 49152) as u64;
        let parts = 4 * 16 * 576 * chunk.div_ceil(GPU_PART_ROWS as u64);
        assert_eq!(more(Processor::Cuda, 10_000, 72), chunk * (2 * (16 + 16) + 72) + parts, "no more than one chunk");
        assert_eq!(more(Processor::Cpu, 100, 72), 0);
        let lengths = head(Processor::Cuda, 300, 16, 0, 49152) - head(Processor::Cuda, 300, 0, 0, 0);
        assert_eq!(lengths, 300 * 2 * (16 + 2 * 49152) + 2 * 4 * 49152, "v, dv and two parts of what lengths get");
    }
}
