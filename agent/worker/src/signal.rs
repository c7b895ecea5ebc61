//! Signals and `stop.json`, turned into wishes for the runs.
//!
//! A handler only sets a bit and writes a byte into a socket; a thread reads the byte and does what cannot be done inside one.
//! Another thread, where that is wanted, waits for the end of standard input and does as if SIGTERM had come; so does the end of the
//! terminal, unless whoever started us wants us to outlive it.

use std::fs;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use lorikeet_protocol::job::StopCause;
use lorikeet_protocol::worker::{STOP, StopRequest};
use lorikeet_trainer::Wish;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::{SigId, low_level};

use crate::{Attempt, Bond};

const TERM: u8 = 1 << 0;
const INT: u8 = 1 << 1;
const WAKE: u8 = 1 << 2;
const DISCARD: u8 = 1 << 3;
const SIGNALS: [(i32, u8); 5] = [(SIGTERM, TERM), (SIGINT, INT), (SIGUSR1, WAKE), (SIGUSR2, DISCARD), (SIGHUP, TERM)];

/// The thread that waits for signals; ends, with its handlers, when dropped.
pub(crate) struct Listener {
    registered: Vec<SigId>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(crate) fn start(attempts: Vec<Arc<Attempt>>, bond: Bond) -> io::Result<Listener> {
        let (wake, mut read) = UnixStream::pair()?;
        let pending = Arc::new(AtomicU8::new(0));
        let mut registered = Vec::new();
        let outlives = ignores_hangup();
        for (signal, bit) in SIGNALS.into_iter().filter(|(signal, _)| *signal != SIGHUP || !outlives) {
            let pending = Arc::clone(&pending);
            let note = move || {
                pending.fetch_or(bit, Ordering::SeqCst);
            };
            // SAFETY: the handler does one atomic operation, which is allowed at any moment.
            registered.push(unsafe { low_level::register(signal, note) }?);
            // handlers run in the order of their registration: the bit is set before the byte is sent
            registered.push(low_level::pipe::register(signal, wake.try_clone()?)?);
        }
        if bond == Bond::Stdin {
            watch_stdin(attempts.clone())?;
        }
        let thread = std::thread::Builder::new().name("signals".into()).spawn(move || {
            let (mut interrupted, mut byte) = (false, [0]);
            while matches!(read.read(&mut byte), Ok(1)) {
                let bits = pending.swap(0, Ordering::SeqCst);
                let again = interrupted && bits & INT != 0;
                interrupted |= bits & INT != 0;
                attempts.iter().for_each(|attempt| attempt.hear(bits, again));
            }
        })?;
        Ok(Listener { registered, wake, thread: Some(thread) })
    }
}

/// Whether whoever started us wants us to outlive the terminal, as `nohup` does: a handler would take that back.
pub fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (SIGHUP - 1)) != 0)
}

/// Nobody waits for this thread: a read cannot be called back. It ends with the process, of which nothing is left to do then.
fn watch_stdin(attempts: Vec<Arc<Attempt>>) -> io::Result<()> {
    let wait = move || {
        // an input that cannot be read has ended as well
        let _noise = io::copy(&mut io::stdin().lock(), &mut io::sink());
        attempts.iter().for_each(|attempt| attempt.hear(TERM, false));
    };
    std::thread::Builder::new().name("parent".into()).spawn(wait).map(drop)
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.registered.drain(..).for_each(|id| {
            low_level::unregister(id);
        });
        // a socket that is already down has the same effect
        let _down = self.wake.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Attempt {
    fn hear(&self, bits: u8, interrupted_again: bool) {
        if bits & DISCARD != 0 || interrupted_again {
            self.stop.ask(Wish::Discard);
        }
        if bits & (TERM | INT) != 0 {
            self.stop.ask(Wish::SaveAndStop);
        }
        if bits & WAKE != 0 && !self.obey_stop_file() {
            self.stop.save_now();
        }
    }
}

/// What `stop.json` asks for, if it is there. One that cannot be understood is obeyed in the gentlest way.
pub(crate) fn stop_request(dir: &Path) -> Option<StopRequest> {
    let path = dir.join(STOP);
    let text = fs::read(&path).ok()?;
    Some(serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!("failed to understand {}: {error}; saving and stopping", path.display());
        StopRequest { save: true, cause: StopCause::Signal }
    }))
}

/// Why the attempt was stopped.
pub(crate) fn cause(dir: &Path) -> StopCause {
    stop_request(dir).map_or(StopCause::Signal, |request| request.cause)
}
