//! `spec.json` to the trainer's settings.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lorikeet_dataset::{Filters, OnFault, Supervise};
use lorikeet_protocol::job::{self, Task};
use lorikeet_protocol::worker::{SPEC, Spec};
use lorikeet_trainer::Config;
use lorikeet_trainer::config::{BaseDtype, DataConfig, Device, Every, Length, Method, MicroTokens, Settings, Telling};
use lorikeet_trainer::lora::{Init, LoraConfig, Targets};
use lorikeet_trainer::schedule::Curve;

use crate::Terms;

/// A checkpoint is made at the latest after this long, whatever the steps.
const SAVE_INTERVAL: Duration = Duration::from_secs(30 * 60);

/// The spec cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {}: {reason}", path.display())]
pub(crate) struct SpecError {
    path: PathBuf,
    reason: String,
}

pub(crate) fn read(dir: &Path) -> Result<Spec, SpecError> {
    let path = dir.join(SPEC);
    let text =
        fs::read_to_string(&path).map_err(|error| SpecError { path: path.clone(), reason: error.to_string() })?;
    serde_json::from_str(&text).map_err(|error| SpecError { path, reason: error.to_string() })
}

/// What the trainer shall do in the attempt directory `dir`, in each process of the attempt: they share its threads and its memory evenly.
pub fn config(dir: &Path, spec: &Spec, terms: Terms) -> Config {
    let Task::Train(train) = &spec.job.task;
    let ranks = spec.devices.len().max(1);
    Config {
        base: spec.base.clone(),
        base_name: spec.job.base.clone(),
        init_adapter: spec.init_adapter.clone(),
        out: dir.to_owned(),
        // an agent that hears of a checkpoint that is not whole reads it again, and brings it anew
        must_go_on: spec.attempt.is_some(),
        data: DataConfig {
            file: spec.dataset.clone(),
            validation_file: spec.validation.clone(),
            filters: filters(&train.data),
            on_fault: OnFault::Refuse,
            cache: spec.cache.clone(),
        },
        settings: settings(&train.training, &train.lora, terms.device()),
        telling: Telling {
            sample_prompts: train.training.sample_prompts.clone(),
            grad_norms: train.training.grad_norms,
        },
        save_interval: SAVE_INTERVAL,
        micro_tokens: match train.training.micro_tokens {
            job::MicroTokens::Auto => MicroTokens::Auto,
            job::MicroTokens::Tokens(tokens) => MicroTokens::Tokens(tokens as usize),
        },
        device: terms.device(),
        shares_device: !spec.job.resources.exclusive,
        threads: threads(spec.threads.map(|threads| threads as usize), ranks),
        memory_limit: terms.memory_limit.map(|limit| limit / ranks as u64),
    }
}

/// One process takes what it is given or all there is.
fn threads(given: Option<usize>, ranks: usize) -> Option<usize> {
    let all = || given.or_else(|| std::thread::available_parallelism().ok().map(usize::from));
    if ranks == 1 { given } else { all().map(|threads| (threads / ranks).max(1)) }
}

/// Which records are used, in the dataset's words.
pub fn filters(data: &job::DataFilter) -> Filters {
    Filters {
        quality_min: data.quality_min,
        tiers: data.tiers.clone(),
        human_reviewed: data.human_reviewed,
        personas: data.personas.clone(),
        arcs: data.arcs.clone(),
        topics: data.topics.clone(),
    }
}

/// Everything that decides the numbers on a device, in the trainer's words.
pub fn settings(training: &job::Training, adapter: &job::Lora, device: Device) -> Settings {
    Settings {
        method: method(training.method),
        lora: lora(adapter),
        learning_rate: training.learning_rate,
        schedule: match training.schedule {
            job::Schedule::Cosine => Curve::Cosine,
            job::Schedule::Linear => Curve::Linear,
            job::Schedule::Constant => Curve::Constant,
            job::Schedule::Wsd => Curve::Wsd { decay_ratio: 0.1 },
        },
        warmup_ratio: training.warmup_ratio,
        length: match training.length {
            job::TrainingLength::Epochs(epochs) => Length::Epochs(epochs),
            job::TrainingLength::Steps(steps) => Length::Steps(u64::from(steps)),
        },
        batch_size: u64::from(training.batch_size),
        max_seq_length: training.max_seq_length as usize,
        supervise: match training.supervise {
            job::Supervise::Assistant => Supervise::Assistant,
            job::Supervise::Last => Supervise::Last,
            job::Supervise::Completion => Supervise::Completion,
            job::Supervise::All => Supervise::All,
        },
        adam_beta1: training.adam_beta1,
        adam_beta2: training.adam_beta2,
        adam_epsilon: training.adam_epsilon,
        weight_decay: training.weight_decay,
        max_grad_norm: training.max_grad_norm,
        shuffle: training.shuffle,
        seed: training.seed,
        validation_fraction: training.validation_fraction,
        eval_every: every(training.eval_every),
        checkpoint_every: every(training.checkpoint_every),
        plus_ratio: adapter.plus_ratio,
        early_stopping: training.early_stopping,
        base_dtype: match (training.base_dtype, device) {
            (job::BaseDtype::Auto, Device::Cpu) | (job::BaseDtype::F32, _) => BaseDtype::F32,
            (job::BaseDtype::Auto, Device::Gpu(_)) | (job::BaseDtype::Bf16, _) => BaseDtype::Bf16,
            (job::BaseDtype::Int8, _) => BaseDtype::Int8,
            (job::BaseDtype::Nf4, _) => BaseDtype::Nf4,
        },
    }
}

fn method(method: job::Method) -> Method {
    match method {
        job::Method::Lora => Method::Lora,
        job::Method::Full => Method::Full,
    }
}

fn lora(adapter: &job::Lora) -> LoraConfig {
    LoraConfig {
        rank: adapter.rank as usize,
        alpha: adapter.alpha,
        dropout: adapter.dropout,
        target_modules: targets(&adapter.target_modules),
        exclude_modules: adapter.exclude_modules.as_ref().map(targets),
        layers_to_transform: adapter.layers_to_transform.iter().map(|layer| *layer as usize).collect(),
        rank_pattern: adapter.rank_pattern.iter().map(|(name, rank)| (name.clone(), *rank as usize)).collect(),
        alpha_pattern: adapter.alpha_pattern.clone(),
        rslora: adapter.rslora,
        dora: adapter.dora,
        init: match adapter.init {
            job::LoraInit::Default => Init::Default,
            job::LoraInit::Pissa => Init::Pissa,
        },
    }
}

fn targets(targets: &job::TargetModules) -> Targets {
    match targets {
        job::TargetModules::AllLinear => Targets::AllLinear,
        job::TargetModules::Names(names) => Targets::Names(names.clone()),
        job::TargetModules::Pattern(pattern) => Targets::Pattern(pattern.clone()),
    }
}

fn every(every: job::Every) -> Every {
    match every {
        job::Every::Epoch => Every::Epoch,
        job::Every::Steps(steps) => Every::Steps(u64::from(steps)),
    }
}
