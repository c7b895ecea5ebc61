//! Checkpoints: a run's whole state in a directory that is complete or not there.
//!
//! ```text
//! checkpoints/step-00000100/
//!   adapter_model.safetensors, adapter_config.json   the weights, as PEFT reads them; or
//!   model.safetensors                                the weights, where the model itself is trained
//!   optimizer.safetensors                            AdamW's moments `m` and `v`, flat, in the order of the weights
//!   best.safetensors                                 the weights at the best evaluation, where those come out (early stopping)
//!   state.json                                       step, cursor, losses, micro-batch plan, settings, data (Saved)
//!   manifest.json                                    size and BLAKE3 of each of these; written last (Manifest)
//! ```
//! Random numbers need no state of their own: order and dropout follow from the seed and the places in `state.json`.
//! A directory is written aside, synced and renamed. Reading verifies every hash and takes the newest that is whole.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::TrainError;
use crate::config::Settings;
use crate::event::{CheckpointKind, FileRecord};
use crate::full::MODEL_FILE;
use crate::lora::{self, AdapterMeta};
use crate::run::{Run, State};
use crate::staged::{self, StagedDir};
use crate::tensor_file::{self, Numbers};

/// Name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const BEST_FILE: &str = "best.safetensors";
const STATE_FILE: &str = "state.json";
const PREFIX: &str = "step-";
const VERSION: u32 = 1;
/// How many are kept beside the best and the final one.
const KEPT: usize = 3;

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format.
    pub version: u32,
    /// After this step.
    pub step: u64,
    /// Why it was made.
    pub kind: CheckpointKind,
    /// Every other file.
    pub files: Vec<FileRecord>,
}

/// `state.json`: what is neither weight nor moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// What changes from step to step.
    pub state: State,
    /// Tokens per micro-batch: part of what makes a resumed run the same bit for bit.
    pub micro_tokens: usize,
    /// Blocks whose forward pass was computed twice to save memory; changes no bit.
    #[serde(default)]
    pub recompute: usize,
    /// What the run is.
    pub identity: Identity,
}

/// What a run is: a checkpoint goes on only in the run it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Every setting that decides the numbers.
    pub settings: Settings,
    /// Hash over the examples and their split.
    pub data: String,
    /// Hash over the base's config and the shapes and sizes of its files.
    pub base: String,
    /// Hash over its numbers; none in a checkpoint of before it was kept.
    #[serde(default)]
    pub weights: Option<String>,
}

/// Settings that may differ between a checkpoint and the run that takes it up: the numbers change, the state still fits.
const FREE: [&str; 17] = [
    "learning_rate",
    "schedule",
    "warmup_ratio",
    "length",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "weight_decay",
    "max_grad_norm",
    "eval_every",
    "checkpoint_every",
    "lora.dropout",
    "plus_ratio",
    "early_stopping",
    "base_dtype",
    "supervise",      // decided by `data`, which holds the examples themselves
    "max_seq_length", // likewise
];

/// A verified checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its directory.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Found {
    /// The directory's name.
    pub fn name(&self) -> String {
        name(self.manifest.step)
    }
}

/// The name of the checkpoint after `step`.
pub fn name(step: u64) -> String {
    format!("{PREFIX}{step:08}")
}

/// Writes the run's state to `dir/step-…`. Once `abandon` says true, nothing is left of it and it ends with [`TrainError::Stopped`].
pub fn save(
    dir: &Path,
    run: &Run,
    (micro_tokens, recompute): (usize, usize),
    identity: &Identity,
    kind: CheckpointKind,
    abandon: &dyn Fn() -> bool,
) -> Result<Found, TrainError> {
    let path = dir.join(name(run.state.step));
    let staged = StagedDir::create(&path, abandon)?;
    // read back from a GPU one after the other: of a whole model each takes much of main memory
    run.trained.save(staged.path(), &run.params()?, &AdapterMeta::default())?;
    let [m, v] = run.moments()?;
    write_flat(staged.path(), OPTIMIZER_FILE, &[("m", &m), ("v", &v)])?;
    if let Some(best) = &run.best {
        write_flat(staged.path(), BEST_FILE, &[("best", best)])?;
    }
    let saved = Saved { state: run.state.clone(), micro_tokens, recompute, identity: identity.clone() };
    staged.write(STATE_FILE, &json(&saved))?;
    let manifest = Manifest { version: VERSION, step: run.state.step, kind, files: staged.records()? };
    staged.write(MANIFEST_FILE, &json(&manifest))?;
    staged.publish()?;
    Ok(Found { path, manifest })
}

/// The newest checkpoint that verifies; each newer one that does not is handed to `rejected`.
pub fn newest(dir: &Path, rejected: &mut dyn FnMut(TrainError)) -> Result<Option<Found>, TrainError> {
    for name in names(dir)?.iter().rev() {
        match verify(&dir.join(name)) {
            Ok(found) => return Ok(Some(found)),
            Err(error) => rejected(error),
        }
    }
    Ok(None)
}

/// Checks a checkpoint's manifest and the hash of every file.
pub fn verify(path: &Path) -> Result<Found, TrainError> {
    let wrong = |reason: String| TrainError::Checkpoint { path: path.to_owned(), reason };
    let manifest: Manifest = read_json(path, MANIFEST_FILE)?;
    if manifest.version != VERSION {
        return Err(wrong(format!("format version {}, expected {VERSION}", manifest.version)));
    }
    let listed: Vec<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    let weights: &[&str] =
        if listed.contains(&MODEL_FILE) { &[MODEL_FILE] } else { &[lora::WEIGHTS_FILE, lora::CONFIG_FILE] };
    if let Some(missing) = weights.iter().chain(&[OPTIMIZER_FILE, STATE_FILE]).find(|name| !listed.contains(name)) {
        return Err(wrong(format!("the manifest does not name {missing}")));
    }
    for file in &manifest.files {
        if file.path.contains(['/', '\\']) || staged::record(path, &file.path)? != *file {
            return Err(wrong(format!("{} is not what the manifest says", file.path)));
        }
    }
    Ok(Found { path: path.to_owned(), manifest })
}

/// Reads what is neither weight nor moment.
pub fn read_saved(found: &Found) -> Result<Saved, TrainError> {
    read_json(&found.path, STATE_FILE)
}

/// Puts the run into the saved state. Fails when the checkpoint is another run's; answers the settings that differ.
pub fn restore(found: &Found, run: &mut Run, identity: &Identity) -> Result<(Saved, Vec<String>), TrainError> {
    let saved = read_saved(found)?;
    let differing = compare(&saved.identity, identity)
        .map_err(|reason| TrainError::Checkpoint { path: found.path.clone(), reason })?;
    let params = run.trained.load(&found.path)?;
    let trained = run.trained.trained();
    let [m, v] = read_flat(&found.path, OPTIMIZER_FILE, ["m", "v"], trained)?;
    let has_best = found.manifest.files.iter().any(|file| file.path == BEST_FILE);
    let best = has_best.then(|| read_flat(&found.path, BEST_FILE, ["best"], run.trained.len())).transpose()?;
    run.restore(params, m, v, best.map(|[best]| best), saved.state.clone())?;
    Ok((saved, differing))
}

/// Removes all but the last three, the best and the final one, and whatever a crash left half-written.
pub fn prune(dir: &Path, best: Option<u64>, final_step: u64) -> Result<(), TrainError> {
    for left in staged::file_names(dir)?.iter().filter(|name| name.starts_with('.')) {
        staged::remove(&dir.join(left))?;
    }
    let names = names(dir)?;
    let old = &names[..names.len().saturating_sub(KEPT)];
    let keep: Vec<String> = best.into_iter().chain([final_step]).map(name).collect();
    for name in old.iter().filter(|name| !keep.contains(name)) {
        staged::remove(&dir.join(name))?;
    }
    Ok(())
}

/// Checkpoints by name, oldest first: the number in the name has a fixed width.
fn names(dir: &Path) -> Result<Vec<String>, TrainError> {
    let mut names = staged::file_names(dir)?;
    names.retain(|name| name.strip_prefix(PREFIX).is_some_and(|digits| digits.parse::<u64>().is_ok()));
    Ok(names)
}

/// The free settings that differ, as words; another difference is an error in words.
fn compare(theirs: &Identity, ours: &Identity) -> Result<Vec<String>, String> {
    let mut differing = Vec::new();
    for ((key, was), (_, is)) in flat(theirs).into_iter().zip(flat(ours)) {
        if was == is {
            continue;
        }
        if !FREE.contains(&key.as_str()) {
            return Err(format!("{key} is {was} there and {is} here"));
        }
        differing.push(format!("{key} was {was} and is {is}"));
    }
    match (&theirs.weights, &ours.weights) {
        (Some(was), Some(is)) if was != is => Err("the base's weights are not those that it began with".to_owned()),
        _ => Ok(differing),
    }
}

/// Every setting by its dotted name; both sides have the same names, because they are the same type.
fn flat(identity: &Identity) -> Vec<(String, Value)> {
    let settings = serde_json::to_value(&identity.settings).expect("plain data is JSON");
    let mut pairs = Vec::new();
    for (key, value) in settings.as_object().expect("a struct is an object") {
        match value.as_object().filter(|_| key == "lora") {
            Some(lora) => pairs.extend(lora.iter().map(|(name, value)| (format!("lora.{name}"), value.clone()))),
            None => pairs.push((key.clone(), value.clone())),
        }
    }
    pairs.push(("dataset".into(), identity.data.clone().into()));
    pairs.push(("base model".into(), identity.base.clone().into()));
    pairs
}

fn write_flat(dir: &Path, file: &str, tensors: &[(&str, &[f32])]) -> Result<(), TrainError> {
    let path = dir.join(file);
    let tensors = tensors.iter().map(|(name, numbers)| ((*name).to_owned(), Numbers::of(vec![numbers.len()], numbers)));
    tensor_file::write(&path, tensors, false).map_err(TrainError::io("write", &path))
}

fn read_flat<const N: usize>(
    path: &Path,
    file: &str,
    names: [&str; N],
    len: usize,
) -> Result<[Vec<f32>; N], TrainError> {
    let wrong = |reason: String| TrainError::Checkpoint { path: path.to_owned(), reason };
    let bytes = read(path, file)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| wrong(format!("{file}: {error}")))?;
    let mut found = [const { Vec::new() }; N];
    for (numbers, name) in found.iter_mut().zip(names) {
        let tensor = tensors.tensor(name).map_err(|error| wrong(format!("{file}: {error}")))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != [len] {
            return Err(wrong(format!("{file}: {name} has shape {:?}, expected {len}", tensor.shape())));
        }
        *numbers = tensor.data().as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    }
    Ok(found)
}

fn read(path: &Path, name: &str) -> Result<Vec<u8>, TrainError> {
    let file = path.join(name);
    std::fs::read(&file).map_err(TrainError::io("read", &file))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path, name: &str) -> Result<T, TrainError> {
    let wrong = |error| TrainError::Checkpoint { path: path.to_owned(), reason: format!("{name}: {error}") };
    serde_json::from_slice(&read(path, name)?).map_err(wrong)
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data is JSON");
    bytes.push(b'\n');
    bytes
}
