//! LoRA fine-tuning as a library; has never heard of a cluster.

pub mod data;
mod error;
pub mod generate;
pub mod lora;
pub mod model;
pub mod ops;
mod random;

pub use error::{FailureClass, TrainError};
