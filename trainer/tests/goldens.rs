//! Our numbers beside those of transformers and PEFT, on tiny random models (`goldens/make.py` says how they were made).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lorikeet_plan::BaseDtype;
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::full::WeightLayout;
use lorikeet_trainer::lora::{self, AdapterMeta, AdapterView, Init, LoraConfig, LoraLayout, Targets};
use lorikeet_trainer::model::{Cache, Model};
use lorikeet_trainer::ops::adamw::{clip_factor, norm};
use lorikeet_trainer::optim::{AdamWSettings, Optimizer};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;

const CASES: [&str; 14] = [
    "untied_all_f32",
    "tied_qv_llama3_bf16",
    "mistral_pattern_linear_f16",
    "llama_dynamic_bias",
    "llama_yarn",
    "mistral_window",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "dora",
    "patterns_rslora",
    "plus_ends",
];

#[test]
fn logits_equal_the_reference() {
    for case in CASES.map(Golden::open) {
        let view = case.view();
        let of = |sequence: &Sequence| case.model.logits(&sequence.tokens, Some(&view)).expect("a pass");
        let logits: Vec<f32> = case.sequences.iter().flat_map(of).collect();
        case.assert_near("logits", &logits, &case.expected("logits"));
        let tokens = &case.sequences[0].tokens;
        let last = case.model.next_logits(tokens, Some(&view)).expect("a pass");
        let width = case.model.config().vocab_size;
        case.assert_near("the last logits", &last, &case.expected("logits")[(tokens.len() - 1) * width..][..width]);
    }
}

#[test]
fn token_by_token_over_a_cache_the_logits_are_those_of_the_whole() {
    for case in CASES.map(Golden::open) {
        let view = case.view();
        for (round, tokens) in case.sequences.iter().map(|sequence| &sequence.tokens).enumerate() {
            let mut cache = Cache::default();
            let first = (round * 7 + 1).min(tokens.len() - 1);
            let parts = std::iter::once(&tokens[..first]).chain(tokens[first..].chunks(1 + round % 2));
            for part in parts {
                let logits = case.model.extend(&mut cache, part, Some(&view), &|| false).expect("a pass");
                let whole = case.model.next_logits(cache.tokens(), Some(&view)).expect("a pass");
                case.assert_within("logits over a cache", &logits, &whole, 1e-5);
            }
            assert_eq!(cache.tokens(), tokens);
        }
    }
}

#[test]
fn loss_and_every_gradient_equal_the_reference() {
    for case in CASES.map(Golden::open) {
        let batch = batch(case.sequences.iter().take(case.run.batch));
        let count = batch.targets.len() as f32;
        let mut grads = vec![0.0; case.layout.trained()];
        let passed = case.model.forward_backward(&batch, &[case.view()], &[1.0 / count], &mut [&mut grads], &|| false);
        let sum = passed.expect("a pass")[0];
        assert_eq!(sum.count, batch.targets.len() as u64);
        case.assert_near("loss", &[(sum.sum / sum.count as f64) as f32], &case.expected("loss"));
        let without = case.model.loss(&batch, &[case.view()], &|| false).expect("a pass")[0];
        assert_eq!(without, sum);
        for entry in case.layout.entries() {
            let places = [entry.a.clone(), entry.b.clone(), entry.magnitude.clone()];
            for (key, place) in entry.keys().iter().zip(places) {
                case.assert_near(key, &grads[place], &case.expected(&format!("grad.{key}")));
            }
        }
    }
}

#[test]
fn twenty_steps_of_adamw_lose_what_the_reference_loses() {
    for case in CASES.map(Golden::open) {
        let (steps, _) = case.train();
        case.assert_run(&steps);
    }
}

#[test]
fn a_base_in_bf16_has_the_reference_s_loss_and_gradients_to_the_precision_of_its_numbers() {
    for mut case in CASES.map(Golden::open) {
        case.model = Model::load_unless(&case.dir.join("base"), BaseDtype::Bf16, &|| false).expect("a sound base");
        let batch = batch(case.sequences.iter().take(case.run.batch));
        let count = batch.targets.len() as f32;
        let mut grads = vec![0.0; case.layout.trained()];
        let passed = case.model.forward_backward(&batch, &[case.view()], &[1.0 / count], &mut [&mut grads], &|| false);
        let (loss, expected) = (passed.expect("a pass")[0].sum as f32 / count, case.expected("loss")[0]);
        assert!((loss - expected).abs() < 0.01 * expected, "{}: a loss of {loss}, expected {expected}", case.name);
        let (mut apart, mut whole) = (0.0, 0.0);
        for entry in case.layout.entries() {
            let places = [entry.a.clone(), entry.b.clone(), entry.magnitude.clone()];
            for (key, place) in entry.keys().iter().zip(places) {
                for (ours, theirs) in grads[place].iter().zip(case.expected(&format!("grad.{key}"))) {
                    apart += f64::from(ours - theirs).powi(2);
                    whole += f64::from(theirs).powi(2);
                }
            }
        }
        let share = (apart / whole).sqrt();
        assert!((1e-5..0.05).contains(&share), "{}: gradients differ by {share} of their length", case.name);
    }
}

#[test]
fn a_pissa_start_is_the_base_itself_trains_as_the_reference_and_is_saved_as_a_plain_adapter() {
    let case = Golden::open("pissa");
    let tokens = &case.sequences[0].tokens;
    let logits = |params: &[f32], layout: &LoraLayout| {
        let view = AdapterView { layout, params, dropout: None };
        case.model.logits(tokens, Some(&view)).expect("a pass")
    };
    let base = case.model.logits(tokens, None).expect("a pass");
    case.assert_within("logits", &logits(&case.params, &case.layout), &base, 1e-6);
    case.assert_within("logits", &base, &case.expected("logits")[..base.len()], 1e-5);
    let (steps, params) = case.train();
    case.assert_run(&steps);
    let after = logits(&params, &case.layout);
    case.assert_near("logits after training", &after, &case.expected("logits.after"));

    let dir = tempfile::tempdir().expect("a directory");
    lora::save(dir.path(), &case.layout, &params, &AdapterMeta::default()).expect("written");
    assert_eq!(lora::load(dir.path(), &case.layout).expect("read back"), params, "bit for bit");
    let plain = lora::read_config(dir.path()).expect("settings");
    assert_eq!((plain.rank, plain.alpha, plain.init), (4, 6.0, Init::Default));
    let layout = LoraLayout::new(case.model.config(), &plain).expect("targets match");
    let wide = lora::load(dir.path(), &layout).expect("a plain adapter");
    case.assert_within("logits of the plain adapter", &logits(&wide, &layout), &after, 1e-5);
}

#[test]
fn the_gradient_of_every_weight_equals_the_reference() {
    for mut case in ["llama_dynamic_bias", "qwen3", "gemma2", "phi3"].map(Golden::open) {
        case.expected = std::fs::read(case.dir.join("full.safetensors")).expect("expected numbers");
        let layout = WeightLayout::new(case.model.config());
        let weights = case.model.weights(&layout);
        case.model.set_weights(&layout, &weights);
        let batch = batch(case.sequences.iter().take(case.run.batch));
        let scale = 1.0 / batch.targets.len() as f32;
        let mut grads = vec![0.0; layout.len()];
        let passed = case.model.forward_backward_weights(&batch, &layout, scale, &mut grads, &|| false);
        let sum = passed.expect("a pass");
        case.assert_near("loss", &[(sum.sum / sum.count as f64) as f32], &case.expected("loss"));
        for (tensor, place) in layout.tensors() {
            case.assert_near(&tensor.name, &grads[place], &case.expected(&tensor.name));
        }
    }
}

#[test]
fn flat_and_split_batches_have_the_same_loss_and_gradients() {
    let case = Golden::open(CASES[0]);
    let whole = batch(&case.sequences);
    let mut together = vec![0.0; case.layout.len()];
    let loss = case.add(&whole, &mut together);
    let mut apart = vec![0.0; case.layout.len()];
    let parts: f64 = case.sequences.iter().map(|sequence| case.add(&batch([sequence]), &mut apart)).sum();
    assert!((loss - parts).abs() < 1e-5 * loss);
    case.assert_within("gradients", &together, &apart, 1e-5);
}

#[test]
fn two_adapters_in_one_pass_get_what_each_gets_alone() {
    let case = Golden::open(CASES[0]);
    let target_modules = Targets::Names(vec!["o_proj".into()]);
    let config = LoraConfig { target_modules, ..LoraConfig::plain(2, 3.0, 0.3) };
    let layout = LoraLayout::new(case.model.config(), &config).expect("o_proj is there");
    let params: Vec<f32> = lora::init(&layout, 5).iter().map(|x| x + 0.05).collect();
    let dropout = Some(lora::Dropout { p: 0.3, seed: 4 });
    let views = [case.view(), AdapterView { layout: &layout, params: &params, dropout }];
    let owners = [0, 1, 1, 0, 1, 0];
    let mut mixed = MicroBatch::default();
    let mut own = [MicroBatch::default(), MicroBatch::default()];
    for ((example, sequence), owner) in (0..).zip(&case.sequences).zip(owners) {
        mixed.push(&sequence.tokens, &sequence.supervised, owner, example, 3);
        own[owner].push(&sequence.tokens, &sequence.supervised, 0, example, 3);
    }
    let mut grads = [vec![0.0; case.layout.len()], vec![0.0; layout.len()]];
    let [first, second] = &mut grads;
    let sums =
        case.model.forward_backward(&mixed, &views, &[1.0, 0.5], &mut [first, second], &|| false).expect("a pass");
    for i in 0..2 {
        let mut alone = vec![0.0; grads[i].len()];
        let scale = [1.0, 0.5][i];
        let sum = case.model.forward_backward(&own[i], &[views[i]], &[scale], &mut [&mut alone], &|| false);
        assert!((sum.expect("a pass")[0].sum - sums[i].sum).abs() < 1e-4);
        case.assert_within("gradients", &grads[i], &alone, 1e-4);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let case = Golden::open(CASES[0]);
    let batch = batch(&case.sequences);
    let dropout = Some(lora::Dropout { p: 0.2, seed: 9 });
    let view = AdapterView { dropout, ..case.view() };
    let run = |threads| {
        let mut grads = vec![0.0; case.layout.len()];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
        let sums = pool.install(|| case.model.forward_backward(&batch, &[view], &[0.1], &mut [&mut grads], &|| false));
        (sums.expect("a pass")[0].sum.to_bits(), grads.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

#[test]
fn a_pass_that_is_told_to_stop_stops_between_layers() {
    let case = Golden::open(CASES[0]);
    let batch = batch(&case.sequences);
    let asked = std::cell::Cell::new(0);
    let stop = |after: usize| {
        asked.set(0);
        let mut grads = vec![0.0; case.layout.len()];
        let told = || {
            asked.set(asked.get() + 1);
            asked.get() > after
        };
        case.model.forward_backward(&batch, &[case.view()], &[1.0], &mut [&mut grads], &told).map(|_| ())
    };
    for after in 0..4 {
        assert!(matches!(stop(after), Err(lorikeet_trainer::TrainError::Stopped)));
    }
    stop(4).expect("two layers down, two layers up");
}

#[test]
fn an_adapter_is_written_as_peft_writes_it() {
    for case in CASES.map(Golden::open) {
        let dir = tempfile::tempdir().expect("a directory");
        let meta = AdapterMeta { base_model: Some(format!("{}/base", case.name)) };
        lora::save(dir.path(), &case.layout, &case.params, &meta).expect("written");
        assert_eq!(lora::load(dir.path(), &case.layout).expect("read back"), case.params);
        assert_eq!(tensors(dir.path()), tensors(&case.dir.join("adapter")), "names, types, shapes and numbers");
        let [ours, theirs] = [dir.path(), &case.dir.join("adapter")].map(settings);
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (key, theirs) in theirs {
            assert_eq!(in_any_order(&ours[&key]), in_any_order(&theirs), "{key}");
        }
    }
}

/// One case, opened.
struct Golden {
    name: &'static str,
    dir: PathBuf,
    model: Model,
    layout: LoraLayout,
    params: Vec<f32>,
    expected: Vec<u8>,
    sequences: Vec<Sequence>,
    run: Run,
    steps: usize,
}

#[derive(Deserialize)]
struct Case {
    sequences: Vec<Sequence>,
    run: Run,
    steps: usize,
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    supervised: Vec<bool>,
}

#[derive(Deserialize)]
struct Run {
    batch: usize,
    accumulate: usize,
    lr: f64,
    warmup: usize,
    weight_decay: f64,
    max_grad_norm: f64,
    plus_ratio: Option<f64>,
}

struct Step {
    loss: f64,
    lr: f64,
    norm: f64,
}

impl Golden {
    fn open(name: &'static str) -> Golden {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        let model = Model::load(&dir.join("base")).expect("a sound base");
        let mut config = lora::read_config(&dir.join("adapter")).expect("PEFT's settings");
        config.init = if name == "pissa" { Init::Pissa } else { Init::Default };
        let layout = LoraLayout::new(model.config(), &config).expect("targets match");
        let params = match config.init {
            Init::Default => lora::load(&dir.join("adapter"), &layout).expect("PEFT's adapter"),
            Init::Pissa => model.start(&layout, 1),
        };
        let expected = std::fs::read(dir.join("expected.safetensors")).expect("expected numbers");
        let case = std::fs::read(dir.join("case.json")).expect("a case");
        let Case { sequences, run, steps } = serde_json::from_slice(&case).expect("a case");
        Golden { name, dir, model, layout, params, expected, sequences, run, steps }
    }

    fn view(&self) -> AdapterView<'_> {
        AdapterView { layout: &self.layout, params: &self.params, dropout: None }
    }

    fn expected(&self, key: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.expected).expect("safetensors");
        let bytes = file.tensor(key).expect(key).data().to_vec();
        bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
    }

    fn expected_f64(&self, key: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.expected).expect("safetensors");
        let bytes = file.tensor(key).expect(key).data().to_vec();
        bytes.as_chunks::<8>().0.iter().map(|eight| f64::from_le_bytes(*eight)).collect()
    }

    /// The loss sum of a batch, its gradient added to `grads`.
    fn add(&self, batch: &MicroBatch, grads: &mut [f32]) -> f64 {
        let sums = self.model.forward_backward(batch, &[self.view()], &[1.0], &mut [grads], &|| false);
        sums.expect("a pass")[0].sum
    }

    /// The whole run: cosine with warm-up, accumulation, clipping, AdamW. And the weights after it.
    fn train(&self) -> (Vec<Step>, Vec<f32>) {
        let (mut params, trained) = (self.params.clone(), self.layout.trained());
        let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: self.run.weight_decay };
        let rates = self.layout.rates(self.run.plus_ratio, self.run.lr);
        let mut optimizer = Optimizer::new(trained, settings).with_rates(rates);
        let step = |step: usize| {
            let of = |i| &self.sequences[(step * self.run.batch + i) % self.sequences.len()];
            let chosen: Vec<&Sequence> = (0..self.run.batch).map(of).collect();
            let micros: Vec<_> =
                chosen.chunks(self.run.batch / self.run.accumulate).map(|part| batch(part.iter().copied())).collect();
            let count: usize = micros.iter().map(|micro| micro.targets.len()).sum();
            let view = AdapterView { layout: &self.layout, params: &params, dropout: None };
            let mut grads = vec![0.0; trained];
            let mut sum = 0.0;
            for micro in &micros {
                let scale = [1.0 / count as f32];
                let pass = self.model.forward_backward(micro, &[view], &scale, &mut [&mut grads], &|| false);
                sum += pass.expect("a pass")[0].sum;
            }
            let (lr, norm) = (self.rate(step), norm(&grads));
            let clip = clip_factor(norm, Some(self.run.max_grad_norm));
            optimizer.update(&mut params[..trained], &grads, step as u64 + 1, lr, clip);
            Step { loss: sum / count as f64, lr, norm }
        };
        let steps = (0..self.steps).map(step).collect();
        (steps, params)
    }

    fn assert_run(&self, steps: &[Step]) {
        let [expected, rates, norms] = ["loss", "lr", "norm"].map(|key| self.expected_f64(&format!("run.{key}")));
        assert_eq!(steps.len(), expected.len());
        for (step, ours) in steps.iter().enumerate() {
            let name = format!("{}, step {}", self.name, step + 1);
            assert_near_f64(&format!("{name}: loss"), ours.loss, expected[step]);
            assert_near_f64(&format!("{name}: rate"), ours.lr, rates[step]);
            assert_near_f64(&format!("{name}: norm"), ours.norm, norms[step]);
        }
    }

    fn rate(&self, step: usize) -> f64 {
        let (step, warmup, steps) = (step as f64, self.run.warmup as f64, self.steps as f64);
        let progress = (step - warmup) / (steps - warmup);
        let factor = if step < warmup { step / warmup } else { 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()) };
        self.run.lr * factor
    }

    fn assert_near(&self, what: &str, ours: &[f32], theirs: &[f32]) {
        self.assert_within(what, ours, theirs, 1e-4);
    }

    /// Relative to the whole tensor: |ours − theirs| ≤ tolerance · |theirs|.
    fn assert_within(&self, what: &str, ours: &[f32], theirs: &[f32], tolerance: f64) {
        assert_eq!(ours.len(), theirs.len(), "{}: {what}", self.name);
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let apart = norm(&mut ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b)));
        let size = norm(&mut theirs.iter().map(|x| f64::from(*x)));
        assert!(size > 0.0 && apart <= tolerance * size, "{}: {what} is {apart:e} off a norm of {size:e}", self.name);
    }
}

fn assert_near_f64(what: &str, ours: f64, theirs: f64) {
    assert!((ours - theirs).abs() <= 1e-4 * theirs.abs(), "{what}: {ours}, the reference has {theirs}");
}

fn batch<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for (example, sequence) in (0..).zip(sequences) {
        batch.push(&sequence.tokens, &sequence.supervised, 0, example, 0);
    }
    batch
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
