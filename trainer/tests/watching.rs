//! What a run watches and writes down: early ends, samples, gradients by module, movement, metrics, the card.

mod place;
mod told;

use std::fs;

use lorikeet_trainer::config::{Every, Length, Telling};
use lorikeet_trainer::event::{CheckpointKind, Outcome};
use lorikeet_trainer::lora::Targets;
use lorikeet_trainer::model::Model;
use lorikeet_trainer::schedule::Curve;
use lorikeet_trainer::{Config, FailureClass, Wish, checkpoint, lora};
use place::Place;
use serde_json::Value;
use told::{Told, names, run, run_until};

#[test]
fn without_a_better_evaluation_it_ends_early_and_the_best_state_comes_out() {
    let place = Place::new(14);
    let config = |name: &str| {
        let mut config = place.config(name);
        // it is best in the middle and ruined afterwards
        config.settings.schedule = Curve::Constant;
        config.settings.learning_rate = 0.3;
        config.settings.eval_every = Every::Steps(1);
        config.settings.checkpoint_every = Every::Steps(1);
        config.settings.length = Length::Steps(40);
        config.settings.early_stopping = Some(3);
        config
    };
    let told = run(&config("a")).expect("trains");
    let best = told.evals[1..].iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).expect("evaluated").step;
    let Outcome::Finished { step, .. } = told.outcome else { panic!("{:?}", told.outcome) };
    assert_eq!(step, best + 3, "{:?}", told.evals);
    assert!(step < 40 && told.checkpoints.last() == Some(&(step, CheckpointKind::Final)));
    let numbers = |path: &str| fs::read(place.path(path).join("adapter_model.safetensors")).expect("read");
    assert!(
        numbers("a/adapter") == numbers(&format!("a/checkpoints/{}", checkpoint::name(best))),
        "the best comes out"
    );
    assert!(numbers("a/adapter") != numbers(&format!("a/checkpoints/{}", checkpoint::name(step))));
    let summary = json(&place, "a/adapter/training_summary.json");
    assert_eq!((&summary["steps"], &summary["result_of_step"]), (&step.into(), &best.into()));

    // the best is in every checkpoint, for whoever goes on elsewhere has only the newest
    let first = run_until(&config("b"), best + 1, Wish::SaveAndStop).expect("stops");
    assert!(matches!(first.outcome, Outcome::Stopped { .. }));
    for name in names(&place.path("b/checkpoints")) {
        if name != checkpoint::name(best + 1) {
            fs::remove_dir_all(place.path("b/checkpoints").join(name)).expect("removed");
        }
    }
    let second = run(&config("b")).expect("goes on");
    assert_eq!(second.adapter_hash(), told.adapter_hash());
}

#[test]
fn messages_are_answered_at_every_evaluation_by_the_model_as_it_is() {
    let place = Place::new(3);
    let mut config = place.config("a");
    config.settings.learning_rate = 3e-3;
    config.settings.length = Length::Steps(200);
    config.settings.lora.rank = 16;
    config.settings.lora.dropout = 0.0;
    config.settings.eval_every = Every::Steps(100);
    config.telling.sample_prompts = vec!["tell me number 1".into(), "tell me number 2".into()];
    let told = run(&config).expect("trains");
    let steps: Vec<u64> = told.samples.iter().map(|sample| sample.step).collect();
    assert_eq!(steps, [0, 0, 100, 100, 200, 200]);
    assert_ne!(told.samples[0].text, told.samples[4].text);
    let known = told.samples[4..].iter().any(|sample| sample.text.contains("so it is"));
    assert!(known, "what was learnt by heart is said: {:?}", told.samples);
}

#[test]
fn the_norms_by_module_together_are_the_norm() {
    let place = Place::new(14);
    let mut config = place.config("a");
    config.telling.grad_norms = true;
    let told = run(&config).expect("trains");
    assert_eq!(told.grad_norms.len(), told.steps.len());
    for (norms, step) in told.grad_norms.iter().zip(&told.steps) {
        let modules: Vec<&str> = norms.keys().map(String::as_str).collect();
        assert_eq!(modules, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]);
        let whole = norms.values().map(|norm| norm * norm).sum::<f64>().sqrt();
        assert!((whole - step.grad_norm).abs() <= 1e-6 * step.grad_norm, "{whole} and {}", step.grad_norm);
    }
}

#[test]
fn an_adapter_that_no_gradient_reaches_ends_the_run_by_name() {
    let place = Place::new(14);
    // behind a down_proj of zeros nothing that gate and up do is heard
    let base = place.path("base/model.safetensors");
    zero(&base, "model.layers.1.mlp.down_proj.weight");
    let mut config = place.config("a");
    config.settings.lora.target_modules = Targets::Names(vec!["q_proj".into(), "1.mlp.up_proj".into()]);
    let error = run(&config).expect_err("up_proj cannot move");
    let words = error.to_string();
    // the first of eight steps has a rate of zero, the second moves B, and the third has a gradient for A
    let expected = "step 3: no gradient has reached base_model.model.model.layers.1.mlp.up_proj.lora_A.weight";
    assert!(words.contains(expected), "{words}");
    assert!(words.contains("2 tensors") && error.class() == FailureClass::Config, "{words}");
    // a checkpoint in between changes nothing about it
    let mut config = place.config("b");
    config.settings.lora.target_modules = Targets::Names(vec!["1.mlp.up_proj".into()]);
    run_until(&config, 2, Wish::SaveAndStop).expect("stops");
    assert!(run(&config).expect_err("still").to_string().contains("step 3: "));
    // a run that has no rate above zero is not judged
    let mut config = place.config("c");
    config.settings.learning_rate = 0.0;
    run(&config).expect("nothing was to move");
}

#[test]
fn the_bases_own_loss_is_told_beside_the_adapters() {
    let place = Place::new(14);
    let first = run(&place.config("first")).expect("trains");
    assert!(first.evals.iter().all(|eval| eval.base_loss == Some(first.evals[0].loss)));
    let mut config = place.config("second");
    config.init_adapter = Some(place.path("first/adapter"));
    let second = run(&config).expect("trains");
    assert_ne!(second.evals[0].loss, first.evals[0].loss, "it begins with an adapter");
    assert_eq!(second.evals[0].base_loss, first.evals[0].base_loss);
    let quality = &json(&place, "second/adapter/training_summary.json")["quality"];
    assert!(quality["base_perplexity"].is_f64() && quality["stars"].is_u64(), "{quality}");
}

#[test]
fn a_second_file_is_evaluated_on_and_nothing_is_held_out_of_the_first() {
    let place = Place::new(14);
    fs::copy(place.path("data.jsonl"), place.path("held-out.jsonl")).expect("copied");
    let mut config = place.config("a");
    config.data.validation_file = Some(place.path("held-out.jsonl"));
    let told = run(&config).expect("trains");
    assert_eq!((told.plan().examples, told.plan().validation_examples), (14, 14));
    let metadata = json(&place, "a/adapter/metadata.json");
    let hash = blake3::hash(&fs::read(place.path("data.jsonl")).expect("read")).to_hex().to_string();
    assert_eq!(
        (&metadata["dataset"]["file_hash"], &metadata["dataset"]["validation_file_hash"]),
        (&hash.as_str().into(), &hash.as_str().into())
    );
}

#[test]
fn every_step_has_one_line_of_metrics_however_often_it_was_done() {
    let place = Place::new(14);
    let mut config = place.config("a");
    config.telling = Telling { sample_prompts: vec!["hello".into()], grad_norms: true };
    let whole = run(&config).expect("trains");
    config.out = place.path("b");
    let mut broken = Told::default();
    let result = lorikeet_trainer::train(&config, &lorikeet_trainer::Stop::new(), &mut |event| {
        let killed = matches!(&event, lorikeet_trainer::event::Event::Step(step) if step.step == 6);
        broken.take(event);
        if killed { Err(std::io::Error::other("killed")) } else { Ok(()) }
    });
    assert!(result.is_err());
    run(&config).expect("goes on");
    let lines = |attempt: &str| {
        let text = fs::read_to_string(place.path(attempt).join("metrics.jsonl")).expect("written");
        let line = |line: &str| {
            let mut line: Value = serde_json::from_str(line).expect("JSON");
            line.as_object_mut().expect("an object").remove("seconds");
            line
        };
        text.lines().map(line).collect::<Vec<_>>()
    };
    assert_eq!(lines("a"), lines("b"));
    let steps = lines("a").iter().filter(|line| line["type"] == "step").count();
    assert_eq!(steps, whole.steps.len());
    assert_eq!(names(&place.path("a/tensorboard")).len(), 1);
    assert_eq!(names(&place.path("b/tensorboard")).len(), 2, "each start has a file of its own");
}

#[test]
fn the_lines_before_a_checkpoint_are_on_the_disk_before_it_is_there() {
    let place = Place::new(14);
    let config = place.config("a");
    let metrics = place.path("a/metrics.jsonl");
    let error = lorikeet_trainer::train(&config, &lorikeet_trainer::Stop::new(), &mut |event| {
        if matches!(&event, lorikeet_trainer::event::Event::Step(step) if step.step == 1) {
            // what no disk can keep
            fs::remove_file(&metrics)?;
            std::os::unix::fs::symlink("/dev/null", &metrics)?;
        }
        Ok(())
    });
    assert!(error.expect_err("not kept").to_string().contains("metrics.jsonl"));
    assert!(!place.path("a/checkpoints").exists());
}

#[test]
fn the_card_names_the_data_and_shows_the_curve() {
    let place = Place::new(14);
    let config: Config = place.config("a");
    run(&config).expect("trains");
    let card = fs::read_to_string(place.path("a/adapter/README.md")).expect("a card");
    let hash = blake3::hash(&fs::read(place.path("data.jsonl")).expect("read")).to_hex().to_string();
    for words in [hash.as_str(), "![Loss by step](loss.svg)", "\"learning_rate\": 0.005"] {
        assert!(card.contains(words), "{words}: {card}");
    }
    let curve = fs::read_to_string(place.path("a/adapter/loss.svg")).expect("a curve");
    assert!(curve.starts_with("<svg ") && curve.contains("held out"));
    let model = Model::load(&place.path("base")).expect("a base");
    lora::open(&place.path("a/adapter"), model.config()).expect("and the adapter is one");
}

fn json(place: &Place, name: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(name)).expect("read")).expect("JSON")
}

/// Fills one tensor of a file with zeros.
fn zero(path: &std::path::Path, tensor: &str) {
    let mut bytes = fs::read(path).expect("read");
    let (start, range) = {
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("sound");
        (8 + header, metadata.info(tensor).expect("there").data_offsets)
    };
    bytes[start + range.0..start + range.1].fill(0);
    fs::write(path, bytes).expect("written");
}
