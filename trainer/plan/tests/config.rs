//! `config.json` as models ship it: what is read, what is refused and with which words.

use lorikeet_plan::{
    AdapterShape, BaseDtype, Family, ModelConfig, Module, Processor, RopeScaling, Settings, flops_per_token,
    parameters, plan, tensors,
};
use serde_json::{Value, json};

#[test]
fn smollm2_135m_has_its_known_number_of_parameters() {
    let config = parse(&smollm2());
    assert_eq!(config.family, Family::Llama);
    assert_eq!((config.head_dim, config.queries_per_key()), (64, 3));
    assert_eq!(parameters(&config), 134_515_008);
    assert!(tensors(&config).iter().all(|spec| spec.name != "lm_head.weight"));
    assert_eq!(tensors(&config).len(), 2 + 30 * 9);
}

#[test]
fn an_untied_head_has_a_tensor_of_its_own() {
    let config = parse(&with(smollm2(), "tie_word_embeddings", json!(false)));
    let last = tensors(&config).pop().expect("tensors");
    assert_eq!((last.name.as_str(), last.shape), ("lm_head.weight", vec![49_152, 576]));
}

#[test]
fn both_spellings_of_llama3_rope_scaling_mean_the_same() {
    let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let old = parse(&with(with(smollm2(), "rope_scaling", scaling.clone()), "rope_theta", json!(500000.0)));
    let mut nested = scaling;
    nested["rope_theta"] = json!(500000.0);
    let mut new = with(smollm2(), "rope_parameters", nested);
    new.as_object_mut().expect("object").remove("rope_theta");
    let new = parse(&new);
    assert_eq!(old, new);
    assert_eq!(new.ropes[0].theta, 500000.0);
    let expected = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(new.ropes[0].scaling, Some(expected));
}

#[test]
fn ends_of_text_may_be_one_id_or_several() {
    assert_eq!(parse(&with(smollm2(), "eos_token_id", json!([2, 7]))).eos_token_ids, [2, 7]);
    assert_eq!(parse(&with(smollm2(), "eos_token_id", json!(2))).eos_token_ids, [2]);
    assert!(parse(&with(smollm2(), "eos_token_id", Value::Null)).eos_token_ids.is_empty());
}

#[test]
fn what_is_not_built_is_refused_by_key_and_value() {
    let refused = |key: &str, value: Value| {
        let error = ModelConfig::parse(&with(smollm2(), key, value).to_string()).expect_err(key).to_string();
        assert!(error.contains(key), "{error}");
        error
    };
    assert!(
        refused("architectures", json!(["Gemma3ForConditionalGeneration"])).contains("Gemma3ForConditionalGeneration")
    );
    assert!(refused("use_bidirectional_attention", json!(true)).contains("true"));
    refused("attention_dropout", json!(0.1));
    refused("partial_rotary_factor", json!(0.5));
    refused("attention_bias", json!("yes"));
    assert!(refused("hidden_act", json!("gelu")).contains("gelu"));
    assert!(refused("rope_scaling", json!({"rope_type": "axial", "factor": 4.0})).contains("axial"));
    refused("rope_scaling", json!({"full_attention": {"rope_type": "default"}}));
    refused("quantization_config", json!({"bits": 4}));
    assert!(refused("hidden_size", json!("576")).contains("expected a whole number"));
    refused("num_hidden_layers", json!(0));
    refused("num_key_value_heads", json!(4));
    refused("head_dim", json!(63));
    refused("rms_norm_eps", json!(-1e-6));
    refused("rope_scaling", json!(3));
    refused("eos_token_id", json!("</s>"));
    refused("vocab_size", json!(u64::MAX));
}

#[test]
fn a_missing_key_and_broken_json_are_named() {
    let mut config = smollm2();
    config.as_object_mut().expect("object").remove("vocab_size");
    let error = ModelConfig::parse(&config.to_string()).expect_err("missing").to_string();
    assert!(error.contains("\"vocab_size\" is missing"), "{error}");
    let error = ModelConfig::parse("{\n  \"a\": }").expect_err("broken").to_string();
    assert!(error.contains("line 2"), "{error}");
    assert!(ModelConfig::parse("[]").is_err());
}

#[test]
fn modules_know_their_shapes_and_paths() {
    let config = parse(&smollm2());
    let shapes: Vec<_> =
        Module::of(&config).iter().map(|module| (module.in_features(&config), module.out_features(&config))).collect();
    assert_eq!(shapes, [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]);
    assert_eq!(Module::DownProj.path(3), "model.layers.3.mlp.down_proj");
    assert!(Module::ALL.into_iter().all(|module| Module::from_name(module.name()) == Some(module)));
}

#[test]
fn a_memory_plan_is_the_sum_of_its_parts() {
    let config = parse(&smollm2());
    let memory = plan(&config, &settings());
    assert_eq!(memory.weights, 4 * 134_515_008);
    assert_eq!((memory.adapters, memory.optimizer), (12 * 4_884_480, 8 * 4_884_480));
    let held = memory.weights + memory.adapters + memory.optimizer + memory.activations + memory.program;
    assert_eq!(memory.total, held + memory.head.max(memory.layer), "head and layer take turns");
    assert!((1 << 30..3 << 30).contains(&memory.total), "{memory:?}");
    let totals = BaseDtype::ALL.map(|base_dtype| plan(&config, &Settings { base_dtype, ..settings() }).total);
    assert!(totals.is_sorted_by(|wide, narrow| wide > narrow), "{totals:?}");
}

#[test]
fn every_block_computed_again_leaves_only_inputs() {
    let config = parse(&smollm2());
    let plain = plan(&config, &settings());
    let again = plan(&config, &Settings { recompute: 30, ..settings() });
    assert_eq!(again.activations, 30 * 1024 * 576 * 4);
    assert_eq!(again.layer - plain.layer, 1024 * (plain.token_and_layer - 576 * 4));
    assert!(again.total < plain.total);
}

#[test]
fn training_costs_about_four_operations_per_weight_and_token() {
    let config = parse(&smollm2());
    let flops = flops_per_token(&config, &settings());
    let weights = parameters(&config) as f64;
    let ratio = flops.total() as f64 / weights;
    assert!((4.0..5.0).contains(&ratio), "{ratio}");
    assert!(flops.backward > flops.forward);
}

fn settings() -> Settings {
    Settings {
        adapters: vec![AdapterShape::uniform(&parse(&smollm2()), 16, &Module::of(&parse(&smollm2())))],
        base_dtype: BaseDtype::F32,
        processor: Processor::Cpu,
        tokens_per_micro: 1024,
        longest_segment: 256,
        supervised_rows: 1024,
        recompute: 0,
    }
}

fn smollm2() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000, "rope_scaling": null,
        "tie_word_embeddings": true, "attention_bias": false, "hidden_act": "silu", "bos_token_id": 0,
        "eos_token_id": 0
    })
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

fn parse(config: &Value) -> ModelConfig {
    ModelConfig::parse(&config.to_string()).expect("a supported model")
}
