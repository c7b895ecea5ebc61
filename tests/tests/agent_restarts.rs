//! An agent dies and comes back: its worker never noticed.

use lorikeet_tests::{Lab, until};
use std::fs;

#[test]
fn a_restarted_agent_takes_its_running_worker_back() {
    let lab = Lab::start();
    let mut agent = lab.agent("only");
    let job = lab.submit(&lab.job_file("kept", 160, 1_000));
    lab.api.until_step(&job, 3);
    let before = agent.workers();
    assert_eq!(before.len(), 1);
    agent.restart();
    let seen = lab.api.job(&job)["step"].as_u64().unwrap_or(0);
    lab.api.until_step(&job, seen + 5);
    assert_eq!(agent.workers(), before, "the same process trains");
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".1")), "{done:#}");
    assert_eq!(lab.api.steps(&job).iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=160).collect::<Vec<_>>());
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
}

#[test]
fn a_worker_that_ends_while_no_agent_is_there_is_told_to_its_last_number() {
    let lab = Lab::start();
    let mut agent = lab.agent("only");
    let job = lab.submit(&lab.job_file_bearing("finished alone", 60, 20, "2m"));
    lab.api.until_step(&job, 3);
    agent.process.kill();
    until("the worker to be through", || agent.workers().is_empty().then_some(()));
    agent.restart();
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert_eq!(done["step"], 60, "{done:#}");
    let (_, last) = *lab.api.steps(&job).last().expect("it took steps");
    assert_eq!(done["loss"].as_f64().map(f64::to_bits), Some(last), "{done:#}");
}

#[test]
fn a_worker_whose_record_is_damaged_ends_before_its_job_is_placed_again() {
    let lab = Lab::start();
    let mut agent = lab.agent("only");
    let job = lab.submit(&lab.job_file("orphaned", 160, 5));
    lab.api.until_step(&job, 6);
    let before = agent.workers();
    assert_eq!(before.len(), 1);
    agent.process.kill();
    let records = fs::read_dir(agent.data.join("records")).expect("the agent made it");
    let paths = records.map(|record| record.expect("it is there").path());
    for record in paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
        fs::write(&record, "{").expect("the folder is ours");
    }
    agent.restart();
    until("another worker to train alone", || {
        let workers = agent.workers();
        assert!(workers.len() <= 1, "two train on one device: {workers:?}");
        (!workers.is_empty() && workers != before).then_some(())
    });
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert_eq!(lab.api.steps(&job).iter().map(|(step, _)| *step).collect::<Vec<_>>(), (1..=160).collect::<Vec<_>>());
    until("the worker to be gone", || agent.workers().is_empty().then_some(()));
}
