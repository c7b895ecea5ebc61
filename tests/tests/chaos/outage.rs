//! The coordinator is away under twenty running jobs: none is touched, and nothing that they said is lost.

use crate::{assert_untouched, log_lines, machine};
use lorikeet_tests::{Lab, until};
use std::time::{Duration, Instant};

const JOBS: usize = 20;

#[test]
fn a_restart_at_once_touches_no_job() {
    outage(Duration::ZERO);
}

#[test]
fn twenty_seconds_without_a_coordinator_touch_no_job() {
    outage(Duration::from_secs(20));
}

#[test]
fn a_minute_without_a_coordinator_touches_no_job() {
    outage(Duration::from_secs(60));
}

/// Two machines of ten; their jobs bear a silence of three seconds, and the outage is no silence of theirs.
fn outage(away: Duration) {
    // The jobs outlast the outage, so that they end under the new coordinator.
    let steps = 200 + away.as_millis() as u64 / 50;
    let mut lab = Lab::start();
    let agents = ["first", "second"].map(|name| lab.agent_on(name, &machine(JOBS / 2, steps, 50)));
    let file = lab.job_file("outage", steps, 1_000);
    let jobs: Vec<_> = (0..JOBS).map(|_| lab.submit(&file)).collect();
    for job in &jobs {
        lab.api.until_step(job, 3);
    }
    let workers = || agents.iter().map(lorikeet_tests::lab::Agent::workers).collect::<Vec<_>>();
    let before = workers();
    lab.kill_coordinator();
    let killed = Instant::now();
    until("the outage to pass", || {
        let now = workers();
        assert!(away < Duration::from_secs(60) || now == before, "a worker ended while nobody could tell it to");
        (killed.elapsed() >= away).then_some(())
    });
    lab.start_coordinator();
    for job in &jobs {
        assert_untouched(&lab, job, steps);
        assert_eq!(log_lines(&lab, job) as u64, steps, "{job}: a log line is missing or came twice");
    }
    assert_eq!(lab.api.get("/api/models?pageSize=100").as_array().map(Vec::len), Some(JOBS));
    until("the workers to be gone", || agents.iter().all(|agent| agent.workers().is_empty()).then_some(()));
}
