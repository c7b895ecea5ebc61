//! What `lorikeet inspect` would find, for clusters that are told instead of looking: sound and small.

use lorikeet_protocol::{
    file::{FileManifest, NamedFile},
    id::Hash,
    inspect::{BaseFindings, DatasetFindings, JobFindings},
};

/// A file of ten bytes.
pub fn file(path: &str, byte: u8) -> NamedFile {
    let hash = Hash([byte; 32]);
    NamedFile { path: path.into(), manifest: FileManifest { size: 10, hash, chunks: vec![hash] } }
}

/// Three conversations.
pub fn dataset() -> DatasetFindings {
    DatasetFindings {
        format: None,
        conversations: 3,
        pairs: 3,
        trainable_pairs: 3,
        average_turns: 2.0,
        tokens: None,
        warnings: vec![],
        errors: vec![],
        error_count: 0,
        samples: vec![],
    }
}

/// A Llama of one number.
pub fn base() -> BaseFindings {
    BaseFindings {
        architecture: "LlamaForCausalLM".into(),
        parameters: 1,
        config_json: "{}".into(),
        dtype: "F32".into(),
        vocabulary: 256,
        chat_template: false,
        files: vec![],
    }
}

/// A job of so many steps, with its plan in bytes for the CPU and for a GPU.
pub fn job(total_steps: u64, cpu_bytes: u64, cuda_bytes: u64) -> JobFindings {
    JobFindings {
        examples: 10,
        validation_examples: 1,
        total_steps,
        epoch_tokens: 100,
        supervised_tokens: 50,
        longest_tokens: 20,
        cut_examples: 0,
        cut_tokens: 0,
        cpu_bytes,
        cuda_bytes,
        rendered: vec![],
    }
}
