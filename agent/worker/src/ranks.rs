//! The further processes of an attempt on several devices: one each, started by the leader, tied to it by a wire, seen by nobody else.
//!
//! ```text
//! lorikeet worker DIR              rank 0: holds the lock, hears signals, writes events; its device is the first
//!   ├─ lorikeet worker --rank 1 DIR    reads the spec, trains as the leader orders, writes nothing
//!   └─ lorikeet worker --rank 2 DIR    …
//! ```
//! A wire is a follower's standard input. When it ends, and it ends with the leader however that ends, the follower leaves between two
//! layers. All are in one process group, which the agent measures and, at the end, clears.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use lorikeet_protocol::worker::{Exit, Spec};
use lorikeet_trainer::{Stop, TrainError, Wish};
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::{Terms, fenced, spec};

/// Which GPUs a process sees.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Starts a process for every device of `spec` but the first; the leader's ends of their wires.
pub(crate) fn start(dir: &Path, spec: &Spec, terms: Terms) -> io::Result<Vec<UnixStream>> {
    let visible = std::env::var(VISIBLE).unwrap_or_default();
    (1..spec.devices.len()).map(|rank| follower(dir, rank, terms, nth(&visible, rank))).collect()
}

fn follower(dir: &Path, rank: usize, terms: Terms, visible: &str) -> io::Result<UnixStream> {
    let (leader, follower) = UnixStream::pair()?;
    // The link outlives an upgrade that replaces the file: every rank is of the same make.
    let mut command = Command::new("/proc/self/exe");
    command.args(["worker", "--rank", &rank.to_string()]);
    if let Some(limit) = terms.memory_limit {
        command.args(["--memory-limit", &limit.to_string()]);
    }
    let child = command.arg(dir).env(VISIBLE, visible).stdin(Stdio::from(OwnedFd::from(follower))).spawn()?;
    tracing::info!("rank {rank} is process {}", child.id());
    Ok(leader)
}

/// The entry of a list like `GPU-a,GPU-b` for a rank; nothing where the list has none.
fn nth(visible: &str, rank: usize) -> &str {
    visible.split(',').nth(rank).unwrap_or_default()
}

/// Trains as the leader at the other end of standard input orders, until that leaves. Signals are the leader's: one that reaches the
/// whole group from a terminal must not take a follower from under it.
pub fn follow(dir: &Path, terms: Terms) -> Exit {
    match followed(dir, terms) {
        Ok(()) => Exit::Finished,
        Err(error) => {
            tracing::error!("failed to follow: {error}");
            Exit::Internal
        }
    }
}

fn followed(dir: &Path, terms: Terms) -> Result<(), TrainError> {
    let failed = |doing: &'static str| move |error: io::Error| TrainError::Internal(format!("{doing}: {error}"));
    for signal in [SIGINT, SIGTERM, SIGUSR1, SIGUSR2] {
        let ignored = Arc::default();
        signal_hook::flag::register(signal, ignored).map_err(failed("ignore signals"))?;
    }
    let wire = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from).map_err(failed("open the wire"))?;
    let spec = spec::read(dir).map_err(|error| TrainError::Internal(error.to_string()))?;
    fenced(&[dir.to_owned()]).map_err(|error| TrainError::Internal(format!("{error}: {}", error.0)))?;
    let stop = Arc::new(Stop::new());
    watch(wire.try_clone().map_err(failed("open the wire"))?, Arc::clone(&stop)).map_err(failed("start a thread"))?;
    lorikeet_trainer::follow(&spec::config(dir, &spec, terms.memory_limit), wire, &stop)
}

/// Nobody waits for this thread: it ends with the process, of which nothing is left to do when the wire has.
fn watch(wire: UnixStream, stop: Arc<Stop>) -> io::Result<()> {
    let wait = move || {
        // What is said on it is not ours to hear, only that nothing more will be. An interrupted wait begins anew.
        while poll(&mut [PollFd::new(&wire, PollFlags::RDHUP)], None) == Err(rustix::io::Errno::INTR) {}
        stop.ask(Wish::Discard);
    };
    std::thread::Builder::new().name("leader".into()).spawn(wait).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_sees_the_device_of_its_number() {
        assert_eq!([1, 2].map(|rank| nth("GPU-a,GPU-b,GPU-c", rank)), ["GPU-b", "GPU-c"]);
        assert_eq!(nth("", 1), "", "a CPU has no list");
    }

    #[test]
    fn a_wire_that_ends_stops_the_follower() {
        let (leader, follower) = UnixStream::pair().expect("a pair");
        let stop = Arc::new(Stop::new());
        watch(follower, Arc::clone(&stop)).expect("a thread");
        assert_eq!(stop.wish(), Wish::Run);
        drop(leader);
        while stop.wish() != Wish::Discard {
            std::thread::yield_now();
        }
    }
}
