//! `cargo xtask bench`: numbers worth comparing, so from the release profile unless it is told which program to measure.

mod start;

use anyhow::Result;
use clap::ValueEnum;

use crate::program::Program;
use crate::tree::Tree;

/// What can be measured.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Part {
    /// Optimizer steps of a SmolLM2-shaped base: tokens per second and peak memory. Flags: sequences, tokens of each
    Trainer,
    /// How soon a coordinator is ready, what it holds when idle, and how long a job waits for its first step. Flag: a
    /// `lorikeet` that is built already
    Start,
    /// Planned against measured memory of random bases of real shapes. Flags: a directory for them, steps
    Memory,
    /// Preparing a generated dataset of a gigabyte: time and peak memory
    Data,
}

/// Builds and runs the benchmark of one part; `rest` are its own flags.
pub(crate) fn run(tree: &Tree, part: Part, rest: &[String]) -> Result<()> {
    match part {
        Part::Trainer => {
            let line = "cargo run --release --package lorikeet-trainer --example step --";
            Program::new(tree.root(), line).args(rest).run()
        }
        Part::Data => {
            let line = "cargo run --release --package lorikeet-dataset --example prepare --";
            Program::new(tree.root(), line).args(rest).run()
        }
        Part::Memory => {
            let line = "cargo run --release --package lorikeet-trainer --example memory --";
            Program::new(tree.root(), line).args(rest).run()
        }
        Part::Start => start::run(tree, rest),
    }
}
