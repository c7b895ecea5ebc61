//! A GPU fails under a job: its driver reports an error, its memory errors grow, it is gone. Declared ones, whose signs the story writes.

use crate::{assert_untouched, machine, numbers};
use lorikeet_tests::{
    Lab,
    lab::{Agent, Machine},
    until,
};
use serde_json::Value;

const STEPS: u64 = 400;

#[test]
fn a_gpu_whose_driver_reports_an_error_is_out_and_its_job_goes_on_elsewhere() {
    fails_under_its_job("xid 79\n", "the driver reported error XID 79");
}

#[test]
fn a_gpu_whose_memory_errors_grow_is_out_and_its_job_goes_on_elsewhere() {
    fails_under_its_job("ecc 2\n", "2 memory errors that could not be corrected");
}

#[test]
fn a_gpu_that_vanishes_is_out_and_its_job_goes_on_elsewhere() {
    fails_under_its_job("gone\n", "it vanished");
}

/// Three GPUs, two jobs: the one whose GPU fails goes on on the third, unblamed, the other one never notices, and a third job that wants
/// all three is told why it waits, until the GPU has passed its test.
fn fails_under_its_job(signs: &str, reason: &str) {
    let lab = Lab::start();
    let fit = lab.path("fit");
    let burn_in = format!("burn_in = [\"sh\", \"-c\", \"until test -e '{fit}'; do sleep 0.05; done\"]\n");
    let agent = lab.agent_on("only", &Machine { devices: burn_in, ..machine(3, STEPS, 20) });
    let (struck, spared) = (submit(&lab, "struck"), submit(&lab, "spared"));
    lab.api.until_step(&struck, 60);
    lab.api.until_step(&spared, 1);
    let gpu = gpu_of(&lab, &struck);
    agent.says(&gpu, signs);

    let moved = until(format!("{struck} to be placed again"), || {
        let job = lab.api.job(&struck);
        let again = job["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".2"));
        (again && job["phase"] == "running").then_some(job)
    });
    assert_ne!(gpu_of(&lab, &struck), gpu, "{moved:#}");
    assert_eq!(moved["infrastructureFailures"], 0, "nobody blames the job: {moved:#}");

    let wide = lab.submit(&wants_all(&lab));
    let why = until("the wide job to be told why it waits", || {
        Some(lab.cli(&["job", "why", &wide])).filter(|why| why.contains("cannot train on its device"))
    });
    let shown = lab.cli(&["node", "show", &node(&lab)]);
    if signs == "gone\n" {
        assert!([&why, &shown].iter().all(|words| words.contains("does not name it any more")), "{why}\n{shown}");
    } else {
        assert!([&why, &shown].iter().all(|words| words.contains(reason)), "{why}\n{shown}");
    }

    assert_untouched(&lab, &spared, STEPS);
    let done = lab.api.until_phase(&struck, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert_eq!(numbers(&lab, &struck), (1..=STEPS).collect::<Vec<_>>(), "each step once");
    comes_back(&lab, &agent, &gpu, &fit);
    let done = lab.api.until_phase(&wide, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    until("the workers to be gone", || agent.workers().is_empty().then_some(()));
}

/// It is there again, and passes its test: then it takes work.
fn comes_back(lab: &Lab, agent: &Agent, gpu: &str, fit: &str) {
    agent.says(gpu, "");
    until(format!("{gpu} to be tested"), || {
        unusable(lab, gpu).as_str().is_some_and(|why| why.contains("it is being tested")).then_some(())
    });
    std::fs::write(fit, "").expect("the folder is ours");
    until(format!("{gpu} to be offered again"), || unusable(lab, gpu).is_null().then_some(()));
}

fn submit(lab: &Lab, name: &str) -> String {
    lab.submit(&lab.job_file(name, STEPS, 1_000))
}

/// A job file that wants every GPU of the machine.
fn wants_all(lab: &Lab) -> String {
    let path = lab.job_file("wide", STEPS, 1_000);
    let text = std::fs::read_to_string(&path).expect("it was written");
    std::fs::write(&path, format!("{text}[resources]\ngpus = 3\n")).expect("the folder is ours");
    path
}

fn node(lab: &Lab) -> String {
    lab.api.get("/api/nodes")[0]["id"].as_str().expect("an id").to_owned()
}

fn devices(lab: &Lab) -> Vec<Value> {
    lab.api.get("/api/nodes")[0]["devices"].as_array().expect("a list").clone()
}

/// The GPU that a job's current attempt has.
fn gpu_of(lab: &Lab, job: &str) -> String {
    let attempt = lab.api.job(job)["attempt"].clone();
    let holds = |device: &Value| device["attempts"].as_array().is_some_and(|attempts| attempts.contains(&attempt));
    let device = devices(lab).into_iter().find(holds).expect("a running job has a device");
    device["id"].as_str().expect("an id").to_owned()
}

fn unusable(lab: &Lab, gpu: &str) -> Value {
    devices(lab).into_iter().find(|device| device["id"] == gpu).map_or(Value::Null, |device| device["unusable"].clone())
}
