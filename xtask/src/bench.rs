//! `cargo xtask bench`: numbers worth comparing, so from the release profile unless it is told which program to measure.

mod start;
mod train;

use anyhow::Result;
use clap::ValueEnum;

use crate::program::Program;
use crate::tree::Tree;

/// What can be measured.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Part {
    /// Optimizer steps of a SmolLM2-shaped base, beside PEFT's if there is a Python with it: tokens per second, peak memory, and
    /// where our time goes. `cargo xtask bench train -- --help` lists the flags
    Train,
    /// How soon a coordinator is ready, what it holds when idle, and how long a job waits for its first step. Flag: a
    /// `lorikeet` that is built already
    Start,
    /// Planned against measured memory of random bases of real shapes. Flags: a directory for them, steps
    Memory,
    /// Preparing a generated dataset of a gigabyte: time and peak memory
    Data,
    /// The coordinator under simulated agents: submits, placements, returns, points and lines a second. Flags: which (`B1`
    /// …), `--quick`, `--hyperqueue PYTHON`
    Cluster,
}

/// Builds and runs the benchmark of one part; `rest` are its own flags.
pub(crate) fn run(tree: &Tree, part: Part, rest: &[String]) -> Result<()> {
    match part {
        Part::Train => train::run(tree, rest),
        Part::Data => {
            let line = "cargo run --release --package lorikeet-dataset --example prepare --";
            Program::new(tree.root(), line).args(rest).run()
        }
        Part::Memory => {
            let line = "cargo run --release --package lorikeet-trainer --example memory --";
            Program::new(tree.root(), line).args(rest).run()
        }
        Part::Cluster => {
            // The coordinator is the program beside the example, as optimised as it is.
            Program::new(tree.root(), "cargo build --release --package lorikeet").run()?;
            let line = "cargo run --release --package lorikeet-tests --example cluster --";
            Program::new(tree.root(), line).args(rest).run()
        }
        Part::Start => start::run(tree, rest),
    }
}
