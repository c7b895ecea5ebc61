//! The coordinator is killed ten times during one job: what it acknowledged is there, no step is lost and none counted twice.

use lorikeet_tests::{Lab, api::steps_of_directory, chance, lab::hash_of, seed, until};

#[test]
fn ten_kills_cost_no_step_and_leave_one_model() {
    let mut seed = seed();
    // Long enough that every kill but the last three falls into the training.
    let (steps, every) = (240, 16);
    let mut lab = Lab::start();
    let reference = lab.reference(steps, every);
    let agent = lab.agent("only");
    // Right after the upload and its registration were acknowledged.
    lab.restart_coordinator();
    let job = lab.submit(&lab.job_file("killed", steps, every));
    lab.restart_coordinator();
    lab.api.until_phase(&job, &["assigned", "preparing", "running"]);
    lab.restart_coordinator();
    until("a checkpoint", || {
        lab.api.try_get(&format!("/api/jobs/{job}/checkpoints"))?.as_array().filter(|list| !list.is_empty()).map(|_| ())
    });
    lab.restart_coordinator();
    let mut at = every + 2;
    for _ in 0..4 {
        lab.api.until_step(&job, at);
        lab.restart_coordinator();
        at = (at + 2 + chance(&mut seed, 4)).min(steps - 4);
    }
    let attempt = format!("{job}-1.1");
    let events = agent.data.join("attempts").join(&attempt).join("events.jsonl");
    assert!(events.exists(), "the last steps are not yet made: {}", events.display());
    // Gone later is fine too: then the success that removed it was recorded, and the next kill comes right after that.
    until("the last event", || {
        std::fs::read_to_string(&events).map_or(true, |text| text.contains("\"finished\"")).then_some(())
    });
    lab.restart_coordinator();
    lab.api.until_phase(&job, &["finalizing", "succeeded"]);
    lab.restart_coordinator();
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert_eq!(done["attempt"].as_str(), Some(attempt.as_str()), "training never noticed");
    assert_eq!(lab.api.steps(&job), steps_of_directory(&reference));
    assert_eq!(lab.api.get("/api/models").as_array().map(Vec::len), Some(1));
    assert_eq!(lab.adapter_hash(&job), hash_of(&reference.join("adapter")));
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
    until("its directory to be gone", || (!events.exists()).then_some(()));
}
