//! `lorikeet train` as the reference computation: with a given adapter, the file's own order and no dropout it is, step for
//! step, what transformers and PEFT compute on the same tokens. The cases are the trainer's goldens; a tokenizer of one
//! character per token and a template that adds nothing make a file of conversations out of their sequences.

#[path = "../../../trainer/tests/goldens/case.rs"]
mod case;

use crate::support::{lorikeet, run};
use case::Case;
use lorikeet_protocol::worker::{EventLine, WorkerEvent};
use serde_json::Value;
use std::{fs, path::Path};

/// What a job file cannot ask for: a start without files, a quantised base (it is read as any other), a rate beyond its range.
const BEYOND: [&str; 3] = ["pissa", "quantised", "tied_qv_llama3_bf16"];

#[test]
fn twenty_steps_of_the_command_lose_what_the_reference_loses() {
    for name in Case::names(&BEYOND) {
        let case = Case::open(&name);
        let out = tempfile::tempdir().unwrap();
        case.assert_steps(&train(&case, out.path()));
    }
}

/// Loss, rate and norm of the steps that the command tells of.
fn train(case: &Case, place: &Path) -> Vec<[f64; 3]> {
    let (base, data, out) = (place.join("base"), place.join("data.jsonl"), place.join("out"));
    case.write_base(&base);
    case.write_data(&data);
    let mut command = lorikeet();
    command.args(["train", "--threads", "1", "--base"]).arg(&base).arg("--dataset").arg(&data);
    command.arg("--init-adapter").arg(case.folder.join("adapter")).arg("--out").arg(&out);
    for setting in settings(case) {
        command.args(["--set", &setting]);
    }
    let (code, _, notes) = run(&mut command);
    assert_eq!(code, 0, "{}: {notes}", case.name);
    let events = fs::read_to_string(out.join("events.jsonl")).unwrap();
    let step = |line: &str| {
        let event = serde_json::from_str::<EventLine>(line).unwrap().event;
        if let WorkerEvent::Step(step) = event { Some([step.loss, step.lr, step.grad_norm]) } else { None }
    };
    events.lines().filter_map(step).collect()
}

/// The case as a person would write it on the command line.
fn settings(case: &Case) -> Vec<String> {
    let Case { run, steps, folder, .. } = case;
    let text = fs::read(folder.join("adapter/adapter_config.json")).unwrap();
    let peft: Value = serde_json::from_slice(&text).unwrap();
    let mut settings = vec![
        format!("training.max_steps={steps}"),
        format!("training.batch_size={}", run.batch),
        format!("training.learning_rate={:e}", run.lr),
        format!("training.warmup_ratio={}", run.warmup as f64 / *steps as f64),
        format!("training.weight_decay={}", run.weight_decay),
        format!("training.max_grad_norm={}", run.max_grad_norm),
        "training.schedule=cosine".into(),
        "training.shuffle=false".into(),
        "training.validation_fraction=0".into(),
        "lora.dropout=0".into(),
    ];
    settings.extend(run.plus_ratio.map(|ratio| format!("lora.plus_ratio={ratio}")));
    let keys = [
        ("r", "rank"),
        ("lora_alpha", "alpha"),
        ("use_rslora", "rslora"),
        ("use_dora", "dora"),
        ("target_modules", "target_modules"),
        ("exclude_modules", "exclude_modules"),
        ("layers_to_transform", "layers_to_transform"),
        ("rank_pattern", "rank_pattern"),
        ("alpha_pattern", "alpha_pattern"),
    ];
    let given = keys.into_iter().filter(|(theirs, _)| !peft[theirs].is_null());
    settings.extend(given.map(|(theirs, ours)| format!("lora.{ours}={}", as_toml(&peft[theirs]))));
    settings
}

fn as_toml(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let items: Vec<String> = map.iter().map(|(key, value)| format!("{key:?} = {}", as_toml(value))).collect();
            format!("{{ {} }}", items.join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => value.to_string(),
    }
}
