//! `cargo xtask gpu`: the whole way from this machine, which needs no GPU, to a table from one that has one.
//!
//! `kit` fetches NVIDIA's compiler, `build` makes two files to be carried over, `test` and `bench` run it:
//! here where there is a GPU, with `--emulated` on the processor. `docs/gpu.md` says what each proves.

mod emulator;
mod kernels;
mod kit;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::check::Done;
use crate::output::say;
use crate::program::Program;
use crate::tree::Tree;

/// What is to be done.
#[derive(Clone, Copy, Subcommand)]
pub(crate) enum Job {
    /// Fetch NVIDIA's compiler from PyPI into target/gpu (104 MB; needs python3 with venv)
    Kit,
    /// Build target/gpu/lorikeet-gpu (every kernel, its checks, benchmarks and whole steps) and goldens_on_gpu, to be carried to a GPU machine
    Build,
    /// Compile the kernels for all architectures and run their checks
    Test {
        /// On an emulated GPU: the same kernels as C++, the same program
        #[arg(long)]
        emulated: bool,
    },
    /// Run checks and benchmark on the GPU of this machine
    Bench,
}

/// Does it.
pub(crate) fn run(tree: &Tree, job: Job) -> Result<()> {
    match job {
        Job::Kit => kit::fetch(tree),
        Job::Build => build(tree).map(drop),
        Job::Test { emulated } => {
            if let Done::Missing(tool) = kernels::compile(tree)? {
                say(format!("kernels: not compiled, {tool} is missing; `cargo xtask gpu kit` brings it"));
            }
            if emulated {
                emulator::run(tree).map(drop)
            } else {
                Program::at(tree.root(), &build(tree)?).word("check").run()
            }
        }
        Job::Bench => Program::at(tree.root(), &build(tree)?).run(),
    }
}

/// The `kernels` step of `check`.
pub(crate) fn compile(tree: &Tree) -> Result<Done> {
    kernels::compile(tree)
}

/// The `emulated gpu` step of `check`.
pub(crate) fn emulate(tree: &Tree) -> Result<Done> {
    emulator::run(tree)
}

/// The `cuda` step of `check`: the code behind the feature, in the packages that have it. No CUDA is needed for that.
pub(crate) fn lint(tree: &Tree) -> Result<Done> {
    let packages = "-p cuda-lazy -p lorikeet-trainer -p lorikeet-agent -p lorikeet";
    let line = format!("cargo clippy {packages} --features lorikeet/cuda --all-targets --keep-going -- -D warnings");
    Program::new(tree.root(), &line).run().map(|()| Done::Passed)
}

/// Larger than that a file is not carried about lightly.
const MOST_BYTES: u64 = 40_000_000;

/// The two files, stripped; the first is the program. In the development profile, whose trainer is optimised: what is measured is the
/// card's work.
fn build(tree: &Tree) -> Result<PathBuf> {
    let features = "--workspace --features lorikeet-trainer/cuda";
    Program::new(tree.root(), &format!("cargo build {features} --bin lorikeet-gpu")).run()?;
    let program = carried(tree, &tree.target().join("debug/lorikeet-gpu"), "lorikeet-gpu")?;
    carried(tree, &test_program(tree, features)?, GOLDENS)?;
    Ok(program)
}

/// Decoder and runs beside those of PEFT.
const GOLDENS: &str = "goldens_on_gpu";

fn test_program(tree: &Tree, features: &str) -> Result<PathBuf> {
    let line = format!("cargo test {features} --test {GOLDENS} --no-run --message-format json");
    let said = Program::new(tree.root(), &line).capture()?;
    let messages = String::from_utf8_lossy(&said.stdout);
    let made = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = made.filter(|message| message["target"]["name"] == GOLDENS);
    let path = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.with_context(|| format!("find what cargo made of {GOLDENS}"))
}

fn carried(tree: &Tree, made: &Path, name: &str) -> Result<PathBuf> {
    let place = home(tree)?.join(name);
    Program::new(tree.root(), "strip -o").path(&place).path(made).run()?;
    let bytes = std::fs::metadata(&place)?.len();
    if bytes > MOST_BYTES {
        bail!("{} has {bytes} bytes, more than {MOST_BYTES}", place.display());
    }
    say(format!("{} ({:.1} MB)", place.display(), bytes as f64 / 1e6));
    Ok(place)
}

/// What belongs to these tasks alone.
fn home(tree: &Tree) -> Result<PathBuf> {
    let home = tree.target().join("gpu");
    std::fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
    Ok(home)
}
