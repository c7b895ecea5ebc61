//! Base directories, sound and not: each fault is found from headers alone and named with its file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lorikeet_plan::{Base, ModelConfig, WeightDtype, inspect_base, tensors};
use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn a_sound_directory_has_no_fault_and_a_place_for_every_tensor() {
    let dir = sound();
    let base = inspect_base(dir.path());
    assert_eq!(base.faults, []);
    assert!(base.is_sound());
    assert_eq!(base.architecture.as_deref(), Some("LlamaForCausalLM"));
    assert_eq!(base.dtype, Some(WeightDtype::F32));
    assert_eq!(base.places.len(), tensors(&config()).len());
    let place = &base.places["model.norm.weight"];
    assert_eq!((place.shape.as_slice(), place.bytes), ([8].as_slice(), 32));
    assert!(base.files.iter().any(|file| file.name == "model.safetensors"));
}

#[test]
fn shards_are_read_through_their_index() {
    let dir = directory();
    let all = specs();
    let (first, second) = all.split_at(5);
    write_safetensors(&dir.path().join("model-00001-of-00002.safetensors"), first);
    write_safetensors(&dir.path().join("model-00002-of-00002.safetensors"), second);
    let map: BTreeMap<_, _> = all
        .iter()
        .enumerate()
        .map(|(i, (name, _, _))| {
            (name.clone(), format!("model-0000{}-of-00002.safetensors", if i < 5 { 1 } else { 2 }))
        })
        .collect();
    write_index(dir.path(), &map);
    assert_eq!(inspect_base(dir.path()).faults, []);
    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).expect("remove");
    let base = inspect_base(dir.path());
    assert!(faults(&base).contains("model-00002-of-00002.safetensors: cannot be opened"), "{}", faults(&base));
}

#[test]
fn an_index_may_not_lead_out_of_the_directory() {
    let dir = directory();
    write_index(dir.path(), &BTreeMap::from([("model.norm.weight".to_owned(), "../../etc/x.safetensors".to_owned())]));
    assert!(faults(&inspect_base(dir.path())).contains("in the same directory"));
}

#[test]
fn missing_files_are_named() {
    let dir = tempfile::tempdir().expect("dir");
    let text = faults(&inspect_base(dir.path()));
    assert!(text.contains("config.json: cannot be opened") && text.contains("no weights found"), "{text}");
}

#[test]
fn weights_that_are_no_file_are_called_what_they_are() {
    let dir = tempfile::tempdir().expect("dir");
    let weights = dir.path().join("model.safetensors");
    let said = || faults(&inspect_base(dir.path()));
    fs::create_dir(&weights).expect("made");
    assert!(said().contains("model.safetensors: is a directory, expected a file"), "{}", said());
    fs::remove_dir(&weights).expect("removed");
    for (to, kind) in [("/dev/null", "is a device or a socket"), ("nowhere", "is a link to nothing that can be opened")]
    {
        std::os::unix::fs::symlink(to, &weights).expect("linked");
        assert!(said().contains(kind), "{}", said());
        fs::remove_file(&weights).expect("removed");
    }
}

#[test]
fn a_pickle_is_never_read() {
    let dir = directory();
    fs::write(dir.path().join("pytorch_model.bin"), b"\x80\x02").expect("write");
    let base = inspect_base(dir.path());
    assert!(faults(&base).contains("pytorch_model.bin: the weights are a Python pickle"), "{}", faults(&base));
    assert!(base.faults[0].hint.is_some());
}

#[test]
fn missing_misshapen_and_foreign_tensors_are_named() {
    let dir = directory();
    let mut specs = specs();
    specs.remove(0);
    specs[0].1 = vec![4, 2];
    specs[1].2 = "I32";
    specs.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![8], "F32"));
    specs.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![2], "F32"));
    write_safetensors(&dir.path().join("model.safetensors"), &specs);
    let base = inspect_base(dir.path());
    let text = faults(&base);
    assert!(text.contains("\"model.embed_tokens.weight\" is missing"), "{text}");
    assert!(text.contains("has shape [4, 2], config.json calls for [8]"), "{text}");
    assert!(text.contains("stored as I32"), "{text}");
    assert!(text.contains("q_proj.bias\" is a bias"), "{text}");
    assert_eq!(base.fault_count, 4, "{text}");
    assert_eq!(base.unused.len(), 2);
}

#[test]
fn headers_that_lie_are_refused() {
    let lies: [(&str, Vec<u8>, u64); 7] = [
        ("too few", vec![1, 2, 3], 0),
        ("claims a header of", u64::MAX.to_le_bytes().to_vec(), 0),
        ("claims a header of", 4096u64.to_le_bytes().to_vec(), 10),
        ("not a safetensors header", framed("{\"a\": 3}"), 0),
        ("cannot take", framed(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#), 8),
        ("describes 4 bytes of data", framed(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#), 8),
        ("begins at byte 4", framed(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#), 8),
    ];
    for (reason, mut bytes, data) in lies {
        bytes.extend(vec![0; data as usize]);
        let dir = directory();
        fs::write(dir.path().join("model.safetensors"), bytes).expect("write");
        let text = faults(&inspect_base(dir.path()));
        assert!(text.contains(reason), "expected {reason:?} in {text}");
    }
}

#[test]
fn a_name_that_stands_twice_in_a_header_is_refused() {
    let entry = r#""a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    let dir = directory();
    fs::write(dir.path().join("model.safetensors"), framed(&format!("{{{entry},{entry}}}"))).expect("write");
    assert!(faults(&inspect_base(dir.path())).contains("stands twice"));
}

fn framed(json: &str) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes
}

fn faults(base: &Base) -> String {
    base.faults.iter().map(|fault| format!("{}: {}\n", fault.file, fault.message)).collect()
}

type Spec = (String, Vec<usize>, &'static str);

fn specs() -> Vec<Spec> {
    let mut specs: Vec<Spec> = tensors(&config()).into_iter().map(|spec| (spec.name, spec.shape, "F32")).collect();
    specs.sort_by_key(|spec| (spec.1.len() == 2 && !spec.0.contains("embed"), spec.0.clone()));
    specs
}

fn config_json() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 64, "tie_word_embeddings": true})
}

fn config() -> ModelConfig {
    ModelConfig::parse(&config_json().to_string()).expect("config")
}

fn directory() -> TempDir {
    let dir = tempfile::tempdir().expect("dir");
    fs::write(dir.path().join("config.json"), config_json().to_string()).expect("write");
    dir
}

fn sound() -> TempDir {
    let dir = directory();
    write_safetensors(&dir.path().join("model.safetensors"), &specs());
    dir
}

fn write_index(dir: &Path, map: &BTreeMap<String, String>) {
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).expect("write");
}

fn write_safetensors(path: &Path, specs: &[Spec]) {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape, dtype) in specs {
        let end = offset + 4 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut bytes = framed(&Value::Object(header).to_string());
    bytes.extend(vec![0; offset]);
    fs::write(path, bytes).expect("write");
}
