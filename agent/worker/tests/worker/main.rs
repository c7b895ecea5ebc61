//! Real worker processes on a tiny random Llama: signals, locks, kills, limits, and what stands in the directory afterwards.
//!
//! A child is this very test program, told by a variable to be a worker.

mod attempt;
mod limit;
mod place;
mod signal;

use std::path::PathBuf;

use lorikeet_worker::{Bond, Terms, run};
use rustix::process::{Resource, Rlimit, setrlimit};

use place::{CHILD, LIMITED, TIED};

/// Not a test of its own: what a child process runs.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    if let Ok(bytes) = std::env::var(LIMITED) {
        limit_data(bytes.parse().expect("a number of bytes"));
    }
    let bond = if std::env::var_os(TIED).is_some() { Bond::Stdin } else { Bond::None };
    std::process::exit(run(&[PathBuf::from(dir)], Terms { bond, ..Terms::default() }).code().into());
}

/// From here on the system refuses this process more than so many bytes beyond what it has.
fn limit_data(more: u64) {
    let status = procfs::process::Process::myself().and_then(|me| me.status()).expect("proc says what we have");
    let limit = status.vmdata.expect("it says so on Linux") * 1024 + more;
    setrlimit(Resource::Data, Rlimit { current: Some(limit), maximum: None }).expect("a limit may be lowered");
}
