//! Whole clusters in one thread each, from seeds. How many, `LORIKEET_SEEDS` says; which first, `LORIKEET_SEED`.

use lorikeet_coordinator::guard::{Guard, Guards};
use lorikeet_tests::sim::{self, Fault, Tally, Weather};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// Enough for every push; `LORIKEET_SEEDS` asks for more.
const SEEDS: u64 = 100;

/// Every offer that left.
const OFFERED: &str = "guard TokenFirst had a token written before its offer";

/// What has to happen in some world, besides every kind of fault: else the worlds prove nothing about it.
const NEEDED: &[&str] = &[
    "agent died before a turn",
    "agent died in the middle of a turn",
    "agent waits for a slow disk",
    "agent waits for its disk",
    "attempt asked to leave for Drain",
    "attempt asked to leave for Preempt",
    "attempt ended Cancelled",
    "attempt ended DiskFull",
    "attempt ended Hardware",
    "attempt ended Lost",
    "attempt ended Ok",
    "attempt ended Oom",
    "attempt ended Preempted",
    "attempt ended PrepareFailed",
    "attempt ended TimedOut",
    "attempt ended UserError",
    "attempt ended Withdrawn",
    "coordinator died between two effects",
    "device back",
    "device out",
    "files offered again",
    "guard CommitFirst kept what was not durable from leaving",
    "guard Fence kept a result as an orphan",
    "guard ListenFirst gave running jobs time to be heard",
    OFFERED,
    "job blocked to cancelled",
    "job blocked to paused",
    "job blocked to placed",
    "job blocked to queued",
    "job forgotten",
    "job nothing to submitted",
    "job nothing to validating",
    "job paused to blocked",
    "job paused to cancelled",
    "job paused to placed",
    "job paused to queued",
    "job placed to blocked",
    "job placed to cancelled",
    "job placed to expired",
    "job placed to failed",
    "job placed to paused",
    "job placed to queued",
    "job placed to succeeded",
    "job queued to blocked",
    "job queued to cancelled",
    "job queued to paused",
    "job queued to placed",
    "job submitted to rejected",
    "job submitted to validating",
    "job validating to blocked",
    "job validating to cancelled",
    "job validating to paused",
    "job validating to placed",
    "job validating to queued",
    "job validating to rejected",
    "late word of a forgotten job",
    "lines lost with the power",
    "lines of a forgotten job",
    "lines refused",
    "lines sent again",
    "node closed for bad ends",
    "node kept out as two machines",
    "node retired",
    "node seen cordoned",
    "node seen draining",
    "node seen offline",
    "node seen online",
    "node seen quarantined",
    "node seen unreachable",
    "node suspected",
    "operator base.changed",
    "operator node.cordon",
    "operator node.drain",
    "operator node.open",
    "operator node.revoke",
    "operator opens what was closed",
    "orphan Superseded",
    "record device.back",
    "record device.out",
    "record job.forget",
    "record node.quarantine",
    "said twice to an agent",
    "said twice to the coordinator",
    "session let go for a full disk",
    "submission refused",
];

/// What happens so rarely that only many worlds have to see it.
const RARE: &[&str] = &[
    "attempt ended Superseded",
    "job blocked to failed",
    "job blocked to submitted",
    "job blocked to validating",
    "job paused to failed",
    "job submitted to cancelled",
    "node tried again",
    "orphan Cancelled",
    "orphan Hardware",
    "orphan Lost",
    "orphan Ok",
    "orphan Oom",
    "orphan Preempted",
    "orphan TimedOut",
    "orphan UserError",
    "record node.clear",
];

/// So many are many.
const MANY: u64 = 2_000;

/// And this much in every one of them.
const LEAST: &[(&str, u64)] = &[("nodes", 3), ("jobs", 20), ("faults", 5), ("events", 1_000)];

#[test]
fn no_promise_is_broken_in_any_world() {
    let (first, seeds) = (number("LORIKEET_SEED").unwrap_or(1), number("LORIKEET_SEEDS").unwrap_or(SEEDS));
    let (next, threads) = (AtomicU64::new(first), thread::available_parallelism().map_or(1, usize::from));
    let worlds = || {
        let seeds =
            std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < first + seeds));
        seeds.map(|seed| world(seed, Guards::default())).collect::<Vec<_>>()
    };
    let lived: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(worlds)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a world's panic is caught")).collect()
    });
    let mut tally = Tally::default();
    for happened in lived.iter().flatten() {
        tally.add(happened);
        for (what, least) in LEAST {
            assert!(
                happened.0.get(*what).is_some_and(|count| count >= least),
                "a world without {least} {what}: {happened:?}"
            );
        }
    }
    tally.0.iter().for_each(|(what, count)| eprintln!("{count:>9}  {what}"));
    let broken: Vec<_> = lived.into_iter().filter_map(Result::err).collect();
    assert!(broken.is_empty(), "{} of {seeds} worlds:\n{}", broken.len(), broken.join("\n"));
    if seeds >= SEEDS {
        let faults = Fault::ALL.iter().map(|fault| format!("fault {fault:?}"));
        let rare = RARE.iter().filter(|_| seeds >= MANY);
        let needed = faults.chain(NEEDED.iter().chain(rare).map(|needed| (*needed).to_owned()));
        let missing: Vec<_> = needed.filter(|needed| !tally.0.contains_key(needed)).collect();
        assert!(missing.is_empty(), "no world saw {missing:?}");
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
fn a_coordinator_that_is_away_for_two_hours_restarts_nothing_and_loses_no_line() {
    for seed in 1..=5 {
        let tally = lived(seed, Guards::default(), Weather::Outage(2 * 3_600_000)).unwrap();
        let of = |what: &str| tally.0.get(what).copied().unwrap_or(0);
        assert_eq!((of("job placed to succeeded"), of("attempt ended Ok")), (20, 20), "seed {seed}: {tally:?}");
        assert_eq!(of(OFFERED), 20, "seed {seed}: {tally:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    assert_eq!(world(7, Guards::default()), world(7, Guards::default()));
}

fn world(seed: u64, guards: Guards) -> Result<Tally, String> {
    lived(seed, guards, Weather::Storm)
}

/// A broken invariant of the product panics; that is a finding like any other.
fn lived(seed: u64, guards: Guards, weather: Weather) -> Result<Tally, String> {
    let lived = catch_unwind(AssertUnwindSafe(|| sim::run(seed, guards, weather)));
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
