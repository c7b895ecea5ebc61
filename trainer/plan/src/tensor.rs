//! Names and shapes of every tensor a model's files must hold, as Hugging Face names them.

use serde::{Deserialize, Serialize};

use crate::{ModelConfig, Module};

/// One tensor that must be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Its name in the safetensors header.
    pub name: String,
    /// Its shape, rows first.
    pub shape: Vec<usize>,
}

/// Every tensor of the model, in forward order. A tied head has no tensor of its own.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let mut specs = vec![spec("model.embed_tokens.weight", [config.vocab_size, config.hidden_size])];
    for layer in 0..config.num_hidden_layers {
        push_layer(&mut specs, config, layer);
    }
    specs.push(TensorSpec { name: "model.norm.weight".into(), shape: vec![config.hidden_size] });
    if !config.tie_word_embeddings {
        specs.push(spec("lm_head.weight", [config.vocab_size, config.hidden_size]));
    }
    specs
}

/// How many numbers those tensors hold together.
pub fn parameters(config: &ModelConfig) -> u64 {
    tensors(config).iter().map(|spec| spec.shape.iter().map(|n| *n as u64).product::<u64>()).sum()
}

fn push_layer(specs: &mut Vec<TensorSpec>, config: &ModelConfig, layer: usize) {
    let norm = |name: &str| TensorSpec {
        name: format!("model.layers.{layer}.{name}.weight"),
        shape: vec![config.hidden_size],
    };
    let linear = |module: Module| {
        spec(&format!("{}.weight", module.path(layer)), [module.out_features(config), module.in_features(config)])
    };
    specs.push(norm("input_layernorm"));
    specs.extend([Module::QProj, Module::KProj, Module::VProj, Module::OProj].map(linear));
    specs.push(norm("post_attention_layernorm"));
    specs.extend([Module::GateProj, Module::UpProj, Module::DownProj].map(linear));
}

fn spec(name: &str, shape: [usize; 2]) -> TensorSpec {
    TensorSpec { name: name.into(), shape: shape.to_vec() }
}
