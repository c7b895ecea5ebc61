//! The further processes of an attempt on several devices: one each, started by the leader, tied to it by a wire, seen by nobody else.
//!
//! ```text
//! lorikeet worker DIR              rank 0: holds the lock, hears signals, writes events; its device is the first
//!   ├─ lorikeet worker --rank 1 DIR    reads the spec, trains as the leader orders, writes nothing
//!   └─ lorikeet worker --rank 2 DIR    …
//! ```
//! A wire is a follower's standard input. When it ends, and it ends with the leader however that ends, the follower has nothing left
//! to do; one that is deaf in a driver's call dies with the thread that started it, which is the leader's first and lives as
//! long as the leader. All are in one process group, which the agent measures and, at the end, clears.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use lorikeet_protocol::worker::{Exit, Spec};
use lorikeet_trainer::{Stop, TrainError};
use rustix::process::{Signal, set_parent_process_death_signal};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use crate::fence::FenceError;
use crate::spec::SpecError;
use crate::{Terms, Writes, fenced, spec};

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
    if terms.gpu {
        command.arg("--gpu");
    }
    let child = command.arg(dir).env(VISIBLE, visible).stdin(Stdio::from(OwnedFd::from(follower))).spawn()?;
    tracing::info!("rank {rank} is process {}", child.id());
    Ok(leader)
}

/// The entry of a list like `GPU-a,GPU-b` for a rank; nothing where the list has none.
fn nth(visible: &str, rank: usize) -> &str {
    visible.split(',').nth(rank).unwrap_or_default()
}

/// Why a follower takes no part.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("be a follower: {0}")]
    System(#[from] io::Error),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("{fence}: {}", fence.0)]
    Fence { fence: FenceError },
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// Trains as the leader at the other end of standard input orders, until that leaves. Signals are the leader's: one that reaches the
/// whole group from a terminal must not take a follower from under it.
pub fn follow(dir: &Path, rank: usize, terms: Terms) -> Exit {
    let _rank = tracing::info_span!("follower", rank).entered();
    match followed(dir, terms) {
        Ok(()) => Exit::Finished,
        Err(error) => {
            tracing::error!("failed to {error}");
            Exit::Internal
        }
    }
}

fn followed(dir: &Path, terms: Terms) -> Result<(), FollowError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
    for signal in [SIGINT, SIGTERM, SIGUSR1, SIGUSR2] {
        signal_hook::flag::register(signal, Arc::default())?;
    }
    let wire = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let spec = spec::read(dir)?;
    fenced(&[dir.to_owned()], terms, Writes::Tokens).map_err(|fence| FollowError::Fence { fence })?;
    Ok(lorikeet_trainer::follow(&spec::config(dir, &spec, terms), wire, &Stop::new())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_sees_the_device_of_its_number() {
        assert_eq!([1, 2].map(|rank| nth("GPU-a,GPU-b,GPU-c", rank)), ["GPU-b", "GPU-c"]);
        assert_eq!(nth("", 1), "", "a CPU has no list");
    }
}
