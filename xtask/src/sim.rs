//! `cargo xtask sim`: whole clusters in one thread each, from seeds, with every kind of fault; then each guard taken away in turn.
//! The counts that it prints are part of the proof: a kind of fault, a way through the states or a guard that no world saw fails.

use std::time::Instant;

use anyhow::Result;

use crate::output::{say, seconds};
use crate::program::Program;
use crate::tree::Tree;

/// The packages in which its time is spent.
const SIMULATED: [&str; 4] = ["lorikeet-coordinator", "lorikeet-agent", "lorikeet-protocol", "lorikeet-tests"];

/// Runs so many worlds, the first from this seed, and says how long that took.
pub(crate) fn run(tree: &Tree, seeds: u64, first: u64, guards: bool) -> Result<()> {
    // The whole workspace, so that features are unified as everywhere else and no library is compiled twice; what is simulated is
    // optimised, other than for tests, because thousands of worlds are worth it.
    let optimised = SIMULATED.map(|package| format!("--config profile.dev.package.{package}.opt-level=2")).join(" ");
    let build = format!("cargo test --workspace --test simulation {optimised}");
    Program::new(tree.root(), &format!("{build} --no-run")).run()?;
    let start = Instant::now();
    let worlds = Program::new(tree.root(), &format!("{build} no_promise -- --nocapture"));
    worlds.env("LORIKEET_SEEDS", &seeds.to_string()).env("LORIKEET_SEED", &first.to_string()).run()?;
    say(format!("{seeds} worlds took {}", seconds(start.elapsed()).trim_start()));
    if guards {
        Program::new(tree.root(), &format!("{build} each_guard -- --nocapture")).run()?;
    }
    Ok(())
}
