//! A base, a dataset, attempt directories, worker processes, and what can be read of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lorikeet_dataset::write_byte_tokenizer;
use lorikeet_protocol::job::*;
use lorikeet_protocol::worker::{EventLine, Spec, Step, StopRequest, WorkerEvent};
use lorikeet_trainer::export::{StoredAs, init_base};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The attempt directory of a child.
pub(crate) const CHILD: &str = "LORIKEET_TEST_WORKER";
/// Set: it leaves when its standard input ends.
pub(crate) const TIED: &str = "LORIKEET_TEST_TIED";
/// So many bytes may it take beyond what it begins with.
pub(crate) const LIMITED: &str = "LORIKEET_TEST_LIMITED";
const PATIENCE: Duration = Duration::from_secs(60);
/// What makes this program a child.
const ARGS: [&str; 4] = ["--exact", "child", "--test-threads", "1"];

/// A base model, a dataset and room for attempts.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An attempt directory with its spec: eight steps over two epochs, a checkpoint at each epoch's end.
    pub(crate) fn attempt(&self, name: &str, change: impl FnOnce(&mut Spec)) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).expect("created");
        let mut spec = self.spec();
        change(&mut spec);
        fs::write(dir.join("spec.json"), serde_json::to_vec(&spec).expect("JSON")).expect("written");
        dir
    }

    pub(crate) fn spec(&self) -> Spec {
        Spec {
            attempt: None,
            job: job(),
            base: self.path("base"),
            dataset: self.path("data.jsonl"),
            validation: None,
            init_adapter: None,
            cache: self.path("cache"),
            devices: vec![],
            threads: Some(1),
        }
    }
}

pub(crate) fn job() -> JobSpec {
    JobSpec {
        name: "tiny".into(),
        base: "tiny".into(),
        dataset: "counting".into(),
        validation_dataset: None,
        init_adapter: None,
        preset: "balanced".into(),
        priority: 50,
        task: Task::Train(Train { training: training(), data: DataFilter::default(), lora: lora() }),
        resources: Resources {
            gpus: 1,
            gpu: GpuRequest::Any,
            labels: BTreeMap::new(),
            min_driver: None,
            prefer: Prefer::default(),
            exclusive: true,
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

pub(crate) fn training() -> Training {
    Training {
        method: Method::Lora,
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
        early_stopping: None,
        sample_prompts: Vec::new(),
        grad_norms: false,
    }
}

pub(crate) fn lora() -> Lora {
    Lora::plain(4, 8.0, 0.1)
}

/// More steps than any test waits for, with neither evaluation nor checkpoint on the way.
pub(crate) fn endless(spec: &mut Spec) {
    let Task::Train(train) = &mut spec.job.task;
    train.training.length = TrainingLength::Epochs(100_000);
    train.training.validation_fraction = 0.0;
}

pub(crate) fn conversation(i: usize) -> Value {
    let answer = "so it is ".repeat(1 + i % 4);
    json!({"messages": [
        {"role": "user", "content": format!("tell me number {i}")},
        {"role": "assistant", "content": format!("{} {answer}", i * i)},
    ]})
}

/// A worker process; killed when the test is over, however it ends.
pub(crate) struct Worker {
    pub(crate) child: std::cell::RefCell<Child>,
}

impl Worker {
    pub(crate) fn start(dir: &Path) -> Worker {
        Worker::start_with(dir, |command| command)
    }

    pub(crate) fn start_with(dir: &Path, change: impl FnOnce(&mut Command) -> &mut Command) -> Worker {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(ARGS).env(CHILD, dir).stdout(Stdio::null());
        let child = change(&mut command).spawn().expect("started");
        Worker { child: child.into() }
    }

    /// As the last words of another command.
    pub(crate) fn start_in(mut command: Command, dir: &Path) -> Worker {
        command.arg(std::env::current_exe().expect("this program")).args(ARGS);
        let child = command.env(CHILD, dir).stdout(Stdio::null()).spawn().expect("started");
        Worker { child: child.into() }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child.borrow());
        kill_process(pid, signal).expect("it is alive");
    }

    pub(crate) fn kill(&self) {
        self.child.borrow_mut().kill().expect("it is alive");
        self.child.borrow_mut().wait().expect("reaped");
    }

    pub(crate) fn exit_code(&self) -> i32 {
        let code = until("the worker to leave", || self.child.borrow_mut().try_wait().expect("a child"));
        code.code().expect("it left by itself")
    }

    pub(crate) fn wait_for(&self, dir: &Path, wanted: impl Fn(&WorkerEvent) -> bool) -> EventLine {
        self.wait_for_line(dir, |line| wanted(&line.event))
    }

    pub(crate) fn wait_for_line(&self, dir: &Path, wanted: impl Fn(&EventLine) -> bool) -> EventLine {
        until("an event", || lines(dir).into_iter().find(|line| wanted(line)))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone = self.child.borrow_mut().kill();
        let _reaped = self.child.borrow_mut().wait();
    }
}

pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
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
pub(crate) fn lines(dir: &Path) -> Vec<EventLine> {
    let text = fs::read_to_string(dir.join("events.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("a whole line is an event")).collect()
}

pub(crate) fn outcome(dir: &Path) -> WorkerEvent {
    lines(dir).last().expect("lines").event.clone()
}

/// The steps as a reader sees them: of two lines for one step the later counts. Numbers as bits.
pub(crate) fn steps(dir: &Path) -> BTreeMap<u64, [u64; 4]> {
    let bits = |step: &Step| [step.loss.to_bits(), step.grad_norm.to_bits(), step.lr.to_bits(), step.tokens];
    let mut found = BTreeMap::new();
    for line in lines(dir) {
        if let WorkerEvent::Step(step) = line.event {
            found.insert(step.step, bits(&step));
        }
    }
    found
}

pub(crate) fn ask_to_stop(dir: &Path, request: StopRequest) {
    fs::write(dir.join("stop.json"), serde_json::to_vec(&request).expect("JSON")).expect("written");
}
