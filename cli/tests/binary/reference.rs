//! `lorikeet train` as the reference computation: with a given adapter, the file's own order and no dropout it is, step for
//! step, what transformers and PEFT compute on the same tokens. The cases are the trainer's goldens; a tokenizer of one
//! character per token and a template that adds nothing make a file of conversations out of their sequences.

use crate::support::{lorikeet, run};
use lorikeet_protocol::worker::{EventLine, Step, WorkerEvent};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Those that a job file can ask for: one case has a rate beyond its range, one begins without files.
const CASES: [&str; 13] = [
    "untied_all_f32",
    "mistral_pattern_linear_f16",
    "llama_dynamic_bias",
    "llama_yarn",
    "mistral_window",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "dora",
    "patterns_rslora",
    "plus_ends",
];

#[test]
fn twenty_steps_of_the_command_lose_what_the_reference_loses() {
    for name in CASES {
        let case = Case::open(name);
        let out = tempfile::tempdir().unwrap();
        let steps = case.train(out.path());
        let losses = case.expected("loss");
        assert_eq!((steps.len(), losses.len()), (20, 20), "{name}");
        let (rates, norms) = (case.expected("lr"), case.expected("norm"));
        for (i, step) in steps.iter().enumerate() {
            for (what, ours, theirs) in
                [("loss", step.loss, losses[i]), ("rate", step.lr, rates[i]), ("norm", step.grad_norm, norms[i])]
            {
                let place = format!("{name}, step {}: {what}", i + 1);
                assert!((ours - theirs).abs() <= 1e-4 * theirs.abs(), "{place} {ours}, the reference has {theirs}");
            }
        }
    }
}

/// A golden of the trainer.
struct Case {
    folder: PathBuf,
    case: CaseFile,
    peft: Value,
}

#[derive(Deserialize)]
struct CaseFile {
    sequences: Vec<Sequence>,
    run: Run,
    steps: usize,
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    supervised: Vec<bool>,
}

#[derive(Deserialize)]
struct Run {
    batch: usize,
    lr: f64,
    warmup: usize,
    weight_decay: f64,
    max_grad_norm: f64,
    plus_ratio: Option<f64>,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/tests/goldens").join(name);
        let case: CaseFile = serde_json::from_slice(&fs::read(folder.join("case.json")).unwrap()).unwrap();
        assert_eq!(case.sequences.len() % case.run.batch, 0, "{name}: an epoch ends with a whole batch");
        let peft = serde_json::from_slice(&fs::read(folder.join("adapter/adapter_config.json")).unwrap()).unwrap();
        Self { folder, case, peft }
    }

    /// The steps that the command tells of.
    fn train(&self, place: &Path) -> Vec<Step> {
        let (base, data, out) = (place.join("base"), place.join("data.jsonl"), place.join("out"));
        self.write_base(&base);
        fs::write(&data, self.case.sequences.iter().map(conversation).collect::<String>()).unwrap();
        let mut command = lorikeet();
        command.args(["train", "--threads", "1", "--base"]).arg(&base).arg("--dataset").arg(&data);
        command.arg("--init-adapter").arg(self.folder.join("adapter")).arg("--out").arg(&out);
        for setting in self.settings() {
            command.args(["--set", &setting]);
        }
        let (code, _, notes) = run(&mut command);
        assert_eq!(code, 0, "{}: {notes}", self.folder.display());
        let events = fs::read_to_string(out.join("events.jsonl")).unwrap();
        let step = |line: &str| {
            let event = serde_json::from_str::<EventLine>(line).unwrap().event;
            if let WorkerEvent::Step(step) = event { Some(step) } else { None }
        };
        events.lines().filter_map(step).collect()
    }

    /// The case's weights, and a tokenizer that knows one character for every token.
    fn write_base(&self, base: &Path) {
        fs::create_dir(base).unwrap();
        for entry in fs::read_dir(self.folder.join("base")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, base.join(path.file_name().unwrap())).unwrap();
        }
        let most = self.case.sequences.iter().flat_map(|sequence| &sequence.tokens).max().unwrap();
        let vocabulary: BTreeMap<char, u32> = (0..=*most).map(|token| (letter(token), token)).collect();
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": null, "truncation": null, "padding": null,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        fs::write(base.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
        fs::write(base.join("chat_template.jinja"), template).unwrap();
    }

    /// The case as a person would write it on the command line.
    fn settings(&self) -> Vec<String> {
        let CaseFile { run, steps, .. } = &self.case;
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
        let given = keys.into_iter().filter(|(theirs, _)| !self.peft[theirs].is_null());
        settings.extend(given.map(|(theirs, ours)| format!("lora.{ours}={}", as_toml(&self.peft[theirs]))));
        settings
    }

    fn expected(&self, key: &str) -> Vec<f64> {
        let bytes = fs::read(self.folder.join("expected.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = file.tensor(&format!("run.{key}")).unwrap().data().to_vec();
        numbers.as_chunks::<8>().0.iter().map(|eight| f64::from_le_bytes(*eight)).collect()
    }
}

/// Targets are what the assistant says.
fn conversation(Sequence { tokens, supervised }: &Sequence) -> String {
    let places: Vec<usize> = (0..tokens.len()).collect();
    let turns = places.chunk_by(|a, b| supervised[*a] == supervised[*b]).map(|turn| {
        let content: String = turn.iter().map(|place| letter(tokens[*place])).collect();
        json!({"role": if supervised[turn[0]] { "assistant" } else { "user" }, "content": content})
    });
    format!("{}\n", json!({"messages": turns.collect::<Vec<_>>()}))
}

/// Nothing that a tokenizer or a template would treat in a special way.
fn letter(token: u32) -> char {
    char::from_u32(0x4e00 + token).unwrap()
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
