//! A machine is wanted for something else: its job saves its state, goes on elsewhere as if nothing had happened, and the operator sees what became of it.

use lorikeet_tests::{Lab, api::steps_of_directory, lab::hash_of, until};
use serde_json::Value;

#[test]
fn a_drained_node_saves_its_job_says_so_and_the_job_ends_elsewhere_bit_for_bit() {
    // Checkpoints that nobody asks for come too late to be the ones that count here.
    let (steps, every) = (60, 50);
    let lab = Lab::start();
    let reference = lab.reference(steps, every);
    let _first = lab.agent("first");
    let job = lab.submit(&lab.job_file("moved", steps, every));
    lab.api.until_step(&job, 3);
    lab.cli(&["job", "checkpoint", &job]);
    let asked = until("the checkpoint that was asked for", || {
        let checkpoints = lab.api.try_get(&format!("/api/training-jobs/{job}/checkpoints"))?;
        checkpoints.as_array()?.first()?["step"].as_u64()
    });
    assert!(asked < every, "{asked}: asked for, not due");
    let nodes: Vec<Value> = serde_json::from_str(&lab.cli(&["nodes", "--output", "json"])).expect("JSON");
    let first = nodes.iter().find(|node| node["name"] == "first").expect("it is there")["id"].as_str().expect("an id");
    let words = ["node", "drain", first, "--within", "60s", "--wait", "--output", "json"];
    let node: Value = serde_json::from_str(&lab.cli(&words)).expect("JSON");
    let drain = &node["drain"];
    assert!(node["status"] == "CORDONED" && drain["endedAt"].is_string(), "{node:#}");
    let [drained] = &drain["attempts"].as_array().expect("a list")[..] else { panic!("one ran there: {node:#}") };
    assert!(drained["result"] == "SAVED" && drained["leftAt"].is_string(), "{node:#}");
    assert!(drained["checkpointStep"].as_u64().is_some_and(|step| step >= asked), "{node:#}");
    let shown = lab.cli(&["node", "show", first]);
    assert!(shown.contains("drained:") && shown.contains("SAVED"), "{shown}");
    let _second = lab.agent("second");
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".2")), "{done:#}");
    assert_eq!(lab.api.steps(&job), steps_of_directory(&reference), "every step's loss, once, to the last bit");
    assert_eq!(lab.adapter_hash(&job), hash_of(&reference.join("adapter")));
}
