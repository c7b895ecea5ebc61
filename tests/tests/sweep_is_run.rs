//! A sweep through real processes: one child at a time, the best one named, and a job that waited for all of it goes last.

use lorikeet_tests::{Lab, until};
use serde_json::Value;
use std::fs;

#[test]
fn a_sweep_runs_its_children_names_the_best_and_lets_go_what_waited_for_them() {
    let lab = Lab::start();
    let file = lab.job_file("tone", 40, 100);
    let text = fs::read_to_string(&file).unwrap().replace("eval_every = 1000", "eval_every = 10");
    // A rate so low that nothing is learnt, and one that learns: whoever is judged second is judged against the first.
    let sweep =
        "[sweep]\nmax_parallel = 1\ntraining.learning_rate = [1e-3, 1e-6]\nstop = { min_steps = 10, reduction = 10 }\n";
    fs::write(&file, format!("{text}{sweep}")).unwrap();
    let plain = lab.job_file("plain", 40, 100);
    let array = ["--set", "sweep.training.seed=[1,2,3]", "--set", "sweep.lora.rank=[8,16]"];
    let dry = json(&lab, &[&["submit", &plain, "--dry-run"], &array[..]].concat());
    assert_eq!(dry["jobs"], 6, "an array on the command line: {dry:#}");
    let dry: Value = json(&lab, &["submit", &file, "--dry-run"]);
    assert_eq!((&dry["jobs"], &dry["first"]["why"]["code"]), (&2.into(), &"devices".into()), "{dry:#}");
    let made = json(&lab, &["submit", &file]);
    let (id, children) = (text_of(&made["id"]), made["children"].as_array().unwrap().clone());
    let last = lab.job_file("last", 2, 100);
    let waits = format!("after = [\"{}:any\", \"tone #2:any\"]\n", text_of(&children[0]["job"]));
    fs::write(&last, waits + &fs::read_to_string(&last).unwrap()).unwrap();
    let last = lab.submit(&last);
    let why = until("the last job to say what it waits for", || {
        Some(json(&lab, &["job", "why", &last])).filter(|why| why["code"] == "after")
    });
    assert_eq!(why["waitsFor"].as_array().map(Vec::len), Some(2), "{why:#}");
    let _agent = lab.agent("only");
    lab.api.until_phase(&last, &["succeeded"]);
    let done = json(&lab, &["sweep", "show", &id]);
    assert_eq!((&done["status"], &done["ended"]), (&"COMPLETED".into(), &2.into()), "{done:#}");
    assert_eq!(done["best"]["job"], children[0]["job"], "{done:#}");
    assert_eq!(done["stoppedEarly"], 1, "the one that learns nothing ends at its first rung: {done:#}");
    let listed = lab.cli(&["sweep", "list"]);
    assert!(listed.contains(&id) && listed.contains("2/2"), "{listed}");
}

fn json(lab: &Lab, words: &[&str]) -> Value {
    serde_json::from_str(&lab.cli(&[words, &["--output", "json"]].concat())).expect("JSON")
}

fn text_of(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
