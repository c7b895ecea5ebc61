//! The program that is built with the CUDA code, on a machine that has no CUDA: it starts, says what is missing, and trains on the processor.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{FEATURES, GOLDENS, home};
use crate::check::Done;
use crate::output::say;
use crate::program::Program;
use crate::tree::Tree;

/// Of the demonstration's base; the first of them shows it all.
const STEPS: u64 = 3;

/// Builds and runs it.
pub(super) fn run(tree: &Tree) -> Result<Done> {
    Program::new(tree.root(), &format!("cargo build {FEATURES} --bin lorikeet --test {GOLDENS}")).run()?;
    let lorikeet = |words: &str| {
        // what is named there counts as missing too
        let program = Program::at(tree.root(), &tree.target().join("debug/lorikeet")).words(words);
        program.env("CUDA_LIB_DIR", "/nonexistent").env("CUDA_HOME", "/nonexistent").capture()
    };
    let doctor = lorikeet("doctor --output json")?;
    let doctor: Value = serde_json::from_slice(&doctor.stdout).context("read what doctor says")?;
    if doctor["cudaBuild"] != true {
        bail!("doctor does not know a build with CUDA for one: {doctor}");
    }
    let missing = doctor["cuda"]["missing"].as_array().context("doctor names what is missing")?;
    if missing.is_empty() {
        return Ok(Done::Noted("this machine has CUDA: nothing is shown about one without".into()));
    }
    if doctor["advice"].as_array().is_none_or(Vec::is_empty) || !missing.contains(&"libcuda.so.1".into()) {
        bail!("doctor does not say what is missing, and what brings it: {doctor}");
    }
    let out = home(tree)?.join("without");
    let assets = "--base cli/assets/base --dataset cli/assets/demo_held_out.jsonl";
    let train = |more: &str| {
        if out.exists() {
            std::fs::remove_dir_all(&out).with_context(|| format!("remove {}", out.display()))?;
        }
        lorikeet(&format!(
            "train {assets} --out {} --set training.max_steps={STEPS} --output json {more}",
            out.display()
        ))
    };
    let trained = train("")?;
    let told: Value = serde_json::from_slice(&trained.stdout).unwrap_or_default();
    if !trained.status.success() || told["steps"] != STEPS {
        bail!("it does not train on the processor: {told}\n{}", String::from_utf8_lossy(&trained.stderr));
    }
    let refused = train("--gpu")?;
    let why = String::from_utf8_lossy(&refused.stderr);
    if refused.status.success() || !why.contains("libcuda.so.1") {
        bail!("asked for a GPU it does not say what is missing: {why}");
    }
    say(format!("without CUDA: doctor misses {}; {STEPS} steps on the processor; --gpu is refused", missing.len()));
    Ok(Done::Passed)
}
