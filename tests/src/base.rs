//! A base model small enough to train in a test: random weights, a byte-level tokenizer.

use std::path::Path;

/// `config.json` of a decoder whose step takes some tens of milliseconds: long enough to be killed in.
const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "float32",
  "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
  "vocab_size": 288, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false
}"#;

/// Writes it.
pub fn write(folder: &Path) {
    std::fs::create_dir_all(folder).expect("the folder is ours");
    std::fs::write(folder.join("config.json"), CONFIG).expect("the folder is ours");
    lorikeet_dataset::write_byte_tokenizer(folder).expect("a tokenizer can be written");
    write_weights(folder);
}

/// Names and shapes from the plan, values from a counter: the same on every machine.
fn write_weights(folder: &Path) {
    let config = lorikeet_plan::ModelConfig::parse(CONFIG).expect("our own config");
    let mut seed = 7;
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = lorikeet_plan::tensors(&config)
        .into_iter()
        .map(|spec| {
            let norm = spec.name.ends_with("norm.weight");
            let count = spec.shape.iter().product::<usize>();
            let mut value = || if norm { 1.0_f32 } else { (crate::chance(&mut seed, 2_001) as f32 - 1_000.0) * 8e-5 };
            let bytes = (0..count).flat_map(|_| value().to_le_bytes()).collect();
            (spec.name, spec.shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name.as_str(),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).expect("sizes agree"),
        )
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("the folder is ours");
}
