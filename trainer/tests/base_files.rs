//! Base models that cannot be used are refused by name; one that can is the same in one file or several; greedy sampling.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use lorikeet_plan::BaseDtype;
use lorikeet_trainer::TrainError;
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::generate::greedy;
use lorikeet_trainer::model::Model;
use safetensors::SafeTensors;
use tempfile::TempDir;

#[test]
fn shards_and_a_single_file_make_the_same_model() {
    let dir = copy("untied_all_f32");
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let bytes = shards.map(|name| fs::read(dir.path().join(name)).expect("a shard"));
    let files = bytes.each_ref().map(|bytes| SafeTensors::deserialize(bytes).expect("safetensors"));
    let sharded = logits(&Model::load(dir.path()).expect("sound"));
    let tensors = files.iter().flat_map(SafeTensors::tensors);
    safetensors::serialize_to_file(tensors, None, &dir.path().join("model.safetensors")).expect("written");
    for name in shards.iter().chain(&["model.safetensors.index.json"]) {
        fs::remove_file(dir.path().join(name)).expect("removed");
    }
    assert_eq!(logits(&Model::load(dir.path()).expect("sound")), sharded);
}

#[test]
fn loading_is_given_up_between_two_pieces() {
    let dir = copy("untied_all_f32");
    let asked = AtomicUsize::new(0);
    let loaded = Model::load_unless(dir.path(), BaseDtype::F32, &|| asked.fetch_add(1, Ordering::Relaxed) >= 3);
    assert!(matches!(loaded, Err(TrainError::Stopped)), "{:?}", loaded.err());
    let all = AtomicUsize::new(0);
    let count = || {
        all.fetch_add(1, Ordering::Relaxed);
        false
    };
    Model::load_unless(dir.path(), BaseDtype::F32, &count).expect("sound");
    assert!(all.into_inner() >= 20, "every tensor of two layers, head, embedding and norm");
    assert!(asked.into_inner() < 10, "it went on for long");
}

#[test]
fn every_kind_of_bad_base_is_named_and_nothing_is_loaded() {
    assert_refused("config.json", |dir| fs::remove_file(dir.join("config.json")));
    assert_refused("config.json", |dir| {
        fs::write(dir.join("config.json"), r#"{"architectures": ["GPT2LMHeadModel"]}"#)
    });
    assert_refused("model.safetensors", |dir| fs::write(dir.join("model.safetensors"), b"no header"));
    assert_refused("model.safetensors", |dir| {
        let bytes = fs::read(dir.join("model.safetensors"))?;
        fs::write(dir.join("model.safetensors"), &bytes[..bytes.len() - 100])
    });
    assert_refused("model.safetensors", |dir| {
        let bytes = fs::read(dir.join("model.safetensors"))?;
        let text = String::from_utf8_lossy(&bytes[8..]).find("model.norm.weight").expect("a tensor");
        let mut bytes = bytes;
        bytes[8 + text..][..10].copy_from_slice(b"nodel.norm");
        fs::write(dir.join("model.safetensors"), bytes)
    });
    assert_refused("model.safetensors", |dir| {
        let text = fs::read_to_string(dir.join("config.json"))?;
        fs::write(dir.join("config.json"), text.replace("\"intermediate_size\": 48", "\"intermediate_size\": 44"))
    });
    assert_refused("pytorch_model.bin", |dir| fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")));
}

#[test]
fn a_number_that_is_none_is_refused_by_the_name_of_its_tensor() {
    let dir = copy("untied_all_f32");
    let path = dir.path().join("model-00002-of-00002.safetensors");
    let bytes = fs::read(&path).expect("a shard");
    let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("safetensors");
    for (name, number) in [("lm_head.weight", f32::NAN), ("model.layers.1.mlp.down_proj.weight", f32::INFINITY)] {
        let last = header + 8 + metadata.info(name).expect("it is there").data_offsets.1 - 4;
        let mut spoilt = bytes.clone();
        spoilt[last..last + 4].copy_from_slice(&number.to_le_bytes());
        fs::write(&path, spoilt).expect("written");
        let expected = format!("tensor {name} holds {number}, which is not a finite number");
        for dtype in [BaseDtype::F32, BaseDtype::Bf16, BaseDtype::Int8, BaseDtype::Nf4] {
            match Model::load_unless(dir.path(), dtype, &|| false) {
                Err(TrainError::Base { path: named, reason }) => {
                    assert_eq!((named, reason), (path.clone(), expected.clone()))
                }
                other => panic!("{dtype:?}: {:?}", other.map(|_| "loaded")),
            }
        }
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let dir = copy("tied_qv_llama3_bf16");
    let model = Model::load(dir.path()).expect("sound");
    let mut batch = MicroBatch::default();
    batch.push(&[1, 80, 2], &[true; 3], 0, 0, 0);
    match model.loss(&batch, &[], &|| false) {
        Err(TrainError::Dataset { reason }) => {
            assert!(reason.contains("token 80") && reason.contains("vocabulary of 80"))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn greedy_sampling_takes_the_likeliest_and_ends_where_it_should() {
    let dir = copy("tied_qv_llama3_bf16");
    let model = Model::load(dir.path()).expect("sound");
    let prompt = [3, 14, 15];
    let answer = greedy(&model, None, &prompt, 5, &[], &|| false).expect("a sample");
    assert_eq!(answer.len(), 5);
    let mut tokens = prompt.to_vec();
    for next in &answer {
        let logits = model.logits(&tokens, None).expect("a pass");
        let last = &logits[logits.len() - 80..];
        assert!(last.iter().all(|x| *x <= last[*next as usize]));
        tokens.push(*next);
    }
    let until = greedy(&model, None, &prompt, 5, &[answer[1]], &|| false).expect("a sample");
    let first = answer.iter().position(|token| *token == answer[1]).expect("it is there");
    assert_eq!(until, answer[..=first]);
    assert!(matches!(greedy(&model, None, &prompt, 5, &[], &|| true), Err(TrainError::Stopped)));
}

fn assert_refused(file: &str, spoil: impl FnOnce(&Path) -> std::io::Result<()>) {
    let dir = copy("tied_qv_llama3_bf16");
    spoil(dir.path()).expect("spoilt");
    match Model::load(dir.path()) {
        Err(TrainError::Base { path, reason }) => assert_eq!(path, dir.path().join(file), "{reason}"),
        other => panic!("{file}: {:?}", other.map(|_| "loaded")),
    }
}

fn logits(model: &Model) -> Vec<f32> {
    model.logits(&[1, 2, 3, 4, 5], None).expect("a pass")
}

fn copy(case: &str) -> TempDir {
    let from: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(case).join("base");
    let dir = tempfile::tempdir().expect("a directory");
    for file in fs::read_dir(from).expect("a case") {
        let path = file.expect("a file").path();
        fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    dir
}
