//! Adapter files that cannot be used are refused by name.

use std::fs;
use std::path::{Path, PathBuf};

use lorikeet_plan::ModelConfig;
use lorikeet_trainer::TrainError;
use lorikeet_trainer::lora::{
    self, AdapterMeta, CONFIG_FILE, LoraConfig, LoraError, LoraLayout, Targets, WEIGHTS_FILE,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

#[test]
fn what_was_saved_is_loaded() {
    let (dir, layout, params) = saved();
    assert_eq!(lora::load(dir.path(), &layout).expect("sound files"), params);
}

#[test]
fn a_missing_file_is_named() {
    for name in [CONFIG_FILE, WEIGHTS_FILE] {
        let (dir, layout, _) = saved();
        fs::remove_file(dir.path().join(name)).expect("removed");
        match lora::load(dir.path(), &layout) {
            Err(LoraError::Io { verb: "read", path, .. }) => assert_eq!(path, dir.path().join(name)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_pickle_is_never_opened() {
    let (dir, layout, _) = saved();
    fs::rename(dir.path().join(WEIGHTS_FILE), dir.path().join("adapter_model.bin")).expect("renamed");
    assert!(matches!(lora::load(dir.path(), &layout), Err(LoraError::Pickle { .. })));
}

#[test]
fn a_setting_that_differs_is_named_with_both_values() {
    for (from, to, key) in [
        ("\"r\": 2", "\"r\": 4", "r"),
        ("\"lora_alpha\": 5", "\"lora_alpha\": 6", "lora_alpha"),
        ("\"use_dora\": false", "\"use_dora\": true", "use_dora"),
        ("\"use_rslora\": false", "\"use_rslora\": true", "use_rslora"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "bias"),
        ("\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", "peft_type"),
        ("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"q_proj\": 1}", "alpha_pattern"),
        ("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa_niter_4\"", "init_lora_weights"),
        ("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save"),
    ] {
        let (dir, layout, _) = saved();
        edit(&dir.path().join(CONFIG_FILE), from, to);
        match lora::load(dir.path(), &layout) {
            Err(LoraError::Setting { key: named, .. }) => assert_eq!(named, key),
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn an_adapter_of_a_kind_that_makes_another_product_is_refused_and_unset_keys_are_nothing() {
    for (key, value) in [
        ("alora_invocation_tokens", "[1, 2]"),
        ("arrow_config", "{\"top_k\": 3}"),
        ("kasa_config", "{\"gamma\": 0.1}"),
        ("layers_pattern", "\"h\""),
        ("monteclora_config", "{\"n\": 4}"),
        ("target_parameters", "[\"experts.gate_up_proj\"]"),
        ("use_bdlora", "{\"nblocks\": 2}"),
        ("use_qalora", "true"),
        ("velora_config", "{\"groups\": 2}"),
    ] {
        let unset = if key == "use_qalora" { "false" } else { "null" };
        let with = |value: &str| {
            let (dir, layout, _) = saved();
            edit(&dir.path().join(CONFIG_FILE), &format!("\"{key}\": {unset}"), &format!("\"{key}\": {value}"));
            lora::load(dir.path(), &layout)
        };
        match with(value) {
            Err(LoraError::Setting { key: named, .. }) => assert_eq!(named, key),
            other => panic!("{key}: {other:?}"),
        }
        for nothing in ["null", "false", "[]", "{}"] {
            with(nothing).unwrap_or_else(|error| panic!("{key} = {nothing}: {error}"));
        }
    }
}

#[test]
fn an_older_config_that_lacks_the_newer_keys_is_read() {
    let (dir, layout, params) = saved();
    let text = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 5.0, "target_modules": ["q_proj"]}"#;
    fs::write(dir.path().join(CONFIG_FILE), text).expect("written");
    assert_eq!(lora::load(dir.path(), &layout).expect("sound files"), params);
}

#[test]
fn a_tensor_that_is_missing_or_too_many_is_named() {
    let (dir, layout, params) = saved();
    let more = layout_of(Targets::Names(vec!["q_proj".into(), "k_proj".into()]));
    let missing = lora::load(dir.path(), &more).expect_err("k_proj is not there");
    assert!(missing.to_string().contains("layers.0.self_attn.k_proj.lora_A.weight is missing"), "{missing}");
    lora::save(dir.path(), &more, &lora::init(&more, 1), &AdapterMeta::default()).expect("saved");
    let extra = lora::load(dir.path(), &layout).expect_err("k_proj is too many");
    assert!(extra.to_string().contains("k_proj") && extra.to_string().contains("not part of this adapter"), "{extra}");
    assert_eq!(params.len(), layout.len());
}

#[test]
fn a_tensor_of_another_shape_or_type_is_named() {
    for (dtype, shape) in [(Dtype::F32, vec![32, 2]), (Dtype::I32, vec![2, 32])] {
        let (dir, layout, _) = saved();
        let bytes = vec![0; 256];
        let tensor = TensorView::new(dtype, shape, &bytes).expect("256 bytes");
        let key = layout.entries()[0].keys()[0].clone();
        safetensors::serialize_to_file([(key.clone(), tensor)], None, &dir.path().join(WEIGHTS_FILE)).expect("written");
        match lora::load(dir.path(), &layout) {
            Err(LoraError::Shape { name, .. }) => assert_eq!(name, key),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_rank_that_no_module_can_use_is_named_before_anything_is_made_for_it() {
    for rank in [1u64 << 28, 1 << 40, (1 << 63) - 1, 513] {
        for (key, from, to) in [
            ("r", "\"r\": 2".to_owned(), format!("\"r\": {rank}")),
            ("rank_pattern", "\"rank_pattern\": {}".to_owned(), format!("\"rank_pattern\": {{\"q_proj\": {rank}}}")),
        ] {
            let (dir, ..) = saved();
            edit(&dir.path().join(CONFIG_FILE), &from, &to);
            match lora::open(dir.path(), &model()) {
                Err(LoraError::Setting { key: named, found, expected, .. }) => {
                    assert_eq!((named, found, &expected[..9]), (key, rank.to_string(), "1 to 512 "));
                }
                other => panic!("{key} {rank}: {other:?}"),
            }
        }
    }
    let (dir, ..) = saved();
    edit(&dir.path().join(CONFIG_FILE), "\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 0}");
    assert!(matches!(lora::open(dir.path(), &model()), Err(LoraError::Setting { key: "rank_pattern", .. })));
}

#[test]
fn a_file_that_is_no_safetensors_or_is_cut_short_is_refused() {
    let (dir, layout, _) = saved();
    let path = dir.path().join(WEIGHTS_FILE);
    let whole = fs::read(&path).expect("saved");
    for bytes in [&whole[..whole.len() - 4], &whole[..20], b"", b"\xff\xff\xff\xff\xff\xff\xff\xff{}"] {
        fs::write(&path, bytes).expect("written");
        assert!(matches!(lora::load(dir.path(), &layout), Err(LoraError::Malformed { .. })));
    }
}

#[test]
fn a_file_far_larger_than_the_adapter_is_not_read_at_all() {
    let (dir, layout, _) = saved();
    let file = fs::OpenOptions::new().write(true).open(dir.path().join(WEIGHTS_FILE)).expect("opened");
    file.set_len(1 << 40).expect("a sparse file");
    assert!(matches!(lora::load(dir.path(), &layout), Err(LoraError::Io { .. })));
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let (dir, layout, params) = saved();
    let missing: PathBuf = dir.path().join("nowhere");
    match lora::save(&missing, &layout, &params, &AdapterMeta::default()) {
        Err(LoraError::Io { verb: "write", path, .. }) => assert!(path.starts_with(&missing)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_fault_keeps_its_place_in_the_trainers_own_error() {
    let (dir, layout, _) = saved();
    edit(&dir.path().join(CONFIG_FILE), "\"r\": 2", "\"r\": 4");
    let error = TrainError::from(lora::load(dir.path(), &layout).expect_err("another rank"));
    assert!(error.to_string().contains("adapter_config.json: r is 4, expected 2"), "{error}");
    let error = TrainError::from(
        LoraLayout::new(&model(), &config(Targets::Names(vec!["query".into()]))).expect_err("no query"),
    );
    assert!(matches!(error, TrainError::Config { key: "lora.target_modules", .. }));
}

fn saved() -> (TempDir, LoraLayout, Vec<f32>) {
    let dir = tempfile::tempdir().expect("a directory");
    let layout = layout_of(Targets::Names(vec!["q_proj".into()]));
    let params: Vec<f32> = lora::init(&layout, 3).iter().map(|x| x + 1.0).collect();
    lora::save(dir.path(), &layout, &params, &AdapterMeta::default()).expect("saved");
    (dir, layout, params)
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("text");
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).expect("written");
}

fn layout_of(targets: Targets) -> LoraLayout {
    LoraLayout::new(&model(), &config(targets)).expect("targets match")
}

fn config(target_modules: Targets) -> LoraConfig {
    LoraConfig { target_modules, ..LoraConfig::plain(2, 5.0, 0.0) }
}

fn model() -> ModelConfig {
    let text = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":32,"intermediate_size":48,"vocab_size":96,
        "num_hidden_layers":1,"num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":64}"#;
    ModelConfig::parse(text).expect("a sound config")
}
