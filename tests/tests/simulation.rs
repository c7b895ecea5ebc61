//! Whole clusters in one thread, from seeds. How many, `LORIKEET_SEEDS` says; which first, `LORIKEET_SEED`.

use lorikeet_coordinator::guard::{Guard, Guards};
use lorikeet_tests::sim::{self, Fault, Tally};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Enough for every push; `LORIKEET_SEEDS` asks for more.
const SEEDS: u64 = 100;

#[test]
fn no_promise_is_broken_in_any_world() {
    let (first, seeds) = (number("LORIKEET_SEED").unwrap_or(1), number("LORIKEET_SEEDS").unwrap_or(SEEDS));
    let mut tally = Tally::default();
    let mut broken = vec![];
    for seed in first..first + seeds {
        match world(seed, Guards::default()) {
            Ok(happened) => tally.add(&happened),
            Err(what) => broken.push(what),
        }
    }
    tally.0.iter().for_each(|(what, count)| eprintln!("{count:>9}  {what}"));
    assert!(broken.is_empty(), "{} of {seeds} worlds:\n{}", broken.len(), broken.join("\n"));
    if seeds >= SEEDS {
        for fault in Fault::ALL {
            assert!(tally.0.contains_key(&format!("fault {fault:?}")), "no world saw {fault:?}");
        }
        for needed in [
            "job placed to succeeded",
            "job placed to queued",
            "job placed to cancelled",
            "job placed to paused",
            "orphan kept",
        ] {
            assert!(tally.0.contains_key(needed), "no world saw: {needed}");
        }
    }
}

#[test]
fn each_guard_is_missed_within_two_hundred_worlds() {
    for guard in Guard::ALL {
        let found = (1..=200).find_map(|seed| world(seed, Guards::all_but(guard)).err());
        let found = found.unwrap_or_else(|| panic!("nobody missed {guard:?}"));
        eprintln!("{guard:?}: {found}");
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    assert_eq!(world(7, Guards::default()), world(7, Guards::default()));
}

/// A broken invariant of the product panics; that is a finding like any other.
fn world(seed: u64, guards: Guards) -> Result<Tally, String> {
    let lived = catch_unwind(AssertUnwindSafe(|| sim::run(seed, guards)));
    match lived {
        Ok(lived) => lived.map_err(|broken| broken.to_string()),
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()));
            Err(format!("seed {seed}: {}", what.unwrap_or_default()))
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
