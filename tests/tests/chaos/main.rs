//! Faults that take their time: outages of a minute, a wire that loses a third of everything, a whole crowd that returns at once,
//! machines that stand still, disks without room. `cargo xtask chaos` runs them; a plain test run leaves them out.
//!
//! ```text
//! outage.rs   the coordinator is away           wire.rs   loss, one way only, flapping
//! crowd.rs    hundreds of agents at once        pause.rs  SIGSTOP           disk.rs   no room
//! cut.rs      a worker is killed, the wire cut    device.rs   a GPU fails under its job
//! interface.rs   a machine in a network of its own, whose interface goes down
//! ```

mod crowd;
mod cut;
mod device;
mod disk;
mod interface;
mod outage;
mod pause;
mod wire;

use lorikeet_tests::{
    Lab,
    lab::Machine,
    stand_in::{Script, run_if_asked},
};

/// Not a story: this program again, as the worker of the others.
#[test]
fn a_stand_in_does_nothing_unless_asked() {
    run_if_asked();
}

/// A machine with so many declared GPUs, whose workers take so many steps.
fn machine(gpus: usize, steps: u64, step_millis: u64) -> Machine {
    let script = Script { steps, step_millis, every: 50 };
    Machine { gpus, worker: script.command(), ..Machine::default() }
}

/// What is recorded of a job's steps, in order.
fn numbers(lab: &Lab, job: &str) -> Vec<u64> {
    lab.api.steps(job).into_iter().map(|(step, _)| step).collect()
}

/// Every log line of a job's worker, however many pages that are.
fn log_lines(lab: &Lab, job: &str) -> usize {
    let page = |number: usize| lab.api.get(&format!("/api/jobs/{job}/logs?page={number}&pageSize=100"));
    let pages = (1..).map(page).map(|page| page.as_array().cloned().unwrap_or_default());
    let said =
        |lines: Vec<serde_json::Value>| lines.iter().filter(|line| line.to_string().contains("after step")).count();
    pages.take_while(|lines| !lines.is_empty()).map(said).sum()
}

/// It ended well, in its first attempt.
fn assert_untouched(lab: &Lab, job: &str, steps: u64) {
    let done = lab.api.until_phase(job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".1")), "it was restarted: {done:#}");
    assert_eq!(numbers(lab, job), (1..=steps).collect::<Vec<_>>(), "{job}: a step is missing or came twice");
}
