//! A worker is killed; the wire is cut for a moment; the wire is cut for longer than the job bears.

use crate::{machine, numbers};
use lorikeet_tests::{
    Lab,
    api::steps_of_directory,
    lab::{Machine, hash_of},
    proxy::Proxy,
    seed, until,
};
use rustix::process::Signal;

#[test]
fn a_killed_worker_is_lost_and_its_job_goes_on_bit_for_bit() {
    let (steps, every) = (40, 8);
    let lab = Lab::start();
    let reference = lab.reference(steps, every);
    let agent = lab.agent("only");
    let job = lab.submit(&lab.job_file("killed", steps, every));
    lab.api.until_step(&job, every * 2 + 3);
    let killed = agent.workers();
    killed.iter().for_each(|pid| lorikeet_tests::process::signal(*pid, Signal::KILL));
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".2")), "{done:#}");
    assert_eq!(lab.api.steps(&job), steps_of_directory(&reference), "every step's loss, once, to the last bit");
    assert_eq!(lab.adapter_hash(&job), hash_of(&reference.join("adapter")));
}

#[test]
fn a_cut_shorter_than_lost_after_restarts_nothing() {
    let lab = Lab::start();
    let proxy = Proxy::start(lab.link(), seed());
    let agent = lab.agent_on("only", &Machine { link: Some(proxy.address), ..machine(1, 150, 20) });
    let job = lab.submit(&lab.job_file("cut", 150, 1_000));
    lab.api.until_step(&job, 5);
    let before = agent.workers();
    proxy.cut(true);
    lab.api.until_told_unreachable(&job);
    proxy.cut(false);
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".1")), "nothing was restarted: {done:#}");
    assert_eq!(before.len(), 1);
    assert_eq!(numbers(&lab, &job), (1..=150).collect::<Vec<_>>());
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
}

#[test]
fn a_cut_longer_than_lost_after_moves_the_job_and_the_old_copy_is_stopped_and_counts_nothing() {
    let lab = Lab::start();
    let proxy = Proxy::start(lab.link(), seed());
    let first = lab.agent_on("first", &Machine { link: Some(proxy.address), ..machine(1, 1_000, 20) });
    let job = lab.submit(&lab.job_file("moved", 1_000, 1_000));
    lab.api.until_step(&job, 30);
    let second = lab.agent_on("second", &machine(1, 150, 20));
    proxy.cut(true);
    let moved = until("the job to be placed again", || {
        let job = lab.api.job(&job);
        let again = job["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".2"));
        (again && job["phase"] == "running").then_some(job)
    });
    assert_eq!(first.workers().len(), 1, "nobody could tell the old copy yet: {moved:#}");
    proxy.cut(false);
    let told = std::time::Instant::now();
    until("the old copy to be stopped", || first.workers().is_empty().then_some(()));
    assert!(told.elapsed().as_secs() < 10, "it took {:?}", told.elapsed());
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".2")), "{done:#}");
    assert_eq!(lab.api.get("/api/models").as_array().map(Vec::len), Some(1), "exactly one success");
    assert_eq!(numbers(&lab, &job), (1..=150).collect::<Vec<_>>(), "each step once, the old copy's none");
    until("the workers to be gone", || second.workers().is_empty().then_some(()));
}
