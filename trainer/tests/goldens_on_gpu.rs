//! The same numbers on a GPU: every golden in brain floats, whole runs, and what only a device can get wrong. Needs a GPU, or the
//! emulated one that `cargo xtask gpu test` puts in its place; prints a line of figures for each case.

#![expect(clippy::print_stdout, reason = "the figures of a card are for whoever runs this there")]

#[path = "goldens/case.rs"]
mod case;
#[path = "goldens/golden.rs"]
mod golden;
mod place;
mod told;

use std::sync::{Arc, OnceLock};

use case::{Case, Sequence};
use golden::{Golden, batch};
use lorikeet_plan::BaseDtype;
use lorikeet_trainer::config::{Device, Method};
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::event::{Outcome, Step};
use lorikeet_trainer::lora::{self, AdapterView, LoraConfig, LoraLayout, Targets};
use lorikeet_trainer::model::{Cache, Model};
use lorikeet_trainer::ops::cuda::Gpu;
use lorikeet_trainer::ops::machine::Machine;
use lorikeet_trainer::{TrainError, Wish};
use place::Place;
use told::{run, run_until};

/// Of the length of all gradients: what rounding every activation of these small models to eight bits may move them by. A term that is
/// missing or has the wrong sign moves them by their whole length; what single operations may be off by is `ops/parity.rs`'s.
const GRADIENTS: f64 = 0.08;
/// Of the loss.
const LOSS: f64 = 0.01;
/// Of the loss of any of twenty steps, each of which begins where rounding has led the ones before.
const RUN: f64 = 0.06;
/// Cases of what only the processor trains: row lengths, narrow heads, adapters on embedding and head.
const REFUSED: [&str; 3] = ["dora", "mistral_pattern_linear_f16", "plus_ends"];
/// One for what has nothing to do with a family.
const ANY: &str = "untied_all_f32";

#[test]
fn losses_logits_and_gradients_are_the_references_to_the_precision_of_brain_floats() {
    let mut refused = Vec::new();
    for name in Case::names(&["pissa", "quantised"]) {
        let passed = there(&name).and_then(|golden| {
            let batch = whole(&golden);
            pass(&golden, &batch).map(|passed| (golden, batch, passed))
        });
        let (golden, batch, (loss, grads)) = match passed {
            Ok(passed) => passed,
            Err(TrainError::Config { key, reason }) => {
                refused.push(format!("{name}: {key}: {reason}"));
                continue;
            }
            Err(error) => panic!("{name}: {error}"),
        };
        let expected = golden.expected("loss")[0];
        let share = golden.gradients_apart(&grads);
        let logits = logits_apart(&golden);
        println!("{name:<28} loss {loss:.5} (expected {expected:.5})  gradients {share:.2e}  logits {logits:.2e}");
        assert!(
            (loss - f64::from(expected)).abs() < LOSS * f64::from(expected),
            "{name}: a loss of {loss}, expected {expected}"
        );
        assert!((1e-5..GRADIENTS).contains(&share), "{name}: gradients differ by {share} of their length");
        assert!(logits < 0.03, "{name}: logits differ by {logits} of their length");
        assert!(pass(&golden, &batch).expect("a pass") == (loss, grads), "{name}: the same bits again");
    }
    let words = refused.iter().map(|words| words.split(": ").next().unwrap_or_default()).collect::<Vec<_>>();
    assert_eq!(words, REFUSED, "{refused:?}");
    assert!(refused.iter().all(|words| words.contains("not trained on a GPU yet")), "{refused:?}");
}

#[test]
fn twenty_steps_lose_what_the_reference_loses() {
    for name in ["gemma3", "patterns_rslora", "pissa", "qwen3", "untied_all_f32"] {
        let golden = on_gpu(name);
        let (steps, _) = golden.train();
        let theirs = golden.case.expected_f64("run.loss");
        let apart = steps.iter().zip(&theirs).map(|([loss, ..], theirs)| (loss - theirs).abs() / theirs);
        let worst = apart.fold(0.0, f64::max);
        println!("{name:<28} {} steps, the worst loss {worst:.2e} off", steps.len());
        assert!(worst < RUN, "{name}: a loss is off by {worst} of what the reference has");
    }
}

#[test]
fn blocks_that_are_computed_twice_and_batches_that_are_split_change_nothing_but_rounding() {
    let mut golden = on_gpu(ANY);
    let batch = whole(&golden);
    let once = pass(&golden, &batch).expect("a pass");
    golden.model.set_recompute(1);
    assert!(pass(&golden, &batch).expect("a pass") == once, "the same bits");
    let mut apart = vec![0.0; golden.layout.len()];
    for sequence in golden.case.sequences.iter().take(golden.case.run.batch) {
        golden.add(&self::batch([sequence]), &mut apart);
    }
    let together: Vec<f32> = once.1.iter().map(|grad| grad * batch.targets.len() as f32).collect();
    golden.assert_within("gradients", &together, &apart, 0.02);
}

#[test]
fn dropout_and_two_adapters_in_one_pass_are_those_of_the_processor() {
    let golden = on_gpu(ANY);
    let target_modules = Targets::Names(vec!["o_proj".into(), "up_proj".into()]);
    let config = LoraConfig { target_modules, ..LoraConfig::plain(2, 3.0, 0.3) };
    let layout = LoraLayout::new(golden.model.config(), &config).expect("they are there");
    let params: Vec<f32> = lora::init(&layout, 5).iter().map(|x| x + 0.05).collect();
    let dropout = Some(lora::Dropout { p: 0.3, seed: 4 });
    let views = [golden.view(), AdapterView { layout: &layout, params: &params, dropout }];
    let mut mixed = MicroBatch::default();
    for ((example, sequence), owner) in (0..).zip(&golden.case.sequences).zip([0, 1, 1, 0, 1, 0]) {
        mixed.push(&sequence.tokens, &sequence.supervised, owner, example, 3);
    }
    let of = |model: &Model| {
        let mut grads = [vec![0.0; golden.layout.len()], vec![0.0; layout.len()]];
        let [first, second] = &mut grads;
        let sums = model.forward_backward(&mixed, &views, &[1.0, 0.5], &mut [first, second], &|| false);
        (sums.expect("a pass"), grads)
    };
    let processor = Model::load_unless(&golden.case.folder.join("base"), BaseDtype::Bf16, &|| false).expect("a base");
    let ((here, ours), (there, theirs)) = (of(&golden.model), of(&processor));
    for i in 0..2 {
        assert!((here[i].sum - there[i].sum).abs() < LOSS * there[i].sum, "{here:?} and {there:?}");
        golden.assert_within("gradients", &ours[i], &theirs[i], GRADIENTS);
    }
}

#[test]
fn a_base_in_few_bits_is_the_one_that_the_processor_has() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let stored = lorikeet_trainer::export::StoredAs::Bf16;
    lorikeet_trainer::export::init_base(dir.path(), &config, 3, stored).expect("a base");
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 96).collect();
    let layout = LoraLayout::new(
        Model::load(dir.path()).expect("a base").config(),
        &LoraConfig { target_modules: Targets::AllLinear, ..LoraConfig::plain(4, 8.0, 0.0) },
    )
    .expect("all linear layers");
    let params: Vec<f32> = lora::init(&layout, 5).iter().map(|x| x + 0.02).collect();
    let view = AdapterView { layout: &layout, params: &params, dropout: None };
    let mut batch = MicroBatch::default();
    batch.push(&tokens, &[true; 40], 0, 0, 0);
    for dtype in [BaseDtype::Nf4, BaseDtype::Int8] {
        let of = |machine: Machine| {
            let model = Model::load_on(machine, dir.path(), dtype, &|| false).expect("a base");
            let mut grads = vec![0.0; layout.len()];
            let sums = model.forward_backward(&batch, &[view], &[1.0], &mut [&mut grads], &|| false).expect("a pass");
            let logits = model.logits(&tokens, Some(&view)).expect("a pass");
            (sums[0].sum, grads, logits, model.weight(1, lorikeet_plan::Module::UpProj))
        };
        let (ours, theirs) = (of(Machine::Gpu(gpu())), of(Machine::default()));
        let [grads, logits, weight] =
            [(&ours.1, &theirs.1), (&ours.2, &theirs.2), (&ours.3, &theirs.3)].map(|(a, b)| apart(a, b));
        println!("{:<28} gradients {grads:.2e}  logits {logits:.2e}  a weight {weight:.2e}", dtype.name());
        assert!((ours.0 - theirs.0).abs() < LOSS * theirs.0, "{dtype:?}: {} and {}", ours.0, theirs.0);
        assert!(grads < GRADIENTS && logits < 0.03, "{dtype:?}: gradients {grads}, logits {logits}");
        assert!(weight < 0.003, "{dtype:?}: taken apart otherwise, {weight}");
    }
}

#[test]
fn token_by_token_the_logits_are_those_of_the_whole() {
    let golden = on_gpu(ANY);
    let view = golden.view();
    let (mut cache, tokens) = (Cache::default(), &golden.case.sequences[0].tokens);
    for part in [&tokens[..3], &tokens[3..4], &tokens[4..6]] {
        let logits = golden.model.extend(&mut cache, part, Some(&view), &|| false).expect("a pass");
        assert_eq!(logits, golden.model.next_logits(cache.tokens(), Some(&view)).expect("a pass"));
    }
    assert_eq!(cache.tokens(), &tokens[..6]);
}

#[test]
fn memory_that_is_refused_ends_the_pass_and_nothing_else() {
    let golden = on_gpu(ANY);
    let batch = whole(&golden);
    let before = pass(&golden, &batch).expect("a pass");
    // whatever is there, in ever smaller pieces: what lies at rest in the driver's pool as well
    let mut hog = Vec::new();
    for bits in (12..=33).rev() {
        while let Ok(piece) = gpu().take::<u8>(1 << bits) {
            hog.push(piece);
        }
    }
    let refused = pass(&golden, &batch);
    assert!(matches!(refused, Err(TrainError::Refused { .. })), "{refused:?}");
    drop(hog);
    assert!(pass(&golden, &batch).expect("a pass") == before, "as if nothing had been");
}

#[test]
fn a_whole_run_is_that_of_the_processor_and_goes_on_on_either_from_the_others_checkpoint() {
    let place = Place::new(14);
    let on = |device: Device, name: &str| {
        let mut config = place.config(name);
        config.device = device;
        config.settings.base_dtype = BaseDtype::Bf16;
        config.settings.early_stopping = Some(3);
        config.telling.sample_prompts = vec!["tell me".into()];
        config
    };
    let [here, there] = [Device::Cpu, Device::Gpu(0)];
    let whole = run(&on(here, "here")).expect("trains");
    let ours = run(&on(there, "there")).expect("trains");
    assert!(matches!(ours.outcome, Outcome::Finished { step: 8, .. }), "{:?}", ours.outcome);
    let apart = |steps: &[Step]| {
        steps.iter().zip(&whole.steps).map(|(a, b)| (a.loss - b.loss).abs() / b.loss).fold(0.0, f64::max)
    };
    println!(
        "{:<28} {} steps, the worst loss {:.2e} off the processor's",
        "a whole run",
        ours.steps.len(),
        apart(&ours.steps)
    );
    assert!(ours.steps.len() == 8 && apart(&ours.steps) < RUN, "{:?} and {:?}", ours.steps, whole.steps);
    let again = run(&on(there, "again")).expect("trains");
    assert_eq!(again.adapter_hash(), ours.adapter_hash(), "bit for bit");
    for (first, second, name) in [(here, there, "moves in"), (there, here, "moves out")] {
        let begun = run_until(&on(first, name), 4, Wish::SaveAndStop).expect("stops");
        let gone_on = run(&on(second, name)).expect("goes on");
        assert_eq!((begun.steps.len(), gone_on.plan().from_step), (4, 4), "{name}");
        let steps = [begun.steps, gone_on.steps].concat();
        assert!(steps.len() == 8 && apart(&steps) < RUN, "{name}: {steps:?}");
    }
    let mut wide = on(there, "wide");
    wide.settings.base_dtype = BaseDtype::F32;
    assert!(run(&wide).is_err_and(|error| error.to_string().contains("training.base_dtype")));
    let mut full = on(there, "full");
    full.settings.method = Method::Full;
    assert!(run(&full).is_err_and(|error| error.to_string().contains("training.method")));
}

/// The one device, opened once: its kernels are compiled then.
fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    Arc::clone(
        GPU.get_or_init(|| Arc::new(Gpu::open(0).expect("a GPU, or `cargo xtask gpu test` for the emulated one"))),
    )
}

/// A golden whose model computes there.
fn on_gpu(name: &str) -> Golden {
    there(name).expect("a sound base")
}

fn there(name: &str) -> Result<Golden, TrainError> {
    let mut golden = Golden::open(name);
    let base = golden.case.folder.join("base");
    golden.model = Model::load_on(Machine::Gpu(gpu()), &base, BaseDtype::Bf16, &|| false)?;
    Ok(golden)
}

fn whole(golden: &Golden) -> MicroBatch {
    batch(golden.case.sequences.iter().take(golden.case.run.batch))
}

/// The mean loss of a batch and its gradient.
fn pass(golden: &Golden, batch: &MicroBatch) -> Result<(f64, Vec<f32>), TrainError> {
    let mut grads = vec![0.0; golden.layout.trained()];
    let count = batch.targets.len() as f32;
    let passed =
        golden.model.forward_backward(batch, &[golden.view()], &[1.0 / count], &mut [&mut grads], &|| false)?;
    Ok((passed[0].sum / passed[0].count as f64, grads))
}

fn logits_apart(golden: &Golden) -> f64 {
    let view = golden.view();
    let of = |sequence: &Sequence| golden.model.logits(&sequence.tokens, Some(&view)).expect("a pass");
    apart(&golden.case.sequences.iter().flat_map(of).collect::<Vec<_>>(), &golden.expected("logits"))
}

/// |ours − theirs| as a share of |theirs|.
fn apart(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let off: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
    (off / theirs.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}
