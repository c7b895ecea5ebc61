//! A cancelled job stops at once and gives its device to the next.

use lorikeet_tests::{Lab, until};
use std::time::{Duration, Instant};

#[test]
fn a_cancelled_job_stops_within_five_seconds_and_the_next_one_gets_its_device() {
    let lab = Lab::start();
    let agent = lab.agent("only");
    let long = lab.submit(&lab.job_file("long", 100_000, 1_000));
    lab.api.until_step(&long, 2);
    let next = lab.submit(&lab.job_file("next", 4, 100));
    let asked = Instant::now();
    lab.cli(&["job", "cancel", &long]);
    lab.api.until_phase(&long, &["cancelled"]);
    until("the worker of the first to be gone", || {
        agent.workers().iter().all(|pid| !words(*pid).contains(&long)).then_some(())
    });
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    lab.api.until_phase(&next, &["succeeded"]);
    assert_eq!(lab.api.job(&long)["phase"], "cancelled");
}

fn words(pid: u32) -> String {
    let process = procfs::process::Process::new(pid.cast_signed());
    process.and_then(|process| process.cmdline()).unwrap_or_default().join(" ")
}
