//! A second job begins where a first one ended, and is evaluated on a dataset of its own.

use lorikeet_tests::{Lab, conversations};
use serde_json::Value;
use std::{fs, path::Path};

#[test]
fn a_job_begins_with_a_model_and_is_evaluated_on_another_dataset() {
    let lab = Lab::start();
    let _agent = lab.agent("one");
    let first = lab.submit(&lab.job_file("first", 12, 100));
    lab.api.until_phase(&first, &["succeeded"]);
    let models: Value = serde_json::from_str(&lab.cli(&["adapter", "list", "--output", "json"])).unwrap();
    let model = models.as_array().or_else(|| models["data"].as_array()).unwrap()[0].clone();
    conversations::write(&lab.root().join("held-out.jsonl"), 7);
    lab.cli(&["dataset", "add", &lab.path("held-out.jsonl"), "--name", "held-out"]);
    let file = lab.job_file("second", 2, 100);
    let text = fs::read_to_string(&file).unwrap();
    let name = model["name"].as_str().unwrap();
    let more = format!("init_adapter = {name:?}\n{text}[data]\nvalidation_dataset = \"held-out\"\n");
    fs::write(&file, more).unwrap();
    let plan = lab.cli(&["submit", &file, "--dry-run", "--output", "json"]);
    assert!(plan.contains("\"validationExamples\": 7"), "{plan}");
    let second = lab.submit(&file);
    lab.api.until_phase(&second, &["succeeded"]);
    let out = lab.path("adapter");
    lab.cli(&["adapter", "pull", &second, "--out", &out]);
    let summary = fs::read(Path::new(&out).join("training_summary.json")).unwrap();
    let validation = &serde_json::from_slice::<Value>(&summary).unwrap()["validation"];
    let number = |name: &str| validation[name].as_f64().unwrap();
    assert!(number("loss_before") < number("base_loss"), "it begins with what the first learnt: {validation}");
}
