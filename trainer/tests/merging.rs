//! A merged model says what base and adapter say together, on every family that has a golden.

use std::fs;
use std::path::{Path, PathBuf};

use lorikeet_trainer::TrainError;
use lorikeet_trainer::lora::{self, AdapterView};
use lorikeet_trainer::merge::{SHARD_BYTES, Whole, merge};
use lorikeet_trainer::model::Model;
use lorikeet_trainer::ops::widen::{Stored, widen};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

#[test]
fn merged_equals_unmerged_in_every_family() {
    for case in &cases() {
        let place = tempfile::tempdir().expect("a directory");
        let (base, adapter) = (place.path().join("base"), golden(case).join("adapter"));
        copy_in_f32(&golden(case).join("base"), &base);
        let whole = merged(&base, &adapter, &place.path().join("out")).expect("merged");
        let model = Model::load(&base).expect("a base");
        let (layout, params) = lora::open(&adapter, model.config()).expect("an adapter");
        assert_eq!(whole.changed, layout.entries().len(), "{case}");
        let view = AdapterView { layout: &layout, params: (&params).into(), dropout: None };
        let tokens: Vec<u32> = (3..40).map(|i| i * 7 % model.config().vocab_size as u32).collect();
        let apart = model.logits(&tokens, Some(&view)).expect("a pass");
        let one = Model::load(&place.path().join("out")).expect("a model").logits(&tokens, None).expect("a pass");
        let alone = model.logits(&tokens, None).expect("a pass");
        assert!(distance(&alone, &apart) > 1e-3, "{case}: the adapter does nothing");
        let off = distance(&one, &apart);
        assert!(off < 1e-5, "{case}: {off:e}");
    }
}

#[test]
fn types_stay_and_what_has_no_adapter_stays_to_the_last_bit() {
    for (case, dtype) in [("tied_qv_llama3_bf16", Dtype::BF16), ("mistral_pattern_linear_f16", Dtype::F16)] {
        let place = tempfile::tempdir().expect("a directory");
        let (base, out) = (golden(case).join("base"), place.path().join("out"));
        let whole = merged(&base, &golden(case).join("adapter"), &out).expect("merged");
        let [before, after] = [&base, &out].map(|dir| fs::read(dir.join("model.safetensors")).expect("weights"));
        let [before, after] = [&before, &after].map(|bytes| SafeTensors::deserialize(bytes).expect("sound"));
        assert_eq!(after.len(), whole.tensors);
        let mut changed = 0;
        for (name, tensor) in after.tensors() {
            let was = before.tensor(&name).expect("in the base");
            assert_eq!((tensor.dtype(), tensor.shape()), (dtype, was.shape()), "{name}");
            changed += usize::from(tensor.data() != was.data());
        }
        assert_eq!(changed, whole.changed, "{case}");
        assert_eq!(fs::read(out.join("config.json")).expect("read"), fs::read(base.join("config.json")).expect("read"));
    }
}

#[test]
fn shards_hold_every_tensor_once_and_are_read_back() {
    let place = tempfile::tempdir().expect("a directory");
    let (case, out) = (golden("qwen3"), place.path().join("out"));
    let told = std::sync::Mutex::new(Vec::new());
    let tell = |done, all| told.lock().expect("alone").push((done, all));
    merge(&case.join("base"), &case.join("adapter"), &out, 10_000, &tell, &|| false).expect("merged");
    let index: Value =
        serde_json::from_slice(&fs::read(out.join("model.safetensors.index.json")).expect("an index")).expect("JSON");
    let files: std::collections::BTreeSet<&str> =
        index["weight_map"].as_object().expect("a map").values().filter_map(Value::as_str).collect();
    assert!(files.len() > 2 && files.iter().all(|name| out.join(name).is_file()), "{files:?}");
    assert!(files.iter().next().is_some_and(|name| name.starts_with("model-00001-of-")), "{files:?}");
    let told = told.into_inner().expect("alone");
    assert_eq!(told.last().expect("told").0, index["metadata"]["total_size"].as_u64().expect("a size"));
    assert_eq!(told.last().expect("told").0, told[0].1);
    let whole = place.path().join("whole");
    merged(&case.join("base"), &case.join("adapter"), &whole).expect("merged");
    let [a, b] = [&out, &whole].map(|dir| Model::load(dir).expect("a model").logits(&[1, 2, 3], None).expect("a pass"));
    assert_eq!(a, b);
}

#[test]
fn a_quantised_base_and_numbers_that_do_not_fit_are_refused_and_nothing_is_left() {
    let place = tempfile::tempdir().expect("a directory");
    let (base, out) = (place.path().join("base"), place.path().join("out"));
    copy_in_f32(&golden("qwen2").join("base"), &base);
    let config = fs::read_to_string(base.join("config.json")).expect("read");
    let quantised =
        config.replacen('{', "{\"quantization_config\":{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":true},", 1);
    fs::write(base.join("config.json"), quantised).expect("written");
    let error = merged(&base, &golden("qwen2").join("adapter"), &out).expect_err("refused").to_string();
    assert!(error.contains("quantised (bitsandbytes)") && error.contains("rounded away"), "{error}");
    fs::write(base.join("config.json"), config).expect("written");
    let adapter = place.path().join("adapter");
    copy(&golden("qwen2").join("adapter"), &adapter, |_, numbers| numbers[0] = f32::MAX);
    let error = merged(&base, &adapter, &out).expect_err("refused").to_string();
    assert!(error.contains("beyond F32") && error.contains(".weight"), "{error}");
    assert!(fs::read_dir(place.path()).expect("read").all(|entry| {
        let name = entry.expect("an entry").file_name();
        name == "base" || name == "adapter"
    }));
}

#[test]
fn whoever_stops_a_merge_leaves_nothing() {
    let place = tempfile::tempdir().expect("a directory");
    let (case, out) = (golden("qwen2"), place.path().join("out"));
    let asked = std::cell::Cell::new(0);
    let stop = || {
        asked.set(asked.get() + 1);
        asked.get() > 6
    };
    let ended = merge(&case.join("base"), &case.join("adapter"), &out, SHARD_BYTES, &|_, _| {}, &stop);
    assert!(matches!(ended, Err(TrainError::Stopped)));
    assert!(fs::read_dir(place.path()).expect("read").next().is_none());
}

fn merged(base: &Path, adapter: &Path, out: &Path) -> Result<Whole, TrainError> {
    merge(base, adapter, out, SHARD_BYTES, &|_, _| {}, &|| false)
}

/// Every golden but the PiSSA start, whose files hold no plain adapter.
fn cases() -> Vec<String> {
    let entries = fs::read_dir(golden("")).expect("goldens").map(|entry| entry.expect("an entry"));
    let dirs = entries.filter(|entry| entry.path().join("base").is_dir());
    let names = dirs.map(|entry| entry.file_name().into_string().expect("a name of ours"));
    let cases: Vec<String> = names.filter(|name| name != "pissa").collect();
    assert!(cases.len() >= 14, "{cases:?}");
    cases
}

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(case)
}

/// A base whose files hold f32, so that nothing is rounded when it is merged.
fn copy_in_f32(from: &Path, to: &Path) {
    copy(from, to, |_, _| {});
}

fn copy(from: &Path, to: &Path, change: impl Fn(&str, &mut [f32])) {
    fs::create_dir_all(to).expect("created");
    for entry in fs::read_dir(from).expect("read") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        let bytes = fs::read(&path).expect("read");
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            fs::write(to, bytes).expect("written");
            continue;
        }
        let file = SafeTensors::deserialize(&bytes).expect("sound");
        let wide: Vec<(String, Vec<usize>, Vec<u8>)> = file
            .tensors()
            .into_iter()
            .map(|(name, tensor)| {
                let mut numbers = numbers(&tensor);
                change(&name, &mut numbers);
                (name, tensor.shape().to_vec(), numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
            })
            .collect();
        let views = wide.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes as numbers"))
        });
        fs::write(to, safetensors::serialize(views, None).expect("serialised")).expect("written");
    }
}

fn numbers(tensor: &TensorView<'_>) -> Vec<f32> {
    let known = [(Dtype::BF16, Stored::Bf16), (Dtype::F16, Stored::F16), (Dtype::F32, Stored::F32)];
    let (_, stored) = known.into_iter().find(|(dtype, _)| *dtype == tensor.dtype()).expect("a golden's type");
    let mut numbers = vec![0.0; tensor.data().len() / stored.bytes()];
    widen(stored, tensor.data(), &mut numbers);
    numbers
}

/// |a − b| / |b|
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    apart / norm(&mut b.iter().map(|x| f64::from(*x)))
}
