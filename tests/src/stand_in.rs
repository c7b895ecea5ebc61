//! A worker that obeys the attempt directory's rules and trains nothing: dozens of them run on two cores.
//!
//! It is the story's own test program, started again by the agent with the variable [`PLAN`]: a real process with a real lock, and
//! no binary of its own. A story that uses it has a test named [`TEST`] that calls [`run_if_asked`].

use lorikeet_protocol::{
    agent::CheckpointKind,
    id::{BootId, Hash, UnixMillis},
    worker::{
        ADAPTER, CHECKPOINTS, EVENTS, EventLine, HOLDER, Holder, LOCK, Level, Plan, STOP, Step, StopRequest,
        WorkerEvent, WrittenFile,
    },
};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    time::Duration,
};

/// The name that this test has in every story: by it a stand-in is known among the processes of the machine.
pub const TEST: &str = "a_stand_in_does_nothing_unless_asked";

/// The variable that holds the [`Script`], in JSON.
pub const PLAN: &str = "LORIKEET_STAND_IN";

/// What it does.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct Script {
    /// Steps, if nobody stops it.
    pub steps: u64,
    /// How long each takes.
    pub step_millis: u64,
    /// A checkpoint every so many.
    pub every: u64,
}

impl Script {
    /// For an agent's config.
    ///
    /// # Panics
    /// When the running test has no executable.
    pub fn command(&self) -> String {
        let program = std::env::current_exe().expect("a running test has an executable");
        let plan = serde_json::to_string(self).expect("plain data is JSON");
        format!("command = [{program:?}, {TEST:?}, \"--exact\", \"--nocapture\"]\nenv = {{ {PLAN} = {plan:?} }}\n")
    }
}

/// Becomes the worker if an agent asked for one; never returns then.
pub fn run_if_asked() {
    if let Ok(script) = std::env::var(PLAN) {
        run(&serde_json::from_str(&script).expect("a script, as `Script::command` writes it"));
    }
}

fn run(script: &Script) -> ! {
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(LOCK).expect("the directory is ours");
    if lock.try_lock().is_err() {
        std::process::exit(22);
    }
    write_holder();
    let mut journal = Journal::open();
    let from_step = newest_checkpoint();
    journal.write(WorkerEvent::Plan(plan(script.steps, from_step)));
    for step in from_step + 1..=script.steps {
        std::thread::sleep(Duration::from_millis(script.step_millis));
        if let Ok(json) = fs::read(STOP) {
            let asked: StopRequest = serde_json::from_slice(&json).expect("the agent wrote it");
            let checkpoint = asked.save.then(|| journal.checkpoint(step - 1, CheckpointKind::Emergency));
            journal.end(WorkerEvent::Stopped { step: step - 1, checkpoint, cause: asked.cause }, 20);
        }
        journal.write(WorkerEvent::Step(one_step(step)));
        journal.write(WorkerEvent::Log { level: Level::Info, message: format!("after step {step}") });
        if step % script.every == 0 {
            journal.checkpoint(step, CheckpointKind::Periodic);
        }
    }
    journal.finish(script.steps)
}

fn newest_checkpoint() -> u64 {
    let Ok(folder) = fs::read_dir(CHECKPOINTS) else { return 0 };
    let step = |name: std::ffi::OsString| name.to_str()?.strip_prefix("step-")?.parse().ok();
    folder.filter_map(|entry| step(entry.ok()?.file_name())).max().unwrap_or(0)
}

fn write_holder() {
    let me = procfs::process::Process::myself().and_then(|me| me.stat()).expect("a process can look at itself");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the kernel tells its boot");
    let boot = BootId(uuid::Uuid::try_parse(boot.trim()).expect("a boot id is a UUID"));
    let holder = Holder { pid: std::process::id(), start_ticks: me.starttime, boot };
    let json = serde_json::to_vec(&holder).expect("plain data is JSON");
    fs::write("worker.aside", json).and_then(|()| fs::rename("worker.aside", HOLDER)).expect("the directory is ours");
}

struct Journal {
    file: File,
    seq: u64,
}

impl Journal {
    fn open() -> Self {
        let seq = fs::read_to_string(EVENTS).map_or(0, |text| text.lines().count() as u64);
        let file = OpenOptions::new().create(true).append(true).open(EVENTS).expect("the directory is ours");
        Self { file, seq }
    }

    fn write(&mut self, event: WorkerEvent) {
        self.seq += 1;
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let line = EventLine { seq: self.seq, time: UnixMillis(since.as_millis() as u64), event };
        let line = serde_json::to_string(&line).expect("plain data is JSON");
        self.file.write_all(format!("{line}\n").as_bytes()).expect("the disk takes a line");
    }

    fn end(&mut self, event: WorkerEvent, code: i32) -> ! {
        self.write(event);
        self.file.sync_all().expect("the disk takes the outcome");
        std::process::exit(code)
    }

    fn checkpoint(&mut self, step: u64, kind: CheckpointKind) -> String {
        let path = format!("{CHECKPOINTS}/step-{step:08}");
        fs::create_dir_all(&path).expect("the directory is ours");
        let state = format!("state after step {step}");
        let hash = blake3::hash(state.as_bytes()).to_string();
        let files = [serde_json::json!({ "path": "state.json", "size": state.len(), "blake3": hash })];
        let manifest = serde_json::json!({ "version": 1, "step": step, "files": files });
        fs::write(Path::new(&path).join("state.json"), &state).expect("the directory is ours");
        fs::write(Path::new(&path).join("manifest.json"), manifest.to_string()).expect("the directory is ours");
        self.write(WorkerEvent::Checkpoint { step, loss: 1.0, kind, path: path.clone() });
        path
    }

    fn finish(&mut self, step: u64) -> ! {
        fs::create_dir_all(ADAPTER).expect("the directory is ours");
        let files = [("adapter_model.safetensors", "weights"), ("training_summary.json", "{\"steps\":1}")];
        let files = files.map(|(name, text)| {
            fs::write(Path::new(ADAPTER).join(name), text).expect("the directory is ours");
            let hash = Hash(*blake3::hash(text.as_bytes()).as_bytes());
            WrittenFile { path: name.into(), size: text.len() as u64, hash }
        });
        self.end(WorkerEvent::Finished { step, files: files.to_vec() }, 0)
    }
}

fn one_step(step: u64) -> Step {
    let loss = 1.0 / step as f64;
    Step { step, epoch: 0.1, loss, lr: 1e-4, grad_norm: 1.0, tokens: 10, supervised_tokens: 5, seconds: 0.01 }
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
