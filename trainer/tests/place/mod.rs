//! A tiny random Llama, a few conversations and a folder for what comes of them.

#![expect(unreachable_pub, reason = "shared by test programs, each of which is a crate of its own")]

use std::fs;
use std::path::PathBuf;

use lorikeet_dataset::write_byte_tokenizer;
use lorikeet_trainer::Config;
use lorikeet_trainer::config::{Every, Length, MicroTokens};
use lorikeet_trainer::export::{StoredAs, init_base};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A base model, a dataset and room for attempts.
pub struct Place {
    dir: TempDir,
}

impl Place {
    /// `conversations` of a few tokens each.
    pub fn new(conversations: usize) -> Place {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let base = dir.path().join("base");
        let entries = write_byte_tokenizer(&base).expect("a tokenizer");
        init_base(&base, &tiny(entries), 7, StoredAs::F32).expect("a base");
        let lines: String = (0..conversations).map(|i| format!("{}\n", conversation(i))).collect();
        fs::write(dir.path().join("data.jsonl"), lines).expect("written");
        Place { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Eight steps over two epochs of 14 conversations: dropout, an own order, a checkpoint every fourth step.
    pub fn config(&self, attempt: &str) -> Config {
        let mut config = Config::new(self.path("base"), self.path("data.jsonl"), self.path(attempt));
        config.data.cache = self.path("cache");
        config.micro_tokens = MicroTokens::Tokens(200);
        config.settings.batch_size = 3;
        config.settings.length = Length::Epochs(2);
        config.settings.learning_rate = 5e-3;
        config.settings.lora.rank = 4;
        config.settings.validation_fraction = 0.15;
        config.settings.checkpoint_every = Every::Epoch;
        config
    }
}

fn tiny(vocab_size: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab_size, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "eos_token_id": 2,
        // wide enough for a frozen random head to say anything at all: behind the last norm its logits are bounded by it
        "initializer_range": 0.4,
    })
}

fn conversation(i: usize) -> Value {
    let answer = "so it is ".repeat(1 + i % 4);
    json!({"messages": [
        {"role": "user", "content": format!("tell me number {i}")},
        {"role": "assistant", "content": format!("{} {answer}", i * i)},
    ]})
}
