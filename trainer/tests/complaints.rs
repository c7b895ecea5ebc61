//! What people complain of in other trainers, each as a test that it does not happen here. `docs/complaints.md` is the list.

mod place;
mod told;

use std::fs;

use lorikeet_dataset::{OnFault, PrepareConfig, Prepared, Tokenizer, prepare};
use lorikeet_plan::ModelConfig;
use lorikeet_trainer::config::{Every, Length, MicroTokens, Settings};
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::event::{Outcome, Step};
use lorikeet_trainer::generate::greedy;
use lorikeet_trainer::lora::{self, AdapterView, LoraLayout};
use lorikeet_trainer::merge::{SHARD_BYTES, merge};
use lorikeet_trainer::model::Model;
use lorikeet_trainer::{Config, FailureClass, Run, Taken, TrainError, Wish, checkpoint, step};
use place::Place;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use told::{assert_close, run, run_on, run_until};

#[test]
fn complaint_1_assistant_only_loss_trains_on_nothing() {
    let place = Place::new(6);
    let data = data(&place.config("a"));
    assert!(
        (0..data.train.len()).all(|i| data.train.supervised_in(i) > 0),
        "a stock template has no marks and needs none"
    );

    let template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
    fs::write(place.path("base/chat_template.jinja"), template).expect("written");
    let error = run(&place.config("b")).expect_err("a template that prints no answer leaves nothing to learn");
    assert_eq!(error.class(), FailureClass::Dataset);
    let said = error.to_string();
    assert!(said.contains("line 1, $: ") && said.contains("no token of this sample is a target"), "{said}");
}

#[test]
fn complaint_2_the_model_never_stops() {
    let place = Place::new(3);
    let mut config = place.config("a");
    config.settings.learning_rate = 3e-3;
    config.settings.length = Length::Steps(200);
    config.settings.lora.rank = 16;
    config.settings.lora.dropout = 0.0;
    config.settings.validation_fraction = 0.0;
    run(&config).expect("trains");
    let tokenizer = Tokenizer::load(&config.base).expect("a tokenizer");
    let data = data(&config);
    let example = data.train.get(0).expect("an example");
    let end = example.tokens[example.supervised.iter().rposition(|on| *on).expect("a target")];
    assert!(tokenizer.is_special(end) && tokenizer.eos_ids().contains(&end), "the end of a turn is a target");

    let (model, layout) = (Model::load(&config.base).expect("a base"), layout(&config));
    let params = lora::load(&config.out.join("adapter"), &layout).expect("an adapter");
    let first = example.supervised.iter().position(|on| *on).expect("a target");
    let view = AdapterView { layout: &layout, params: (&params).into(), dropout: None };
    let most = 3 * example.tokens.len();
    let answer = greedy(&model, Some(&view), &example.tokens[..first], most, tokenizer.eos_ids(), &|| false);
    assert_eq!(answer.expect("an answer"), example.tokens[first..=first + example.supervised_count() - 1]);
}

#[test]
fn complaint_3_accumulating_gradients_gives_another_loss_than_one_batch() {
    let place = Place::new(14);
    let config = place.config("a");
    let (model, data, layout) = (Model::load(&config.base).expect("a base"), data(&config), layout(&config));
    let params = lora::init(&layout, 5).iter().map(|x| x + 0.01).collect::<Vec<_>>();
    let taken = |micro_tokens| {
        let mut runs = [Run::new(&config.settings, layout.clone(), params.clone(), data.train.clone())];
        match step(&model, &mut runs, micro_tokens, &|| false).expect("a step")[0] {
            Taken::Done(step) => (step.loss, step.grad_norm),
            other @ Taken::NotFinite { .. } => panic!("{other:?}"),
        }
    };
    let (whole, norm) = taken(100_000);
    let (apart, norm_apart) = taken(1);
    assert!((whole - apart).abs() <= 1e-6 * whole && (norm - norm_apart).abs() <= 1e-5 * norm);

    // the mean over the micro-batches' means, as it was elsewhere: these examples would show it
    let view = AdapterView { layout: &layout, params: (&params).into(), dropout: None };
    let mean = |i| {
        let sum = model.loss(&batch(&data, &[i]), &[view], &|| false).expect("a pass")[0];
        (sum.sum / sum.count as f64, sum.count)
    };
    let means: Vec<(f64, u64)> = (0..data.train.len()).map(mean).collect();
    let weighted = means.iter().map(|(mean, count)| mean * *count as f64).sum::<f64>()
        / means.iter().map(|(_, count)| *count as f64).sum::<f64>();
    let unweighted = means.iter().map(|(mean, _)| mean).sum::<f64>() / means.len() as f64;
    assert!((weighted - unweighted).abs() > 1e-3 * weighted, "the examples are too much alike to tell");
}

#[test]
fn complaint_4_several_gpus_are_missing_for_years() {
    let place = Place::new(14);
    let one = run(&place.config("one")).expect("trains");
    let several = run_on(3, &place.config("three"), u64::MAX, Wish::Run).expect("trains");
    assert!(!one.steps.is_empty());
    assert_close(&one.steps, &several.steps);
}

#[test]
fn complaint_5_resuming_skips_through_the_data_or_takes_another_order() {
    let place = Place::new(14);
    let whole = run(&place.config("whole")).expect("trains");
    // in the second epoch, whose order is another than the first's
    let config = place.config("resumed");
    let at = whole.plan().total_steps - 2;
    let stopped = run_until(&config, at, Wish::SaveAndStop).expect("stops");
    assert_eq!(stopped.outcome, Outcome::Stopped { step: at, checkpoint: Some(checkpoint::name(at)) });
    let resumed = run(&config).expect("goes on");
    assert_eq!(
        (resumed.plan().from_step, resumed.steps.len() as u64),
        (at, 2),
        "neither from the start nor to the end"
    );
    let seen =
        |steps: &[Step]| steps.iter().map(|step| (step.step, step.tokens, step.loss.to_bits())).collect::<Vec<_>>();
    assert_eq!([seen(&stopped.steps), seen(&resumed.steps)].concat(), seen(&whole.steps));
    let (first, second) = whole.steps.split_at(whole.steps.len() / 2);
    let tokens = |steps: &[Step]| steps.iter().map(|step| step.tokens).collect::<Vec<_>>();
    assert_ne!(tokens(first), tokens(second), "each epoch has an order of its own");
    assert_eq!(resumed.adapter_hash(), whole.adapter_hash());
}

#[test]
fn complaint_6_resuming_forgets_the_optimizer_and_says_nothing() {
    let place = Place::new(14);
    let whole = run(&place.config("whole")).expect("trains");
    let config = place.config("a");
    let stopped = run_until(&config, 6, Wish::SaveAndStop).expect("stops");
    assert!(stopped.checkpoints.iter().any(|(step, _)| *step == 6));
    let newest = config.out.join("checkpoints").join(checkpoint::name(6));
    fs::remove_file(newest.join("optimizer.safetensors")).expect("it is there");
    let resumed = run(&config).expect("goes on from the one before");
    assert!(resumed.plan().from_step < 6, "{:?}", resumed.plan());
    let said = resumed.logs.iter().any(|line| line.contains("step-00000006") && line.contains("optimizer.safetensors"));
    assert!(said, "{:?}", resumed.logs);
    assert_eq!(resumed.adapter_hash(), whole.adapter_hash());
}

#[test]
fn complaint_7_packed_examples_see_each_other() {
    let place = Place::new(14);
    let config = place.config("a");
    let (model, data, layout) = (Model::load(&config.base).expect("a base"), data(&config), layout(&config));
    let params = lora::init(&layout, 5).iter().map(|x| x + 0.01).collect::<Vec<_>>();
    let of = |examples: &[usize]| {
        let mut grads = vec![0.0; layout.len()];
        let view = AdapterView { layout: &layout, params: (&params).into(), dropout: None };
        let pass = model.forward_backward(&batch(&data, examples), &[view], &[1.0], &mut [&mut grads], &|| false);
        (pass.expect("a pass")[0].sum, grads)
    };
    let (loss, packed) = of(&[0, 1, 2, 3]);
    let alone: Vec<(f64, Vec<f32>)> = (0..4).map(|i| of(&[i])).collect();
    let sum: f64 = alone.iter().map(|(loss, _)| loss).sum();
    assert!((loss - sum).abs() <= 1e-6 * sum, "{loss} and {sum}");
    let size = packed.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    let apart = packed.iter().enumerate().map(|(at, x)| {
        let sum: f32 = alone.iter().map(|(_, grads)| grads[at]).sum();
        f64::from((x - sum) * (x - sum))
    });
    assert!(apart.sum::<f64>().sqrt() <= 1e-5 * size);
}

#[test]
fn complaint_8_an_adapter_is_merged_into_a_quantised_base() {
    let place = Place::new(6);
    let config = place.config("a");
    run(&config).expect("trains");
    let (adapter, out) = (config.out.join("adapter"), place.path("merged"));
    let merged = || merge(&config.base, &adapter, &out, SHARD_BYTES, &|_, _| {}, &|| false);
    let path = config.base.join("config.json");
    let plain = fs::read(&path).expect("read");
    let mut text: Value = serde_json::from_slice(&plain).expect("JSON");
    text["quantization_config"] = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    fs::write(&path, text.to_string()).expect("written");
    let said = merged().expect_err("what is added would be rounded away").to_string();
    assert!(said.contains("merge into the model it was quantised from"), "{said}");
    assert!(!out.exists());
    fs::write(&path, plain).expect("written");
    merged().expect("into the model itself");
}

#[test]
fn complaint_9_other_tensors_than_the_adapters_keep_files_from_being_converted() {
    let place = Place::new(6);
    let config = place.config("a");
    run(&config).expect("trains");
    let bytes = fs::read(config.out.join("adapter").join(lora::WEIGHTS_FILE)).expect("an adapter");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    for name in file.names() {
        let inner = name.strip_prefix("base_model.model.model.layers.").expect(name);
        let module = inner.strip_suffix(".lora_A.weight").or(inner.strip_suffix(".lora_B.weight")).expect(name);
        assert!(modules.iter().any(|known| module.ends_with(known)), "{name}");
    }
    assert_eq!(file.names().len(), 2 * 2 * modules.len());
}

#[test]
fn complaint_11_memory_runs_out_late_because_of_one_long_example() {
    let place = Place::new(14);
    let config =
        |name: &str, limit| Config { micro_tokens: MicroTokens::Tokens(64), memory_limit: limit, ..place.config(name) };
    let short = run(&config("short", None)).expect("trains").plan().memory.total;
    let answer = "and so on ".repeat(40);
    let long =
        json!({"messages": [{"role": "user", "content": "at length"}, {"role": "assistant", "content": answer}]});
    let file = place.path("data.jsonl");
    let before = fs::read_to_string(&file).expect("read");
    fs::write(&file, format!("{before}{long}\n")).expect("written");
    let needed = run(&config("long", None)).expect("trains").plan().memory.total;
    assert!(needed > short, "the longest example decides: {needed} and {short}");
    let refused = config("refused", Some(short));
    let error = run(&refused).expect_err("it does not fit");
    assert_eq!(error.class(), FailureClass::OutOfMemory);
    assert!(!refused.out.join("checkpoints").exists(), "said before the first step");
}

#[test]
fn complaint_13_an_adapter_of_nans_is_called_a_success() {
    let place = Place::new(14);
    let mut config = place.config("a");
    config.settings.learning_rate = 1e30;
    config.settings.warmup_ratio = 0.0;
    config.settings.max_grad_norm = 0.0;
    let error = run(&config).expect_err("no model survives that");
    assert_eq!(error.class(), FailureClass::NotFinite);
    assert!(!config.out.join("adapter").exists());
    for entry in fs::read_dir(config.out.join("checkpoints")).expect("checkpoints") {
        let params = lora::load(&entry.expect("an entry").path(), &layout(&config)).expect("whole");
        assert!(params.iter().all(|x| x.is_finite()));
    }
    // nor is one begun with
    let adapter = place.config("begun");
    let told = run(&adapter).expect("trains");
    assert!(told.evals.iter().all(|eval| eval.loss.is_finite()));
    let weights = adapter.out.join("adapter").join(lora::WEIGHTS_FILE);
    let mut bytes = fs::read(&weights).expect("read");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).expect("written");
    let begun = Config { init_adapter: Some(adapter.out.join("adapter")), ..place.config("b") };
    let said = run(&begun).expect_err("a number that is none").to_string();
    assert!(said.contains("not a finite number"), "{said}");
}

#[test]
fn complaint_14_one_base_trains_one_adapter_at_a_time() {
    let place = Place::new(14);
    let config = place.config("a");
    let (model, data, layout) = (Model::load(&config.base).expect("a base"), data(&config), layout(&config));
    let fresh = |seed: u64| {
        let settings = Settings { seed, ..config.settings.clone() };
        Run::new(&settings, layout.clone(), lora::init(&layout, seed), data.train.clone())
    };
    let mut together = [fresh(1), fresh(2), fresh(3)];
    let taken = step(&model, &mut together, 200, &|| false).expect("one step for all");
    for (seed, taken) in (1..).zip(taken) {
        let alone = step(&model, &mut [fresh(seed)], 200, &|| false).expect("a step")[0];
        let (Taken::Done(a), Taken::Done(b)) = (taken, alone) else { panic!("{taken:?} and {alone:?}") };
        assert!((a.loss - b.loss).abs() <= 1e-5 * b.loss, "{a:?} and {b:?}");
    }
}

#[test]
fn complaint_15_parameters_get_no_gradient_and_frozen_ones_get_one() {
    let place = Place::new(14);
    let config = place.config("a");
    let before = fs::read(config.base.join("model.safetensors")).expect("a base");
    let layout = layout(&config);
    let begun = Model::load(&config.base).expect("a base").start(&layout, config.settings.seed);
    let mut short = config.clone();
    short.settings.length = Length::Steps(4);
    short.settings.checkpoint_every = Every::Steps(1);
    let told = run(&short).expect("trains");
    assert_eq!(told.steps[0].lr, 0.0, "the warm-up begins at nothing");
    let params = lora::load(&short.out.join("adapter"), &layout).expect("an adapter");
    for entry in layout.entries() {
        for place in [&entry.a, &entry.b] {
            assert!(begun[place.clone()] != params[place.clone()], "{:?} stands still", entry.keys());
        }
    }
    assert!(fs::read(config.base.join("model.safetensors")).expect("a base") == before);

    // a warm-up may begin so low that magnitudes of about 1 do not move yet: they learn all the same
    let mut faint = Config { settings: short.settings.clone(), ..place.config("faint") };
    (faint.settings.learning_rate, faint.settings.lora.dora) = (1e-10, true);
    run(&faint).expect("every tensor has a gradient");

    // an adapter whose A and B are both nothing can never move: the run says so and ends
    let dead = place.path("dead");
    fs::create_dir(&dead).expect("made");
    lora::save(&dead, &layout, &vec![0.0; layout.len()], &lora::AdapterMeta::default()).expect("saved");
    let never = Config { init_adapter: Some(dead), ..place.config("never") };
    let error = run(&never).expect_err("nothing is trained");
    assert!(matches!(error, TrainError::Unreached { .. }), "{error}");
    assert!(!never.out.join("adapter").exists());
}

fn layout(config: &Config) -> LoraLayout {
    let text = fs::read_to_string(config.base.join("config.json")).expect("a base");
    let model = ModelConfig::parse(&text).expect("a config");
    LoraLayout::new(&model, &config.settings.lora).expect("matches")
}

fn data(config: &Config) -> Prepared {
    let tokenizer = Tokenizer::load(&config.base).expect("a tokenizer");
    let wanted = PrepareConfig {
        file: config.data.file.clone(),
        validation_file: None,
        validation_fraction: 0.0,
        max_seq_length: 256,
        supervise: config.settings.supervise,
        seed: 1,
        filters: config.data.filters.clone(),
        on_fault: OnFault::Refuse,
        cache_dir: config.data.cache.clone(),
    };
    prepare(&wanted, &tokenizer, &mut |_| {}, &|| false).expect("sound data")
}

fn batch(data: &Prepared, examples: &[usize]) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for example in examples {
        let read = data.train.get(*example).expect("an example");
        batch.push(&read.tokens, &read.supervised, 0, *example as u64, 0);
    }
    batch
}
