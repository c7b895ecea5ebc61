//! The model itself trained on a device: its gradients beside the reference's, its steps and files beside the processor's.

use lorikeet_plan::BaseDtype;
use lorikeet_trainer::config::{Device, Length, Method};
use lorikeet_trainer::event::Step;
use lorikeet_trainer::full::WeightLayout;
use lorikeet_trainer::model::{LossSum, Model, read_weights};
use lorikeet_trainer::ops::cuda::TRAFFIC;
use lorikeet_trainer::ops::cuda::adamw::Clip;
use lorikeet_trainer::{Config, Run, Taken, TrainError, Trained, Wish, checkpoint, step};
use safetensors::SafeTensors;

use super::golden::Golden;
use super::place::Place;
use super::told::{run, run_on, run_until};
use super::{
    GRADIENTS, LOSS, MOMENTS, RUN, apart, bits, numbers, on, on_gpu, on_gpu_with_data, opened, params, saved, whole,
};

/// Of the length of one tensor's gradient: a few of them are small beside what reaches them from all others.
const TENSOR: f64 = 2.0 * GRADIENTS;

#[test]
fn the_gradient_of_every_weight_is_the_references_to_the_precision_of_brain_floats() {
    for name in ["llama_dynamic_bias", "qwen3", "gemma2", "phi3"] {
        let mut golden = on_gpu(name);
        golden.expected = std::fs::read(golden.case.folder.join("full.safetensors")).expect("expected numbers");
        let layout = WeightLayout::new(golden.model.config());
        let (sum, grads) = pass(&golden, &layout);
        let (loss, expected) = (sum.sum / sum.count as f64, f64::from(golden.expected("loss")[0]));
        assert!((loss - expected).abs() < LOSS * expected, "{name}: a loss of {loss}, expected {expected}");
        let mut theirs = vec![0.0; layout.len()];
        layout.tensors().for_each(|(tensor, place)| theirs[place].copy_from_slice(&golden.expected(&tensor.name)));
        let of_tensor = |place: std::ops::Range<usize>| apart(&grads[place.clone()], &theirs[place]);
        let worst = layout.tensors().map(|(tensor, place)| (of_tensor(place), &tensor.name));
        let (worst, tensor) = worst.max_by(|a, b| a.0.total_cmp(&b.0)).expect("a model has tensors");
        let all = apart(&grads, &theirs);
        println!("{name:<28} all gradients {all:.2e}, the worst {worst:.2e} of {tensor}");
        assert!((1e-5..GRADIENTS).contains(&all), "{name}: gradients differ by {all} of their length");
        assert!(worst < TENSOR, "{name}: the gradient of {tensor} differs by {worst} of its length");
        assert!(pass(&golden, &layout) == (sum, grads), "{name}: the same bits again");
    }
}

#[test]
fn new_numbers_are_those_that_a_model_of_them_is_loaded_with() {
    for name in ["llama_dynamic_bias", "gemma3", "phi3"] {
        let mut golden = on_gpu(name);
        let (base, layout) = (golden.case.folder.join("base"), WeightLayout::new(golden.model.config()));
        let own = read_weights(&base, &layout, &|| false).expect("a sound base");
        let before = pass(&golden, &layout);
        let put = |golden: &mut Golden, params: Vec<f32>| {
            let there = golden.model.machine().put_exact(params);
            golden.model.set_weights(&layout, there.params());
        };
        let other: Vec<f32> = own.iter().enumerate().map(|(i, x)| x * 1.1 + (i % 7) as f32 * 1e-3).collect();
        put(&mut golden, other.clone());
        let mut processor = Model::load(&base).expect("a sound base");
        processor.set_weights(&layout, (&other).into());
        let logits = |model: &Model| model.logits(&golden.case.sequences[0].tokens, None).expect("a pass");
        let off = apart(&logits(&golden.model), &logits(&processor));
        assert!(off < 0.03, "{name}: logits are {off} of their length off");
        assert!(pass(&golden, &layout) != before, "{name}: it is another model");
        put(&mut golden, own);
        assert!(pass(&golden, &layout) == before, "{name}: the same bits");
    }
}

#[test]
fn a_model_is_trained_as_on_the_processor_and_goes_on_on_either_from_the_others_checkpoint() {
    let place = Place::new(14);
    let [here, there] = [Device::Cpu, Device::Gpu(0)];
    let with = |device: Device, name: &str| {
        let mut config = full(&place, device, name);
        config.settings.early_stopping = Some(3);
        config.telling.sample_prompts = vec!["tell me".into()];
        config
    };
    let theirs = run(&with(here, "here")).expect("trains");
    let ours = run(&with(there, "there")).expect("trains");
    let off = |steps: &[Step]| {
        steps.iter().zip(&theirs.steps).map(|(a, b)| (a.loss - b.loss).abs() / b.loss).fold(0.0, f64::max)
    };
    println!("{:<28} the worst loss {:.2e} off the processor's", "a model's own run", off(&ours.steps));
    assert!(ours.steps.len() == 8 && off(&ours.steps) < RUN, "{:?} and {:?}", ours.steps, theirs.steps);
    assert_eq!(ours.plan().trainable_parameters, ours.plan().base_parameters);
    let first = ours.steps[0].loss;
    assert!(ours.steps[7].loss < 0.9 * first, "it learns: {first}, then {}", ours.steps[7].loss);
    run(&with(there, "again")).expect("trains");
    assert!(model(&place, "again") == model(&place, "there"), "bit for bit");
    for at in [2, 3, 5] {
        let name = format!("stopped at {at}");
        run_until(&with(there, &name), at, Wish::SaveAndStop).expect("stops");
        assert_eq!(run(&with(there, &name)).expect("goes on").plan().from_step, at);
        assert!(model(&place, &name) == model(&place, "there"), "{name}");
    }
    for (first, second, name) in [(here, there, "moves in"), (there, here, "moves out")] {
        let begun = run_until(&with(first, name), 4, Wish::SaveAndStop).expect("stops");
        let gone_on = run(&with(second, name)).expect("goes on");
        assert_eq!((begun.steps.len(), gone_on.plan().from_step), (4, 4), "{name}");
        let steps = [begun.steps, gone_on.steps].concat();
        assert!(steps.len() == 8 && off(&steps) < RUN, "{name}: {steps:?}");
    }
}

#[test]
fn after_twenty_steps_weights_and_moments_are_the_processors_and_saved_alike() {
    let place = Place::new(14);
    let config = |device: Device, name: &str| {
        let mut config = full(&place, device, name);
        config.settings.length = Length::Steps(20);
        // most of the way is still to be made in the end: where little is left to learn, gradients are rounding
        config.settings.learning_rate = 5e-4;
        config
    };
    let (here, there) = (config(Device::Cpu, "here"), config(Device::Gpu(0), "there"));
    for config in [&here, &there] {
        run(config).expect("trains");
    }
    for file in ["optimizer.safetensors", "model.safetensors"] {
        let [theirs, ours] = [&here, &there].map(|config| saved(config, 20, file));
        let [(head, theirs), (our_head, ours)] = [&theirs, &ours].map(|bytes| opened(bytes));
        assert!(head == our_head, "{file} is laid out alike, byte for byte");
        let of =
            |file: &SafeTensors<'_>| theirs.names().iter().flat_map(|name| numbers(file, name)).collect::<Vec<_>>();
        let off = apart(&of(&ours), &of(&theirs));
        println!("{file:<28} {off:.2e} of its length off the processor's");
        assert!((1e-6..MOMENTS).contains(&off), "{file}: {off} of its length off");
    }
    let layout = layout(&here);
    let [base, theirs, ours] = [here.base.clone(), here.out.join("adapter"), there.out.join("adapter")]
        .map(|dir| read_weights(&dir, &layout, &|| false).expect("a sound base"));
    let way = |to: &[f32]| to.iter().zip(&base).map(|(to, from)| to - from).collect::<Vec<_>>();
    let off = apart(&way(&ours), &way(&theirs));
    println!("{:<28} {off:.2e} of its length off the processor's", "the way from the base");
    assert!(off < MOMENTS, "the way from the base is {off} of its length off");
}

#[test]
fn what_is_trained_begins_with_the_numbers_of_the_files_to_the_last_bit() {
    let place = Place::new(14);
    let mut config = full(&place, Device::Gpu(0), "still");
    config.settings.learning_rate = 0.0;
    config.settings.length = Length::Steps(2);
    run(&config).expect("trains");
    let layout = layout(&config);
    let read = |dir: &std::path::Path| read_weights(dir, &layout, &|| false).expect("a sound base");
    let own = read(&config.base);
    assert!(own.iter().any(|x| half::bf16::from_f32(*x).to_f32() != *x), "no brain floats");
    assert!(read(&config.out.join("adapter")) == own);
}

#[test]
fn a_step_of_a_model_moves_no_weight_over_the_bus_waits_for_nothing_and_is_whole_or_not_at_all() {
    let mut work = on_gpu_with_data();
    let settings = full(&Place::new(1), Device::Gpu(0), "unused").settings;
    let layout = WeightLayout::new(work.model.config());
    let own = read_weights(&work.config.base, &layout, &|| false).expect("a sound base");
    let begun = || Run::new(&settings, Trained::Model(layout.clone()), own.clone(), work.data.train.clone());
    let mut runs = vec![begun()];
    let model = &mut work.model;
    let mut one = |runs: &mut [Run], stop: &dyn Fn() -> bool| -> Result<Vec<Taken>, TrainError> {
        runs[0].settle(model)?;
        runs[0].put_into(model)?;
        step(model, runs, 100, stop)
    };
    one(&mut runs, &|| false).expect("taken");
    let at_first = [TRAFFIC.there(), TRAFFIC.back(), TRAFFIC.waits()];
    let steps = 4;
    (0..steps).for_each(|_| drop(one(&mut runs, &|| false).expect("taken")));
    let [there, back, waits] =
        [TRAFFIC.there() - at_first[0], TRAFFIC.back() - at_first[1], TRAFFIC.waits() - at_first[2]];
    println!(
        "{:<28} {} numbers: {there} bytes there and {back} back in {steps} steps",
        "a model's steps",
        layout.len()
    );
    assert_eq!(back, steps * size_of::<Clip>() as u64, "loss and norm come back, nothing else");
    assert_eq!(waits, 0, "nobody waits for an empty stream");
    assert!(there < layout.len() as u64, "{there} bytes of batches");

    let before = params(&runs[0]);
    let layers = std::cell::Cell::new(0);
    let stop = || {
        layers.set(layers.get() + 1);
        layers.get() == 6
    };
    assert!(matches!(one(&mut runs, &stop), Err(TrainError::Stopped)));
    assert!(params(&runs[0]) == before && runs[0].steps() == 5);
    let mut fresh = vec![begun()];
    (0..5).for_each(|_| drop(one(&mut fresh, &|| false).expect("taken")));
    let [again, fresh] = [&mut runs, &mut fresh].map(|runs| bits(&one(runs, &|| false).expect("taken")));
    assert_eq!(again, fresh, "nothing of the abandoned step is left");
    assert!(params(&runs[0]) != before);
}

#[test]
fn a_model_whose_numbers_run_away_is_saved_as_it_was_before() {
    let place = Place::new(14);
    let ruined = |name: &str| {
        let mut config = full(&place, Device::Gpu(0), name);
        config.settings.learning_rate = 1e25;
        config.settings.warmup_ratio = 0.0;
        config.settings.max_grad_norm = 0.0;
        config
    };
    let config = ruined("to its end");
    let error = run(&config).expect_err("no model survives that");
    let TrainError::NotFinite { step, checkpoint: Some(name), .. } = error else { panic!("{error}") };
    assert_eq!(name, checkpoint::name(step - 1));
    let stopped = ruined("stopped before");
    run_until(&stopped, step - 1, Wish::SaveAndStop).expect("stops");
    for file in ["optimizer.safetensors", "model.safetensors"] {
        assert!(saved(&config, step - 1, file) == saved(&stopped, step - 1, file), "{file}");
    }
}

#[test]
fn a_model_is_trained_by_several_ranks_as_by_one() {
    let place = Place::new(14);
    let alone = run(&full(&place, Device::Gpu(0), "alone")).expect("trains");
    let told = run_on(2, &full(&place, Device::Gpu(0), "two"), u64::MAX, Wish::Run).expect("trains");
    assert_eq!(told.steps.len(), alone.steps.len());
    for (one, other) in told.steps.iter().zip(&alone.steps) {
        assert!((one.loss - other.loss).abs() < RUN * other.loss, "{one:?} and {other:?}");
        assert_eq!((one.step, one.tokens, one.lr), (other.step, other.tokens, other.lr));
    }
    run_on(2, &full(&place, Device::Gpu(0), "again"), u64::MAX, Wish::Run).expect("trains");
    assert!(model(&place, "again") == model(&place, "two"), "as many ranks make the same bits");
}

#[test]
fn weights_in_other_numbers_are_not_trained_there() {
    let place = Place::new(14);
    for dtype in [BaseDtype::F32, BaseDtype::Int8, BaseDtype::Nf4] {
        let mut config = full(&place, Device::Gpu(0), "never");
        config.settings.base_dtype = dtype;
        let refused = run(&config);
        assert!(matches!(refused, Err(TrainError::Config { key: "training.base_dtype", .. })), "{refused:?}");
    }
}

/// A run that trains the model itself.
fn full(place: &Place, device: Device, name: &str) -> Config {
    let mut config = on(place, device, name);
    config.settings.method = Method::Full;
    config.settings.learning_rate = 2e-3;
    if device == Device::Cpu {
        config.settings.base_dtype = BaseDtype::F32;
    }
    config
}

fn layout(config: &Config) -> WeightLayout {
    WeightLayout::new(Model::load(&config.base).expect("a base").config())
}

/// What came out.
fn model(place: &Place, attempt: &str) -> Vec<u8> {
    std::fs::read(place.path(attempt).join("adapter/model.safetensors")).expect("a model")
}

/// The loss of a golden's first batch, and the gradient of its mean for every weight.
fn pass(golden: &Golden, layout: &WeightLayout) -> (LossSum, Vec<f32>) {
    let batch = whole(golden);
    let mut grads = vec![0.0; layout.len()];
    let scale = 1.0 / batch.targets.len() as f32;
    let sum = golden.model.forward_backward_weights(&batch, layout, scale, &mut grads, &|| false);
    (sum.expect("a pass"), grads)
}
