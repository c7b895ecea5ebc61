//! One job on both GPUs of a machine: the steps that one would have taken, two processes while it lasts, and none of them alone.

use lorikeet_tests::{Lab, api::steps_of_directory, chance, lab::Agent, lab::Machine, process::signal, seed, until};
use rustix::process::Signal;
use std::fs;

/// The lab's job, on two devices.
fn job_file(lab: &Lab, name: &str, steps: u64, every: u64) -> String {
    let path = lab.job_file(name, steps, every);
    let text = fs::read_to_string(&path).expect("it was written");
    fs::write(&path, format!("{text}[resources]\ngpus = 2\n")).expect("the folder is ours");
    path
}

fn two_gpus(lab: &Lab) -> Agent {
    lab.agent_on("pair", &Machine { gpus: 2, ..Machine::default() })
}

/// Leader and follower of the worker that trains now.
fn ranks(agent: &Agent) -> Option<(u32, u32)> {
    let follows = |pid: &u32| {
        let process = procfs::process::Process::new(pid.cast_signed());
        process.and_then(|process| process.cmdline()).is_ok_and(|words| words.iter().any(|word| word == "--rank"))
    };
    let (followers, leaders): (Vec<u32>, Vec<u32>) = agent.workers().into_iter().partition(follows);
    match (&leaders[..], &followers[..]) {
        ([leader], [follower]) => Some((*leader, *follower)),
        _ => None,
    }
}

#[test]
fn a_job_on_two_devices_takes_the_steps_of_one() {
    let lab = Lab::start();
    let alone = steps_of_directory(&lab.reference(12, 100));
    let agent = two_gpus(&lab);
    let job = lab.submit(&job_file(&lab, "both", 12, 100));
    until("a process for each device", || ranks(&agent));
    let view = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(view["phase"], "succeeded", "{view:#}");
    until("nobody is left of it", || agent.workers().is_empty().then_some(()));
    let together = lab.api.steps(&job);
    assert_eq!(together.len(), alone.len());
    for ((step, one), (other_step, other)) in alone.into_iter().zip(together) {
        let (one, other) = (f64::from_bits(one), f64::from_bits(other));
        assert!(step == other_step && (one - other).abs() <= 1e-5 * one.abs(), "step {step}: {one} and {other}");
    }
}

#[test]
fn a_rank_that_is_killed_costs_an_attempt_and_not_a_bit_of_the_result() {
    let mut seed = seed();
    // Enough steps behind the last place of a kill: what the test sees of a step is some steps late.
    let (steps, every) = (48, 6);
    let lab = Lab::start();
    let agent = two_gpus(&lab);
    let whole = lab.submit(&job_file(&lab, "whole", steps, every));
    lab.api.until_phase(&whole, &["succeeded"]);
    let (expected, hash) = (lab.api.steps(&whole), lab.adapter_hash(&whole));
    for leads in [true, false] {
        let job = lab.submit(&job_file(&lab, if leads { "leader" } else { "follower" }, steps, every));
        let kill_at = every * (1 + chance(&mut seed, 3)) + 1 + chance(&mut seed, every - 2);
        lab.api.until_step(&job, kill_at);
        let (leader, follower) = ranks(&agent).expect("both train");
        let (killed, other) = if leads { (leader, follower) } else { (follower, leader) };
        signal(killed, Signal::KILL);
        until("the other to be gone as well", || (!agent.workers().contains(&other)).then_some(()));
        let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
        assert_eq!(done["phase"], "succeeded", "{done:#}");
        assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".2")), "{done:#}");
        assert_eq!(lab.api.steps(&job), expected, "every step once, to the last bit");
        assert_eq!(lab.adapter_hash(&job), hash);
    }
    until("nobody is left of them", || agent.workers().is_empty().then_some(()));
}

#[test]
fn a_cancelled_job_frees_both_devices() {
    let lab = Lab::start();
    let agent = two_gpus(&lab);
    let long = lab.submit(&job_file(&lab, "long", 100_000, 1_000));
    lab.api.until_step(&long, 2);
    lab.cli(&["job", "cancel", &long]);
    lab.api.until_phase(&long, &["cancelled"]);
    let next = lab.submit(&job_file(&lab, "next", 4, 100));
    lab.api.until_phase(&next, &["succeeded"]);
    until("nobody is left of them", || agent.workers().is_empty().then_some(()));
}
