//! What frozen weights take, by how they are stored.

use super::{BaseDtype, Processor, Settings};
use crate::{ModelConfig, Module, tensors};

/// Numbers of one quantised block, which share a scale.
pub const QUANT_BLOCK: usize = 64;
/// Scales of one block, which share a scale of their own.
pub const QUANT_NESTED_BLOCK: usize = 256;
/// Numbers of a quantised weight that are widened at a time, on a CPU.
pub const SCRATCH_NUMBERS: usize = 1 << 20;

/// Bytes of all weights of the model.
pub(super) fn bytes(config: &ModelConfig, settings: &Settings) -> u64 {
    let of = |shape: &[usize], quantisable: bool| match (shape, settings.base_dtype) {
        ([rows, cols], BaseDtype::Nf4) if quantisable => nf4_bytes(rows * cols, settings.processor),
        ([rows, cols], BaseDtype::Int8) if quantisable => (rows * cols + 4 * rows) as u64,
        ([rows, cols], dtype) => (rows * cols) as u64 * plain_bytes(dtype),
        // gains and biases are 32-bit floats everywhere
        (vector, _) => 4 * vector.iter().product::<usize>() as u64,
    };
    let is_projection = |name: &str| name.starts_with("model.layers.");
    tensors(config).iter().map(|spec| of(&spec.shape, is_projection(&spec.name))).sum()
}

/// Half a byte a number, a byte a block, and the scales of the blocks with the table that gives them; a GPU has the blocks' scales taken
/// apart.
fn nf4_bytes(numbers: usize, processor: Processor) -> u64 {
    let blocks = numbers.div_ceil(QUANT_BLOCK);
    if processor == Processor::Cuda {
        return (numbers.div_ceil(2) + 4 * blocks) as u64;
    }
    (numbers.div_ceil(2) + blocks + 4 * (blocks.div_ceil(QUANT_NESTED_BLOCK) + 256)) as u64
}

/// Bytes of a number in embedding and head, and in projections that are not quantised.
const fn plain_bytes(dtype: BaseDtype) -> u64 {
    match dtype {
        BaseDtype::F32 => 4,
        BaseDtype::Bf16 | BaseDtype::Int8 | BaseDtype::Nf4 => 2,
    }
}

/// Numbers in the projections of one layer.
pub(crate) fn linear_parameters(config: &ModelConfig) -> u64 {
    Module::of(config).iter().map(|module| (module.in_features(config) * module.out_features(config)) as u64).sum()
}
