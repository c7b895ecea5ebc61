//! What a worker does where it may not: memory that is refused, a disk that is full, files that are none of its business.

use std::fs;
use std::path::Path;
use std::process::Command;

use lorikeet_protocol::job::{Every, FailureClass, MicroTokens, Task, Training, TrainingLength};
use lorikeet_protocol::worker::{Level, Spec, Step, WorkerEvent};
use lorikeet_trainer::checkpoint;
use lorikeet_worker::{Exit, Fence, Raised};

use crate::place::{LIMITED, Place, Worker, conversation, lines, outcome};

#[test]
fn refused_memory_halves_the_micro_batch_and_leaves_the_mathematics() {
    let place = Place::new();
    let many: String = (0..240).map(|i| format!("{}\n", conversation(i))).collect();
    fs::write(place.path("many.jsonl"), many).expect("written");
    let large = |spec: &mut Spec| {
        spec.dataset = place.path("many.jsonl");
        let training = training(spec);
        (training.batch_size, training.length) = (200, TrainingLength::Steps(3));
        (training.validation_fraction, training.micro_tokens) = (0.0, MicroTokens::Tokens(100_000));
    };
    let [free, limited] = ["free", "limited"].map(|name| place.attempt(name, large));
    assert_eq!(Worker::start(&free).exit_code(), 0);
    assert_eq!(warnings(&free), [""; 0]);
    // Less than a whole step takes with its headroom, more than half of one does.
    assert_eq!(Worker::start_with(&limited, |command| command.env(LIMITED, "72000000")).exit_code(), 0);
    let warnings = warnings(&limited);
    assert!(!warnings.is_empty() && warnings.iter().all(|line| line.starts_with("memory is short")), "{warnings:?}");
    let (expected, found) = (losses(&free), losses(&limited));
    assert_eq!((expected.len(), found.len()), (3, 3));
    for (expected, found) in expected.into_iter().zip(found) {
        assert!((expected.loss - found.loss).abs() <= 1e-5 * expected.loss, "{expected:?} and {found:?}");
        assert_eq!((expected.tokens, expected.lr), (found.tokens, found.lr));
    }
}

#[test]
fn memory_that_is_too_little_for_one_example_fails_by_name() {
    let place = Place::new();
    let dir = place.attempt("a", |spec| {
        let long = format!(
            "{}\n",
            serde_json::json!({"messages": [
                {"role": "user", "content": "go on"}, {"role": "assistant", "content": "and on ".repeat(9_000)},
            ]})
        );
        fs::write(place.path("long.jsonl"), long).expect("written");
        spec.dataset = place.path("long.jsonl");
        (training(spec).max_seq_length, training(spec).validation_fraction) = (65_536, 0.0);
    });
    assert_eq!(
        Worker::start_with(&dir, |command| command.env(LIMITED, "24000000")).exit_code(),
        i32::from(Exit::OutOfMemory.code())
    );
    let WorkerEvent::Failed { class: FailureClass::OutOfMemory, message, .. } = outcome(&dir) else {
        panic!("{:?}", outcome(&dir))
    };
    assert!(message.contains("needed for"), "{message}");
}

#[test]
fn a_full_disk_is_named_and_no_half_checkpoint_counts() {
    let place = Place::new();
    let dir = place.attempt("full", |spec| {
        let training = training(spec);
        training.checkpoint_every = Every::Steps(1);
        let Task::Train(train) = &mut spec.job.task;
        // some 700 KB a checkpoint
        train.lora.rank = 64;
    });
    let mount = place.path("mount");
    fs::create_dir(&mount).expect("created");
    let code = Worker::start_in(small_disk(&mount, &dir), &mount).exit_code();
    assert_eq!(code, i32::from(Exit::DiskFull.code()));
    let WorkerEvent::Failed { class: FailureClass::DiskFull, message, hint } = outcome(&dir) else {
        panic!("{:?}", outcome(&dir))
    };
    assert!(message.contains(".partial") && hint.is_some_and(|hint| hint.contains("free space")), "{message}");
    let told: Vec<String> = lines(&dir).into_iter().filter_map(|line| checkpoint_of(line.event)).collect();
    let kept: Vec<String> = names(&dir.join("checkpoints"));
    assert_eq!(told.iter().map(|path| path.trim_start_matches("checkpoints/")).collect::<Vec<_>>(), kept);
    for name in kept {
        checkpoint::verify(&dir.join("checkpoints").join(name)).expect("whole");
    }
}

#[test]
fn a_worker_reaches_nothing_but_its_own_files() {
    let place = Place::new();
    let dir = place.attempt("a", |_| {});
    // a base that leads elsewhere
    let (inside, outside) = (place.path("base/tokenizer.json"), place.path("tokenizer.json"));
    fs::rename(&inside, &outside).and_then(|()| std::os::unix::fs::symlink(&outside, &inside)).expect("linked");
    let code = Worker::start(&dir).exit_code();
    // what the kernel can do is asked on a thread, which alone is behind the fence
    let raised = std::thread::spawn(|| Fence::new().raise().expect("raised")).join().expect("it does not panic");
    if raised == Raised::Nothing {
        assert_eq!(code, 0);
        return;
    }
    let WorkerEvent::Failed { class: FailureClass::Base, message, .. } = outcome(&dir) else {
        panic!("{:?}", outcome(&dir))
    };
    assert!(message.to_lowercase().contains("permission denied"), "{message}");
}

/// `sh` that runs a command with `mount` a file system of two megabytes that holds a copy of `dir`, and copies everything back.
/// Where nobody may mount, files larger than 400 KB are refused instead: the same failure, only earlier.
fn small_disk(mount: &Path, dir: &Path) -> Command {
    const MOUNTED: &str = "mount -t tmpfs -o size=2m tmpfs \"$0\" && cp \"$1\"/spec.json \"$0\"/";
    const LIMITED: &str = "trap '' XFSZ; ulimit -f 800; cp \"$1\"/spec.json \"$0\"/";
    const REST: &str =
        "; m=$0 d=$1; shift; \"$@\"; code=$?; ulimit -S -f unlimited 2>/dev/null; cp -a \"$m\"/. \"$d\"/; exit $code";
    let mut try_it = Command::new("unshare");
    let may_mount = try_it.args(["-rm", "mount", "-t", "tmpfs", "tmpfs"]).arg(mount).status();
    let mut command;
    if may_mount.is_ok_and(|status| status.success()) {
        command = Command::new("unshare");
        command.args(["-rm", "sh", "-c"]).arg(format!("{MOUNTED}{REST}"));
    } else {
        command = Command::new("sh");
        command.arg("-c").arg(format!("{LIMITED}{REST}"));
    }
    command.arg(mount).arg(dir);
    command
}

fn training(spec: &mut Spec) -> &mut Training {
    let Task::Train(train) = &mut spec.job.task;
    &mut train.training
}

fn warnings(dir: &Path) -> Vec<String> {
    let warning =
        |event| if let WorkerEvent::Log { level: Level::Warning, message } = event { Some(message) } else { None };
    lines(dir).into_iter().filter_map(|line| warning(line.event)).collect()
}

fn losses(dir: &Path) -> Vec<Step> {
    let step = |event| if let WorkerEvent::Step(step) = event { Some(step) } else { None };
    lines(dir).into_iter().filter_map(|line| step(line.event)).collect()
}

fn checkpoint_of(event: WorkerEvent) -> Option<String> {
    if let WorkerEvent::Checkpoint { path, .. } = event { Some(path) } else { None }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().expect("a name of ours")).collect();
    names.sort();
    names
}
