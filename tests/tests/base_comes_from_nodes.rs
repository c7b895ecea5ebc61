//! A base model reaches a third machine from the two that have it: the coordinator gives only what they do not.

use lorikeet_tests::{Lab, api::steps_of_directory, lab::Machine, until};
use serde_json::Value;

/// A node by what people call it, once it has said something of its cache.
fn node(lab: &Lab, name: &str) -> Option<Value> {
    let nodes = lab.api.get("/api/nodes");
    nodes.as_array().expect("a list").iter().find(|node| node["name"] == name && node["cache"].is_object()).cloned()
}

fn bytes(cache: &Value, which: &str) -> u64 {
    cache[which].as_u64().unwrap_or_else(|| panic!("{which} of {cache:#}"))
}

#[test]
fn a_base_comes_from_the_nodes_that_have_it_and_the_run_is_the_same() {
    let (steps, every) = (4, 4);
    let lab = Lab::start();
    let reference = lab.reference(steps, every);
    let weights = lab.root().join("bases/tiny/model.safetensors");
    let weights = std::fs::metadata(weights).expect("it was written").len();
    let files = std::fs::read_dir(lab.root().join("bases/tiny")).expect("it was written").count() as u64;
    // The base's and the dataset.
    let files_of_a_job = files + 1;
    let gives = Machine { gives: true, ..Machine::default() };
    let run = |machine: &str| {
        let job = lab.submit(&lab.job_file(&format!("on-{machine}"), steps, every));
        let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
        assert_eq!(done["phase"], "succeeded", "{done:#}");
        job
    };
    // One after another and each alone: the ones before are closed, and go on giving.
    let mut agents = vec![];
    for name in ["first", "second", "third"] {
        agents.push(lab.agent_on(name, &gives));
        let job = run(name);
        let node = until(format!("{name} to say that it has all of it"), || {
            node(&lab, name).filter(|node| bytes(&node["cache"], "files") >= files_of_a_job)
        });
        let said = &node["cache"];
        let (coordinator, nodes) = (bytes(said, "fromCoordinatorBytes"), bytes(said, "fromNodesBytes"));
        if name == "first" {
            assert!(coordinator >= weights && nodes == 0, "nobody else has it: {said:#}");
        } else {
            assert!(nodes > 0 && coordinator < weights, "{said:#}");
            assert!(coordinator + nodes >= weights, "{said:#}");
        }
        assert!(said["givesAt"].as_str().is_some_and(|address| address.starts_with("127.0.0.1:")), "{said:#}");
        assert_eq!(lab.api.steps(&job), steps_of_directory(&reference), "on {name}");
        lab.cli(&["node", "cordon", node["id"].as_str().expect("an id")]);
    }
}
