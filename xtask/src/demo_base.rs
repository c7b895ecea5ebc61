//! `cargo xtask demo-base`: makes what `lorikeet demo` brings along, from nothing but this folder.
//!
//! ```text
//! words.txt ─► corpus ─┐
//! config.json, seed ─► start ─► `lorikeet train`, method full ─► rounded to bf16 ─► cli/assets/base
//! words.txt ─► Pig Latin ─► cli/assets/demo.jsonl, demo_held_out.jsonl
//! ```
//! Every draw comes from a generator of our own and training is bit for bit the same for the same program and kind of processor,
//! so the same files come out again; `--check` compares them with those that are kept. An interrupted training goes on where it
//! was when the task is started again.

mod card;
mod corpus;
mod latin;
mod letter;
mod phrase;
mod random;
mod talk;
mod word;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::output::{say, table};
use crate::program::Program;
use crate::tree::Tree;
use word::Words;

/// The base's shape.
const CONFIG: &str = include_str!("demo_base/config.json");
/// Of the weights that training begins with.
const SEED: &str = "1";
/// Conversations of the corpus.
const CONVERSATIONS: usize = 120_000;
/// Questions of each task that the result is judged by.
const QUESTIONS: usize = 50;
/// What `lorikeet train` is told.
const SETTINGS: &str = "training.method=full training.max_seq_length=256 training.batch_size=32 training.max_steps=2400 \
    training.learning_rate=2e-3 training.warmup_ratio=0.02 training.adam_beta2=0.98 training.validation_fraction=0.005 \
    training.eval_every=400 training.checkpoint_every=200";
/// What is kept of it in `cli/assets/base`.
const BASE_FILES: [&str; 5] =
    ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/// Makes everything and keeps it, or only compares.
pub(crate) fn run(tree: &Tree, check: bool) -> Result<()> {
    let (place, words) = (Place::new(tree)?, Words::read());
    let assets = tree.root().join("cli/assets");
    keep(&assets.join("demo.jsonl"), latin::training(&words).as_bytes(), check)?;
    keep(&assets.join("demo_held_out.jsonl"), latin::held_out(&words).as_bytes(), check)?;
    place.make_base(&words)?;
    for name in BASE_FILES {
        let made = place.folder.join("base").join(name);
        let bytes = fs::read(&made).with_context(|| format!("read {}", made.display()))?;
        keep(&assets.join("base").join(name), &bytes, check)?;
    }
    // The next start trains anew, and shows that the same comes out.
    fs::remove_dir_all(place.folder.join("run")).context("remove the training's directory")
}

/// Writes a file, or fails where another is kept.
fn keep(path: &Path, bytes: &[u8], check: bool) -> Result<()> {
    if !check {
        fs::create_dir_all(path.parent().context("a kept file lies in a folder")?)?;
        fs::write(path, bytes).with_context(|| format!("write {}", path.display()))?;
    } else if fs::read(path).with_context(|| format!("read {}", path.display()))? != bytes {
        bail!("{} is not what comes out; without --check it is written again", path.display());
    }
    let (done, fingerprint) = (if check { "the same" } else { "written" }, card::fingerprint(bytes));
    say(format!("{done}: {}, {} bytes, FNV-1a {fingerprint}", path.display(), bytes.len()));
    Ok(())
}

/// Where it is made, and by which programs.
struct Place {
    folder: PathBuf,
    root: PathBuf,
    programs: PathBuf,
}

impl Place {
    /// Builds the programs.
    fn new(tree: &Tree) -> Result<Self> {
        Program::new(tree.root(), "cargo build --workspace --bins --examples").run()?;
        let folder = tree.target().join("demo-base");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self { folder, root: tree.root().to_owned(), programs: tree.target().join("debug") })
    }

    /// In `base/`: the model, judged, and its card.
    fn make_base(&self, words: &Words) -> Result<()> {
        let corpus = corpus::lines(CONVERSATIONS, words);
        self.train(&corpus)?;
        let scores = self.scores(words)?;
        let row = |(task, share): &(&str, String)| vec![(*task).to_owned(), share.clone()];
        table(&["task", "exact match"], &scores.iter().map(row).collect::<Vec<_>>());
        self.write("base/README.md", &card::text(&corpus, &scores))?;
        Ok(())
    }

    /// Start, training, rounding.
    fn train(&self, corpus: &str) -> Result<()> {
        let (start, run) = (self.folder.join("start"), self.folder.join("run"));
        let config = self.write("config.json", CONFIG)?;
        let corpus = self.write("corpus.jsonl", corpus)?;
        self.program("examples/demo_base").word("start").path(&config).word(SEED).path(&start).run()?;
        let train = self.program("lorikeet").word("train").word("--base").path(&start).word("--dataset").path(&corpus);
        let train = train.word("--out").path(&run);
        SETTINGS.split_whitespace().fold(train, |train, setting| train.word("--set").word(setting)).run()?;
        self.program("examples/demo_base")
            .word("round")
            .path(&run.join("adapter"))
            .path(&self.folder.join("base"))
            .run()
    }

    /// How many of a task's questions the result answers to the letter, task by task.
    fn scores(&self, words: &Words) -> Result<Vec<(&'static str, String)>> {
        corpus::questions(QUESTIONS, words).into_iter().map(|(task, text)| Ok((task, self.score(&text)?))).collect()
    }

    fn score(&self, questions: &str) -> Result<String> {
        let file = self.write("questions.jsonl", questions)?;
        let eval = self.program("lorikeet").words("eval --exact-match --output json --base");
        let found = eval.path(&self.folder.join("base")).word("--dataset").path(&file).capture()?;
        if !found.status.success() {
            bail!("lorikeet eval: {}", String::from_utf8_lossy(&found.stderr).trim());
        }
        let found: Value = serde_json::from_slice(&found.stdout).context("read what `lorikeet eval` says")?;
        let count = |key: &str| found["exact_match"][key].as_u64().context("an evaluation counts exact matches");
        Ok(format!("{:.0} %", 100.0 * count("right")? as f64 / count("asked")? as f64))
    }

    fn program(&self, name: &str) -> Program {
        Program::at(&self.root, &self.programs.join(name))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}
