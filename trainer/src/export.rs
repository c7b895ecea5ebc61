//! What comes out: `adapter/` with PEFT's files, the tokenizer, a card and two summaries. And what a demo or a test goes in
//! with: a base model with random weights.

use std::path::Path;

use lorikeet_dataset::PrepareReport;
use lorikeet_plan::{ModelConfig, tensors};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::config::Config;
use crate::event::FileRecord;
use crate::lora::AdapterMeta;
use crate::random::Stream;
use crate::run::Run;
use crate::staged::StagedDir;
use crate::{TrainError, Trained};

/// The files of a base model that make its tokenizer.
pub(crate) const TOKENIZER_FILES: [&str; 8] = [
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
    report: &PrepareReport,
    abandon: &dyn Fn() -> bool,
) -> Result<Vec<FileRecord>, TrainError> {
    let staged = StagedDir::create(&config.out.join("adapter"), abandon)?;
    let meta = AdapterMeta { base_model: Some(config.base_name.clone()) };
    run.trained.save(staged.path(), &run.params, &meta)?;
    if let Trained::Model(_) = run.trained {
        staged.write("config.json", &pretty(&config_in_f32(&config.base)?))?;
    }
    for name in TOKENIZER_FILES {
        let from = config.base.join(name);
        if from.exists() {
            std::fs::copy(&from, staged.path().join(name)).map_err(TrainError::io("copy", &from))?;
        }
    }
    let summary = summary(run);
    staged.write("README.md", card(config, run, report).as_bytes())?;
    staged.write("training_summary.json", &pretty(&summary))?;
    staged.write("metadata.json", &pretty(&metadata(config, run, report)))?;
    let files = staged.records()?;
    staged.publish()?;
    Ok(files)
}

/// The base's config, of a model that is stored in f32.
fn config_in_f32(base: &Path) -> Result<Value, TrainError> {
    let path = base.join("config.json");
    let text = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
    let mut config: Value = serde_json::from_slice(&text)
        .map_err(|error| TrainError::Base { path: path.clone(), reason: error.to_string() })?;
    for key in ["torch_dtype", "dtype"] {
        if config.get(key).is_some() {
            config[key] = "float32".into();
        }
    }
    Ok(config)
}

/// How the training went.
fn summary(run: &Run) -> Value {
    let state = &run.state;
    let first = state.evals.first().map(|point| point.loss);
    let last = state.evals.last().map(|point| point.loss);
    json!({
        "steps": state.step,
        "epochs": state.cursor.epochs(run.numbers.examples),
        "examples": run.numbers.examples,
        "tokens": state.tokens,
        "supervised_tokens": state.supervised_tokens,
        "seconds": state.seconds,
        "tokens_per_second": state.tokens as f64 / state.seconds.max(1e-9),
        "training_loss": {"first": state.first_loss, "last": state.last_loss},
        "validation": {
            "loss_before": first,
            "loss_after": last,
            "perplexity_before": first.map(f64::exp),
            "perplexity_after": last.map(f64::exp),
            "best": state.best(),
            "course": state.evals,
        },
    })
}

/// The base is named by what the job called it, which is no path and no name on any hub: whoever loads it says where it is.
const USE_ADAPTER: &str = r#"
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/to/the/base/model")
model = PeftModel.from_pretrained(base, "path/to/this/directory")
```
"#;

const USE_MODEL: &str = r#"
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
```
"#;

/// What was trained on what.
fn metadata(config: &Config, run: &Run, report: &PrepareReport) -> Value {
    json!({
        "generator": concat!("lorikeet ", env!("CARGO_PKG_VERSION")),
        "base_model": config.base_name,
        "trainable_parameters": run.trained.trained(),
        "settings": config.settings,
        "dataset": report,
    })
}

/// The model card, with the header the Hugging Face hub reads.
fn card(config: &Config, run: &Run, report: &PrepareReport) -> String {
    let (settings, state) = (&config.settings, &run.state);
    let base = &config.base_name;
    let (library, tag, what, how) = match run.trained {
        Trained::Adapter(_) => ("peft", "lora", "LoRA adapter for", USE_ADAPTER),
        Trained::Model(_) => ("transformers", "full", "Fine-tuned", USE_MODEL),
    };
    let mut text = format!(
        "---\nbase_model: {}\nlibrary_name: {library}\npipeline_tag: text-generation\ntags:\n- {tag}\n- lorikeet\n---\n\n\
         # {what} {base}\n\n\
         Trained with lorikeet {} on {} examples from {} conversations ({}), {} of them held out.\n\n",
        Value::from(base.as_str()),
        env!("CARGO_PKG_VERSION"),
        run.numbers.examples,
        report.conversations,
        report.format,
        report.validation_conversations,
    );
    let lora = &settings.lora;
    let shape = format!("{}, {}, {}", lora.rank, lora.alpha, lora.dropout);
    let shape = matches!(run.trained, Trained::Adapter(_)).then_some(("rank, alpha, dropout", shape));
    let rows = [
        ("trainable parameters", run.trained.trained().to_string()),
        ("steps", state.step.to_string()),
        ("examples per step", settings.batch_size.to_string()),
        ("peak learning rate", settings.learning_rate.to_string()),
        ("training loss, first and last step", pair(state.first_loss, state.last_loss)),
        (
            "held-out loss, before and after",
            pair(state.evals.first().map(|e| e.loss), state.evals.last().map(|e| e.loss)),
        ),
        ("tokens trained on", state.tokens.to_string()),
        ("seed", settings.seed.to_string()),
    ];
    text.push_str("| | |\n|---|---|\n");
    text.extend(shape.iter().chain(&rows).map(|(name, value)| format!("| {name} | {value} |\n")));
    text.push_str(how);
    text
}

fn pair(before: Option<f64>, after: Option<f64>) -> String {
    match (before, after) {
        (Some(before), Some(after)) => format!("{before:.4}, {after:.4}"),
        (Some(_), None) | (None, Some(_)) | (None, None) => "none".into(),
    }
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
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), &path)
        .map_err(|error| TrainError::io("write", &path)(std::io::Error::other(error)))?;
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
