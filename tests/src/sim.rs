//! One coordinator and many agents in one thread, from one seed: the product's own turn and host, a virtual clock, network and disk.
//!
//! ```text
//!   client ──► brain (Turn, virtual store) ◄── wire (delay, cuts, repeats, broken connections) ──► node (Host, virtual disk, workers)
//! ```
//! Faults strike at seeded moments, between any two effects too; then they stop, and every job has to end. What was promised is
//! held against what was seen after every step (`sim/promise.rs`). The same seed makes the same world: a failing one is replayed by
//! `LORIKEET_SEED=… LORIKEET_SEEDS=1 cargo xtask test no_promise`.

#![expect(clippy::wildcard_enum_match_arm, reason = "the world looks for what it simulates and hands on the rest")]

mod books;
mod brain;
mod fault;
mod nature;
mod node;
mod promise;
mod store;
mod wire;
mod worker;
mod world;

pub use fault::Fault;
pub use promise::Broken;
pub use world::Weather;

use crate::chance;
use lorikeet_coordinator::guard::Guards;
use std::collections::BTreeMap;

/// What happened how often.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(pub BTreeMap<String, u64>);

impl Tally {
    /// Once more.
    pub(crate) fn count(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }
}

/// One world, from its seed to the end of its last job.
///
/// # Errors
/// The first promise that was broken, with the seed.
pub fn run(seed: u64, guards: Guards, weather: Weather) -> Result<Tally, Broken> {
    world::World::new(seed, guards, weather).run()
}

/// Chance, replayable.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        chance(&mut self.0, end.max(1))
    }

    /// A number from `start` to below `end`.
    pub(crate) fn between(&mut self, start: u64, end: u64) -> u64 {
        start + self.below(end - start)
    }

    /// True once in `times`.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
