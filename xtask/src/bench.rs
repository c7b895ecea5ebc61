//! `cargo xtask bench`: numbers worth comparing, so always from the release profile.

use anyhow::Result;
use clap::ValueEnum;

use crate::program::Program;
use crate::tree::Tree;

/// What can be measured.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Part {
    /// Optimizer steps of a SmolLM2-shaped base: tokens per second and peak memory
    Trainer,
    /// Preparing a generated dataset of a gigabyte: time and peak memory
    Data,
}

/// Builds and runs the benchmark of one part; `rest` are its own flags.
pub(crate) fn run(tree: &Tree, part: Part, rest: &[String]) -> Result<()> {
    let line = match part {
        Part::Trainer => "cargo run --release --package lorikeet-trainer --example step --",
        Part::Data => "cargo run --release --package lorikeet-dataset --example prepare --",
    };
    Program::new(tree.root(), line).args(rest).run()
}
