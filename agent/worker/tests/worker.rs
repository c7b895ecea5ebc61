//! Real worker processes on a tiny random Llama: signals, locks, kills, and what stands in the directory afterwards.
//!
//! A child is this very test program, told by a variable to be a worker.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lorikeet_dataset::write_byte_tokenizer;
use lorikeet_protocol::agent::CheckpointKind;
use lorikeet_protocol::job::*;
use lorikeet_protocol::worker::{EventLine, Holder, Spec, Step, StopRequest, WorkerEvent};
use lorikeet_trainer::checkpoint;
use lorikeet_trainer::export::{StoredAs, init_base};
use lorikeet_worker::{Exit, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

const CHILD: &str = "LORIKEET_TEST_WORKER";
const PATIENCE: Duration = Duration::from_secs(60);

/// Not a test of its own: what a child process runs.
#[test]
fn child() {
    if let Some(dir) = std::env::var_os(CHILD) {
        std::process::exit(run(&[PathBuf::from(dir)]).code().into());
    }
}

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
fn sigterm_saves_the_last_whole_step_and_leaves() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        let dir = place.attempt("a", endless);
        let worker = Worker::start(&dir);
        worker.wait_for(&dir, |event| matches!(event, WorkerEvent::Step(_)));
        worker.signal(signal);
        assert_eq!(worker.exit_code(), i32::from(Exit::Stopped.code()));
        let WorkerEvent::Stopped { step, checkpoint: Some(path), cause: StopCause::Signal } = outcome(&dir) else {
            panic!("{:?}", outcome(&dir))
        };
        assert_eq!(checkpoint::verify(&dir.join(path)).expect("whole").manifest.step, step);
        assert_eq!(steps(&dir).len() as u64, step, "every step has its line");
    }
}

#[test]
fn sigusr2_leaves_at_once_and_saves_nothing() {
    let place = Place::new();
    let dir = place.attempt("a", endless);
    let worker = Worker::start(&dir);
    worker.wait_for(&dir, |event| matches!(event, WorkerEvent::Step(_)));
    let began = Instant::now();
    worker.signal(Signal::USR2);
    assert_eq!(worker.exit_code(), i32::from(Exit::Discarded.code()));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(matches!(outcome(&dir), WorkerEvent::Stopped { checkpoint: None, cause: StopCause::Signal, .. }));
    let emergency =
        |line: &EventLine| matches!(line.event, WorkerEvent::Checkpoint { kind: CheckpointKind::Emergency, .. });
    assert!(!lines(&dir).iter().any(emergency));
}

#[test]
fn sigusr1_saves_now_and_goes_on_and_with_a_stop_file_it_stops() {
    let place = Place::new();
    let dir = place.attempt("a", endless);
    let worker = Worker::start(&dir);
    worker.wait_for(&dir, |event| matches!(event, WorkerEvent::Step(_)));
    worker.signal(Signal::USR1);
    let saved =
        worker.wait_for(&dir, |event| matches!(event, WorkerEvent::Checkpoint { kind: CheckpointKind::Emergency, .. }));
    worker.wait_for_line(&dir, |line| line.seq > saved.seq && matches!(line.event, WorkerEvent::Step(_)));
    ask_to_stop(&dir, StopRequest { save: true, cause: StopCause::Preempt });
    worker.signal(Signal::USR1);
    assert_eq!(worker.exit_code(), i32::from(Exit::Stopped.code()));
    assert!(matches!(outcome(&dir), WorkerEvent::Stopped { checkpoint: Some(_), cause: StopCause::Preempt, .. }));
}

#[test]
fn a_stop_file_that_is_there_before_the_worker_is_obeyed() {
    let place = Place::new();
    let dir = place.attempt("a", endless);
    ask_to_stop(&dir, StopRequest { save: false, cause: StopCause::Cancel });
    assert_eq!(Worker::start(&dir).exit_code(), i32::from(Exit::Discarded.code()));
    let expected = WorkerEvent::Stopped { step: 0, checkpoint: None, cause: StopCause::Cancel };
    assert_eq!(outcome(&dir), expected);
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

/// A base model, a dataset and room for attempts.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let base = dir.path().join("base");
        let vocab_size = write_byte_tokenizer(&base).expect("a tokenizer");
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        });
        init_base(&base, &config, 7, StoredAs::Bf16).expect("a base");
        let lines: String = (0..14).map(|i| format!("{}\n", conversation(i))).collect();
        fs::write(dir.path().join("data.jsonl"), lines).expect("written");
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An attempt directory with its spec: eight steps over two epochs, a checkpoint at each epoch's end.
    fn attempt(&self, name: &str, change: impl FnOnce(&mut Spec)) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).expect("created");
        let mut spec = self.spec();
        change(&mut spec);
        fs::write(dir.join("spec.json"), serde_json::to_vec(&spec).expect("JSON")).expect("written");
        dir
    }

    fn spec(&self) -> Spec {
        Spec {
            attempt: None,
            job: job(),
            base: self.path("base"),
            dataset: self.path("data.jsonl"),
            init_adapter: None,
            cache: self.path("cache"),
            devices: vec![],
            threads: Some(1),
        }
    }
}

fn job() -> JobSpec {
    JobSpec {
        name: "tiny".into(),
        base: "tiny".into(),
        dataset: "counting".into(),
        preset: "balanced".into(),
        priority: 50,
        task: Task::Train(Train { training: training(), data: DataFilter::default(), lora: lora() }),
        resources: Resources {
            gpus: 1,
            gpu: GpuRequest::Any,
            labels: BTreeMap::new(),
            max_runtime: Duration::from_secs(60),
        },
        policy: Policy {
            retries: 0,
            lost_after: Duration::from_secs(300),
            on_lost: OnLost::Requeue,
            max_cost_micros: None,
        },
    }
}

fn training() -> Training {
    Training {
        learning_rate: 5e-3,
        batch_size: 3,
        micro_tokens: MicroTokens::Auto,
        length: TrainingLength::Epochs(2),
        max_seq_length: 256,
        schedule: Schedule::Cosine,
        adam_beta1: 0.9,
        adam_beta2: 0.999,
        adam_epsilon: 1e-8,
        warmup_ratio: 0.1,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        shuffle: true,
        seed: 42,
        validation_fraction: 0.15,
        supervise: Supervise::Assistant,
        eval_every: Every::Epoch,
        checkpoint_every: Every::Epoch,
        base_dtype: BaseDtype::Auto,
    }
}

fn lora() -> Lora {
    Lora { rank: 4, alpha: 8.0, dropout: 0.1, target_modules: TargetModules::AllLinear, rslora: false }
}

/// More steps than any test waits for, with neither evaluation nor checkpoint on the way.
fn endless(spec: &mut Spec) {
    let Task::Train(train) = &mut spec.job.task;
    train.training.length = TrainingLength::Epochs(100_000);
    train.training.validation_fraction = 0.0;
}

fn conversation(i: usize) -> Value {
    let answer = "so it is ".repeat(1 + i % 4);
    json!({"messages": [
        {"role": "user", "content": format!("tell me number {i}")},
        {"role": "assistant", "content": format!("{} {answer}", i * i)},
    ]})
}

/// A worker process; killed when the test is over, however it ends.
struct Worker {
    child: std::cell::RefCell<Child>,
}

impl Worker {
    fn start(dir: &Path) -> Worker {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        command.args(["--exact", "child", "--test-threads", "1"]).env(CHILD, dir);
        let child = command.stdout(Stdio::null()).spawn().expect("started");
        Worker { child: child.into() }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child.borrow());
        kill_process(pid, signal).expect("it is alive");
    }

    fn kill(&self) {
        self.child.borrow_mut().kill().expect("it is alive");
        self.child.borrow_mut().wait().expect("reaped");
    }

    fn exit_code(&self) -> i32 {
        let code = until("the worker to leave", || self.child.borrow_mut().try_wait().expect("a child"));
        code.code().expect("it left by itself")
    }

    fn wait_for(&self, dir: &Path, wanted: impl Fn(&WorkerEvent) -> bool) -> EventLine {
        self.wait_for_line(dir, |line| wanted(&line.event))
    }

    fn wait_for_line(&self, dir: &Path, wanted: impl Fn(&EventLine) -> bool) -> EventLine {
        until("an event", || lines(dir).into_iter().find(|line| wanted(line)))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone = self.child.borrow_mut().kill();
        let _reaped = self.child.borrow_mut().wait();
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// The whole lines.
fn lines(dir: &Path) -> Vec<EventLine> {
    let text = fs::read_to_string(dir.join("events.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("a whole line is an event")).collect()
}

fn outcome(dir: &Path) -> WorkerEvent {
    lines(dir).last().expect("lines").event.clone()
}

/// The steps as a reader sees them: of two lines for one step the later counts. Numbers as bits.
fn steps(dir: &Path) -> BTreeMap<u64, [u64; 4]> {
    let bits = |step: &Step| [step.loss.to_bits(), step.grad_norm.to_bits(), step.lr.to_bits(), step.tokens];
    let mut found = BTreeMap::new();
    for line in lines(dir) {
        if let WorkerEvent::Step(step) = line.event {
            found.insert(step.step, bits(&step));
        }
    }
    found
}

fn ask_to_stop(dir: &Path, request: StopRequest) {
    fs::write(dir.join("stop.json"), serde_json::to_vec(&request).expect("JSON")).expect("written");
}
