//! A real training file and a model of SmolLM2's shape: what is in it, what is held out, what is cut, and that five steps help.

#[path = "../../trainer/dataset/tests/samples/mod.rs"]
#[expect(dead_code, reason = "the dataset's tests use more of it")]
mod samples;

use lorikeet_tests::process::run;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[test]
fn five_steps_on_a_real_file_lower_the_loss_on_conversations_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let generated = samples::generated();
    let file = real_file().unwrap_or(generated.json.clone());
    let found: Value = serde_json::from_str(&run(&["dataset", "check", &text(&file), "--output", "json"])).unwrap();
    assert_eq!((found["trainable_pairs"].as_u64(), found["conversations"].as_u64()), (Some(44), Some(12)));
    let base = folder.path().join("base");
    smollm2(&base, &file);
    let out = folder.path().join("out");
    let settings = [
        "training.max_seq_length=1024",
        "training.batch_size=4",
        "training.learning_rate=1e-3",
        "training.max_steps=5",
        "training.validation_fraction=0.1",
        "lora.dropout=0",
    ];
    let (base, dataset, attempt) = (text(&base), text(&file), text(&out));
    let mut words = vec!["train", "--base", &base, "--dataset", &dataset, "--out", &attempt];
    settings.iter().for_each(|setting| words.extend(["--set", setting]));
    run(&words);

    let events: Vec<Value> = std::fs::read_to_string(out.join("events.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |kind: &'static str| events.iter().filter(move |event| event["type"] == kind);
    let plan = of("plan").next().unwrap();
    assert_eq!(plan["examples"].as_u64().unwrap() + plan["validation_examples"].as_u64().unwrap(), 44);
    assert!(plan["validation_examples"].as_u64().unwrap() > 0);
    assert!(plan["longest_tokens"].as_u64().unwrap() <= 1024);
    assert_eq!(plan["cut_examples"].as_u64().unwrap() > 0, plan["cut_tokens"].as_u64().unwrap() > 0);
    assert_eq!(of("step").count(), 5);
    let loss_after =
        |step: u64| of("eval").find(|eval| eval["step"] == step).and_then(|eval| eval["loss"].as_f64()).unwrap();
    eprintln!("plan {plan}; held-out loss {} before, {} after", loss_after(0), loss_after(5));
    assert!(loss_after(5) < loss_after(0));
    assert!(out.join("adapter/adapter_model.safetensors").is_file());
}

/// Where the machine has it; the generated one has the same counts.
fn real_file() -> Option<PathBuf> {
    let samples = std::env::var_os("LORIKEET_SAMPLES")?;
    Some(Path::new(&samples).join("eq-12/EQ-12-conversations-demo.json"))
}

/// Random weights of SmolLM2-135M's shape, and a tokenizer trained on the file with as many entries as it yields.
fn smollm2(folder: &Path, file: &Path) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49_152, "max_position_embeddings": 8_192, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "tie_word_embeddings": true,
    });
    lorikeet_trainer::export::init_base(folder, &config, 1, lorikeet_trainer::export::StoredAs::Bf16)
        .expect("a base can be written");
    let texts = std::fs::read_to_string(file).expect("a base can be written");
    let entries = lorikeet_dataset::train_tokenizer(texts.lines(), 49_152, folder).expect("a tokenizer can be trained");
    assert!(entries < 49_152, "a small file yields fewer entries than the model has: {entries}");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
