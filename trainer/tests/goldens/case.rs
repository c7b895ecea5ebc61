//! The golden cases as both who compare themselves with them read them: the trainer's passes and steps (`tests/goldens.rs`) and
//! the command line (`cli/tests/binary/reference.rs`). `make.py` says how they were made.

#![expect(unreachable_pub, reason = "shared by test programs, each of which is a crate of its own")]
#![allow(dead_code, reason = "none of them uses all of it")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::json;

/// How far a loss, a rate or a norm may be from the reference's, as a share of it.
const APART: f64 = 1e-4;

/// One case.
#[derive(Deserialize)]
pub struct Case {
    #[serde(skip)]
    pub name: String,
    #[serde(skip)]
    pub folder: PathBuf,
    pub sequences: Vec<Sequence>,
    pub run: Run,
    /// How many the reference took.
    pub steps: usize,
}

#[derive(Deserialize)]
pub struct Sequence {
    pub tokens: Vec<u32>,
    /// Which of them are targets.
    pub supervised: Vec<bool>,
}

/// The reference's settings.
#[derive(Deserialize)]
pub struct Run {
    pub batch: usize,
    pub lr: f64,
    pub warmup: usize,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    pub plus_ratio: Option<f64>,
}

impl Case {
    /// The names of all but some, in order.
    pub fn names(except: &[&str]) -> Vec<String> {
        let folders = fs::read_dir(goldens()).expect("the goldens").map(|entry| entry.expect("an entry").path());
        let cases = folders.filter(|folder| folder.join("case.json").exists());
        let name = |folder: PathBuf| folder.file_name().expect("a name").to_str().expect("ASCII").to_owned();
        let mut names: Vec<String> = cases.map(name).collect();
        names.sort();
        for name in except {
            assert!(names.iter().any(|known| known == name), "{name} is no case");
        }
        names.retain(|name| !except.contains(&name.as_str()));
        names
    }

    pub fn open(name: &str) -> Case {
        let folder = goldens().join(name);
        let text = fs::read(folder.join("case.json")).expect("a case");
        let case: Case = serde_json::from_slice(&text).expect("a case");
        assert_eq!(case.sequences.len() % case.run.batch, 0, "{name}: an epoch ends with a whole batch");
        Case { name: name.to_owned(), folder, ..case }
    }

    /// Numbers that the reference computed in double precision.
    pub fn expected_f64(&self, key: &str) -> Vec<f64> {
        let bytes = fs::read(self.folder.join("expected.safetensors")).expect("expected numbers");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let numbers = file.tensor(key).expect(key).data().to_vec();
        numbers.as_chunks::<8>().0.iter().map(|eight| f64::from_le_bytes(*eight)).collect()
    }

    /// Loss, rate and gradient norm of every step are the reference's.
    pub fn assert_steps(&self, ours: &[[f64; 3]]) {
        let theirs = ["loss", "lr", "norm"].map(|key| self.expected_f64(&format!("run.{key}")));
        assert_eq!((ours.len(), theirs[0].len()), (self.steps, self.steps), "{}", self.name);
        for (step, ours) in ours.iter().enumerate() {
            for (i, what) in ["loss", "rate", "norm"].into_iter().enumerate() {
                let (ours, theirs) = (ours[i], theirs[i][step]);
                let place = format!("{}, step {}: {what}", self.name, step + 1);
                assert!((ours - theirs).abs() <= APART * theirs.abs(), "{place} {ours}, the reference has {theirs}");
            }
        }
    }

    /// The case's weights, with a tokenizer that knows one character for every token and a template that adds nothing.
    pub fn write_base(&self, base: &Path) {
        fs::create_dir(base).expect("created");
        for entry in fs::read_dir(self.folder.join("base")).expect("a base") {
            let path = entry.expect("an entry").path();
            fs::copy(&path, base.join(path.file_name().expect("a name"))).expect("copied");
        }
        let most = *self.sequences.iter().flat_map(|sequence| &sequence.tokens).max().expect("a token");
        let vocabulary: BTreeMap<char, u32> = (0..=most).map(|token| (letter(token), token)).collect();
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": null, "truncation": null, "padding": null,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        fs::write(base.join("tokenizer.json"), tokenizer.to_string()).expect("written");
        let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
        fs::write(base.join("chat_template.jinja"), template).expect("written");
    }

    /// The sequences as a file of conversations: targets are what the assistant says.
    pub fn write_data(&self, file: &Path) {
        fs::write(file, self.sequences.iter().map(conversation).collect::<String>()).expect("written");
    }
}

fn goldens() -> PathBuf {
    // where the program was carried to another machine, that says where the package lies there
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let trainer = if here.ends_with("trainer") { here } else { here.join("../trainer") };
    trainer.join("tests/goldens")
}

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
    char::from_u32(0x4e00 + token).expect("a character")
}
