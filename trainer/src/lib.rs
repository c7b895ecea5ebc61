//! LoRA fine-tuning as a library; has never heard of a cluster.

pub mod data;
mod error;
mod random;

pub use error::{FailureClass, TrainError};
