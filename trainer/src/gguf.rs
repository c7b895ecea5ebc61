//! GGUF, the one-file format of llama.cpp: an adapter beside a model ([`write_adapter`]), or the merged model ([`write_model`]).
//!
//! How the file is laid out stands in `gguf/file.rs`, which tensor is called what in `gguf/name.rs`, what is said of a model in
//! `gguf/model.rs` and of its tokenizer in `gguf/vocab.rs`. All of it as llama.cpp's own converters write it.

mod adapter;
mod file;
mod model;
mod name;
mod vocab;

pub use adapter::write_adapter;
pub use file::Type;
pub use model::{ModelOptions, write_model};

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Size of the file.
    pub bytes: u64,
    /// Tensors in it.
    pub tensors: usize,
}
