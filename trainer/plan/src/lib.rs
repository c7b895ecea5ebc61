//! What a model is made of and what a job on it costs, computed from `config.json` and settings alone.
//!
//! No tensor is touched here: the coordinator predicts memory with this crate, the trainer checks its weights against it
//! and prints the same plan before loading. Its only input from outside are small JSON texts and safetensors headers.

mod base;
mod config;
mod error;
mod family;
mod file;
mod flops;
mod header;
mod memory;
mod module;
mod quantised;
mod rope;
mod tensor;

pub use base::{Base, BaseFault, BaseFile, TensorPlace, inspect_base};
pub use config::{Activation, Biases, Layer, ModelConfig, Quantisation};
pub use error::PlanError;
pub use family::Family;
pub use file::{MAX_CONFIG_BYTES, read_file, read_text};
pub use flops::{Flops, flops_per_token};
pub use header::{Header, HeaderTensor, MAX_HEADER_BYTES, WeightDtype, parse_header};
pub use memory::{
    ADAPTER_BLOCK_ROWS, AdapterShape, BaseDtype, Fitted, GPU_HEAD_PARTS, GPU_LOGITS, GPU_PART_COLUMNS, GPU_PART_ROWS,
    GPU_PROGRAM_BYTES, GPU_SUM_PARTS, HEAD_CHUNK_ROWS, MemoryPlan, PROGRAM_BYTES, Processor, QUANT_BLOCK,
    QUANT_NESTED_BLOCK, Remedy, SCRATCH_NUMBERS, Settings, Shortfall, Wish, fit, plan,
};
pub use module::Module;
pub use quantised::QUANT_STATE;
pub use rope::{Rope, RopeScaling};
pub use tensor::{TensorSpec, parameters, tensors};
