//! `cargo xtask gpu`: the whole way from this machine, which needs no GPU, to a table from one that has one.
//!
//! `kit` fetches NVIDIA's compilers, `build` makes the one file to be carried over, `test` and `bench` run it:
//! here where there is a GPU, with `--emulated` on the processor. `docs/gpu.md` says what each proves.

mod emulator;
mod kernels;
mod kit;
mod without;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::check::Done;
use crate::output::say;
use crate::program::Program;
use crate::tree::Tree;

/// What is to be done.
#[derive(Clone, Subcommand)]
pub(crate) enum Job {
    /// Fetch NVIDIA's compilers, nvcc and NVRTC, from PyPI into target/gpu (195 MB; needs python3 with venv)
    Kit,
    /// Build target/gpu/lorikeet-gpu (every kernel, its checks, the goldens, benchmarks and whole steps), to be carried to a GPU machine
    Build,
    /// Compile the kernels for all architectures, run their checks and the goldens
    Test {
        /// On an emulated GPU: the same kernels as C++, the same program
        #[arg(long)]
        emulated: bool,
    },
    /// Measure every operation on the GPU of this machine, and whole steps where a base is named
    Bench {
        /// The base's directory
        #[arg(long, value_name = "DIR")]
        base: Option<PathBuf>,
    },
}

/// Does it.
pub(crate) fn run(tree: &Tree, job: Job) -> Result<()> {
    match job {
        Job::Kit => kit::fetch(tree),
        Job::Build => build(tree).map(drop),
        Job::Test { emulated } => {
            if let Done::Missing(tool) = kernels::compile(tree)? {
                say(format!("kernels: not compiled by {tool}, which is missing; `cargo xtask gpu kit` brings it"));
            }
            if emulated {
                emulate(tree).map(drop)
            } else {
                Program::at(tree.root(), &build(tree)?).words("check large goldens").run()
            }
        }
        Job::Bench { base } => bench(tree, base.as_deref()),
    }
}

fn bench(tree: &Tree, base: Option<&Path>) -> Result<()> {
    let program = build(tree)?;
    Program::at(tree.root(), &program).word("bench").run()?;
    let Some(base) = base else { return Ok(()) };
    Program::at(tree.root(), &program).word("step").path(base).words("--together 1,2,4 --profile").run()
}

/// The `kernels` step of `check`.
pub(crate) fn compile(tree: &Tree) -> Result<Done> {
    kernels::compile(tree)
}

/// The `emulated gpu` step of `check`, and behind it the same code without any.
pub(crate) fn emulate(tree: &Tree) -> Result<Done> {
    match emulator::run(tree)? {
        Done::Passed => without::run(tree),
        done @ (Done::Noted(_) | Done::Missing(_)) => Ok(done),
    }
}

/// The `cuda` step of `check`: the code behind the feature, in the packages that have it. No CUDA is needed for that.
pub(crate) fn lint(tree: &Tree) -> Result<Done> {
    let packages = "-p cuda-lazy -p lorikeet-trainer -p lorikeet-agent -p lorikeet";
    let line = format!("cargo clippy {packages} --features lorikeet/cuda --all-targets --keep-going -- -D warnings");
    Program::new(tree.root(), &line).run().map(|()| Done::Passed)
}

/// Larger than that a file is not carried about lightly.
const MOST_BYTES: usize = 40_000_000;

/// The one file: the program, stripped, and the goldens behind it. In the development profile, whose trainer is optimised: what is measured
/// is the card's work.
fn build(tree: &Tree) -> Result<PathBuf> {
    let place = stripped(tree, &program(tree)?, "lorikeet-gpu")?;
    let mut whole = std::fs::read(&place).with_context(|| format!("read {}", place.display()))?;
    let packed = goldens(tree)?;
    whole.extend(&packed);
    whole.extend((packed.len() as u64).to_le_bytes());
    whole.extend(MARK);
    if whole.len() > MOST_BYTES {
        bail!("{} has {} bytes, more than {MOST_BYTES}", place.display(), whole.len());
    }
    std::fs::write(&place, &whole).with_context(|| format!("write {}", place.display()))?;
    say(format!("{} ({:.1} MB)", place.display(), whole.len() as f64 / 1e6));
    Ok(place)
}

/// The whole workspace, so that only what the feature changes is compiled again.
const FEATURES: &str = "--workspace --features lorikeet-trainer/cuda,lorikeet/cuda";

/// The program as cargo makes it. The goldens beside it: without a test among what is built, tests' dependencies choose no features, and half
/// of the libraries, the trainer among them, would be built twice.
fn program(tree: &Tree) -> Result<PathBuf> {
    Program::new(tree.root(), &format!("cargo build {FEATURES} --bin lorikeet-gpu --test {GOLDENS}")).run()?;
    Ok(tree.target().join("debug/lorikeet-gpu"))
}

/// Decoder and runs beside those of PEFT.
const GOLDENS: &str = "goldens_on_gpu";

/// What a program ends in that carries them; `trainer/src/bin/lorikeet-gpu/goldens.rs` looks for it.
const MARK: &[u8] = b"goldens\n";

/// The test program and its numbers, packed.
fn goldens(tree: &Tree) -> Result<Vec<u8>> {
    stripped(tree, &test_program(tree)?, GOLDENS)?;
    let home = home(tree)?;
    let packed = home.join("goldens.tar.gz");
    let tar = Program::new(tree.root(), "tar -czf").path(&packed).word("-C").path(&home).word(GOLDENS);
    tar.word("-C").path(tree.root()).word("trainer/tests/goldens").run()?;
    std::fs::read(&packed).with_context(|| format!("read {}", packed.display()))
}

fn test_program(tree: &Tree) -> Result<PathBuf> {
    let line = format!("cargo test {FEATURES} --test {GOLDENS} --no-run --message-format json");
    let said = Program::new(tree.root(), &line).capture()?;
    let messages = String::from_utf8_lossy(&said.stdout);
    let made = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = made.filter(|message| message["target"]["name"] == GOLDENS);
    let path = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.with_context(|| format!("find what cargo made of {GOLDENS}"))
}

fn stripped(tree: &Tree, made: &Path, name: &str) -> Result<PathBuf> {
    let place = home(tree)?.join(name);
    Program::new(tree.root(), "strip -o").path(&place).path(made).run()?;
    Ok(place)
}

/// What belongs to these tasks alone.
fn home(tree: &Tree) -> Result<PathBuf> {
    let home = tree.target().join("gpu");
    std::fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
    Ok(home)
}
