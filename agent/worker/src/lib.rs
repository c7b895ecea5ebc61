//! The process that trains: an attempt directory in, events and an adapter out. The one place where protocol meets trainer.
//!
//! ```text
//! every lock ─► worker.json ─► other ranks ─► fence ─► per directory: outcome already there? ─► its exit code
//!      │                                                      └► spec.json ─► train ─► finished | stopped | failed, synced, last
//!      └► held by another: Exit::Held at once, nothing is touched
//! ```
//! The lock is taken before anything else and held for life. Then, in a process of its own, a worker fences itself in ([`Fence`]):
//! its attempt directory and token cache to write, the inputs that its spec names to read, no TCP. Of all files only locks and
//! specs, the agent's own, were read before. A free lock without an outcome means that the process was lost.
//! Started again in the same directory, a worker goes on from the newest checkpoint that verifies, whoever put it there.
//!
//! **Signals**, for every attempt served: SIGTERM and SIGINT save the state after the last whole step and leave (a second
//! SIGINT leaves at once); SIGUSR2 leaves at once and saves nothing; SIGUSR1 is the wake-up: an attempt with a `stop.json` in its
//! directory obeys that, every other saves now and goes on. A `stop.json` that is there at the start is obeyed as well, so
//! the wake-up cannot come too early. The cause of a stop is the one `stop.json` names, else `signal`.
//!
//! An attempt on several devices has a process for each further one ([`follow`]): children of the worker, which end with it.
//!
//! An agent whose workers shall not outlive it holds a pipe to their standard input ([`Bond::Stdin`]): its end is a SIGTERM.
//!
//! What the process prints belongs in `worker.log`: whoever starts it points its standard error there.

mod burn_in;
mod fence;
mod hold;
mod journal;
mod ranks;
mod report;
mod signal;
mod spec;

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lorikeet_protocol::worker::{EventLine, Level, WorkerEvent};
use lorikeet_trainer::config::Device;
use lorikeet_trainer::{Stop, TrainError, Wish};

use journal::Journal;
use signal::Listener;

pub use burn_in::burn_in;
pub use fence::{Fence, FenceError, Raised};
pub use hold::{Hold, HoldError};
pub use journal::JournalError;
pub use lorikeet_protocol::worker::Exit;
pub use ranks::follow;
pub use report::{class, memory, modules};
pub use signal::ignores_hangup;
pub use spec::{config, filters, settings};

/// Sees every line right after it was written; for whoever shows progress in the same process.
pub type Watch<'a> = dyn FnMut(&Path, &EventLine) + Send + 'a;

/// Whether a worker outlives whoever started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bond {
    /// It does: an agent that restarts finds it again.
    #[default]
    None,
    /// It saves and leaves when its standard input ends.
    Stdin,
}

/// What whoever starts a worker process decides about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// Whether it outlives them.
    pub bond: Bond,
    /// Main memory above which it is killed; it keeps its micro-batches small enough.
    pub memory_limit: Option<u64>,
    /// Whether it trains on the GPUs that it sees: the first, and each further process of an attempt on one of its own.
    pub gpu: bool,
}

impl Terms {
    /// Where one process computes: it sees its own GPU first, or alone.
    fn device(self) -> Device {
        if self.gpu { Device::Gpu(0) } else { Device::Cpu }
    }
}

/// Serves the attempts in `dirs` until each has an outcome, in a process of its own: takes over its signals and gives up
/// whatever else it could reach.
pub fn run(dirs: &[PathBuf], terms: Terms) -> Exit {
    match dirs.iter().map(|dir| Hold::take(dir)).collect() {
        Ok(held) => serve(held, terms, Some(fenced), &mut |_, _| {}),
        Err(error) => refused(&error),
    }
}

/// As [`run`] in a process that does other things as well and holds the directory already, with a witness.
pub fn run_watched(held: Hold, terms: Terms, watch: &mut Watch<'_>) -> Exit {
    serve(vec![held], terms, None, watch)
}

/// How a process gives up what it does not need.
type Enclose = fn(&[PathBuf], Terms, Writes) -> Result<(), FenceError>;

/// Where a process of an attempt may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// Into the attempt's directory and the token cache.
    Attempt,
    /// Into the token cache alone.
    Tokens,
}

fn serve(held: Vec<Hold>, terms: Terms, fence: Option<Enclose>, watch: &mut Watch<'_>) -> Exit {
    let dirs: Vec<PathBuf> = held.iter().map(|hold| hold.dir().to_owned()).collect();
    let attempt = |hold: Hold| Attempt { dir: hold.dir().to_owned(), stop: Stop::new(), terms, _hold: hold };
    let attempts: Vec<Arc<Attempt>> = held.into_iter().map(|hold| Arc::new(attempt(hold))).collect();
    if attempts.is_empty() {
        return Exit::Unusable;
    }
    // before the fence, behind which no program can be started
    let followers: Vec<Vec<UnixStream>> = match dirs.iter().map(|dir| followers(dir, terms)).collect() {
        Ok(followers) => followers,
        Err(error) => {
            tracing::error!("failed to start a process for another device: {error}");
            return Exit::Internal;
        }
    };
    // before any other thread is started: it would not be behind the fence
    if let Some(Err(error)) = fence.map(|fence| fence(&dirs, terms, Writes::Attempt)) {
        tracing::error!("failed to {error}: {}", error.0);
        return Exit::Internal;
    }
    let listener = match Listener::start(attempts.clone(), terms.bond) {
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
    let exits: Vec<Exit> =
        attempts.iter().zip(followers).map(|(attempt, others)| attempt.serve(others, watch)).collect();
    drop(listener);
    exits.into_iter().find(|exit| *exit != Exit::Finished).unwrap_or(Exit::Finished)
}

/// Whoever else trains the attempt in `dir`. A spec that cannot be read names nobody, and its attempt says so later.
fn followers(dir: &Path, terms: Terms) -> std::io::Result<Vec<UnixStream>> {
    spec::read(dir).map_or_else(|_| Ok(Vec::new()), |spec| ranks::start(dir, &spec, terms))
}

/// Leaves in reach what the attempts in `dirs` need. A spec that cannot be read allows nothing, and its attempt says so later.
fn fenced(dirs: &[PathBuf], terms: Terms, writes: Writes) -> Result<(), FenceError> {
    let mut fence = Fence::new();
    for dir in dirs {
        fence = if writes == Writes::Attempt { fence.may_write(dir) } else { fence.may_read(dir) };
        if let Ok(spec) = spec::read(dir) {
            // only what is there can be left in reach; what is wrong with it the dataset's reader tells
            let _made = std::fs::create_dir_all(&spec.cache);
            fence = fence.may_read(spec.base).may_read(spec.dataset).may_write(spec.cache);
            fence = spec.init_adapter.into_iter().chain(spec.validation).fold(fence, Fence::may_read);
            if terms.gpu && spec.devices.len() > 1 {
                tracing::info!(
                    "this process shares memory by name, and TCP where ports are nobody's, with the other ranks"
                );
                fence = fence.may_meet_ranks();
            }
        }
    }
    match fence.raise()? {
        Raised::FilesAndTcp => tracing::info!("this process reaches {}", Raised::FilesAndTcp),
        less @ (Raised::Files | Raised::Nothing) => tracing::warn!("this process reaches {less}"),
    }
    Ok(())
}

fn refused(error: &HoldError) -> Exit {
    match error {
        // The exit code says it all, and nothing is wrong with the other.
        HoldError::Held { .. } => {
            tracing::info!("failed to {error}");
            Exit::Held
        }
        HoldError::Io { .. } => {
            tracing::error!("failed to {error}");
            Exit::Unusable
        }
    }
}

/// One attempt directory, held.
struct Attempt {
    dir: PathBuf,
    stop: Stop,
    terms: Terms,
    _hold: Hold,
}

impl Attempt {
    fn serve(&self, followers: Vec<UnixStream>, watch: &mut Watch<'_>) -> Exit {
        match self.work(followers, watch) {
            Ok(exit) => exit,
            Err(error) => {
                tracing::error!("failed to {error}");
                Exit::DiskFull
            }
        }
    }

    fn work(&self, followers: Vec<UnixStream>, watch: &mut Watch<'_>) -> Result<Exit, JournalError> {
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
        let Some(outcome) = self.train(followers, &tell) else { return Ok(Exit::Internal) };
        if let Some(message) = peak_memory() {
            tell(WorkerEvent::Log { level: Level::Info, message })?;
        }
        let exit = Exit::of(&outcome);
        tell(outcome)?;
        Ok(exit)
    }

    /// Trains to an outcome; whatever goes wrong is one, but for the loss of another rank: of several processes the worker is as lost
    /// as any one of them, and what is lost has no last word.
    fn train(
        &self,
        followers: Vec<UnixStream>,
        tell: &(dyn Fn(WorkerEvent) -> Result<(), JournalError> + Sync),
    ) -> Option<WorkerEvent> {
        let config = match spec::read(&self.dir) {
            Ok(spec) => spec::config(&self.dir, &spec, self.terms),
            Err(error) => return Some(report::unreadable(&error)),
        };
        let mut events = |event| match report::event(event) {
            Some(event) => tell(event).map_err(std::io::Error::from),
            None => Ok(()),
        };
        // nothing of the run is used after a panic: the next worker begins from disk
        let train = || lorikeet_trainer::lead(&config, followers, &self.stop, &mut events);
        Some(match catch_unwind(AssertUnwindSafe(train)) {
            Ok(Ok(outcome)) => report::outcome(outcome, signal::cause(&self.dir)),
            Ok(Err(error @ TrainError::RankLost { .. })) => {
                // a word in the log is no last word; that it cannot be kept is no reason to have one
                drop(tell(WorkerEvent::Log { level: Level::Error, message: error.to_string() }));
                return None;
            }
            Ok(Err(error)) => report::failure(&error),
            Err(panic) => report::failure(&TrainError::of_panic(panic.as_ref())),
        })
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

/// The most memory this process ever held, to be compared with the plan.
fn peak_memory() -> Option<String> {
    let kib = procfs::process::Process::myself().ok()?.status().ok()?.vmhwm?;
    Some(format!("peak memory of the process: {} MiB", kib >> 10))
}
