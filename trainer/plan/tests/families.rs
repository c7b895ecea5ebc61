//! One `config.json` of every family as it is shipped: the number of parameters it is known for, and what it means.

use lorikeet_plan::{Activation, Biases, ModelConfig, Module, Rope, RopeScaling, parameters, tensors};
use serde_json::{Value, json};

#[test]
fn shipped_models_have_their_known_numbers_of_parameters() {
    let known = [
        (llama_32_1b(), 1_235_814_400),
        (mistral_7b(), 7_241_732_096),
        (qwen_25_05b(), 494_032_768),
        (qwen_3_06b(), 596_049_920),
        (gemma_2_2b(), 2_614_341_888),
        (gemma_3_1b(), 999_885_952),
        (phi_3_mini(), 3_821_079_552),
        (phi_4_mini(), 3_836_021_760),
    ];
    for (config, expected) in known {
        let model = parse(&config);
        assert_eq!(parameters(&model), expected, "{:?}", model.family);
        let by_type = without(config.clone(), "architectures");
        assert_eq!(parse(&by_type), model, "named by its type");
    }
}

#[test]
fn mistral_has_a_window_in_every_layer_unless_it_says_null() {
    let window = |config: &Value| parse(config).layers[31].window;
    assert_eq!(window(&mistral_7b()), Some(4096));
    assert_eq!(window(&without(mistral_7b(), "sliding_window")), Some(4096));
    assert_eq!(window(&with(mistral_7b(), "sliding_window", Value::Null)), None);
}

#[test]
fn qwen_uses_its_window_only_when_told_and_only_above_a_layer() {
    let model = parse(&qwen_25_05b());
    assert_eq!(model.biases, Biases { qkv: true, out: false, mlp: false });
    assert!(model.layers.iter().all(|layer| layer.window.is_none()));
    let told = with(qwen_25_05b(), "use_sliding_window", json!(true));
    let windows = |config: &Value| parse(config).layers.iter().filter(|layer| layer.window == Some(32_768)).count();
    assert_eq!(windows(&told), 3);
    assert_eq!(windows(&with(told.clone(), "max_window_layers", json!(0))), 24);
    let types: Vec<_> = (0..24).map(|i| if i == 5 { "sliding_attention" } else { "full_attention" }).collect();
    assert_eq!(windows(&with(told.clone(), "layer_types", json!(types))), 1);
    assert!(fails(&with(told.clone(), "layer_types", json!(["full_attention"]))).contains("layer_types"));
    assert!(fails(&with(told, "layer_types", json!(vec!["chunked_attention"; 24]))).contains("chunked_attention"));
}

#[test]
fn qwen_3_norms_queries_and_keys_and_has_no_bias() {
    let model = parse(&qwen_3_06b());
    assert!(model.qk_norm && model.biases == Biases::default() && model.tie_word_embeddings);
    let norms = tensors(&model).into_iter().filter(|spec| spec.name.ends_with("_norm.weight"));
    assert!(norms.map(|spec| spec.shape).eq(vec![vec![128]; 56]));
}

#[test]
fn gemma_2_alternates_windows_and_bends_scores_and_logits() {
    let model = parse(&gemma_2_2b());
    assert!(model.norm_offset && model.post_norms && model.tie_word_embeddings);
    assert_eq!(model.activation, Activation::GeluTanh);
    assert_eq!((model.attention_softcap, model.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((model.embedding_scale, model.query_scale), (48.0, 1.0 / 16.0));
    let windows: Vec<_> = model.layers[..4].iter().map(|layer| layer.window).collect();
    assert_eq!(windows, [Some(4096), None, Some(4096), None]);
    let uncapped = parse(&with(gemma_2_2b(), "final_logit_softcapping", Value::Null));
    assert_eq!(uncapped.logit_softcap, None);
}

#[test]
fn gemma_3_has_five_windows_to_one_and_a_rope_for_each_kind() {
    let model = parse(&gemma_3_1b());
    let full: Vec<_> = (0..26).filter(|i| model.layers[*i].window.is_none()).collect();
    assert_eq!(full, [5, 11, 17, 23]);
    assert!(model.layers.iter().all(|layer| layer.rope == usize::from(layer.window.is_some())));
    assert_eq!(model.ropes, [rope(1e6), rope(1e4)]);
    assert!(model.qk_norm && model.attention_softcap.is_none());
    let old = with(gemma_3_1b(), "rope_scaling", json!({"rope_type": "linear", "factor": 8.0}));
    let scaled = Rope { theta: 1e6, scaling: Some(RopeScaling::Linear { factor: 8.0 }) };
    assert_eq!(parse(&old).ropes, [scaled.clone(), rope(1e4)]);
    let nested = json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}});
    let new = without(without(gemma_3_1b(), "rope_theta"), "rope_local_base_freq");
    assert_eq!(parse(&with(new, "rope_parameters", nested)).ropes, [scaled, rope(1e4)]);
}

#[test]
fn phi_is_fused_and_turns_a_part_of_each_head() {
    let model = parse(&phi_4_mini());
    assert_eq!(Module::of(&model), [Module::QkvProj, Module::OProj, Module::GateUpProj, Module::DownProj]);
    assert_eq!((model.head_dim, model.rotary_dim), (128, 96));
    let Some(RopeScaling::Longrope { long_factor, original_max_position_embeddings, attention_factor, .. }) =
        &model.ropes[0].scaling
    else {
        panic!("{:?}", model.ropes)
    };
    assert_eq!((long_factor.len(), *original_max_position_embeddings), (48, 4096));
    let expected = (1.0 + 32f64.ln() / 4096f64.ln()).sqrt();
    assert!((attention_factor - expected).abs() < 1e-12);
    assert_eq!(parse(&phi_3_mini()).layers[0].window, Some(2047));
    let short = json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]});
    assert!(fails(&with(phi_4_mini(), "rope_scaling", short)).contains("48 numbers"));
}

#[test]
fn yarn_fills_in_what_is_not_said() {
    let yarn = |extra: Value| {
        let mut scaling = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768});
        for (key, value) in extra.as_object().expect("an object") {
            scaling[key] = value.clone();
        }
        match parse(&with(qwen_25_05b(), "rope_scaling", scaling)).ropes[0].scaling {
            Some(RopeScaling::Yarn { beta_fast, beta_slow, attention_factor, .. }) => {
                (beta_fast, beta_slow, attention_factor)
            }
            ref other => panic!("{other:?}"),
        }
    };
    let grown = 0.1 * 4f64.ln() + 1.0;
    assert_eq!(yarn(json!({})), (32.0, 1.0, grown));
    assert_eq!(yarn(json!({"beta_fast": 16, "attention_factor": 1.5})), (16.0, 1.0, 1.5));
    let (.., ratio) = yarn(json!({"mscale": 2.0, "mscale_all_dim": 1.0}));
    assert!((ratio - (0.2 * 4f64.ln() + 1.0) / grown).abs() < 1e-12);
}

#[test]
fn the_padding_token_is_the_files_the_familys_or_none() {
    let pad = |config: &Value| parse(config).pad_token_id;
    assert_eq!([pad(&llama_32_1b()), pad(&gemma_2_2b()), pad(&phi_3_mini())], [None, Some(0), Some(32_000)]);
    assert_eq!(pad(&with(gemma_2_2b(), "pad_token_id", Value::Null)), None);
    assert_eq!(pad(&with(llama_32_1b(), "pad_token_id", json!(128_001))), Some(128_001));
    assert_eq!(pad(&with(llama_32_1b(), "pad_token_id", json!(-1))), Some(128_255));
    assert_eq!(pad(&with(llama_32_1b(), "pad_token_id", json!(128_256))), None);
    assert!(fails(&with(llama_32_1b(), "pad_token_id", json!("<pad>"))).contains("pad_token_id"));
}

fn rope(theta: f64) -> Rope {
    Rope { theta, scaling: None }
}

fn llama_32_1b() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128_256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "attention_bias": false, "attention_dropout": 0.0, "mlp_bias": false, "hidden_act": "silu",
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "tie_word_embeddings": true})
}

fn mistral_7b() -> Value {
    json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "hidden_act": "silu",
        "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32_000, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "sliding_window": 4096, "tie_word_embeddings": false})
}

fn qwen_25_05b() -> Value {
    json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "hidden_act": "silu",
        "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151_936, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "max_window_layers": 21, "sliding_window": 32_768, "use_sliding_window": false, "tie_word_embeddings": true})
}

fn qwen_3_06b() -> Value {
    json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "hidden_act": "silu",
        "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151_936, "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000, "rope_scaling": null, "attention_bias": false, "max_window_layers": 28,
        "sliding_window": null, "use_sliding_window": false, "tie_word_embeddings": true})
}

fn gemma_2_2b() -> Value {
    json!({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 2304,
        "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "vocab_size": 256_000, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
        "sliding_window": 4096})
}

fn gemma_3_1b() -> Value {
    json!({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 1152,
        "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 256, "vocab_size": 262_144, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000, "rope_local_base_freq": 10_000, "rope_scaling": null,
        "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": null, "final_logit_softcapping": null,
        "query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6})
}

fn phi_3_mini() -> Value {
    json!({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072, "hidden_act": "silu",
        "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "vocab_size": 32_064, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "rope_scaling": null, "sliding_window": 2047,
        "attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": false})
}

fn phi_4_mini() -> Value {
    json!({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072, "hidden_act": "silu",
        "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8,
        "vocab_size": 200_064, "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "partial_rotary_factor": 0.75, "sliding_window": 262_144,
        "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 48], "long_factor": vec![1.5; 48]},
        "tie_word_embeddings": true})
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

fn without(mut config: Value, key: &str) -> Value {
    config.as_object_mut().expect("an object").remove(key);
    config
}

fn parse(config: &Value) -> ModelConfig {
    ModelConfig::parse(&config.to_string()).expect("a supported model")
}

fn fails(config: &Value) -> String {
    ModelConfig::parse(&config.to_string()).expect_err("refused").to_string()
}
