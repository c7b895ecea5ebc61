//! `lorikeet plan`: what a training takes, made to fit or refused, on a tiny random base.

use crate::support::{lorikeet, run};
use crate::train::Place;
use serde_json::{Value, json};

#[test]
fn a_plan_is_the_sum_of_its_parts_and_names_every_adapted_module() {
    let plan = plan(&["--set", "lora.rank=4"]).expect("it fits");
    let memory = |key: &str| plan["memory"][key].as_u64().expect("bytes");
    let held: u64 = ["weights", "adapters", "optimizer", "activations", "program"].into_iter().map(memory).sum();
    assert_eq!(plan["memory_bytes"], held + memory("head").max(memory("layer")), "{plan}");
    let modules = plan["modules"].as_array().expect("a list");
    assert_eq!(modules.len(), 7, "{plan}");
    let first = json!({"module": "q_proj", "layers": "0-1", "count": 2, "rank": 4, "alpha": 32.0, "inputs": 32, "outputs": 32,
        "parameters": 512});
    assert_eq!(modules[0], first);
    let of_modules: u64 = modules.iter().map(|found| found["parameters"].as_u64().expect("a number")).sum();
    assert_eq!(plan["trainable_parameters"], of_modules);
    assert_eq!((&plan["micro_tokens"], &plan["recompute"]), (&json!(2048), &json!(0)));
}

#[test]
fn a_plan_for_a_gpu_counts_what_lies_on_the_card_and_refuses_what_none_trains() {
    let plan_of = |more: &[&str]| plan(&[&["--gpu"], more].concat());
    let found = plan_of(&[]).expect("it fits");
    let memory = |key: &str| found["memory"][key].as_u64().expect("bytes");
    let processor = plan(&[]).expect("it fits");
    assert_eq!(memory("program"), 512 << 20, "{found}");
    assert_eq!(processor["memory"]["optimizer"], memory("optimizer"), "the moments lie there: {found}");
    assert!(memory("weights") < processor["memory"]["weights"].as_u64().unwrap(), "brain floats");
    let full = plan_of(&["--set", "training.method=full"]).expect("it fits");
    let trained = full["base_parameters"].as_u64().expect("a number");
    assert_eq!((&full["memory"]["adapters"], &full["memory"]["optimizer"]), (&json!(8 * trained), &json!(8 * trained)));
    let dora = plan_of(&["--set", "lora.dora=true"]).expect("it fits");
    let kept = dora["memory"]["activations"].as_u64().expect("bytes");
    assert!(kept > memory("activations"), "rows of outputs are kept: {dora}");
    let (code, complaint) = plan_of(&["--set", "training.base_dtype=f32"]).expect_err("no GPU trains it");
    let named = complaint.contains("training.base_dtype") && complaint.contains("not trained on a GPU yet");
    assert!(code == 2 && named, "{complaint}");
}

#[test]
fn a_limit_makes_a_plan_fit_or_says_which_settings_would() {
    let free = plan(&["--set", "training.max_seq_length=512"]).expect("it fits")["memory_bytes"].as_u64().unwrap();
    let less = (free - 1).to_string();
    let fitted =
        plan(&["--set", "training.max_seq_length=512", "--memory", &format!("{less}B")]).expect("it is made to fit");
    assert!(fitted["memory_bytes"].as_u64().unwrap() < free, "{fitted}");
    assert_ne!(fitted["micro_tokens"], 2048);
    // enough for a small adapter only
    let small = plan(&["--set", "lora.rank=8", "--set", "training.micro_tokens=256"]).expect("it fits");
    let limit = small["memory_bytes"].to_string();
    let refused =
        plan(&["--set", "lora.rank=64", "--memory", &format!("{limit}B")]).expect_err("a large one does not fit");
    assert_eq!(refused.0, 2);
    assert!(refused.1.contains("too few") && refused.1.contains("lora.rank = "), "{}", refused.1);
    assert_eq!(plan(&["--memory", "much"]).expect_err("no size").0, 2);
    assert!(plan(&["--memory", "4"]).expect_err("four what?").1.contains("like 6GiB"));
}

/// The answer, or exit code and complaint.
fn plan(more: &[&str]) -> Result<Value, (i32, String)> {
    let place = Place::new();
    let mut command = lorikeet();
    command.args(["plan", "--output", "json", "--base"]).arg(place.path("base")).args(more);
    match run(&mut command) {
        (0, answer, _) => Ok(serde_json::from_str(&answer).expect("JSON")),
        (code, _, complaint) => Err((code, complaint)),
    }
}
