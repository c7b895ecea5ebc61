//! Whole runs on a tiny random Llama: learnt by heart, killed and resumed, packed and not, refused by name.

mod place;
mod told;

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use lorikeet_trainer::checkpoint;
use lorikeet_trainer::config::{BaseDtype, Every, Length, Method, MicroTokens, Settings};
use lorikeet_trainer::event::{CheckpointKind, Event, Outcome, Reached, Step};
use lorikeet_trainer::schedule::Curve;
use lorikeet_trainer::{Config, FailureClass, Stop, TrainError, Wish, train};
use place::Place;
use serde_json::Value;
use told::{Told, names, run, run_until};

#[test]
fn a_tiny_set_is_learnt_by_heart() {
    let place = Place::new(3);
    let mut config = place.config("a");
    config.settings.learning_rate = 3e-3;
    config.settings.length = Length::Steps(200);
    config.settings.lora.rank = 16;
    config.settings.lora.dropout = 0.0;
    let told = run(&config).expect("trains");
    let (first, last) = (told.steps[0].loss, told.steps[199].loss);
    assert!(first > 4.0 && last < 0.1, "from {first} to {last}");
}

#[test]
fn a_run_stopped_at_any_step_goes_on_bit_for_bit() {
    let place = Place::new(14);
    let whole = run(&place.config("whole")).expect("trains");
    assert_eq!(whole.steps.len(), 8);
    for at in 1..8 {
        let config = place.config(&format!("stopped-{at}"));
        let first = run_until(&config, at, Wish::SaveAndStop).expect("stops");
        assert_eq!(first.outcome, Outcome::Stopped { step: at, checkpoint: Some(checkpoint::name(at)) });
        let second = run(&config).expect("goes on");
        let Step { step, epoch, loss, lr, .. } = *first.steps.last().expect("a step");
        assert_eq!((second.plan().from_step, second.plan().reached), (step, Some(Reached { epoch, loss, lr })));
        assert_eq!(step, at);
        assert_same(&whole, &[first, second], &place, &format!("stopped-{at}"));
    }
}

#[test]
fn a_run_that_loses_everything_between_two_checkpoints_goes_on_bit_for_bit() {
    let place = Place::new(14);
    let whole = run(&place.config("whole")).expect("trains");
    for (round, at) in [2, 5, 7].into_iter().enumerate() {
        let name = format!("lost-{round}");
        let mut config = place.config(&name);
        config.threads = Some(round + 1);
        let lost = run_and_crash(&config, at);
        let resumed = run(&config).expect("goes on");
        let from = resumed.plan().from_step;
        assert!(from < at, "step {at} was never saved, but the run goes on from {from}");
        let kept = Told { steps: lost.into_iter().filter(|step| step.step <= from).collect(), ..Told::default() };
        assert_same(&whole, &[kept, resumed], &place, &name);
    }
}

#[test]
fn a_discarded_run_leaves_no_checkpoint_of_its_last_step() {
    let place = Place::new(14);
    let config = place.config("a");
    let told = run_until(&config, 2, Wish::Discard).expect("stops");
    assert_eq!(told.outcome, Outcome::Stopped { step: 2, checkpoint: None });
    assert!(checkpoint::newest(&config.out.join("checkpoints"), &mut |_| {}).expect("looked").is_none());
}

#[test]
fn packing_and_accumulating_change_no_loss_beyond_rounding() {
    let place = Place::new(14);
    let packed: Vec<Told> = [10_000, 150, 1]
        .into_iter()
        .map(|micro_tokens| {
            let mut config = place.config(&format!("micro-{micro_tokens}"));
            config.micro_tokens = MicroTokens::Tokens(micro_tokens);
            config.settings.lora.dropout = 0.1;
            run(&config).expect("trains")
        })
        .collect();
    for other in &packed[1..] {
        for (a, b) in packed[0].steps.iter().zip(&other.steps) {
            assert!((a.loss - b.loss).abs() <= 1e-5 * a.loss, "{a:?} and {b:?}");
            assert_eq!((a.tokens, a.supervised_tokens, a.lr), (b.tokens, b.supervised_tokens, b.lr));
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let place = Place::new(14);
    let hashes: Vec<String> = (1..4)
        .map(|threads| {
            let mut config = place.config(&format!("threads-{threads}"));
            config.threads = Some(threads);
            run(&config).expect("trains").adapter_hash()
        })
        .collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let place = Place::new(14);
    let whole = run(&place.config("whole")).expect("trains");
    let config = place.config("a");
    let first = run_until(&config, 6, Wish::SaveAndStop).expect("stops");
    let damaged = config.out.join("checkpoints").join(checkpoint::name(6)).join("optimizer.safetensors");
    let mut bytes = fs::read(&damaged).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).expect("written");
    let second = run(&config).expect("goes on");
    assert_eq!(second.plan().from_step, 4);
    assert!(second.logs.iter().any(|line| line.contains("step-00000006") && line.contains("optimizer.safetensors")));
    let kept = Told { steps: first.steps[..4].to_vec(), ..Told::default() };
    assert_same(&whole, &[kept, second], &place, "a");
}

#[test]
fn a_run_that_must_go_on_does_not_begin_again_where_no_checkpoint_is_whole() {
    let place = Place::new(14);
    let mut config = place.config("a");
    config.must_go_on = true;
    run_until(&config, 2, Wish::SaveAndStop).expect("there is none, so it begins");
    let damaged = config.out.join("checkpoints").join(checkpoint::name(2)).join("state.json");
    fs::write(&damaged, "{}").expect("written");
    let error = run(&config).expect_err("nothing to go on from");
    assert_eq!(error.class(), FailureClass::Checkpoint);
    assert!(error.to_string().contains("step-00000002") && error.to_string().contains("state.json"), "{error}");
    config.must_go_on = false;
    assert_eq!(run(&config).expect("a person's own may").plan().from_step, 0);
}

#[test]
fn a_checkpoint_goes_on_only_in_the_run_it_came_from() {
    let place = Place::new(14);
    let config = place.config("a");
    run_until(&config, 5, Wish::SaveAndStop).expect("stops");
    type Change = fn(&mut Settings);
    let changes: [(&str, Change); 4] = [
        ("lora.rank", |settings| settings.lora.rank = 8),
        ("lora.alpha", |settings| settings.lora.alpha = 1.0),
        ("batch_size", |settings| settings.batch_size = 5),
        ("seed", |settings| settings.seed = 1),
    ];
    for (key, change) in changes {
        let mut other = config.clone();
        change(&mut other.settings);
        let error = run(&other).expect_err(key);
        assert_eq!(error.class(), FailureClass::Checkpoint);
        assert!(error.to_string().contains(key), "{error}");
    }
    let mut other = config.clone();
    other.settings.learning_rate = 1e-4;
    let told = run(&other).expect("a rate may change");
    assert!(told.logs.iter().any(|line| line.contains("learning_rate was 0.005 and is 0.0001")), "{:?}", told.logs);
}

#[test]
fn the_last_three_the_best_and_the_final_checkpoint_are_kept() {
    let place = Place::new(14);
    let mut config = place.config("a");
    config.settings.checkpoint_every = Every::Steps(1);
    config.settings.eval_every = Every::Steps(1);
    // it is best in the middle and ruined afterwards
    config.settings.schedule = Curve::Constant;
    config.settings.learning_rate = 0.3;
    config.settings.length = Length::Steps(12);
    let told = run(&config).expect("trains");
    let best = told.evals[1..].iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).expect("evaluated").step;
    let mut left = names(&config.out.join("checkpoints"));
    left.sort();
    let mut expected: Vec<String> = [best, 10, 11, 12].map(checkpoint::name).into();
    expected.sort();
    expected.dedup();
    assert_eq!(left, expected);
    let kind = |step: u64| told.checkpoints.iter().find(|(saved, _)| *saved == step).expect("saved").1;
    assert_eq!(
        (kind(12), kind(best)),
        (CheckpointKind::Final, if best == 12 { CheckpointKind::Final } else { CheckpointKind::Best })
    );
}

#[test]
fn a_run_whose_numbers_run_away_stops_with_the_last_good_state() {
    let place = Place::new(14);
    let mut config = place.config("a");
    config.settings.learning_rate = 1e30;
    config.settings.warmup_ratio = 0.0;
    config.settings.max_grad_norm = 0.0;
    let error = run(&config).expect_err("no model survives that");
    assert_eq!(error.class(), FailureClass::NotFinite);
    assert!(error.hint().expect("a hint").contains("learning rate"));
    let TrainError::NotFinite { step, checkpoint: Some(name), .. } = error else { panic!("{error}") };
    assert_eq!(name, checkpoint::name(step - 1));
    checkpoint::verify(&config.out.join("checkpoints").join(name)).expect("whole");
}

#[test]
fn an_adapter_can_be_started_from_and_evaluation_finds_it_as_it_was_left() {
    let place = Place::new(14);
    let first = run(&place.config("first")).expect("trains");
    let mut config = place.config("second");
    config.init_adapter = Some(place.path("first/adapter"));
    config.settings.shuffle = false;
    config.settings.learning_rate = 0.0;
    let second = run(&config).expect("trains");
    let left = first.evals.last().expect("evaluated");
    assert_eq!(second.evals[0].loss.to_bits(), left.loss.to_bits());
    assert_eq!(second.adapter_hash(), first.adapter_hash(), "a rate of zero changes nothing");
}

#[test]
fn the_model_itself_is_trained_resumed_bit_for_bit_and_comes_out_as_a_base() {
    let place = Place::new(14);
    let full = |attempt: &str| {
        let mut config = place.config(attempt);
        config.settings.method = Method::Full;
        config.settings.learning_rate = 2e-3;
        config
    };
    fs::write(place.path("base/generation_config.json"), "{\"do_sample\": true}").expect("written");
    let whole = run(&full("whole")).expect("trains");
    let beside = fs::read(place.path("whole/adapter/generation_config.json")).expect("a model's own file");
    assert_eq!(beside, b"{\"do_sample\": true}");
    let (first, last) = (whole.steps[0].loss, whole.steps[7].loss);
    assert!(last < 0.9 * first, "from {first} to {last}");
    assert_eq!(whole.plan().trainable_parameters, whole.plan().base_parameters);
    let stopped = run_until(&full("stopped"), 3, Wish::SaveAndStop).expect("stops");
    let resumed = run(&full("stopped")).expect("goes on");
    let losses = |told: &Told| told.steps.iter().map(|step| step.loss.to_bits()).collect::<Vec<_>>();
    assert_eq!([losses(&stopped), losses(&resumed)].concat(), losses(&whole));
    let model = |attempt: &str| fs::read(place.path(attempt).join("adapter/model.safetensors")).expect("a model");
    assert!(model("stopped") == model("whole"));

    // what came out is a base: evaluated before its first step, it is where training left it
    let mut config = place.config("again");
    let out = place.path("whole").join("adapter");
    config.base = out;
    let again = run(&config).expect("trains");
    assert!((again.evals[0].loss - whole.evals.last().expect("evaluated").loss).abs() < 1e-6);
    let mut contradiction = full("never");
    contradiction.init_adapter = Some(place.path("whole"));
    assert!(matches!(run(&contradiction), Err(TrainError::Config { key: "training.method", .. })));
}

#[test]
fn everything_that_comes_out_lies_in_the_adapter_directory() {
    let place = Place::new(14);
    let config = place.config("a");
    let told = run(&config).expect("trains");
    assert!(told.evals[0].step == 0 && told.evals.last().expect("evaluated").step == 8);
    assert!((told.evals[0].perplexity - told.evals[0].loss.exp()).abs() < 1e-9);
    let expected = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.svg",
        "metadata.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_summary.json",
    ];
    assert_eq!(names(&config.out.join("adapter")), expected);
    let Outcome::Finished { step: 8, files } = &told.outcome else { panic!("{:?}", told.outcome) };
    assert_eq!(files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), expected);
    let text = fs::read_to_string(config.out.join("adapter/training_summary.json")).expect("read");
    let summary: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(summary["steps"], 8);
    assert_eq!(summary["validation"]["course"].as_array().expect("a list").len(), told.evals.len());
}

#[test]
fn a_memory_limit_makes_the_micro_batch_smaller_and_the_losses_stay() {
    let place = Place::new(14);
    let config = |name: &str, memory_limit| {
        let mut config = place.config(name);
        config.settings.batch_size = 12;
        Config { micro_tokens: MicroTokens::Auto, memory_limit, ..config }
    };
    let free = run(&config("free", None)).expect("trains");
    let limit = free.plan().memory.total - 1;
    let limited = run(&config("limited", Some(limit))).expect("trains");
    assert!(limited.plan().micro_tokens < free.plan().micro_tokens, "{:?}", limited.plan());
    assert!(limited.plan().memory.total <= limit);
    for (a, b) in free.steps.iter().zip(&limited.steps) {
        assert!((a.loss - b.loss).abs() <= 1e-5 * a.loss, "{a:?} and {b:?}");
    }
    let error = run(&config("refused", Some(1000))).expect_err("nothing fits into a kilobyte");
    assert_eq!(error.class(), FailureClass::OutOfMemory);
}

#[test]
fn a_run_that_computes_blocks_twice_to_fit_is_the_same_run() {
    let place = Place::new(14);
    let config = |name: &str, memory_limit| Config { memory_limit, ..place.config(name) };
    let free = run(&config("free", None)).expect("trains");
    let limit = free.plan().memory.total - 1;
    let limited = run(&config("limited", Some(limit))).expect("trains");
    assert_eq!((free.plan().recompute, free.plan().micro_tokens), (0, 200));
    assert!(limited.plan().recompute > 0 && limited.plan().micro_tokens == 200, "{:?}", limited.plan());
    assert_eq!(limited.adapter_hash(), free.adapter_hash());
    let found = checkpoint::newest(&place.path("limited/checkpoints"), &mut |_| {}).expect("looked").expect("saved");
    let saved = checkpoint::read_saved(&found).expect("read");
    assert_eq!((saved.micro_tokens, saved.recompute as u64), (200, limited.plan().recompute));
}

#[test]
fn what_does_not_fit_says_by_how_much_and_which_settings_would() {
    let place = Place::new(14);
    let limit = run(&place.config("free")).expect("trains").plan().memory.program;
    let error =
        run(&Config { memory_limit: Some(limit), ..place.config("small") }).expect_err("nothing but the program");
    assert_eq!(error.class(), FailureClass::OutOfMemory);
    let TrainError::OutOfMemory { needed_bytes, available_bytes, .. } = &error else { panic!("{error}") };
    assert!(*available_bytes == limit && *needed_bytes > limit, "{error}");
    assert!(error.to_string().ends_with("too few"), "{error}");

    // a byte less than the most frugal plan: what is named then is one setting, and with it the run fits
    let limit = *needed_bytes - 1;
    let error = run(&Config { memory_limit: Some(limit), ..place.config("short") }).expect_err("a byte is missing");
    let TrainError::OutOfMemory { remedies, .. } = &error else { panic!("{error}") };
    let remedy = remedies.iter().find(|remedy| remedy.key == "training.base_dtype").expect("narrower weights");
    assert_eq!(remedy.value, "bf16");
    assert!(error.hint().expect("a hint").contains("training.base_dtype = bf16 would take"), "{:?}", error.hint());
    let mut fits = Config { memory_limit: Some(limit), ..place.config("fits") };
    fits.settings.base_dtype = BaseDtype::Bf16;
    let planned = run(&fits).expect("trains").plan().memory.total;
    // the remedy is the most frugal plan with that setting, the run takes the fastest that fits
    assert!((remedy.bytes..=limit).contains(&planned), "{planned} planned, {} foretold", remedy.bytes);
}

#[test]
fn an_event_that_cannot_be_recorded_ends_the_run() {
    let place = Place::new(3);
    let config = place.config("a");
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    let error = train(&config, &Stop::new(), &mut |_| Err(full())).expect_err("nothing may go on unrecorded");
    assert_eq!(error.class(), FailureClass::DiskFull);
}

/// Runs until step `at` is told and then drops everything, as a kill would; answers the steps told before.
fn run_and_crash(config: &Config, at: u64) -> Vec<Step> {
    let (seen, mut steps) = (AtomicU64::new(0), Vec::new());
    let result = train(config, &Stop::new(), &mut |event| {
        if let Event::Step(step) = event {
            seen.store(step.step, Ordering::SeqCst);
            if step.step == at {
                return Err(io::Error::other("killed"));
            }
            steps.push(step);
        }
        Ok(())
    });
    assert!(matches!(result, Err(TrainError::Report(_))), "{result:?}");
    assert_eq!(seen.load(Ordering::SeqCst), at);
    steps
}

/// The parts together told the same steps as the whole, to the bit, and left the same adapter.
fn assert_same(whole: &Told, parts: &[Told], place: &Place, attempt: &str) {
    let bits = |step: &Step| (step.step, step.loss.to_bits(), step.grad_norm.to_bits(), step.lr.to_bits(), step.tokens);
    let expected: Vec<_> = whole.steps.iter().map(bits).collect();
    let found: Vec<_> = parts.iter().flat_map(|part| &part.steps).map(bits).collect();
    assert_eq!(found, expected, "{attempt}");
    let weights =
        |attempt: &str| fs::read(place.path(attempt).join("adapter/adapter_model.safetensors")).expect("read");
    assert!(weights(attempt) == weights("whole"), "{attempt}: another adapter");
}
