//! The same numbers on a GPU: every golden in brain floats, whole runs, and what only a device can get wrong. Needs a GPU, or the
//! emulated one that `cargo xtask gpu test` puts in its place; prints a line of figures for each case.

#![expect(clippy::print_stdout, reason = "the figures of a card are for whoever runs this there")]

#[path = "goldens/cache_on_gpu.rs"]
mod cache_on_gpu;
#[path = "goldens/case.rs"]
mod case;
#[path = "goldens/dora_on_gpu.rs"]
mod dora_on_gpu;
#[path = "goldens/full_on_gpu.rs"]
mod full_on_gpu;
#[path = "goldens/golden.rs"]
mod golden;
#[path = "goldens/memory_on_gpu.rs"]
mod memory_on_gpu;
mod place;
#[path = "goldens/ranks_on_gpu.rs"]
mod ranks_on_gpu;
mod told;
#[path = "place/work.rs"]
mod work;

use std::cell::Cell;
use std::sync::{Arc, OnceLock};

use case::{Case, Sequence};
use golden::{Golden, batch};
use lorikeet_plan::BaseDtype;
use lorikeet_trainer::checkpoint;
use lorikeet_trainer::config::{Device, Every, Length};
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::event::{Event, Outcome, Step};
use lorikeet_trainer::export::{StoredAs, init_base};
use lorikeet_trainer::lora::{self, AdapterView, LoraConfig, LoraLayout, Targets};
use lorikeet_trainer::model::{Cache, Model};
use lorikeet_trainer::ops::cuda::adamw::Clip;
use lorikeet_trainer::ops::cuda::timeline;
use lorikeet_trainer::ops::cuda::{Gpu, TRAFFIC};
use lorikeet_trainer::ops::machine::Machine;
use lorikeet_trainer::{Config, Run, Stop, Taken, TrainError, Wish, step, train};
use place::Place;
use safetensors::SafeTensors;
use told::{run, run_until};
use work::Work;

/// Of the length of all gradients: what rounding every activation of these small models to eight bits may move them by. A term that is
/// missing or has the wrong sign moves them by their whole length; what single operations may be off by is `ops/parity.rs`'s.
const GRADIENTS: f64 = 0.08;
/// The same of `dora`, whose modules are rounded once more each way: a share that grows from 3 % at the head to 10 % in the lowest block.
const GRADIENTS_OF_DORA: f64 = 0.1;
/// Of the loss.
const LOSS: f64 = 0.01;
/// Of the loss of any of twenty steps, each of which begins where rounding has led the ones before.
const RUN: f64 = 0.06;
/// Of the length of both moments after twenty steps.
const MOMENTS: f64 = 0.15;
/// Of the length of an adapter after as many.
const PARAMETERS: f64 = 0.02;
/// Cases of what only the processor trains: narrow heads.
const REFUSED: [&str; 1] = ["mistral_pattern_linear_f16"];
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
        let shares = golden.gradients_apart(&grads);
        let logits = logits_apart(&golden);
        println!("{name:<28} loss {loss:.5} (expected {expected:.5})  gradients {shares:.4?}  logits {logits:.2e}");
        assert!(
            (loss - f64::from(expected)).abs() < LOSS * f64::from(expected),
            "{name}: a loss of {loss}, expected {expected}"
        );
        let bound = if name == "dora" { GRADIENTS_OF_DORA } else { GRADIENTS };
        let holds = |share: &f64| (1e-5..bound).contains(share);
        assert!(
            shares.iter().all(holds),
            "{name}: gradients of A, B and row lengths differ by {shares:?} of their length"
        );
        assert!(logits < 0.03, "{name}: logits differ by {logits} of their length");
        assert!(pass(&golden, &batch).expect("a pass") == (loss, grads), "{name}: the same bits again");
    }
    let words = refused.iter().map(|words| words.split(": ").next().unwrap_or_default()).collect::<Vec<_>>();
    assert_eq!(words, REFUSED, "{refused:?}");
    assert!(refused.iter().all(|words| words.contains("not trained on a GPU yet")), "{refused:?}");
}

#[test]
fn twenty_steps_lose_what_the_reference_loses() {
    for name in ["dora", "gemma3", "patterns_rslora", "pissa", "plus_ends", "qwen3", "untied_all_f32"] {
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
    mixed(ANY, ["o_proj", "up_proj"]);
}

#[test]
fn dropout_and_two_adapters_on_embedding_and_head_are_those_of_the_processor() {
    mixed("plus_ends", ["embed_tokens", "lm_head"]);
}

/// Rows of the case's adapter and of one on these modules, which has dropout, side by side.
fn mixed(name: &str, modules: [&str; 2]) {
    let golden = on_gpu(name);
    let target_modules = Targets::Names(modules.map(str::to_owned).to_vec());
    let config = LoraConfig { target_modules, ..LoraConfig::plain(2, 3.0, 0.3) };
    let layout = LoraLayout::new(golden.model.config(), &config).expect("they are there");
    let params: Vec<f32> = lora::init(&layout, 5).iter().map(|x| x + 0.05).collect();
    let dropout = Some(lora::Dropout { p: 0.3, seed: 4 });
    let views = [golden.view(), AdapterView { layout: &layout, params: (&params).into(), dropout }];
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
fn adapters_behind_one_on_an_embedding_of_odd_size_are_those_of_the_processor() {
    let dir = random_base(97, false);
    let [here, there] = [Machine::Gpu(gpu()), Machine::default()]
        .map(|machine| Model::load_on(machine, dir.path(), BaseDtype::Bf16, &|| false).expect("a base"));
    let target_modules = Targets::Names(["embed_tokens", "q_proj", "down_proj"].map(str::to_owned).to_vec());
    for rank in [1, 2, 3] {
        let config =
            LoraConfig { target_modules: target_modules.clone(), ..LoraConfig::plain(rank, 2.0 * rank as f64, 0.1) };
        let layout = LoraLayout::new(here.config(), &config).expect("they are there");
        let params: Vec<f32> = lora::init(&layout, 5).iter().map(|x| x + 0.02).collect();
        let [ours, theirs] = [&here, &there].map(|model| dora_on_gpu::pass(model, &layout, &params, 0.1));
        let gradients = apart(&ours.1, &theirs.1);
        println!("{:<28} gradients {gradients:.2e}", format!("odd embedding, rank {rank}"));
        assert!((ours.0 - theirs.0).abs() < LOSS * theirs.0, "rank {rank}: {} and {}", ours.0, theirs.0);
        assert!(gradients < GRADIENTS, "rank {rank}: gradients {gradients}");
    }
}

#[test]
fn a_base_in_few_bits_is_the_one_that_the_processor_has() {
    let dir = random_base(96, true);
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 96).collect();
    let layout = LoraLayout::new(
        Model::load(dir.path()).expect("a base").config(),
        &LoraConfig { target_modules: Targets::AllLinear, ..LoraConfig::plain(4, 8.0, 0.0) },
    )
    .expect("all linear layers");
    let params: Vec<f32> = lora::init(&layout, 5).iter().map(|x| x + 0.02).collect();
    let view = AdapterView { layout: &layout, params: (&params).into(), dropout: None };
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
fn memory_that_is_refused_ends_the_pass_and_nothing_else() {
    let golden = on_gpu(ANY);
    let batch = whole(&golden);
    let before = pass(&golden, &batch).expect("a pass");
    let hog = everything();
    let refused = pass(&golden, &batch);
    assert!(matches!(refused, Err(TrainError::Refused { .. })), "{refused:?}");
    drop(hog);
    assert!(pass(&golden, &batch).expect("a pass") == before, "as if nothing had been");
    let mut cache = Cache::new(&golden.model, None).expect("a cache");
    let said = cache.extend(&[1, 2, 3], &|| false).expect("a pass");
    let hog = everything();
    let refused = cache.extend(&[4; 64], &|| false);
    assert!(matches!(refused, Err(TrainError::Refused { .. })), "{refused:?}");
    drop((hog, cache));
    let mut cache = Cache::new(&golden.model, None).expect("a cache");
    assert!(cache.extend(&[1, 2, 3], &|| false).expect("a pass") == said, "as if nothing had been");
}

#[test]
fn what_was_given_back_is_found_again_however_it_is_torn() {
    let gpu = gpu();
    let (_, total) = gpu.memory().expect("counted");
    // as much in turn as there is all in all, and something more
    for _ in 0..=total >> 28 {
        drop(gpu.take::<u8>(1 << 28).expect("there is room for one at a time"));
    }
    let more = gpu.take::<u8>(total as usize + (1 << 30)).map(drop).expect_err("no card has so much");
    assert!(more.is_out_of_memory(), "{more}");
}

#[test]
fn what_lies_on_the_device_is_after_twenty_steps_what_the_processor_has_and_is_saved_alike() {
    let place = Place::new(14);
    let on = |device: Device, name: &str| {
        let mut config = on(&place, device, name);
        config.settings.length = Length::Steps(20);
        // most of the way is made before the end, so that what is left of it is not all rounding
        config.settings.learning_rate = 1e-3;
        config
    };
    let (here, there) = (on(Device::Cpu, "here"), on(Device::Gpu(0), "there"));
    let (whole, ours) = (run(&here).expect("trains"), run(&there).expect("trains"));
    assert!(ours.steps.len() == 20 && ours.checkpoints == whole.checkpoints, "{:?}", ours.checkpoints);
    let worst = ours.steps.iter().zip(&whole.steps).map(|(a, b)| (a.loss - b.loss).abs() / b.loss).fold(0.0, f64::max);
    assert!(worst < RUN, "a loss is {worst} off");
    for (file, tolerance) in [("optimizer.safetensors", MOMENTS), ("adapter_model.safetensors", PARAMETERS)] {
        let [theirs, ours] = [&here, &there].map(|config| saved(config, 20, file));
        let [(head, theirs), (our_head, ours)] = [&theirs, &ours].map(|bytes| opened(bytes));
        assert!(head == our_head, "{file} is laid out alike, byte for byte");
        let names: Vec<String> = theirs.names().into_iter().map(str::to_owned).collect();
        let of = |file: &SafeTensors<'_>| names.iter().flat_map(|name| numbers(file, name)).collect::<Vec<_>>();
        let off = apart(&of(&ours), &of(&theirs));
        println!("{file:<28} {off:.2e} of its length off the processor's");
        assert!((1e-6..tolerance).contains(&off), "{file}: {off} of its length off");
    }
}

#[test]
fn a_step_whose_numbers_are_not_finite_changes_nothing_on_the_device_and_spares_its_neighbour() {
    let work = on_gpu_with_data();
    let settings = &work.config.settings;
    let layout = work.layout(settings);
    let ruined: Vec<f32> = lora::init(&layout, 1).iter().map(|_| 1e30).collect();
    let mut runs = vec![work.run_from(settings, layout, ruined.clone()), work.run(settings)];
    let before = params(&runs[1]);
    let taken = step(&work.model, &mut runs, 200, &|| false).expect("a pass");
    assert!(matches!(taken[0], Taken::NotFinite { .. }) && matches!(taken[1], Taken::Done(_)), "{taken:?}");
    assert!(params(&runs[0]) == ruined && runs[0].steps() == 0 && runs[1].steps() == 1);
    // the first step of a warm-up has no rate; the second moves
    step(&work.model, &mut runs[1..], 200, &|| false).expect("a pass");
    assert!(params(&runs[1]) != before);
}

#[test]
fn a_run_whose_numbers_run_away_on_the_device_is_saved_as_it_was_before() {
    let place = Place::new(14);
    let ruined = |name: &str| {
        let mut config = on(&place, Device::Gpu(0), name);
        config.settings.learning_rate = 1e30;
        config.settings.warmup_ratio = 0.0;
        config.settings.max_grad_norm = 0.0;
        config
    };
    let config = ruined("to its end");
    let error = run(&config).expect_err("no model survives that");
    let TrainError::NotFinite { step, checkpoint: Some(name), .. } = error else { panic!("{error}") };
    assert_eq!(name, checkpoint::name(step - 1));
    // told to stop before that step it leaves the same
    let stopped = ruined("stopped before");
    run_until(&stopped, step - 1, Wish::SaveAndStop).expect("stops");
    for file in ["optimizer.safetensors", "adapter_model.safetensors"] {
        assert!(saved(&config, step - 1, file) == saved(&stopped, step - 1, file), "{file}");
    }
}

#[test]
fn a_step_told_to_stop_inside_changes_nothing_on_the_device() {
    let work = on_gpu_with_data();
    let mut runs = vec![work.run(&work.config.settings)];
    step(&work.model, &mut runs, 1, &|| false).expect("taken");
    let before = params(&runs[0]);
    // one example per micro-batch: the sixth question comes inside the second
    let layers = Cell::new(0);
    let stop = || {
        layers.set(layers.get() + 1);
        layers.get() == 6
    };
    assert!(matches!(step(&work.model, &mut runs, 1, &stop), Err(TrainError::Stopped)));
    assert!(params(&runs[0]) == before && runs[0].steps() == 1);
    let mut fresh = vec![work.run(&work.config.settings)];
    step(&work.model, &mut fresh, 1, &|| false).expect("taken");
    for _ in 0..2 {
        let [again, fresh] =
            [&mut runs, &mut fresh].map(|runs| bits(&step(&work.model, runs, 1, &|| false).expect("taken")));
        assert_eq!(again, fresh, "nothing of the abandoned step is left");
    }
    assert!(params(&runs[0]) == params(&fresh[0]));
}

#[test]
fn a_step_that_is_refused_memory_leaves_the_device_as_it_was() {
    let work = on_gpu_with_data();
    let mut runs = vec![work.run(&work.config.settings)];
    let one = |runs: &mut [Run]| step(&work.model, runs, 200, &|| false);
    (0..2).for_each(|_| drop(one(&mut runs).expect("taken")));
    let before = params(&runs[0]);
    let hog = everything();
    let refused = one(&mut runs);
    assert!(matches!(refused, Err(TrainError::Refused { .. })), "{refused:?}");
    drop(hog);
    assert!(params(&runs[0]) == before && runs[0].steps() == 2);
    let mut fresh = vec![work.run(&work.config.settings)];
    (0..2).for_each(|_| drop(one(&mut fresh).expect("taken")));
    assert_eq!(bits(&one(&mut runs).expect("taken")), bits(&one(&mut fresh).expect("taken")));
    assert!(params(&runs[0]) == params(&fresh[0]), "as if nothing had been");
}

#[test]
fn a_step_moves_no_gradient_and_no_parameter_over_the_bus() {
    let work = on_gpu_with_data();
    let of_rank = |rank: usize| {
        let mut settings = work.config.settings.clone();
        settings.lora.rank = rank;
        let mut runs = vec![work.run(&settings)];
        // the first brings the run there
        step(&work.model, &mut runs, 200, &|| false).expect("taken");
        let at_first = [TRAFFIC.there(), TRAFFIC.back(), TRAFFIC.waits()];
        let steps = 4;
        (0..steps).for_each(|_| drop(step(&work.model, &mut runs, 200, &|| false).expect("taken")));
        let [there, back, waits] =
            [TRAFFIC.there() - at_first[0], TRAFFIC.back() - at_first[1], TRAFFIC.waits() - at_first[2]];
        let numbers = params(&runs[0]).len() as u64;
        println!("{:<28} {numbers} numbers: {there} bytes there and {back} back in {steps} steps", "a run's steps");
        assert_eq!(back, steps * size_of::<Clip>() as u64, "loss and norm come back, nothing else");
        assert_eq!(waits, 0, "nobody waits for an empty stream");
        (there, steps * 4 * numbers)
    };
    let ((there, _), (of_more, adapter)) = (of_rank(4), of_rank(16));
    assert_eq!(there, of_more, "what goes there is the batch, whatever is trained");
    assert!(there < adapter, "{there} bytes of batches, {adapter} of adapters");
}

#[test]
fn all_that_a_step_starts_is_recorded_by_name_and_recording_changes_no_bit() {
    let work = on_gpu_with_data();
    let steps = |recorded: bool| {
        let mut runs = vec![work.run(&work.config.settings)];
        step(&work.model, &mut runs, 200, &|| false).expect("taken");
        if recorded {
            gpu().record();
        }
        step(&work.model, &mut runs, 200, &|| false).expect("taken");
        (gpu().recorded().expect("read"), params(&runs[0]))
    };
    let ((recorded, ours), (nothing, others)) = (steps(true), steps(false));
    assert!(ours == others && nothing.spent.is_empty(), "{nothing:?}");
    let times = |name: &'static str| {
        recorded.spent.iter().find(|spent| spent.work == timeline::Work::Named(name)).map_or(0, |spent| spent.launches)
    };
    assert_eq!((times("adamw"), times("copy from the GPU")), (1, 1), "{recorded:?}");
    assert!(recorded.spent.iter().any(|spent| spent.teraflops() > 0.0), "products have their flops: {recorded:?}");
    let busy: f64 = recorded.spent.iter().map(|spent| spent.milliseconds).sum();
    assert!((busy + recorded.idle - recorded.milliseconds).abs() < 0.1, "nothing is lost: {recorded:?}");
}

#[test]
fn a_step_is_told_when_the_next_one_is_on_the_stream_unless_something_is_due_between_them() {
    let place = Place::new(14);
    let bytes_when_told = |name: &str, grad_norms: bool| {
        let mut config = on(&place, Device::Gpu(0), name);
        config.telling.grad_norms = grad_norms;
        let (stop, mut there, mut waits) = (Stop::new(), Vec::new(), Vec::new());
        train(&config, &stop, &mut |event| {
            if let Event::Step(_) = event {
                there.push(TRAFFIC.there());
                waits.push(TRAFFIC.waits());
            }
            Ok(())
        })
        .expect("trains");
        let since = |counts: Vec<u64>| counts.iter().map(|count| count - counts[0]).collect::<Vec<_>>();
        (since(there), since(waits))
    };
    // who asks for the norms by module has each step told before the next begins
    let ((at_once, _), (late, waits)) = (bytes_when_told("at once", true), bytes_when_told("late", false));
    println!("{:<28} bytes there when told, at once {at_once:?}, late {late:?}", "a step's telling");
    // of eight steps the fourth ends an epoch and the eighth the run: an evaluation and a checkpoint are due
    let moved = |from: usize, to: usize| at_once[to] - at_once[from];
    for step in 1..8 {
        let [is_due, was_due] = [step, step - 1].map(|step| step == 3 || step == 7);
        let expected = match (was_due, is_due) {
            (false, false) => moved(step, step + 1),
            // its own passes were ahead of the telling before, and nothing is ahead of this one
            (false, true) => 0,
            (true, false) => moved(step - 1, step + 1),
            (true, true) => moved(step - 1, step),
        };
        assert_eq!(late[step] - late[step - 1], expected, "step {}", step + 1);
    }
    // step three is looked at for tensors that no gradient reaches, step four evaluated and saved
    for step in [1, 2, 5, 6] {
        assert_eq!(waits[step], waits[step - 1], "step {}", step + 1);
    }
}

#[test]
fn what_a_run_tells_comes_in_the_order_of_the_processors() {
    let place = Place::new(14);
    let words = |device: Device, name: &str| {
        let mut config = on(&place, device, name);
        config.settings.early_stopping = Some(3);
        config.settings.eval_every = Every::Steps(3);
        config.settings.checkpoint_every = Every::Steps(2);
        config.telling.sample_prompts = vec!["tell me".into()];
        let (stop, mut words) = (Stop::new(), Vec::new());
        train(&config, &stop, &mut |event| {
            words.push(match event {
                Event::Step(step) => {
                    if step.step == 5 {
                        stop.save_now();
                    }
                    format!("step {} of {} tokens at {}", step.step, step.tokens, step.lr)
                }
                Event::Eval(eval) => format!("evaluation after {}", eval.step),
                Event::Checkpoint(saved) => format!("checkpoint {} {:?}", saved.step, saved.kind),
                Event::Sample(sample) => format!("sample after {}", sample.step),
                Event::Stage(stage) => format!("{stage:?}"),
                Event::Log { message, .. } => message,
                Event::Plan(plan) => format!("{} steps", plan.total_steps),
                Event::GradNorms { .. } => "norms".into(),
            });
            Ok(())
        })
        .expect("trains");
        words
    };
    let (theirs, ours) = (words(Device::Cpu, "here"), words(Device::Gpu(0), "there"));
    // which of the evaluations is the best is the numbers' business, and may be another's by a rounding
    let same = |words: Vec<String>| words.iter().map(|word| word.replace("Best", "Periodic")).collect::<Vec<_>>();
    assert_eq!(same(ours), same(theirs));
}

#[test]
fn a_run_on_the_device_that_is_stopped_at_any_step_stands_there_and_goes_on_bit_for_bit() {
    let place = Place::new(14);
    let whole = run(&on(&place, Device::Gpu(0), "whole")).expect("trains");
    for at in [1, 2, 3, 4, 6, 7] {
        let config = on(&place, Device::Gpu(0), &format!("stopped at {at}"));
        let first = run_until(&config, at, Wish::SaveAndStop).expect("stops");
        assert_eq!(first.outcome, Outcome::Stopped { step: at, checkpoint: Some(checkpoint::name(at)) });
        assert_eq!(first.steps.len() as u64, at);
        let second = run(&config).expect("goes on");
        assert_eq!(second.plan().from_step, at);
        assert_eq!(second.adapter_hash(), whole.adapter_hash(), "stopped at {at}");
    }
}

#[test]
fn a_whole_run_is_that_of_the_processor_and_goes_on_on_either_from_the_others_checkpoint() {
    let place = Place::new(14);
    let on = |device: Device, name: &str| {
        let mut config = on(&place, device, name);
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
}

/// A run on the base in bf16.
fn on(place: &Place, device: Device, name: &str) -> Config {
    let mut config = place.config(name);
    config.device = device;
    config.settings.base_dtype = BaseDtype::Bf16;
    config
}

/// A file of a run's checkpoint.
fn saved(config: &Config, step: u64, file: &str) -> Vec<u8> {
    std::fs::read(config.out.join("checkpoints").join(checkpoint::name(step)).join(file)).expect("saved")
}

/// What stands before the numbers, and they.
fn opened(bytes: &[u8]) -> (&[u8], SafeTensors<'_>) {
    let (head, _) = SafeTensors::read_metadata(bytes).expect("safetensors");
    (&bytes[..8 + head], SafeTensors::deserialize(bytes).expect("safetensors"))
}

fn numbers(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let bytes = file.tensor(name).expect("by that name").data().to_vec();
    bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

/// The tiny base of `Place` on the device, with its data.
fn on_gpu_with_data() -> Work {
    Work::new(|base| Model::load_on(Machine::Gpu(gpu()), base, BaseDtype::Bf16, &|| false).expect("a base"))
}

fn params(run: &Run) -> Vec<f32> {
    run.params().expect("read back").into_owned()
}

fn bits(taken: &[Taken]) -> (u64, u64) {
    match taken[0] {
        Taken::Done(step) => (step.loss.to_bits(), step.grad_norm.to_bits()),
        Taken::NotFinite { .. } => panic!("{taken:?}"),
    }
}

/// All memory that is there, in ever smaller pieces: what lies at rest in the driver's pool as well.
fn everything() -> Vec<cudarc::driver::CudaSlice<u8>> {
    let mut hog = Vec::new();
    for bits in (12..=33).rev() {
        while let Ok(piece) = gpu().take::<u8>(1 << bits) {
            hog.push(piece);
        }
    }
    hog
}

/// A small base of random numbers.
fn random_base(vocabulary: usize, tied: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": tied,
    });
    init_base(dir.path(), &config, 3, StoredAs::Bf16).expect("a base");
    dir
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
