//! The job file: what a person asks for, in TOML or, with the same names, in JSON.
//!
//! ```text
//! text ── read: types, unknown keys ──> JobFile ── resolve: presets, ranges ──> JobSpec
//!          every fault with its line                every fault with its range
//! ```
//!
//! Every key but `base` and `dataset` is optional; the preset fills the rest. Unknown keys are refused, and so are keys that
//! the job file names and this version cannot honour yet: a setting is never ignored. Reading stands in `read`, ranges and
//! defaults in `resolve`, presets in `preset`.

mod json;
mod preset;
mod range;
mod read;
mod resolve;
pub mod start;
pub mod sweep;
mod unresolve;

pub use preset::Presets;

use lorikeet_protocol::job::JobSpec;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::Value;
use std::{collections::BTreeMap, fmt};
use utoipa::ToSchema;

/// A job as a person writes it down.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct JobFile {
    /// What people will call it, 1–200 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A registered base model, by name or id.
    pub base: String,
    /// A dataset, by name or id.
    pub dataset: String,
    /// The adapter that training begins with: a model, by name or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<String>,
    /// Fills what is left open; `balanced` when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// 0–100; higher goes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// Jobs that have to end first: `job_…:ok`, `any` or `fail`; by id, or by name as long as they are not over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    /// It waits until somebody lets it go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<bool>,
    /// It waits until this moment: RFC 3339, or a day (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// How to train.
    #[serde(skip_serializing_if = "is_empty")]
    pub training: TrainingKeys,
    /// Which records are used.
    #[serde(skip_serializing_if = "is_empty")]
    pub data: DataKeys,
    /// The adapter's shape.
    #[serde(skip_serializing_if = "is_empty")]
    pub lora: LoraKeys,
    /// What it needs.
    #[serde(skip_serializing_if = "is_empty")]
    pub resources: ResourceKeys,
    /// What happens when something goes wrong.
    #[serde(skip_serializing_if = "is_empty")]
    pub policy: PolicyKeys,
    /// Many jobs of this one file: other values of some settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub sweep: Option<serde_json::Map<String, Value>>,
}

/// `[training]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "each key is explained where it ends up: protocol's `Training`")]
pub struct TrainingKeys {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_tokens: Option<WordOrNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_length: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adam_beta1: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adam_beta2: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adam_epsilon: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shuffle: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supervise: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<WordOrNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<WordOrNumber>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_prompts: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norms: Option<bool>,
}

/// `[data]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "each key is explained where it ends up: protocol's `DataFilter` and `JobSpec`")]
pub struct DataKeys {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiers: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub human_reviewed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personas: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arcs: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topics: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_dataset: Option<String>,
}

/// `[lora]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "each key is explained where it ends up: protocol's `Lora`")]
pub struct LoraKeys {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<Targets>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Targets>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_pattern: Option<BTreeMap<String, i64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha_pattern: Option<BTreeMap<String, f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rslora: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dora: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plus_ratio: Option<f64>,
}

/// `[resources]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "each key is explained where it ends up: protocol's `Resources`")]
pub struct ResourceKeys {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuKeys>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer: Option<PreferKeys>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclusive: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_runtime: Option<String>,
}

/// `[policy]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "each key is explained where it ends up: protocol's `Policy`")]
pub struct PolicyKeys {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_lost: Option<String>,
}

/// `"auto"` or 4096, `"epoch"` or 100.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum WordOrNumber {
    /// So many.
    Number(i64),
    /// A keyword.
    Word(String),
}

/// `"all-linear"`, a regular expression, or a list of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Targets {
    /// Names or endings of modules.
    Names(Vec<String>),
    /// `all-linear`, else a regular expression that matches the whole name.
    Pattern(String),
}

/// `"any"`, a GPU's name, or what it must be able to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum GpuKeys {
    /// `any` or a name.
    Name(String),
    /// At least this.
    Least(LeastGpu),
}

/// `{ gpu = "H200", labels = { rack = "a" } }`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreferKeys {
    /// Such devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuKeys>,
    /// Nodes with these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// `{ min_memory = "40GiB", min_compute = "8.0" }`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeastGpu {
    /// With a unit: `40GiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_memory: Option<String>,
    /// Compute capability: `8.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_compute: Option<String>,
}

/// One field that is wrong: what it is called, what it holds, what it may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FieldError {
    /// `training.batch_size`; empty when the file as a whole cannot be read.
    pub field: String,
    /// What was given, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Type and range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The sentence that says all of it.
    pub message: String,
    /// Where in the file, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
}

impl FieldError {
    /// `field` holds `value` where `expected` should be.
    pub fn new(field: impl Into<String>, value: impl fmt::Display, expected: impl Into<String>) -> Self {
        let (field, value, expected) = (field.into(), shorten(&value.to_string()), expected.into());
        let message = format!("{field} is {value}, expected {expected}");
        Self { field, value: Some(value), expected: Some(expected), message, line: None }
    }

    /// `field` is wrong in a way that is no question of its value alone.
    pub fn plain(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), value: None, expected: None, message: message.into(), line: None }
    }

    /// `field` is spelt right and comes with a later version.
    pub fn not_yet(field: impl Into<String>, value: impl fmt::Display) -> Self {
        let (field, value) = (field.into(), shorten(&value.to_string()));
        let message = format!("{field} = {value} is not available yet");
        Self { field, value: Some(value), expected: None, message, line: None }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl JobFile {
    /// A job that leaves everything else to the preset.
    pub fn new(base: impl Into<String>, dataset: impl Into<String>) -> Self {
        Self { base: base.into(), dataset: dataset.into(), ..Self::default() }
    }

    /// Reads TOML; every fault, of a name, a type or a range, carries its line.
    pub fn from_toml(text: &str) -> Result<Self, Vec<FieldError>> {
        let value = read::toml(text).map_err(|fault| vec![fault])?;
        Self::from_value(&value).map_err(|faults| locate(faults, text))
    }

    /// Reads JSON, as it comes over HTTP; a key that stands twice is a fault, as in TOML.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Vec<FieldError>> {
        Self::from_value(&json::tree(bytes).map_err(|fault| vec![fault])?)
    }

    /// Reads a parsed tree.
    pub fn from_value(value: &Value) -> Result<Self, Vec<FieldError>> {
        read::job_file(value)
    }

    /// `--set key=value`: the value as in TOML, where a bare word is a string. Setting one of two keys that exclude each other
    /// takes the other away.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), Vec<FieldError>> {
        let mut tree = serde_json::to_value(&*self).expect("a job file is plain data");
        read::set(&mut tree, key, value).map_err(|fault| vec![fault])?;
        *self = Self::from_value(&tree)?;
        Ok(())
    }

    /// The complete job: what is given here, then the preset, then the defaults; every value in its range.
    pub fn resolve(&self, presets: &Presets) -> Result<JobSpec, Vec<FieldError>> {
        resolve::resolve(self, presets)
    }
}

impl From<&JobSpec> for JobFile {
    /// The job file with every key filled; resolving it gives the same spec, whatever the presets say by then.
    fn from(spec: &JobSpec) -> Self {
        unresolve::job_file(spec)
    }
}

impl<'de> Deserialize<'de> for JobFile {
    /// As strict as [`JobFile::from_value`].
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let faults = match Self::from_value(&Value::deserialize(deserializer)?) {
            Ok(file) => return Ok(file),
            Err(faults) => faults,
        };
        Err(D::Error::custom(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
    }
}

/// Adds to each fault the line of `text` (TOML) where its field stands, for faults found after reading.
pub fn locate(mut faults: Vec<FieldError>, text: &str) -> Vec<FieldError> {
    let lines = read::lines(text);
    for fault in faults.iter_mut().filter(|fault| fault.line.is_none()) {
        fault.line = lines.get(&fault.field).copied();
    }
    faults
}

fn is_empty<T: Default + PartialEq>(section: &T) -> bool {
    *section == T::default()
}

/// Values come from people and files; a message shows the beginning of a long one.
fn shorten(value: &str) -> String {
    let mut short: String = value.chars().take(80).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests;
