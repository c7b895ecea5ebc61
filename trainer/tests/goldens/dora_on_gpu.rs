//! DoRA on a device, beside the processor: with dropout, in few bits, over many steps, and what it moves and takes. The reference has a case of it, `dora`.

use lorikeet_plan::BaseDtype;
use lorikeet_trainer::config::{Device, Length};
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::lora::{AdapterView, Dropout, LoraConfig, LoraLayout, Targets};
use lorikeet_trainer::model::{Cache, Model};
use lorikeet_trainer::ops::cuda::TRAFFIC;
use lorikeet_trainer::ops::cuda::adamw::Clip;
use lorikeet_trainer::ops::cuda::timeline::Work;
use lorikeet_trainer::ops::machine::Machine;
use lorikeet_trainer::step;

use super::place::Place;
use super::told::run;
use super::{
    ANY, GRADIENTS, LOSS, PARAMETERS, RUN, apart, gpu, numbers, on, on_gpu, on_gpu_with_data, opened, random_base,
    saved, whole,
};

/// Tokens of a pass over the small base.
pub(super) const TOKENS: usize = 640;

#[test]
fn row_lengths_with_dropout_and_beside_an_adapter_without_them_have_the_processors_gradients() {
    let mut golden = on_gpu(ANY);
    let (layout, params) = lengthened(&golden.model, 0.3);
    let (plain, plain_params) = (golden.layout.clone(), golden.params.clone());
    let views = [
        AdapterView { layout: &plain, params: (&plain_params).into(), dropout: None },
        AdapterView { layout: &layout, params: (&params).into(), dropout: dropout(0.3) },
    ];
    let mut mixed = MicroBatch::default();
    for ((example, sequence), owner) in (0..).zip(&golden.case.sequences).zip([0, 1, 1, 0, 1, 0]) {
        mixed.push(&sequence.tokens, &sequence.supervised, owner, example, 3);
    }
    let of = |model: &Model| {
        let (mut first, mut second) = (vec![0.0; plain.len()], vec![0.0; layout.len()]);
        let grads = &mut [&mut first[..], &mut second[..]];
        let sums = model.forward_backward(&mixed, &views, &[1.0, 0.5], grads, &|| false).expect("a pass");
        ([sums[0].sum, sums[1].sum], first, second)
    };
    let processor = Model::load_unless(&golden.case.folder.join("base"), BaseDtype::Bf16, &|| false).expect("a base");
    let (ours, theirs) = (of(&golden.model), of(&processor));
    for (here, there) in ours.0.iter().zip(&theirs.0) {
        assert!((here - there).abs() < LOSS * there, "{:?} and {:?}", ours.0, theirs.0);
    }
    assert!(apart(&ours.1, &theirs.1) < GRADIENTS, "of the adapter without them");
    assert_gradients("dora + dropout", &layout, &ours.2, &theirs.2);
    golden.model.set_recompute(1);
    assert!(of(&golden.model) == ours, "a block that is computed twice makes the same bits");
}

#[test]
fn row_lengths_on_a_base_in_few_bits_are_the_processors() {
    let dir = random_base(96, true);
    for (dtype, p) in [(BaseDtype::Nf4, 0.0), (BaseDtype::Nf4, 0.2), (BaseDtype::Int8, 0.2)] {
        let here = Model::load_on(Machine::Gpu(gpu()), dir.path(), dtype, &|| false).expect("a base");
        let there = Model::load_on(Machine::default(), dir.path(), dtype, &|| false).expect("a base");
        let (layout, params) = lengthened(&there, p);
        let [ours, theirs] = [&here, &there].map(|model| pass(model, &layout, &params, p));
        assert!((ours.0 - theirs.0).abs() < LOSS * theirs.0, "{dtype:?}: {} and {}", ours.0, theirs.0);
        assert_gradients(&format!("dora, {}, p = {p}", dtype.name()), &layout, &ours.1, &theirs.1);
    }
}

#[test]
fn a_run_with_row_lengths_is_that_of_the_processor() {
    let place = Place::new(14);
    let on = |device: Device, name: &str| {
        let mut config = on(&place, device, name);
        config.settings.length = Length::Steps(20);
        config.settings.learning_rate = 1e-3;
        config.settings.lora.dora = true;
        config.settings.lora.dropout = 0.1;
        config
    };
    let (here, there) = (on(Device::Cpu, "here"), on(Device::Gpu(0), "there"));
    let (whole, ours) = (run(&here).expect("trains"), run(&there).expect("trains"));
    let worst = ours.steps.iter().zip(&whole.steps).map(|(a, b)| (a.loss - b.loss).abs() / b.loss).fold(0.0, f64::max);
    assert!(ours.steps.len() == 20 && worst < RUN, "a loss is {worst} off");
    let [theirs, ours] = [&here, &there].map(|config| saved(config, 20, "adapter_model.safetensors"));
    let [(head, theirs), (our_head, ours)] = [&theirs, &ours].map(|bytes| opened(bytes));
    assert!(head == our_head, "laid out alike, byte for byte");
    // B began with zeros: all of it is what these steps made; lengths have hardly moved
    for (kind, tolerance) in [("lora_A", PARAMETERS), ("lora_B", 5.0 * PARAMETERS), ("lora_magnitude_vector", 5e-4)] {
        let names: Vec<&str> = theirs.names().into_iter().filter(|name| name.contains(kind)).collect();
        let [ours, theirs] =
            [&ours, &theirs].map(|file| names.iter().flat_map(|name| numbers(file, name)).collect::<Vec<_>>());
        let off = apart(&ours, &theirs);
        println!("{kind:<28} {off:.2e} of its length off the processor's after twenty steps");
        assert!((1e-7..tolerance).contains(&off), "{kind}: {off} of its length off");
    }
}

#[test]
fn a_step_of_row_lengths_moves_no_more_than_its_batch() {
    let work = on_gpu_with_data();
    let moved = |dora: bool| {
        let mut settings = work.config.settings.clone();
        settings.lora.dora = dora;
        let layout = work.layout(&settings);
        let params = work.model.start(&layout, 1);
        let mut runs = vec![work.run_from(&settings, layout, params)];
        // the first brings the run there
        step(&work.model, &mut runs, 200, &|| false).expect("taken");
        let at_first = [TRAFFIC.there(), TRAFFIC.back(), TRAFFIC.waits()];
        step(&work.model, &mut runs, 200, &|| false).expect("taken");
        [TRAFFIC.there() - at_first[0], TRAFFIC.back() - at_first[1], TRAFFIC.waits() - at_first[2]]
    };
    let (with, without) = (moved(true), moved(false));
    assert_eq!(with, without, "bytes there, bytes back, and waits");
    assert_eq!(with[1..], [size_of::<Clip>() as u64, 0]);
}

#[test]
fn row_lengths_are_measured_with_a_step_and_with_no_pass_or_token() {
    let golden = on_gpu("dora");
    let view = golden.view();
    let modules = golden.layout.entries().len();
    let measured = || {
        let recorded = gpu().recorded().expect("read").spent;
        let of_lengths = recorded.iter().find(|spent| spent.work == Work::Named("dora_lengths"));
        of_lengths.map_or(0, |spent| spent.launches)
    };
    gpu().record();
    let mut cache = Cache::new(&golden.model, Some(&view)).expect("a cache");
    (0..3).for_each(|token| drop(cache.extend(&[token], &|| false).expect("a pass")));
    assert_eq!(measured(), modules, "once for all tokens");
    let mut grads = golden.model.machine().put_exact(vec![0.0; golden.layout.len()]);
    let views = [view];
    gpu().record();
    let mut work = golden.model.work(&views, vec![grads.sums()]).expect("there is room");
    (0..3).for_each(|_| work.pass(&whole(&golden), &[1.0], &|| false).expect("a pass"));
    assert_eq!(measured(), modules, "once for all passes of a step");
}

/// An adapter on every projection in which nothing is zero and no row has the length that it has by itself.
pub(super) fn lengthened(model: &Model, p: f64) -> (LoraLayout, Vec<f32>) {
    let config = LoraConfig { dora: true, target_modules: Targets::AllLinear, ..LoraConfig::plain(4, 8.0, p) };
    let layout = LoraLayout::new(model.config(), &config).expect("all linear layers");
    let mut params = model.start(&layout, 5);
    for entry in layout.entries() {
        params[entry.b.clone()].iter_mut().enumerate().for_each(|(i, b)| *b = ((i * 31 % 17) as f32 - 8.0) / 200.0);
        params[entry.magnitude.clone()].iter_mut().enumerate().for_each(|(i, m)| *m *= 0.8 + (i % 5) as f32 / 10.0);
    }
    (layout, params)
}

/// All of them, and those of row lengths alone, which are few.
fn assert_gradients(what: &str, layout: &LoraLayout, ours: &[f32], theirs: &[f32]) {
    let lengths = |grads: &[f32]| -> Vec<f32> {
        layout.entries().iter().flat_map(|entry| grads[entry.magnitude.clone()].to_vec()).collect()
    };
    let (all, of_lengths) = (apart(ours, theirs), apart(&lengths(ours), &lengths(theirs)));
    println!("{what:<28} gradients {all:.2e}  of row lengths {of_lengths:.2e}");
    assert!(all < GRADIENTS && of_lengths < GRADIENTS, "{what}: {all}, of row lengths {of_lengths}");
}

/// Loss and gradients.
pub(super) fn pass(model: &Model, layout: &LoraLayout, params: &[f32], p: f64) -> (f64, Vec<f32>) {
    let view = AdapterView { layout, params: params.into(), dropout: dropout(p) };
    let mut grads = vec![0.0; layout.len()];
    let sums = model.forward_backward(&batch(), &[view], &[0.01], &mut [&mut grads], &|| false).expect("a pass");
    (sums[0].sum, grads)
}

fn dropout(p: f64) -> Option<Dropout> {
    (p > 0.0).then_some(Dropout { p, seed: 4 })
}

pub(super) fn batch() -> MicroBatch {
    let mut batch = MicroBatch::default();
    for segment in 0..4 {
        let tokens: Vec<u32> = (0..TOKENS / 4).map(|i| ((i * 7 + segment * 13) % 48) as u32).collect();
        let supervised: Vec<bool> = (0..tokens.len()).map(|i| i % 3 > 0).collect();
        batch.push(&tokens, &supervised, 0, segment as u64, 0);
    }
    batch
}
