//! An attempt from its spec to its outcome, in one worker or several.

use std::fs::{self, File};
use std::path::Path;

use lorikeet_protocol::job::{FailureClass, TargetModules, Task, TrainingLength};
use lorikeet_protocol::worker::{Holder, Spec, WorkerEvent};
use lorikeet_trainer::checkpoint;
use lorikeet_worker::Exit;
use serde_json::Value;
use std::collections::BTreeMap;

use crate::place::{Place, Worker, conversation, lines, outcome, steps};

#[test]
fn a_finished_attempt_has_numbered_lines_one_outcome_and_is_never_touched_again() {
    let place = Place::new();
    let dir = place.attempt("a", |_| {});
    assert_eq!(Worker::start(&dir).exit_code(), 0);
    let lines = lines(&dir);
    let seqs: Vec<u64> = lines.iter().map(|line| line.seq).collect();
    assert_eq!(seqs, (1..=lines.len() as u64).collect::<Vec<_>>());
    let outcomes = lines.iter().filter(|line| line.event.is_outcome()).count();
    let WorkerEvent::Finished { step: 8, files } = &lines.last().expect("lines").event else { panic!("{lines:?}") };
    assert_eq!(outcomes, 1);
    for file in files {
        let bytes = fs::read(dir.join("adapter").join(&file.path)).expect("read");
        assert_eq!((bytes.len() as u64, blake3::hash(&bytes).as_bytes()), (file.size, &file.hash.0), "{}", file.path);
    }
    let holder: Holder = serde_json::from_slice(&fs::read(dir.join("worker.json")).expect("read")).expect("JSON");
    assert!(holder.pid != std::process::id() && holder.start_ticks > 0);
    assert_eq!(Worker::start(&dir).exit_code(), 0);
    assert_eq!(self::lines(&dir), lines);
}

#[test]
fn a_step_is_one_line_as_the_platform_wants_it() {
    let place = Place::new();
    let dir = place.attempt("a", |_| {});
    Worker::start(&dir).exit_code();
    let text = fs::read_to_string(dir.join("events.jsonl")).expect("read");
    let values: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let steps: Vec<&Value> = values.iter().filter(|value| value["type"] == "step").collect();
    assert_eq!(steps.len(), 8);
    let keys: Vec<&str> = steps[0].as_object().expect("an object").keys().map(String::as_str).collect();
    let mut expected =
        ["seq", "time", "type", "step", "epoch", "loss", "lr", "grad_norm", "tokens", "supervised_tokens", "seconds"];
    let mut found = keys.clone();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn a_second_worker_leaves_at_once_and_touches_nothing() {
    let place = Place::new();
    let dir = place.attempt("a", |_| {});
    let lock = File::create(dir.join("lock")).expect("created");
    lock.try_lock().expect("free");
    let worker = Worker::start(&dir);
    assert_eq!(worker.exit_code(), i32::from(Exit::Held.code()));
    assert!(!dir.join("events.jsonl").exists() && !dir.join("worker.json").exists());
}

#[test]
fn a_worker_killed_between_two_checkpoints_loses_nothing_that_counts() {
    let place = Place::new();
    // long enough that the kill comes before the end
    let long = |spec: &mut Spec| {
        let Task::Train(train) = &mut spec.job.task;
        train.training.length = TrainingLength::Epochs(50);
    };
    let whole = place.attempt("whole", long);
    assert_eq!(Worker::start(&whole).exit_code(), 0);
    for at in [2, 17] {
        let dir = place.attempt(&format!("killed-at-{at}"), long);
        let worker = Worker::start(&dir);
        worker.wait_for(&dir, |event| matches!(event, WorkerEvent::Step(step) if step.step == at));
        worker.kill();
        assert!(!outcome(&dir).is_outcome(), "the kill came too late to show anything");
        // what a kill in the middle of a write leaves behind
        fs::OpenOptions::new()
            .append(true)
            .open(dir.join("events.jsonl"))
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"{\"seq\":9"))
            .expect("written");
        assert_eq!(Worker::start(&dir).exit_code(), 0);
        assert_eq!(steps(&dir), steps(&whole), "killed after step {at}");
        let weights = |dir: &Path| fs::read(dir.join("adapter/adapter_model.safetensors")).expect("read");
        assert!(weights(&dir) == weights(&whole), "killed after step {at}: another adapter");
    }
}

#[test]
fn a_checkpoint_brought_from_elsewhere_is_taken_up() {
    let place = Place::new();
    let first = place.attempt("first", |_| {});
    assert_eq!(Worker::start(&first).exit_code(), 0);
    let second = place.attempt("second", |_| {});
    let (from, to) = (first.join("checkpoints"), second.join("checkpoints"));
    let name = checkpoint::name(4);
    fs::create_dir_all(to.join(&name)).expect("created");
    for entry in fs::read_dir(from.join(&name)).expect("a checkpoint") {
        let file = entry.expect("an entry").file_name();
        fs::copy(from.join(&name).join(&file), to.join(&name).join(&file)).expect("copied");
    }
    assert_eq!(Worker::start(&second).exit_code(), 0);
    let all = steps(&first);
    let later: BTreeMap<_, _> = all.into_iter().filter(|(step, _)| *step > 4).collect();
    assert_eq!(steps(&second), later);
}

#[test]
fn what_cannot_be_trained_fails_by_its_class() {
    let place = Place::new();
    let broken_spec = place.attempt("broken-spec", |_| {});
    fs::write(broken_spec.join("spec.json"), "{\"job\":").expect("written");
    let bad_target = place.attempt("bad-target", |spec| {
        let Task::Train(train) = &mut spec.job.task;
        train.lora.target_modules = TargetModules::Names(vec!["no_such_proj".into()]);
    });
    let no_base = place.attempt("no-base", |spec| spec.base = "/nowhere".into());
    let bad_data = place.attempt("bad-data", |spec| spec.dataset = place.path("broken.jsonl"));
    fs::write(place.path("broken.jsonl"), format!("{}\n{{\"messages\": [\n", conversation(1))).expect("written");
    for (dir, expected, word) in [
        (broken_spec, FailureClass::Settings, "spec.json"),
        (bad_target, FailureClass::Settings, "no_such_proj"),
        (no_base, FailureClass::Base, "/nowhere"),
        (bad_data, FailureClass::Dataset, "line 2"),
    ] {
        assert_eq!(Worker::start(&dir).exit_code(), i32::from(Exit::Failed.code()));
        let WorkerEvent::Failed { class, message, .. } = outcome(&dir) else { panic!("{:?}", outcome(&dir)) };
        assert!(class == expected && message.contains(word), "{class:?}: {message}");
    }
}
