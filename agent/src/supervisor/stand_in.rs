//! A worker for tests that obeys the attempt directory's rules and trains nothing.
//!
//! It is this very test program, started again with the variable [`PLAN`] and the one test below: so it is a real process with a real
//! lock, and needs no second binary.

use lorikeet_protocol::{
    agent::CheckpointKind,
    id::{BootId, Hash, UnixMillis},
    job::{FailureClass, StopCause},
    worker::{
        ADAPTER, CHECKPOINTS, EVENTS, EventLine, Exit, HOLDER, Holder, LOCK, LOG, Level, Plan, STOP, Step, StopRequest,
        WorkerEvent, WrittenFile,
    },
};
use signal_hook::consts::{SIGTERM, SIGUSR1, SIGUSR2};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The variable with the [`Script`], in JSON.
const PLAN: &str = "LORIKEET_STAND_IN";

/// What the stand-in shall do.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Script {
    pub(crate) steps: u64,
    pub(crate) step_millis: u64,
    pub(crate) end: End,
    /// Memory taken at the start.
    pub(crate) grow_bytes: usize,
    pub(crate) deaf: bool,
    /// Takes these steps once [`goes`] says so.
    pub(crate) waits_at: Vec<u64>,
}

/// How it ends if nobody stops it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum End {
    Finish,
    /// Says its last word and stays until it is killed.
    Linger,
    Vanish,
    /// Finds the disk full, and no room to say so.
    DiskFull,
    Fail,
    /// Leaves a child behind that does not end by itself.
    Orphan,
    /// Writes lines of events until it is killed.
    Babble,
    /// Writes one line of events, without an end, until it is killed.
    Drone,
    /// Prints until somebody has cut what it printed, then finishes.
    Print,
}

impl Script {
    pub(crate) fn new(steps: u64, step_millis: u64) -> Self {
        Self { steps, step_millis, end: End::Finish, grow_bytes: 0, deaf: false, waits_at: vec![] }
    }

    /// A worker config that starts the stand-in with this script.
    pub(crate) fn config(&self) -> crate::config::Worker {
        let program = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
        let test = "supervisor::stand_in::a_stand_in_does_nothing_unless_asked";
        crate::config::Worker {
            command: vec![program, "--exact".into(), test.into(), "--nocapture".into()],
            env: [(PLAN.to_owned(), serde_json::to_string(self).unwrap())].into(),
            poll: Duration::from_millis(10),
            memory_poll: Duration::from_millis(50),
            progress: Duration::from_millis(20),
            ..crate::config::Worker::default()
        }
    }
}

#[test]
fn a_stand_in_does_nothing_unless_asked() {
    if let Ok(script) = std::env::var(PLAN) {
        run(&serde_json::from_str(&script).unwrap());
    }
}

fn run(script: &Script) -> ! {
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(LOCK).unwrap();
    if lock.try_lock().is_err() {
        std::process::exit(22);
    }
    let flag = |signal| {
        let flag = Arc::new(AtomicBool::new(false));
        if !script.deaf {
            signal_hook::flag::register(signal, Arc::clone(&flag)).unwrap();
        }
        flag
    };
    let (term, discard, save) = (flag(SIGTERM), flag(SIGUSR2), flag(SIGUSR1));
    let ballast = vec![1u8; script.grow_bytes];
    write_holder();
    let mut journal = Journal::open();
    let from_step = fs::read_dir(CHECKPOINTS).map_or(0, |folder| {
        folder
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("step-")?.parse().ok())
            .max()
            .unwrap_or(0)
    });
    journal.write(WorkerEvent::Plan(plan(script.steps, from_step)));
    for step in from_step + 1..=script.steps {
        while script.waits_at.contains(&step) && !Path::new(&goes(step)).exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(script.step_millis));
        let asked = fs::read(STOP).ok().map(|json| serde_json::from_slice::<StopRequest>(&json).unwrap());
        if (discard.load(Ordering::Relaxed) || asked.as_ref().is_some_and(|asked| !asked.save)) && !script.deaf {
            journal.end(WorkerEvent::Stopped { step: step - 1, checkpoint: None, cause: cause(asked) }, 21);
        }
        journal.write(WorkerEvent::Step(one_step(step)));
        if term.load(Ordering::Relaxed) {
            let path = journal.checkpoint(step, CheckpointKind::Emergency);
            journal.end(WorkerEvent::Stopped { step, checkpoint: Some(path), cause: cause(asked) }, 20);
        }
        if save.swap(false, Ordering::Relaxed) || step % 5 == 0 {
            journal.checkpoint(step, CheckpointKind::Periodic);
        }
    }
    drop(ballast);
    match script.end {
        End::Finish => journal.finish(script.steps),
        End::Babble => loop {
            journal.write(one_word());
        },
        End::Drone => loop {
            journal.file.write_all(&[b'x'; 1 << 16]).unwrap();
        },
        End::Print => {
            let (mut printed, mut out) = (0, std::io::stdout());
            while fs::metadata(LOG).unwrap().len() >= printed {
                out.write_all(&[&[b'x'; 1023][..], b"\n"].concat()).and_then(|()| out.flush()).unwrap();
                printed += 1 << 10;
            }
            journal.finish(script.steps)
        }
        End::Linger => {
            journal.write(write_adapter(script.steps));
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        End::Vanish => std::process::exit(9),
        End::DiskFull => std::process::exit(Exit::DiskFull.code().into()),
        End::Orphan => {
            let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
            fs::write("orphan", child.id().to_string()).unwrap();
            std::process::exit(9)
        }
        End::Fail => {
            let hint = Some("use less".to_owned());
            journal.end(WorkerEvent::Failed { class: FailureClass::Dataset, message: "bad".into(), hint }, 5)
        }
    }
}

/// A file in its directory that lets it take this step.
pub(crate) fn goes(step: u64) -> String {
    format!("go-{step}")
}

fn cause(asked: Option<StopRequest>) -> StopCause {
    asked.map_or(StopCause::Signal, |asked| asked.cause)
}

fn write_holder() {
    let me = procfs::process::Process::myself().unwrap().stat().unwrap();
    let BootId(boot) = crate::clock::boot_id();
    let holder = Holder { pid: std::process::id(), start_ticks: me.starttime, boot: BootId(boot) };
    fs::write("worker.aside", serde_json::to_vec(&holder).unwrap()).unwrap();
    fs::rename("worker.aside", HOLDER).unwrap();
}

struct Journal {
    file: File,
    seq: u64,
}

impl Journal {
    fn open() -> Self {
        let seq = fs::read_to_string(EVENTS).map_or(0, |text| text.lines().count() as u64);
        Self { file: OpenOptions::new().create(true).append(true).open(EVENTS).unwrap(), seq }
    }

    fn write(&mut self, event: WorkerEvent) {
        self.seq += 1;
        let line = serde_json::to_string(&EventLine { seq: self.seq, time: UnixMillis(1), event }).unwrap();
        self.file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn end(&mut self, event: WorkerEvent, code: i32) -> ! {
        self.write(event);
        std::process::exit(code)
    }

    fn checkpoint(&mut self, step: u64, kind: CheckpointKind) -> String {
        let path = format!("{CHECKPOINTS}/step-{step:08}");
        fs::create_dir_all(&path).unwrap();
        let state = format!("state after step {step}");
        fs::write(Path::new(&path).join("state.json"), &state).unwrap();
        let hash = blake3::hash(state.as_bytes()).to_string();
        let files = [serde_json::json!({ "path": "state.json", "size": state.len(), "blake3": hash })];
        let manifest = serde_json::json!({ "version": 1, "step": step, "files": files });
        fs::write(Path::new(&path).join("manifest.json"), manifest.to_string()).unwrap();
        self.write(WorkerEvent::Checkpoint { step, loss: 1.0, kind, path: path.clone() });
        path
    }

    fn finish(&mut self, step: u64) -> ! {
        self.end(write_adapter(step), 0)
    }
}

fn write_adapter(step: u64) -> WorkerEvent {
    fs::create_dir_all(ADAPTER).unwrap();
    let files = [("adapter_model.safetensors", "weights"), ("training_summary.json", "{\"steps\":1}")];
    let files = files.map(|(name, text)| {
        fs::write(Path::new(ADAPTER).join(name), text).unwrap();
        let hash = Hash(*blake3::hash(text.as_bytes()).as_bytes());
        WrittenFile { path: name.into(), size: text.len() as u64, hash }
    });
    WorkerEvent::Finished { step, files: files.to_vec() }
}

fn one_word() -> WorkerEvent {
    WorkerEvent::Log { level: Level::Info, message: "x".repeat(4 << 10) }
}

fn one_step(step: u64) -> Step {
    Step { step, epoch: 0.1, loss: 1.0, lr: 1e-4, grad_norm: 1.0, tokens: 10, supervised_tokens: 5, seconds: 0.01 }
}

fn plan(total_steps: u64, from_step: u64) -> Plan {
    Plan {
        examples: 1,
        validation_examples: 0,
        conversations: 1,
        total_steps,
        epoch_tokens: 1,
        supervised_tokens: 1,
        longest_tokens: 1,
        cut_examples: 0,
        cut_tokens: 0,
        trainable_parameters: 1,
        base_parameters: 1,
        micro_tokens: 1,
        from_step,
        ..Plan::default()
    }
}
