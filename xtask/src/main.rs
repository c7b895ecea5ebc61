//! `cargo xtask`: the single entry for everything done to this repository, by a person and by CI alike.
//!
//! One small file per task. A task is a function that says what it does as it goes and returns an error when a person
//! has to act. Nothing here is linked with a member of the workspace: a broken member must not break its own checks.

mod bench;
mod chaos;
mod check;
mod demo_base;
mod deny;
mod fuzz;
mod gpu;
mod mutate;
mod output;
mod pins;
mod program;
mod sim;
mod test;
mod tidy;
mod tree;
mod units;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::tree::Tree;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Everything done to this repository", disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything that CI runs: fmt, clippy, docs, tests, deny, tidy, units, the CUDA code and its kernels
    Check {
        /// A step that lacks its tool fails instead of being skipped
        #[arg(long)]
        strict: bool,
    },
    /// Build the whole workspace and run its tests
    Test {
        /// Passed on to the test runner: filters, --no-capture, …
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Measure one part
    Bench {
        /// What to measure
        part: bench::Part,
        /// Passed on to the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
    /// Everything about the CUDA kernels: fetch a compiler, build, check, measure
    Gpu {
        #[command(subcommand)]
        job: gpu::Job,
    },
    /// Rewrite pinned files (wire bytes, JSON, --help, tables) from what the code does now; review the diff
    Pins {
        /// Run only the tests whose name contains this
        filter: Option<String>,
    },
    /// Import arrows, fenced crates, file heads, open ends, links
    Tidy,
    /// Whole clusters in one thread, from seeds, with every kind of fault; a failing seed is printed and replayed by `--first`
    Sim {
        /// How many worlds
        #[arg(long, value_name = "N", default_value_t = 2_000)]
        seeds: u64,
        /// The first one's seed; with `--seeds 1` a failing world is replayed
        #[arg(long, value_name = "SEED", default_value_t = 1)]
        first: u64,
        /// Leave out the second half: each guard taken away in turn, and missed
        #[arg(long)]
        worlds_only: bool,
    },
    /// The fault tests of docs/reliability.md, the slow ones too, and what became of each row
    Chaos {
        /// Write the results into the page
        #[arg(long)]
        record: bool,
    },
    /// Every decoder against mutated bytes
    Fuzz {
        /// How long each
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u64,
        /// Only decoders whose name contains this
        filter: Option<String>,
    },
    /// Make the base model and the conversations that `lorikeet demo` brings along
    DemoBase {
        /// Compare with the kept files and write none
        #[arg(long)]
        check: bool,
    },
    /// Flip each marked sign of the trainer in a scratch copy; its tests have to notice
    Mutate {
        /// Only files whose path contains this
        #[arg(long, value_name = "FILE")]
        only: Option<String>,
        /// Stop after so many lines
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
}

fn main() -> ExitCode {
    match perform(Args::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<()> {
    let tree = Tree::find()?;
    match task {
        Task::Check { strict } => check::run(&tree, strict),
        Task::Test { rest } => test::run(&tree, &rest),
        Task::Bench { part, rest } => bench::run(&tree, part, &rest),
        Task::Gpu { job } => gpu::run(&tree, job),
        Task::Pins { filter } => pins::run(&tree, filter.as_deref()),
        Task::Tidy => tidy::run(&tree),
        Task::Sim { seeds, first, worlds_only } => sim::run(&tree, seeds, first, !worlds_only),
        Task::Chaos { record } => chaos::run(&tree, record),
        Task::Fuzz { seconds, filter } => fuzz::run(&tree, seconds, filter.as_deref()),
        Task::DemoBase { check } => demo_base::run(&tree, check),
        Task::Mutate { only, limit } => mutate::run(&tree, only.as_deref(), limit),
    }
}
