//! A process stands still and goes on, as a laptop's or a busy hypervisor's does.

use crate::{assert_untouched, machine};
use lorikeet_tests::{Lab, process::signal, until};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const STEPS: u64 = 600;

fn stand_still(pid: u32, time: Duration) {
    signal(pid, Signal::STOP);
    let began = Instant::now();
    until("it to have stood still", || (began.elapsed() >= time).then_some(()));
    signal(pid, Signal::CONT);
}

#[test]
fn an_agent_that_stood_still_longer_than_its_lease_goes_on_with_its_worker() {
    let lab = Lab::start();
    let agent = lab.agent_on("only", &machine(1, STEPS, 20));
    let job = lab.submit(&lab.job_file("paused", STEPS, 1_000));
    lab.api.until_step(&job, 5);
    let before = agent.workers();
    // Longer than the lease of a second, shorter than the three that the job bears.
    stand_still(agent.process.pid(), Duration::from_millis(1_800));
    assert_eq!(agent.workers(), before);
    assert_untouched(&lab, &job, STEPS);
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
}

#[test]
fn a_coordinator_that_stood_still_for_forty_seconds_listens_before_it_gives_anybody_up() {
    let lab = Lab::start();
    let agent = lab.agent_on("only", &machine(1, 3_000, 20));
    let job = lab.submit(&lab.job_file("paused", 3_000, 1_000));
    lab.api.until_step(&job, 5);
    stand_still(lab.coordinator.pid(), Duration::from_secs(40));
    assert_untouched(&lab, &job, 3_000);
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
}
