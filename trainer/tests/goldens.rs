//! Our numbers beside those of transformers and PEFT, on tiny random models (`goldens/make.py` says how they were made).

#[path = "goldens/case.rs"]
mod case;
#[path = "goldens/golden.rs"]
mod golden;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use case::{Case, Sequence};
use golden::{Golden, batch};
use lorikeet_plan::BaseDtype;
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::full::WeightLayout;
use lorikeet_trainer::lora::{self, AdapterMeta, AdapterView, Init, LoraConfig, LoraLayout, Targets};
use lorikeet_trainer::model::{Cache, Model, read_weights};
use safetensors::SafeTensors;
use serde_json::Value;

/// Every case but two that begin otherwise: PiSSA without files, and a quantised base (`quantised.rs`).
fn all() -> Vec<Golden> {
    Case::names(&["pissa", "quantised"]).iter().map(|name| Golden::open(name)).collect()
}

/// One for what has nothing to do with a family.
const ANY: &str = "untied_all_f32";

#[test]
fn logits_equal_the_reference() {
    for golden in all() {
        let view = golden.view();
        let of = |sequence: &Sequence| golden.model.logits(&sequence.tokens, Some(&view)).expect("a pass");
        let logits: Vec<f32> = golden.case.sequences.iter().flat_map(of).collect();
        golden.assert_near("logits", &logits, &golden.expected("logits"));
        let tokens = &golden.case.sequences[0].tokens;
        let last = golden.model.next_logits(tokens, Some(&view)).expect("a pass");
        let width = golden.model.config().vocab_size;
        golden.assert_near("the last logits", &last, &golden.expected("logits")[(tokens.len() - 1) * width..][..width]);
    }
}

#[test]
fn token_by_token_over_a_cache_the_logits_are_those_of_the_whole() {
    for golden in all() {
        let view = golden.view();
        for (round, tokens) in golden.case.sequences.iter().map(|sequence| &sequence.tokens).enumerate() {
            let mut cache = Cache::new(&golden.model, Some(&view)).expect("a cache");
            let first = (round * 7 + 1).min(tokens.len() - 1);
            let parts = std::iter::once(&tokens[..first]).chain(tokens[first..].chunks(1 + round % 2));
            for part in parts {
                let logits = cache.extend(part, &|| false).expect("a pass");
                let whole = golden.model.next_logits(cache.tokens(), Some(&view)).expect("a pass");
                golden.assert_within("logits over a cache", &logits, &whole, 1e-5);
            }
            assert_eq!(cache.tokens(), tokens);
        }
    }
}

#[test]
fn loss_and_every_gradient_equal_the_reference() {
    for golden in all() {
        let batch = batch(golden.case.sequences.iter().take(golden.case.run.batch));
        let count = batch.targets.len() as f32;
        let mut grads = vec![0.0; golden.layout.trained()];
        let passed =
            golden.model.forward_backward(&batch, &[golden.view()], &[1.0 / count], &mut [&mut grads], &|| false);
        let sum = passed.expect("a pass")[0];
        assert_eq!(sum.count, batch.targets.len() as u64);
        golden.assert_near("loss", &[(sum.sum / sum.count as f64) as f32], &golden.expected("loss"));
        let without = golden.model.loss(&batch, &[golden.view()], &|| false).expect("a pass")[0];
        assert_eq!(without, sum);
        for entry in golden.layout.entries() {
            let places = [entry.a.clone(), entry.b.clone(), entry.magnitude.clone()];
            for (key, place) in entry.keys().iter().zip(places) {
                golden.assert_near(key, &grads[place], &golden.expected(&format!("grad.{key}")));
            }
        }
    }
}

#[test]
fn twenty_steps_of_adamw_lose_what_the_reference_loses() {
    for golden in all() {
        let (steps, _) = golden.train();
        golden.case.assert_steps(&steps);
    }
}

#[test]
fn a_base_in_bf16_has_the_reference_s_loss_and_gradients_to_the_precision_of_its_numbers() {
    for mut golden in all() {
        golden.model =
            Model::load_unless(&golden.case.folder.join("base"), BaseDtype::Bf16, &|| false).expect("a sound base");
        let batch = batch(golden.case.sequences.iter().take(golden.case.run.batch));
        let count = batch.targets.len() as f32;
        let mut grads = vec![0.0; golden.layout.trained()];
        let passed =
            golden.model.forward_backward(&batch, &[golden.view()], &[1.0 / count], &mut [&mut grads], &|| false);
        let (loss, expected) = (passed.expect("a pass")[0].sum as f32 / count, golden.expected("loss")[0]);
        assert!(
            (loss - expected).abs() < 0.01 * expected,
            "{}: a loss of {loss}, expected {expected}",
            golden.case.name
        );
        for share in golden.gradients_apart(&grads) {
            assert!((1e-5..0.05).contains(&share), "{}: gradients differ by {share} of their length", golden.case.name);
        }
    }
}

#[test]
fn a_pissa_start_is_the_base_itself_trains_as_the_reference_and_is_saved_as_a_plain_adapter() {
    let golden = Golden::open("pissa");
    let tokens = &golden.case.sequences[0].tokens;
    let logits = |params: &[f32], layout: &LoraLayout| {
        let view = AdapterView { layout, params: params.into(), dropout: None };
        golden.model.logits(tokens, Some(&view)).expect("a pass")
    };
    let base = golden.model.logits(tokens, None).expect("a pass");
    golden.assert_within("logits", &logits(&golden.params, &golden.layout), &base, 1e-6);
    golden.assert_within("logits", &base, &golden.expected("logits")[..base.len()], 1e-5);
    let (steps, params) = golden.train();
    golden.case.assert_steps(&steps);
    let after = logits(&params, &golden.layout);
    golden.assert_near("logits after training", &after, &golden.expected("logits.after"));

    let dir = tempfile::tempdir().expect("a directory");
    lora::save(dir.path(), &golden.layout, &params, &AdapterMeta::default()).expect("written");
    assert_eq!(lora::load(dir.path(), &golden.layout).expect("read back"), params, "bit for bit");
    let plain = lora::read_config(dir.path()).expect("settings");
    assert_eq!((plain.rank, plain.alpha, plain.init), (4, 6.0, Init::Default));
    let layout = LoraLayout::new(golden.model.config(), &plain).expect("targets match");
    let wide = lora::load(dir.path(), &layout).expect("a plain adapter");
    golden.assert_within("logits of the plain adapter", &logits(&wide, &layout), &after, 1e-5);
}

#[test]
fn the_gradient_of_every_weight_equals_the_reference() {
    for mut golden in ["llama_dynamic_bias", "qwen3", "gemma2", "phi3"].map(Golden::open) {
        golden.expected = std::fs::read(golden.case.folder.join("full.safetensors")).expect("expected numbers");
        let layout = WeightLayout::new(golden.model.config());
        let weights = read_weights(&golden.case.folder.join("base"), &layout, &|| false).expect("a sound base");
        golden.model.set_weights(&layout, (&weights).into());
        let batch = batch(golden.case.sequences.iter().take(golden.case.run.batch));
        let scale = 1.0 / batch.targets.len() as f32;
        let mut grads = vec![0.0; layout.len()];
        let passed = golden.model.forward_backward_weights(&batch, &layout, scale, &mut grads, &|| false);
        let sum = passed.expect("a pass");
        golden.assert_near("loss", &[(sum.sum / sum.count as f64) as f32], &golden.expected("loss"));
        for (tensor, place) in layout.tensors() {
            golden.assert_near(&tensor.name, &grads[place], &golden.expected(&tensor.name));
        }
    }
}

#[test]
fn flat_and_split_batches_have_the_same_loss_and_gradients() {
    let golden = Golden::open(ANY);
    let whole = batch(&golden.case.sequences);
    let mut together = vec![0.0; golden.layout.len()];
    let loss = golden.add(&whole, &mut together);
    let mut apart = vec![0.0; golden.layout.len()];
    let parts: f64 = golden.case.sequences.iter().map(|sequence| golden.add(&batch([sequence]), &mut apart)).sum();
    assert!((loss - parts).abs() < 1e-5 * loss);
    golden.assert_within("gradients", &together, &apart, 1e-5);
}

#[test]
fn two_adapters_in_one_pass_get_what_each_gets_alone() {
    let golden = Golden::open(ANY);
    let target_modules = Targets::Names(vec!["o_proj".into()]);
    let config = LoraConfig { target_modules, ..LoraConfig::plain(2, 3.0, 0.3) };
    let layout = LoraLayout::new(golden.model.config(), &config).expect("o_proj is there");
    let params: Vec<f32> = lora::init(&layout, 5).iter().map(|x| x + 0.05).collect();
    let dropout = Some(lora::Dropout { p: 0.3, seed: 4 });
    let views = [golden.view(), AdapterView { layout: &layout, params: (&params).into(), dropout }];
    let owners = [0, 1, 1, 0, 1, 0];
    let mut mixed = MicroBatch::default();
    let mut own = [MicroBatch::default(), MicroBatch::default()];
    for ((example, sequence), owner) in (0..).zip(&golden.case.sequences).zip(owners) {
        mixed.push(&sequence.tokens, &sequence.supervised, owner, example, 3);
        own[owner].push(&sequence.tokens, &sequence.supervised, 0, example, 3);
    }
    let mut grads = [vec![0.0; golden.layout.len()], vec![0.0; layout.len()]];
    let [first, second] = &mut grads;
    let sums =
        golden.model.forward_backward(&mixed, &views, &[1.0, 0.5], &mut [first, second], &|| false).expect("a pass");
    for i in 0..2 {
        let mut alone = vec![0.0; grads[i].len()];
        let scale = [1.0, 0.5][i];
        let sum = golden.model.forward_backward(&own[i], &[views[i]], &[scale], &mut [&mut alone], &|| false);
        assert!((sum.expect("a pass")[0].sum - sums[i].sum).abs() < 1e-4);
        golden.assert_within("gradients", &grads[i], &alone, 1e-4);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let golden = Golden::open(ANY);
    let batch = batch(&golden.case.sequences);
    let dropout = Some(lora::Dropout { p: 0.2, seed: 9 });
    let view = AdapterView { dropout, ..golden.view() };
    let run = |threads| {
        let mut grads = vec![0.0; golden.layout.len()];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
        let sums =
            pool.install(|| golden.model.forward_backward(&batch, &[view], &[0.1], &mut [&mut grads], &|| false));
        (sums.expect("a pass")[0].sum.to_bits(), grads.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

#[test]
fn a_pass_that_is_told_to_stop_stops_between_layers() {
    let golden = Golden::open(ANY);
    let batch = batch(&golden.case.sequences);
    let asked = std::cell::Cell::new(0);
    let stop = |after: usize| {
        asked.set(0);
        let mut grads = vec![0.0; golden.layout.len()];
        let told = || {
            asked.set(asked.get() + 1);
            asked.get() > after
        };
        golden.model.forward_backward(&batch, &[golden.view()], &[1.0], &mut [&mut grads], &told).map(|_| ())
    };
    for after in 0..4 {
        assert!(matches!(stop(after), Err(lorikeet_trainer::TrainError::Stopped)));
    }
    stop(4).expect("two layers down, two layers up");
}

#[test]
fn an_adapter_is_written_as_peft_writes_it() {
    for golden in all() {
        let dir = tempfile::tempdir().expect("a directory");
        let meta = AdapterMeta { base_model: Some(format!("{}/base", golden.case.name)) };
        lora::save(dir.path(), &golden.layout, &golden.params, &meta).expect("written");
        assert_eq!(lora::load(dir.path(), &golden.layout).expect("read back"), golden.params);
        assert_eq!(
            tensors(dir.path()),
            tensors(&golden.case.folder.join("adapter")),
            "names, types, shapes and numbers"
        );
        let [ours, theirs] = [dir.path(), &golden.case.folder.join("adapter")].map(settings);
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (key, theirs) in theirs {
            assert_eq!(in_any_order(&ours[&key]), in_any_order(&theirs), "{key}");
        }
    }
}

/// Names, types, shapes and bytes of an adapter's tensors, and the file's metadata.
fn tensors(dir: &Path) -> (BTreeMap<String, String>, Option<String>) {
    let bytes = std::fs::read(dir.join(lora::WEIGHTS_FILE)).expect("an adapter");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let shown = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, format!("{:?} {:?} {:?}", view.dtype(), view.shape(), view.data()))
    };
    let format = header.metadata().as_ref().and_then(|map| map.get("format").cloned());
    (file.tensors().into_iter().map(shown).collect(), format)
}

fn settings(dir: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read(dir.join(lora::CONFIG_FILE)).expect("settings");
    serde_json::from_slice(&text).expect("JSON")
}

/// PEFT keeps a list of target modules as a set.
fn in_any_order(value: &Value) -> BTreeSet<String> {
    match value.as_array() {
        Some(items) => items.iter().map(Value::to_string).collect(),
        None => [value.to_string()].into(),
    }
}
