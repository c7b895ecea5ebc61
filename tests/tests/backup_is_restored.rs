//! Yesterday's backup, today's agents: what both know goes on undisturbed, the rest is stopped and kept, nothing is counted twice.

use lorikeet_tests::{Lab, process::run, until};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

#[test]
fn a_restored_coordinator_adopts_what_it_knows_and_keeps_what_it_does_not() {
    let mut lab = Lab::start();
    let agents = [lab.agent("one"), lab.agent("two")];
    let known = lab.submit(&lab.job_file("known", 400, 1_000));
    lab.api.until_step(&known, 3);
    let holds = agents[0].workers().is_empty() as usize;
    let worker = agents[holds].workers();
    let backup = lab.path("monday.tar");
    let told: Value = serde_json::from_str(&lab.cli(&["backup", "--out", &backup, "--output", "json"])).expect("JSON");
    assert_eq!((told["generation"].as_u64(), told["full"].as_bool()), (Some(1), Some(false)), "{told:#}");
    assert_eq!(fs::metadata(&backup).expect("it was written").permissions().mode() & 0o777, 0o600);

    // After the backup another job begins, and has saved something.
    let stranger = lab.submit(&lab.job_file("stranger", 4_000, 5));
    lab.api.until_step(&stranger, 12);
    assert_eq!(agents[1 - holds].workers().len(), 1);

    lab.kill_coordinator();
    let data = lab.root().join("coordinator");
    for lost in ["state.redb", "state.reserve", "ca/ca.key", "ca/ca.pem", "keys/upload.key"] {
        let _ = fs::remove_file(data.join(lost));
    }
    let words = ["restore", "--from", &backup, "--data", &data.display().to_string(), "--verify", "--output", "json"];
    let done: Value = serde_json::from_str(&run(&words)).expect("JSON");
    assert!(done["generation"].as_u64() > Some(1), "{done:#}");
    assert_eq!(done["files"]["whole"], done["files"]["named"], "{done:#}");
    lab.start_coordinator();

    until("the stranger's worker to leave", || agents[1 - holds].workers().is_empty().then_some(()));
    assert!(lab.api.try_get(&format!("/api/jobs/{stranger}")).is_none(), "the restored coordinator never heard of it");
    let kept = agents[1 - holds].data.join("attempts").join(format!("{stranger}-1.1"));
    assert!(has_checkpoint(&kept), "what it saved is gone from {}", kept.display());
    assert_eq!(agents[holds].workers(), worker, "the same process trains");

    // New work is placed under a generation that nothing of before can have.
    let fresh = lab.submit(&lab.job_file("fresh", 20, 1_000));
    let done = lab.api.until_phase(&fresh, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    let attempt = done["attempt"].as_str().expect("an attempt").rsplit('-').next().expect("a token").to_owned();
    assert!(attempt.split('.').next().and_then(|generation| generation.parse::<u32>().ok()) > Some(1), "{attempt}");

    let done = lab.api.until_phase(&known, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with("-1.1")), "{done:#}");
    assert_eq!(lab.api.steps(&known).iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=400).collect::<Vec<_>>());
    let models = lab.api.get("/api/models");
    assert_eq!(models.as_array().map(Vec::len), Some(2), "one for each job: {models:#}");
    assert!(has_checkpoint(&kept), "it is kept for thirty days");
    agents.iter().for_each(|agent| until("workers to be gone", || agent.workers().is_empty().then_some(())));
}

fn has_checkpoint(attempt: &Path) -> bool {
    fs::read_dir(attempt.join("checkpoints")).is_ok_and(|mut entries| entries.next().is_some())
}
