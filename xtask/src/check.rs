//! `cargo xtask check`: everything that has to hold before a push, and all that CI runs.
//!
//! Steps go from cheap to dear and all of them run, whatever failed before, so that one round shows everything. clippy and
//! docs share one set of checked dependencies, build and tests one set of built ones: nothing is compiled a third time.
//! Pinned files need no step of their own, the tests compare them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::output::{say, seconds, table};
use crate::program::{Program, present};
use crate::tree::Tree;
use crate::{deny, fuzz, gpu, test, tidy, units};

/// How a step ended when it did not fail.
pub(crate) enum Done {
    Passed,
    /// Passed, with something that a person should know.
    Noted(String),
    /// Not run: this tool is not on the machine.
    Missing(&'static str),
}

/// What stands in the summary.
enum Outcome {
    Passed,
    Noted(String),
    Skipped(String),
    Failed(String),
}

/// For each decoder; the tests before give it a second or two. There are some forty, two at a time: ten minutes.
const DECODER_SECONDS: u64 = 30;

type Step = (&'static str, fn(&Tree) -> Result<Done>);

const STEPS: [Step; 12] = [
    ("fmt", fmt),
    ("tidy", |tree| tidy::run(tree).map(|()| Done::Passed)),
    ("units", units::run),
    ("clippy", clippy),
    ("docs", docs),
    ("cuda", gpu::lint),
    ("kernels", gpu::compile),
    ("deny", deny::run),
    ("build", |tree| test::build(tree).map(|()| Done::Passed)),
    ("tests", |tree| test::execute(tree, &[])),
    ("decoders", |tree| fuzz::check(tree, DECODER_SECONDS).map(|()| Done::Passed)),
    ("emulated gpu", gpu::emulate),
];

/// Runs every step, prints the table and fails when one of them did.
pub(crate) fn run(tree: &Tree, strict: bool) -> Result<()> {
    let start = Instant::now();
    let results: Vec<(&str, Outcome, Duration)> = STEPS.iter().map(|step| perform(tree, step, strict)).collect();
    say("\n== summary");
    let rows: Vec<Vec<String>> = results.iter().map(|(name, outcome, time)| row(name, outcome, *time)).collect();
    table(&["step", "result", "time", ""], &rows);
    say(format!("all steps took {}", seconds(start.elapsed()).trim_start()));
    let failed: Vec<&str> = results.iter().filter(|(_, outcome, _)| outcome.failed()).map(|(name, ..)| *name).collect();
    if !failed.is_empty() {
        bail!("check failed: {}", failed.join(", "));
    }
    Ok(())
}

fn perform(tree: &Tree, (name, step): &Step, strict: bool) -> (&'static str, Outcome, Duration) {
    say(format!("\n== {name}"));
    let start = Instant::now();
    let outcome = Outcome::judge(step(tree), strict);
    if let Some(text) = outcome.text() {
        say(format!("{name}: {text}"));
    }
    (name, outcome, start.elapsed())
}

fn row(name: &str, outcome: &Outcome, time: Duration) -> Vec<String> {
    let first_line = outcome.text().and_then(|text| text.lines().next()).unwrap_or_default();
    vec![name.to_owned(), outcome.word().to_owned(), seconds(time), first_line.to_owned()]
}

impl Outcome {
    fn judge(result: Result<Done>, strict: bool) -> Self {
        match result {
            Ok(Done::Passed) => Self::Passed,
            Ok(Done::Noted(note)) => Self::Noted(note),
            Ok(Done::Missing(tool)) if strict => Self::Failed(format!("{tool} is missing, and --strict skips nothing")),
            Ok(Done::Missing(tool)) => Self::Skipped(format!("{tool} is missing")),
            Err(error) => Self::Failed(format!("{error:#}")),
        }
    }

    fn failed(&self) -> bool {
        self.word() == "failed"
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Passed | Self::Noted(_) => "passed",
            Self::Skipped(_) => "skipped",
            Self::Failed(_) => "failed",
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Noted(text) | Self::Skipped(text) | Self::Failed(text) => Some(text),
        }
    }
}

fn fmt(tree: &Tree) -> Result<Done> {
    if !present("cargo fmt --version") {
        return Ok(Done::Missing("rustfmt"));
    }
    Program::new(tree.root(), "cargo fmt --all --check").run().map(|()| Done::Passed)
}

fn clippy(tree: &Tree) -> Result<Done> {
    if !present("cargo clippy --version") {
        return Ok(Done::Missing("clippy"));
    }
    Program::new(tree.root(), "cargo clippy --workspace --all-targets --keep-going -- -D warnings")
        .run()
        .map(|()| Done::Passed)
}

fn docs(tree: &Tree) -> Result<Done> {
    let program = Program::new(tree.root(), "cargo doc --workspace --no-deps --keep-going");
    program.env("RUSTDOCFLAGS", "-Dwarnings").run().map(|()| Done::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_skips_its_step_unless_strict() {
        assert!(!Outcome::judge(Ok(Done::Missing("clippy")), false).failed());
        assert!(Outcome::judge(Ok(Done::Missing("clippy")), true).failed());
    }

    #[test]
    fn a_note_does_not_fail_a_strict_check() {
        let outcome = Outcome::judge(Ok(Done::Noted("no database".into())), true);
        assert_eq!((outcome.word(), outcome.text()), ("passed", Some("no database")));
    }
}
