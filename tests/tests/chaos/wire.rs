//! A wire that loses, doubles and reorders; that works one way only; that flaps.

use crate::{assert_untouched, machine};
use lorikeet_tests::{
    Lab,
    lab::Machine,
    proxy::{Proxy, Weather},
    seed, until,
};
use std::time::{Duration, Instant};

const STEPS: u64 = 600;

/// A lab whose only machine stands behind a proxy, and a job that runs there, so long a step.
fn behind_a_proxy(step_millis: u64) -> (Lab, Proxy, lorikeet_tests::lab::Agent, String) {
    let lab = Lab::start();
    let proxy = Proxy::start(lab.link(), seed());
    let agent = lab.agent_on("only", &Machine { link: Some(proxy.address), ..machine(1, STEPS, step_millis) });
    // A dial that began while nothing got through asks again after seconds; the real proportion is 15 s to five minutes.
    let job = lab.submit(&lab.job_file_bearing("weather", STEPS, 1_000, "20s"));
    lab.api.until_step(&job, 5);
    (lab, proxy, agent, job)
}

fn for_so_long(time: Duration, what: &str) {
    let began = Instant::now();
    until(what, || (began.elapsed() >= time).then_some(()));
}

#[test]
fn thirty_percent_loss_with_repeats_and_reordering_restarts_nothing() {
    let (lab, proxy, agent, job) = behind_a_proxy(20);
    let bad = Weather { loss: 30, doubled: 10, jitter: Duration::from_millis(40), ..Weather::default() };
    proxy.weather(bad, bad);
    for_so_long(Duration::from_secs(8), "the weather to be bad for a while");
    proxy.weather(Weather::default(), Weather::default());
    assert_untouched(&lab, &job, STEPS);
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
}

#[test]
fn an_agent_that_hears_and_is_not_heard_is_unreachable_and_restarts_nothing() {
    let (lab, proxy, agent, job) = behind_a_proxy(20);
    proxy.weather(Weather { cut: true, ..Weather::default() }, Weather::default());
    lab.api.until_told_unreachable(&job);
    proxy.weather(Weather::default(), Weather::default());
    assert_untouched(&lab, &job, STEPS);
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
}

#[test]
fn twenty_four_flaps_restart_nothing() {
    let (lab, proxy, agent, job) = behind_a_proxy(120);
    // It runs longer than the wire flaps: each time a word gets through before the next cut.
    for _ in 0..24 {
        proxy.cut(true);
        for_so_long(Duration::from_millis(1_100), "the wire to be down longer than the idle time-out");
        proxy.cut(false);
        let seen = lab.api.job(&job)["step"].as_u64().unwrap_or(0);
        until("a word of it", || (lab.api.job(&job)["step"].as_u64() > Some(seen)).then_some(()));
    }
    assert_untouched(&lab, &job, STEPS);
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
}
