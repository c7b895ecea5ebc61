//! The process that trains: an attempt directory in, events and an adapter out. The one place where protocol meets trainer.
//!
//! ```text
//! every lock ─► worker.json ─► per directory: outcome already there? ─► its exit code
//!      │                                       └► spec.json ─► train ─► finished | stopped | failed, synced, last
//!      └► held by another: Exit::Held at once, nothing is touched
//! ```
//! The lock is taken before anything else and held for life; a free lock without an outcome means that the process was lost.
//! Started again in the same directory, a worker goes on from the newest checkpoint that verifies, whoever put it there.
//!
//! **Signals**, for every attempt served: SIGTERM and SIGINT save the state after the last whole step and leave (a second
//! SIGINT leaves at once); SIGUSR2 leaves at once and saves nothing; SIGUSR1 is the wake-up: an attempt with a `stop.json` in its
//! directory obeys that, every other saves now and goes on. A `stop.json` that is there at the start is obeyed as well, so
//! the wake-up cannot come too early. The cause of a stop is the one `stop.json` names, else `signal`.
//!
//! What the process prints belongs in `worker.log`: whoever starts it points its standard error there.

mod hold;
mod journal;
mod report;
mod signal;
mod spec;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use lorikeet_protocol::job::FailureClass;
use lorikeet_protocol::worker::{EventLine, Level, WorkerEvent};
use lorikeet_trainer::{Stop, TrainError, Wish};

use hold::Hold;
use journal::Journal;
use signal::Listener;

pub use hold::HoldError;
pub use journal::JournalError;
pub use spec::{config, filters};

/// How a worker ended; each has its own exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: every adapter is complete.
    Finished,
    /// 2: a directory is missing or cannot be used.
    Unusable,
    /// 5: data, settings or base are at fault.
    Failed,
    /// 20: stopped, the state is saved.
    Stopped,
    /// 21: stopped, nothing was saved.
    Discarded,
    /// 22: another worker holds the lock.
    Held,
    /// 23: out of memory.
    OutOfMemory,
    /// 24: the disk is full, or events could not be written.
    DiskFull,
    /// 25: the device failed.
    Hardware,
    /// 70: our bug.
    Internal,
}

impl Exit {
    /// The number the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Finished => 0,
            Exit::Unusable => 2,
            Exit::Failed => 5,
            Exit::Stopped => 20,
            Exit::Discarded => 21,
            Exit::Held => 22,
            Exit::OutOfMemory => 23,
            Exit::DiskFull => 24,
            Exit::Hardware => 25,
            Exit::Internal => 70,
        }
    }

    fn of(outcome: &WorkerEvent) -> Exit {
        match outcome {
            WorkerEvent::Finished { .. } => Exit::Finished,
            WorkerEvent::Stopped { checkpoint: Some(_), .. } => Exit::Stopped,
            WorkerEvent::Stopped { checkpoint: None, .. } => Exit::Discarded,
            WorkerEvent::Failed { class, .. } => match class {
                FailureClass::OutOfMemory => Exit::OutOfMemory,
                FailureClass::DiskFull => Exit::DiskFull,
                FailureClass::Hardware => Exit::Hardware,
                FailureClass::Internal => Exit::Internal,
                FailureClass::NonFinite | FailureClass::Dataset | FailureClass::Base | FailureClass::Settings => {
                    Exit::Failed
                }
            },
            WorkerEvent::Stage { .. }
            | WorkerEvent::Plan(_)
            | WorkerEvent::Log { .. }
            | WorkerEvent::Step(_)
            | WorkerEvent::Eval { .. }
            | WorkerEvent::Checkpoint { .. }
            | WorkerEvent::Sample { .. } => Exit::Internal,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Sees every line right after it was written; for whoever shows progress in the same process.
pub type Watch<'a> = dyn FnMut(&Path, &EventLine) + Send + 'a;

/// Serves the attempts in `dirs` until each has an outcome. Takes over the process's signals.
pub fn run(dirs: &[PathBuf]) -> Exit {
    run_watched(dirs, &mut |_, _| {})
}

/// As [`run`], with a witness.
pub fn run_watched(dirs: &[PathBuf], watch: &mut Watch<'_>) -> Exit {
    let mut attempts = Vec::new();
    for dir in dirs {
        match Hold::take(dir) {
            Ok(hold) => attempts.push(Arc::new(Attempt { dir: dir.clone(), stop: Stop::new(), _hold: hold })),
            Err(error) => return refused(&error),
        }
    }
    if attempts.is_empty() {
        return Exit::Unusable;
    }
    let listener = match Listener::start(attempts.clone()) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("failed to listen for signals: {error}");
            return Exit::Internal;
        }
    };
    attempts.iter().for_each(|attempt| {
        attempt.obey_stop_file();
    });
    // one after another: several adapters in one step are the trainer's next door
    let exits: Vec<Exit> = attempts.iter().map(|attempt| attempt.serve(watch)).collect();
    drop(listener);
    exits.into_iter().find(|exit| *exit != Exit::Finished).unwrap_or(Exit::Finished)
}

fn refused(error: &HoldError) -> Exit {
    tracing::error!("failed to {error}");
    match error {
        HoldError::Held { .. } => Exit::Held,
        HoldError::Io { .. } => Exit::Unusable,
    }
}

/// One attempt directory, held.
struct Attempt {
    dir: PathBuf,
    stop: Stop,
    _hold: Hold,
}

impl Attempt {
    fn serve(&self, watch: &mut Watch<'_>) -> Exit {
        match self.work(watch) {
            Ok(exit) => exit,
            Err(error) => {
                tracing::error!("failed to {error}");
                Exit::DiskFull
            }
        }
    }

    fn work(&self, watch: &mut Watch<'_>) -> Result<Exit, JournalError> {
        let mut journal = Journal::open(&self.dir)?;
        if let Some(outcome) = journal.outcome() {
            return Ok(Exit::of(outcome));
        }
        let journal = Mutex::new((&mut journal, watch));
        let tell = |event: WorkerEvent| {
            // a panic inside a witness must not keep the outcome from being written
            let mut held = journal.lock().unwrap_or_else(PoisonError::into_inner);
            let (journal, watch) = &mut *held;
            let line = journal.append(event)?;
            watch(&self.dir, &line);
            Ok::<(), JournalError>(())
        };
        let outcome = self.train(&tell);
        if let Some(message) = peak_memory() {
            tell(WorkerEvent::Log { level: Level::Info, message })?;
        }
        let exit = Exit::of(&outcome);
        tell(outcome)?;
        Ok(exit)
    }

    /// Trains to an outcome; whatever goes wrong is one.
    fn train(&self, tell: &(dyn Fn(WorkerEvent) -> Result<(), JournalError> + Sync)) -> WorkerEvent {
        let config = match spec::read(&self.dir) {
            Ok(spec) => spec::config(&self.dir, &spec),
            Err(error) => return report::unreadable(&error),
        };
        let mut events = |event| match report::event(event) {
            Some(event) => tell(event).map_err(std::io::Error::from),
            None => Ok(()),
        };
        // nothing of the run is used after a panic: the next worker begins from disk
        let ended = catch_unwind(AssertUnwindSafe(|| lorikeet_trainer::train(&config, &self.stop, &mut events)));
        match ended {
            Ok(Ok(outcome)) => report::outcome(outcome, signal::cause(&self.dir)),
            Ok(Err(error)) => report::failure(&error),
            Err(panic) => report::failure(&TrainError::Internal(panic_words(panic.as_ref()))),
        }
    }

    /// Does what `stop.json` asks; whether it is there.
    fn obey_stop_file(&self) -> bool {
        let request = signal::stop_request(&self.dir);
        if let Some(request) = &request {
            self.stop.ask(if request.save { Wish::SaveAndStop } else { Wish::Discard });
        }
        request.is_some()
    }
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

/// The most memory this process ever held, to be compared with the plan.
fn peak_memory() -> Option<String> {
    let kib = procfs::process::Process::myself().ok()?.status().ok()?.vmhwm?;
    Some(format!("peak memory of the process: {} MiB", kib >> 10))
}
