//! Quantised bases beside bitsandbytes, transformers and PEFT (`goldens/quantised.py` says how the numbers were made).

use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use lorikeet_trainer::config::BaseDtype;
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::lora::{self, AdapterView, LoraLayout};
use lorikeet_trainer::model::Model;
use lorikeet_trainer::ops::widen::Stored;
use lorikeet_trainer::quant::{Int8, LEVELS, Nested, Nf4, Scales, dynamic_map, write_base};
use safetensors::SafeTensors;
use serde_json::Value;

#[test]
fn quantised_numbers_are_those_of_bitsandbytes_bit_for_bit() {
    let file = read("tensors.safetensors");
    let weight = brains(&file, "weight");
    let ours = Nf4::new(&weight, Stored::Bf16);
    assert_eq!(ours.codes, bytes(&file, "nf4.codes"));
    let Scales::Nested(scales) = &ours.scales else { panic!("scales are quantised too") };
    assert_eq!(scales.codes, bytes(&file, "nf4.absmax"));
    assert_eq!(scales.scales, floats(&file, "nf4.nested_absmax"));
    assert_eq!(scales.map[..], floats(&file, "nf4.nested_quant_map")[..]);
    assert_eq!(scales.mean, floats(&file, "nf4.offset")[0]);

    let rows = bytes(&file, "int8.scales").len() / 4;
    let ours = Int8::new(&weight[..rows * 420], 420);
    assert_eq!(ours.codes.iter().map(|code| code.cast_unsigned()).collect::<Vec<_>>(), bytes(&file, "int8.codes"));
    assert_eq!(ours.scales, floats(&file, "int8.scales"));
}

#[test]
fn what_bitsandbytes_quantised_is_taken_apart_bit_for_bit() {
    let file = read("tensors.safetensors");
    let scales = Nested {
        codes: bytes(&file, "nf4.absmax"),
        scales: floats(&file, "nf4.nested_absmax"),
        block: 256,
        map: Box::new(dynamic_map()),
        mean: floats(&file, "nf4.offset")[0],
    };
    let (codes, scales) = (bytes(&file, "nf4.codes"), Scales::Nested(scales));
    let weight = Nf4 { codes, scales, block: 64, levels: LEVELS, stored: Stored::Bf16 };
    let mut numbers = vec![f32::NAN; 40 * 420];
    weight.widen(0, &mut numbers);
    assert_eq!(numbers, brains(&file, "nf4.weight"));
}

#[test]
fn a_base_that_transformers_saved_quantised_holds_the_same_weights() {
    let file = read("expected.safetensors");
    let module = lorikeet_plan::Module::KProj;
    assert_eq!(model("nf4").weight(0, module), brains(&file, "nf4.self_attn.k_proj"));
    assert_eq!(model("int8").weight(0, module), floats(&file, "int8.self_attn.k_proj"));
}

#[test]
fn a_quantised_base_loses_what_it_loses_with_peft() {
    let (model, file) = (model("nf4"), read("expected.safetensors"));
    let config = lora::read_config(&place("adapter")).expect("settings");
    let layout = LoraLayout::new(model.config(), &config).expect("a layout");
    let params = lora::load(&place("adapter"), &layout).expect("an adapter");
    let view = AdapterView { layout: &layout, params: (&params).into(), dropout: None };
    let case: Value = serde_json::from_slice(&fs::read(place("case.json")).expect("read")).expect("JSON");
    let tokens: Vec<u32> = serde_json::from_value(case["tokens"].clone()).expect("tokens");
    let first = case["first_target"].as_u64().expect("a place") as usize;
    near("logits", &model.logits(&tokens, Some(&view)).expect("a pass"), &floats(&file, "logits"), 1e-2);

    let mut batch = MicroBatch::default();
    let supervised: Vec<bool> = (0..tokens.len()).map(|at| at >= first).collect();
    batch.push(&tokens, &supervised, 0, 0, 0);
    let mut grads = vec![0.0; layout.trained()];
    let scale = 1.0 / batch.targets.len() as f32;
    let sums = model.forward_backward(&batch, &[view], &[scale], &mut [&mut grads], &|| false).expect("a pass");
    let loss = sums[0].sum * f64::from(scale);
    for reference in ["loss", "loss.bitsandbytes"] {
        let expected = f64::from(floats(&file, reference)[0]);
        assert!((loss - expected).abs() < 1e-3 * expected, "{reference} {expected}, ours {loss}");
    }
    for entry in layout.entries() {
        for (matrix, range) in [("lora_A", &entry.a), ("lora_B", &entry.b)] {
            let key = format!("base_model.model.{}.{matrix}.weight", entry.site.path());
            near(&key, &grads[range.clone()], &floats(&file, &format!("grad.{key}")), 2e-2);
        }
    }
}

#[test]
fn an_unquantised_base_is_quantised_when_it_is_read() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let stored = lorikeet_trainer::export::StoredAs::Bf16;
    lorikeet_trainer::export::init_base(dir.path(), &config, 3, stored).expect("a base");
    let plain = Model::load(dir.path()).expect("loaded");
    for (dtype, most) in [(BaseDtype::Nf4, 0.17), (BaseDtype::Int8, 0.006)] {
        let model = Model::load_unless(dir.path(), dtype, &|| false).expect("loaded");
        for module in [lorikeet_plan::Module::KProj, lorikeet_plan::Module::UpProj] {
            let (a, b) = (model.weight(1, module), plain.weight(1, module));
            let largest = b.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off > 0.0 && off < most * largest, "{dtype:?}: {off} of {largest}");
        }
    }
}

fn model(name: &str) -> Model {
    Model::load(&place(name)).expect("a base")
}

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/quantised").join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(place(name)).expect("expected numbers")
}

fn bytes(file: &[u8], name: &str) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(file).expect("a sound file");
    tensors.tensor(name).expect("it is there").data().to_vec()
}

fn floats(file: &[u8], name: &str) -> Vec<f32> {
    bytes(file, name).as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

fn brains(file: &[u8], name: &str) -> Vec<f32> {
    bytes(file, name).as_chunks::<2>().0.iter().map(|two| bf16::from_le_bytes(*two).to_f32()).collect()
}

/// Within a share of the largest number.
fn near(what: &str, ours: &[f32], expected: &[f32], share: f32) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    let off = ours.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off <= share * largest, "{what}: off by {off} of {largest}");
}

#[test]
fn a_base_that_was_written_in_fewer_bits_is_the_one_that_is_made_on_reading() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let [plain, nf4, int8] = ["plain", "nf4", "int8"].map(|name| dir.path().join(name));
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    let stored = lorikeet_trainer::export::StoredAs::Bf16;
    lorikeet_trainer::export::init_base(&plain, &config, 3, stored).expect("a base");
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 96).collect();
    for (dtype, to) in [(BaseDtype::Nf4, &nf4), (BaseDtype::Int8, &int8)] {
        let bytes = write_base(&plain, to, dtype, &|| false).expect("written");
        assert!(bytes < fs::metadata(plain.join("model.safetensors")).expect("written").len());
        let made = Model::load_unless(&plain, dtype, &|| false).expect("loaded");
        let read = Model::load(to).expect("read back");
        assert_eq!(read.config().quantisation.expect("named").dtype(), dtype);
        assert_eq!(
            read.logits(&tokens, None).expect("a pass"),
            made.logits(&tokens, None).expect("a pass"),
            "{dtype:?}"
        );
        let error = write_base(to, &dir.path().join("again"), BaseDtype::Nf4, &|| false)
            .expect_err("it is quantised")
            .to_string();
        assert!(error.contains("quantised already") || error.contains("cannot become"), "{error}");
    }
    // a file that cannot be copied, when the weights are written already
    fs::create_dir(plain.join("vocab.json")).expect("made");
    let never = dir.path().join("never");
    write_base(&plain, &never, BaseDtype::Nf4, &|| false).expect_err("a folder is no file");
    let stopped = write_base(&plain, &never, BaseDtype::Nf4, &|| true);
    assert!(matches!(stopped, Err(lorikeet_trainer::TrainError::Stopped)));
    let names = || fs::read_dir(dir.path()).expect("read").map(|entry| entry.expect("an entry").file_name());
    assert!(names().all(|name| !name.to_string_lossy().starts_with('.')), "{:?}", names().collect::<Vec<_>>());
    assert!(!never.exists(), "whole or not at all");
}
