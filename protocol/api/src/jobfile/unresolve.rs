//! From `JobSpec` back to a [`JobFile`] with every key filled: what the API shows of a job, and what can be submitted again.

use super::{
    DataKeys, GpuKeys, JobFile, LeastGpu, LoraKeys, PolicyKeys, PreferKeys, ResourceKeys, Targets, TrainingKeys,
    WordOrNumber,
};
use lorikeet_protocol::job::{
    BaseDtype, DataFilter, Every, GpuRequest, JobSpec, Lora, LoraInit, Method, MicroTokens, OnLost, Policy, Resources,
    Schedule, Supervise, TargetModules, Task, Training, TrainingLength,
};
use std::time::Duration;

pub(super) fn job_file(spec: &JobSpec) -> JobFile {
    let Task::Train(train) = &spec.task;
    JobFile {
        name: Some(spec.name.clone()),
        base: spec.base.clone(),
        dataset: spec.dataset.clone(),
        init_adapter: spec.init_adapter.clone(),
        preset: Some(spec.preset.clone()),
        priority: Some(spec.priority.into()),
        after: None,
        hold: None,
        not_before: None,
        training: training(&train.training),
        data: DataKeys { validation_dataset: spec.validation_dataset.clone(), ..data(&train.data) },
        lora: lora(&train.lora),
        resources: resources(&spec.resources),
        policy: policy(&spec.policy),
        sweep: None,
    }
}

fn training(training: &Training) -> TrainingKeys {
    let (epochs, max_steps) = match training.length {
        TrainingLength::Epochs(epochs) => (Some(epochs.into()), None),
        TrainingLength::Steps(steps) => (None, Some(steps.into())),
    };
    TrainingKeys {
        method: Some(method(training.method).into()),
        learning_rate: Some(training.learning_rate),
        batch_size: Some(training.batch_size.into()),
        micro_tokens: Some(match training.micro_tokens {
            MicroTokens::Auto => WordOrNumber::Word("auto".into()),
            MicroTokens::Tokens(tokens) => WordOrNumber::Number(tokens.into()),
        }),
        epochs,
        max_steps,
        max_seq_length: Some(training.max_seq_length.into()),
        schedule: Some(schedule(training.schedule).into()),
        adam_beta1: Some(training.adam_beta1),
        adam_beta2: Some(training.adam_beta2),
        adam_epsilon: Some(training.adam_epsilon),
        warmup_ratio: Some(training.warmup_ratio),
        weight_decay: Some(training.weight_decay),
        max_grad_norm: Some(training.max_grad_norm),
        shuffle: Some(training.shuffle),
        seed: i64::try_from(training.seed).ok(),
        validation_fraction: Some(training.validation_fraction),
        supervise: Some(supervise(training.supervise).into()),
        eval_every: Some(every(training.eval_every)),
        checkpoint_every: Some(every(training.checkpoint_every)),
        base_dtype: Some(base_dtype(training.base_dtype).into()),
        early_stopping: training.early_stopping.map(Into::into),
        sample_prompts: Some(training.sample_prompts.clone()).filter(|prompts| !prompts.is_empty()),
        grad_norms: Some(training.grad_norms),
    }
}

fn method(method: Method) -> &'static str {
    match method {
        Method::Lora => "lora",
        Method::Full => "full",
    }
}

fn data(data: &DataFilter) -> DataKeys {
    let some = |names: &[String]| Some(names.to_vec()).filter(|names| !names.is_empty());
    DataKeys {
        quality_min: data.quality_min,
        tiers: some(&data.tiers),
        human_reviewed: data.human_reviewed,
        personas: some(&data.personas),
        arcs: some(&data.arcs),
        topics: some(&data.topics),
        validation_dataset: None,
    }
}

fn schedule(schedule: Schedule) -> &'static str {
    match schedule {
        Schedule::Cosine => "cosine",
        Schedule::Linear => "linear",
        Schedule::Constant => "constant",
        Schedule::Wsd => "wsd",
    }
}

fn supervise(supervise: Supervise) -> &'static str {
    match supervise {
        Supervise::Assistant => "assistant",
        Supervise::Last => "last",
        Supervise::Completion => "completion",
        Supervise::All => "all",
    }
}

fn base_dtype(dtype: BaseDtype) -> &'static str {
    match dtype {
        BaseDtype::Auto => "auto",
        BaseDtype::F32 => "f32",
        BaseDtype::Bf16 => "bf16",
        BaseDtype::Int8 => "int8",
        BaseDtype::Nf4 => "nf4",
    }
}

fn every(every: Every) -> WordOrNumber {
    match every {
        Every::Epoch => WordOrNumber::Word("epoch".into()),
        Every::Steps(steps) => WordOrNumber::Number(steps.into()),
    }
}

fn lora(lora: &Lora) -> LoraKeys {
    LoraKeys {
        rank: Some(lora.rank.into()),
        alpha: Some(lora.alpha),
        dropout: Some(lora.dropout),
        target_modules: Some(targets(&lora.target_modules)),
        exclude_modules: Some(lora.exclude_modules.as_ref().map_or_else(|| Targets::Names(Vec::new()), targets)),
        layers_to_transform: Some(lora.layers_to_transform.clone()),
        rank_pattern: Some(lora.rank_pattern.iter().map(|(name, rank)| (name.clone(), (*rank).into())).collect()),
        alpha_pattern: Some(lora.alpha_pattern.clone()),
        rslora: Some(lora.rslora),
        dora: Some(lora.dora),
        init: Some(init(lora.init).into()),
        plus_ratio: lora.plus_ratio,
    }
}

fn init(init: LoraInit) -> &'static str {
    match init {
        LoraInit::Default => "default",
        LoraInit::Pissa => "pissa",
    }
}

fn targets(targets: &TargetModules) -> Targets {
    match targets {
        TargetModules::AllLinear => Targets::Pattern("all-linear".into()),
        TargetModules::Names(names) => Targets::Names(names.clone()),
        TargetModules::Pattern(text) => Targets::Pattern(text.clone()),
    }
}

fn resources(resources: &Resources) -> ResourceKeys {
    ResourceKeys {
        gpus: Some(resources.gpus.into()),
        gpu: Some(gpu(&resources.gpu)),
        min_driver: resources.min_driver.map(|driver| driver.to_string()),
        labels: Some(resources.labels.clone()),
        prefer: Some(PreferKeys {
            gpu: resources.prefer.gpu.as_ref().map(gpu),
            labels: resources.prefer.labels.clone(),
        })
        .filter(|prefer| *prefer != PreferKeys::default()),
        exclusive: Some(resources.exclusive),
        max_runtime: Some(span(resources.max_runtime)),
    }
}

fn gpu(gpu: &GpuRequest) -> GpuKeys {
    match gpu {
        GpuRequest::Any => GpuKeys::Name("any".into()),
        GpuRequest::Named(name) => GpuKeys::Name(name.clone()),
        GpuRequest::Least { min_memory_bytes, min_compute } => GpuKeys::Least(LeastGpu {
            min_memory: min_memory_bytes.map(size),
            min_compute: min_compute.map(|(major, minor)| format!("{major}.{minor}")),
        }),
    }
}

/// In the largest unit that says it exactly.
fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 30) => format!("{}GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ => format!("{bytes}B"),
    }
}

fn policy(policy: &Policy) -> PolicyKeys {
    PolicyKeys {
        retries: Some(policy.retries.into()),
        lost_after: Some(span(policy.lost_after)),
        on_lost: Some(
            match policy.on_lost {
                OnLost::Requeue => "requeue",
                OnLost::Wait => "wait",
                OnLost::Fail => "fail",
            }
            .into(),
        ),
    }
}

fn span(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}
