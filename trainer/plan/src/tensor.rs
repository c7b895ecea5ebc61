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
    let path = |name: &str| format!("model.layers.{layer}.{name}.weight");
    let norm = |name: &str| vector(path(name), config.hidden_size);
    let push = |specs: &mut Vec<TensorSpec>, module: &Module| {
        let (inputs, outputs) = (module.in_features(config), module.out_features(config));
        specs.push(spec(&path_of(*module, layer, "weight"), [outputs, inputs]));
        if module.has_bias(config) {
            specs.push(vector(path_of(*module, layer, "bias"), outputs));
        }
    };
    specs.push(norm("input_layernorm"));
    Module::of_qkv(config).iter().for_each(|module| push(specs, module));
    if config.qk_norm {
        specs.extend(["self_attn.q_norm", "self_attn.k_norm"].map(|name| vector(path(name), config.head_dim)));
    }
    push(specs, &Module::OProj);
    specs.push(norm("post_attention_layernorm"));
    if config.post_norms {
        specs.push(norm("pre_feedforward_layernorm"));
    }
    Module::of_gate_up(config).iter().for_each(|module| push(specs, module));
    push(specs, &Module::DownProj);
    if config.post_norms {
        specs.push(norm("post_feedforward_layernorm"));
    }
}

fn path_of(module: Module, layer: usize, part: &str) -> String {
    format!("{}.{part}", module.path(layer))
}

fn vector(name: String, len: usize) -> TensorSpec {
    TensorSpec { name, shape: vec![len] }
}

fn spec(name: &str, shape: [usize; 2]) -> TensorSpec {
    TensorSpec { name: name.into(), shape: shape.to_vec() }
}
