//! What comes out: `adapter/` with PEFT's files, the tokenizer, a card with its curve, and two summaries. And what a full training or a
//! test goes in with: a base model with random weights.

mod card;
mod curve;
mod summary;

use std::path::Path;

use lorikeet_dataset::PrepareReport;
use lorikeet_plan::{MAX_CONFIG_BYTES, ModelConfig, read_text, tensors};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::checkpoint::Identity;
use crate::config::Config;
use crate::event::FileRecord;
use crate::lora::AdapterMeta;
use crate::random::Stream;
use crate::run::Run;
use crate::staged::StagedDir;
use crate::tensor_file;
use crate::{TrainError, Trained};

/// The files of a base model that make its tokenizer.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// Writes `adapter/` whole, or not at all, as when `abandon` says true on the way; answers its files. Where
/// the model itself was trained, they are a model's.
pub(crate) fn write_adapter(
    config: &Config,
    run: &Run,
    (report, identity): (&PrepareReport, &Identity),
    abandon: &dyn Fn() -> bool,
) -> Result<Vec<FileRecord>, TrainError> {
    let staged = StagedDir::create(&config.out.join("adapter"), abandon)?;
    let meta = AdapterMeta { base_model: Some(config.base_name.clone()) };
    run.trained.save(staged.path(), &run.result()?, &meta)?;
    match run.trained {
        Trained::Adapter(_) => copy_files(&TOKENIZER_FILES, &config.base, staged.path())?,
        Trained::Model(_) => {
            staged.write("config.json", &pretty(&config_in_f32(&config.base)?))?;
            copy_side_files(&config.base, staged.path())?;
        }
    }
    staged.write("README.md", card::card(config, run, report).as_bytes())?;
    if let Some(curve) = curve::svg(run.state.course.points(), &run.state.evals, run.state.base_loss) {
        staged.write(card::CURVE_FILE, curve.as_bytes())?;
    }
    staged.write("training_summary.json", &pretty(&summary::summary(run)))?;
    staged.write("metadata.json", &pretty(&summary::metadata(config, run, (report, identity))))?;
    let files = staged.records()?;
    staged.publish()?;
    Ok(files)
}

/// Copies what a model has beside its config and its weights: the tokenizer, and how it likes to be asked.
pub(crate) fn copy_side_files(from: &Path, to: &Path) -> Result<(), TrainError> {
    copy_files(&TOKENIZER_FILES, from, to)?;
    copy_files(&["generation_config.json"], from, to)
}

/// Those that are there.
fn copy_files(names: &[&str], from: &Path, to: &Path) -> Result<(), TrainError> {
    for name in names {
        let path = from.join(name);
        if path.exists() {
            std::fs::copy(&path, to.join(name)).map_err(TrainError::io("copy", &path))?;
        }
    }
    Ok(())
}

/// The base's config, of a model that is stored in f32.
fn config_in_f32(base: &Path) -> Result<Value, TrainError> {
    let path = base.join("config.json");
    let text = read_text(&path, MAX_CONFIG_BYTES).map_err(TrainError::io("read", &path))?;
    let mut config: Value = serde_json::from_str(&text)
        .map_err(|error| TrainError::Base { path: path.clone(), reason: error.to_string() })?;
    for key in ["torch_dtype", "dtype"] {
        if config.get(key).is_some() {
            config[key] = "float32".into();
        }
    }
    Ok(config)
}

/// How the weights of a new base are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredAs {
    /// 32-bit floats.
    F32,
    /// 16-bit brain floats.
    Bf16,
}

/// Writes `config.json` and `model.safetensors` of a base whose weights are drawn as transformers draws them: gains 1, biases
/// 0, all else normal with standard deviation `initializer_range` (0.02 if the config names none). The same config, seed and type give the same bytes.
pub fn init_base(dir: &Path, config: &Value, seed: u64, stored: StoredAs) -> Result<ModelConfig, TrainError> {
    let bad = |reason: String| TrainError::Base { path: dir.join("config.json"), reason };
    let parsed = ModelConfig::parse(&config.to_string()).map_err(|error| bad(error.to_string()))?;
    let mut config = config.clone();
    let (dtype, word) = match stored {
        StoredAs::F32 => (Dtype::F32, "float32"),
        StoredAs::Bf16 => (Dtype::BF16, "bfloat16"),
    };
    config["torch_dtype"] = word.into();
    let deviation = config["initializer_range"].as_f64().unwrap_or(0.02);
    let specs = tensors(&parsed);
    let data: Vec<Vec<u8>> = specs
        .par_iter()
        .enumerate()
        .map(|(index, spec)| {
            let len = spec.shape.iter().product();
            // vectors are gains and biases
            let numbers = match spec.shape.len() {
                1 if spec.name.ends_with(".bias") || parsed.norm_offset => vec![0.0; len],
                1 => vec![1.0; len],
                _ => normal(seed, index, len, deviation),
            };
            bytes(&numbers, stored)
        })
        .collect();
    let views = specs.iter().zip(&data).map(|(spec, data)| {
        (spec.name.as_str(), TensorView::new(dtype, spec.shape.clone(), data).expect("as many bytes as the shape says"))
    });
    std::fs::create_dir_all(dir).map_err(TrainError::io("create", dir))?;
    let path = dir.join("config.json");
    std::fs::write(&path, pretty(&config)).map_err(TrainError::io("write", &path))?;
    let path = dir.join("model.safetensors");
    tensor_file::write(&path, views, true).map_err(TrainError::io("write", &path))?;
    Ok(parsed)
}

fn normal(seed: u64, tensor: usize, len: usize, deviation: f64) -> Vec<f32> {
    let mut stream = Stream::new("base weights", &[seed, tensor as u64]);
    let pairs = std::iter::repeat_with(|| stream.normal_pair()).flatten();
    pairs.take(len).map(|x| (deviation * x) as f32).collect()
}

fn bytes(numbers: &[f32], stored: StoredAs) -> Vec<u8> {
    match stored {
        StoredAs::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        StoredAs::Bf16 => numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data is JSON");
    bytes.push(b'\n');
    bytes
}
