//! `cargo xtask fuzz`, and a step of `check`: every decoder against bytes that nobody meant, mutated from a kept corpus.

use anyhow::Result;

use crate::program::Program;
use crate::tree::Tree;

/// Each decoder for so long; `filter` names one.
pub(crate) fn run(tree: &Tree, seconds: u64, filter: Option<&str>) -> Result<()> {
    let build = "cargo test --workspace --test fuzz";
    let filter = filter.unwrap_or_default();
    let fuzz = Program::new(tree.root(), &format!("{build} {filter} -- --nocapture --test-threads 2"));
    fuzz.env("LORIKEET_FUZZ_SECONDS", &seconds.to_string()).run()
}
