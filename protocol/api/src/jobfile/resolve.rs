//! From [`JobFile`] to `JobSpec`: what the file says, else the preset, else the default; then the range. Pure, and every fault
//! is told, not only the first.

use super::{
    DataKeys, FieldError, GpuKeys, JobFile, LeastGpu, LoraKeys, PolicyKeys, PreferKeys, Presets, ResourceKeys, Targets,
    TrainingKeys, WordOrNumber, preset, range, range::quoted,
};
use crate::name::{self, is_plain};
use bytesize::ByteSize;
use lorikeet_protocol::job::{
    BaseDtype, DataFilter, Driver, Every, GpuRequest, JobSpec, Lora, LoraInit, Method, MicroTokens, OnLost, Policy,
    Prefer, Resources, Schedule, Supervise, TargetModules, Task, Train, Training, TrainingLength,
};
use std::collections::BTreeMap;

/// What was found wrong so far. A section with faults still returns something; the end of [`resolve`] throws it away.
type Faults = Vec<FieldError>;

pub(super) fn resolve(file: &JobFile, presets: &Presets) -> Result<JobSpec, Faults> {
    let faults = &mut Faults::new();
    let preset = file.preset.as_deref().unwrap_or(preset::DEFAULT);
    let (training_keys, lora_keys) = fill(file, preset, presets, faults);
    super::start::start(file, faults);
    let spec = JobSpec {
        name: name(file, faults),
        base: text("base", &file.base, faults),
        dataset: text("dataset", &file.dataset, faults),
        validation_dataset: file
            .data
            .validation_dataset
            .as_deref()
            .map(|dataset| text("data.validation_dataset", dataset, faults)),
        init_adapter: file.init_adapter.as_deref().map(|adapter| text("init_adapter", adapter, faults)),
        preset: preset.to_owned(),
        priority: range::PRIORITY.check(file.priority.unwrap_or(50), faults),
        task: Task::Train(Train {
            training: training(&training_keys, faults),
            data: data(&file.data, faults),
            lora: lora(&lora_keys, faults),
        }),
        resources: resources(&file.resources, faults),
        policy: policy(&file.policy, faults),
    };
    if faults.is_empty() {
        devices_have_work(&spec, faults);
        own_weights_are_floats(&spec, faults);
    }
    if faults.is_empty() { Ok(spec) } else { Err(std::mem::take(faults)) }
}

/// A device without an example of the step would be held for nothing.
fn devices_have_work(spec: &JobSpec, faults: &mut Faults) {
    let Task::Train(Train { training, .. }) = &spec.task;
    let (gpus, most) = (spec.resources.gpus, training.batch_size);
    if u32::from(gpus) > most {
        let expected = format!("at most training.batch_size = {most}, so that each has an example of every step");
        faults.push(FieldError::new("resources.gpus", gpus, expected));
    }
}

/// What is trained itself takes gradients, which codes of a few bits do not.
fn own_weights_are_floats(spec: &JobSpec, faults: &mut Faults) {
    let Task::Train(Train { training, .. }) = &spec.task;
    let word = match (training.method, training.base_dtype) {
        (Method::Full, BaseDtype::Int8) => "int8",
        (Method::Full, BaseDtype::Nf4) => "nf4",
        (Method::Lora, _) | (Method::Full, BaseDtype::Auto | BaseDtype::F32 | BaseDtype::Bf16) => return,
    };
    faults.push(FieldError::new("training.base_dtype", quoted(word), range::BASE_DTYPE_OF_FULL));
}

macro_rules! overlay {
    ($over:expr, $under:expr, $type:ident { $($key:ident),* $(,)? }) => {
        $type { $($key: $over.$key.clone().or_else(|| $under.$key.clone())),* }
    };
}

/// The file's keys over the preset's.
fn fill(file: &JobFile, preset: &str, presets: &Presets, faults: &mut Faults) -> (TrainingKeys, LoraKeys) {
    let Some((training, lora)) = presets.get(preset) else {
        let names = presets.names().collect::<Vec<_>>().join(", ");
        faults.push(FieldError::new("preset", quoted(preset), format!("one of {names}")));
        return (file.training.clone(), file.lora.clone());
    };
    let mut training = training.clone();
    if file.training.epochs.is_some() || file.training.max_steps.is_some() {
        (training.epochs, training.max_steps) = (None, None);
    }
    let training = overlay!(
        file.training,
        training,
        TrainingKeys {
            method,
            learning_rate,
            batch_size,
            micro_tokens,
            epochs,
            max_steps,
            max_seq_length,
            schedule,
            adam_beta1,
            adam_beta2,
            adam_epsilon,
            warmup_ratio,
            weight_decay,
            max_grad_norm,
            shuffle,
            seed,
            validation_fraction,
            supervise,
            eval_every,
            checkpoint_every,
            base_dtype,
            early_stopping,
            sample_prompts,
            grad_norms,
        }
    );
    let lora = overlay!(
        file.lora,
        lora,
        LoraKeys {
            rank,
            alpha,
            dropout,
            target_modules,
            exclude_modules,
            layers_to_transform,
            rank_pattern,
            alpha_pattern,
            rslora,
            dora,
            init,
            plus_ratio,
        }
    );
    (training, lora)
}

fn name(file: &JobFile, faults: &mut Faults) -> String {
    match &file.name {
        Some(name) => text("name", name, faults),
        // What is wrong with either is told of itself.
        None => format!("{} on {}", file.dataset, file.base).chars().take(200).collect(),
    }
}

fn text(field: &str, value: &str, faults: &mut Faults) -> String {
    if !name::is_name(value) {
        faults.push(FieldError::new(field, quoted(value), range::NAME));
    }
    value.to_owned()
}

fn training(keys: &TrainingKeys, faults: &mut Faults) -> Training {
    let auto = WordOrNumber::Word("auto".into());
    let epoch = WordOrNumber::Word("epoch".into());
    let eval_every = keys.eval_every.as_ref().unwrap_or(&epoch);
    let checkpoint_every = keys.checkpoint_every.as_ref().unwrap_or(&WordOrNumber::Number(100));
    let micro_tokens = keys.micro_tokens.as_ref().unwrap_or(&auto);
    Training {
        method: method(keys.method.as_deref().unwrap_or("lora"), faults),
        learning_rate: range::LEARNING_RATE.check(keys.learning_rate.unwrap_or(2e-4), faults),
        batch_size: range::BATCH_SIZE.check(keys.batch_size.unwrap_or(8), faults),
        micro_tokens: range::MICRO_TOKENS.check_or_word(
            micro_tokens,
            ("auto", MicroTokens::Auto),
            MicroTokens::Tokens,
            faults,
        ),
        length: length(keys, faults),
        max_seq_length: range::MAX_SEQ_LENGTH.check(keys.max_seq_length.unwrap_or(2048), faults),
        schedule: schedule(keys.schedule.as_deref().unwrap_or("cosine"), faults),
        adam_beta1: range::ADAM_BETA1.check(keys.adam_beta1.unwrap_or(0.9), faults),
        adam_beta2: range::ADAM_BETA2.check(keys.adam_beta2.unwrap_or(0.999), faults),
        adam_epsilon: range::ADAM_EPSILON.check(keys.adam_epsilon.unwrap_or(1e-8), faults),
        warmup_ratio: range::WARMUP_RATIO.check(keys.warmup_ratio.unwrap_or(0.1), faults),
        weight_decay: range::WEIGHT_DECAY.check(keys.weight_decay.unwrap_or(0.0), faults),
        max_grad_norm: range::MAX_GRAD_NORM.check(keys.max_grad_norm.unwrap_or(1.0), faults),
        shuffle: keys.shuffle.unwrap_or(true),
        seed: range::SEED.check(keys.seed.unwrap_or(42), faults),
        validation_fraction: range::VALIDATION_FRACTION.check(keys.validation_fraction.unwrap_or(0.1), faults),
        supervise: supervise(keys.supervise.as_deref().unwrap_or("assistant"), faults),
        eval_every: range::EVAL_EVERY.check_or_word(eval_every, ("epoch", Every::Epoch), Every::Steps, faults),
        checkpoint_every: range::CHECKPOINT_EVERY.check_or_word(
            checkpoint_every,
            ("epoch", Every::Epoch),
            Every::Steps,
            faults,
        ),
        base_dtype: base_dtype(keys.base_dtype.as_deref().unwrap_or("auto"), faults),
        early_stopping: keys.early_stopping.map(|evaluations| range::EARLY_STOPPING.check(evaluations, faults)),
        sample_prompts: sample_prompts(keys.sample_prompts.as_deref(), faults),
        grad_norms: keys.grad_norms.unwrap_or(false),
    }
}

fn sample_prompts(prompts: Option<&[String]>, faults: &mut Faults) -> Vec<String> {
    let prompts = prompts.unwrap_or_default().to_vec();
    let fits = |prompt: &String| !prompt.trim().is_empty() && prompt.chars().count() <= range::PROMPT_CHARS;
    if prompts.len() > range::PROMPTS || !prompts.iter().all(fits) {
        let value = serde_json::to_string(&prompts).unwrap_or_default();
        faults.push(FieldError::new("training.sample_prompts", value, range::SAMPLE_PROMPTS));
    }
    prompts
}

fn length(keys: &TrainingKeys, faults: &mut Faults) -> TrainingLength {
    match (keys.epochs, keys.max_steps) {
        (Some(_), Some(_)) => {
            let message = "training.epochs and training.max_steps exclude each other; expected one of them";
            faults.push(FieldError::plain("training.max_steps", message));
            TrainingLength::Epochs(0)
        }
        (None, Some(steps)) => TrainingLength::Steps(range::MAX_STEPS.check(steps, faults)),
        (epochs, None) => TrainingLength::Epochs(range::EPOCHS.check(epochs.unwrap_or(5), faults)),
    }
}

fn method(word: &str, faults: &mut Faults) -> Method {
    match word {
        "lora" => Method::Lora,
        "full" => Method::Full,
        _ => wrong_word("training.method", word, &[], range::METHOD, Method::Lora, faults),
    }
}

fn schedule(word: &str, faults: &mut Faults) -> Schedule {
    match word {
        "cosine" => Schedule::Cosine,
        "linear" => Schedule::Linear,
        "constant" => Schedule::Constant,
        "wsd" => Schedule::Wsd,
        _ => wrong_word("training.schedule", word, &[], range::SCHEDULE, Schedule::Cosine, faults),
    }
}

fn supervise(word: &str, faults: &mut Faults) -> Supervise {
    match word {
        "assistant" => Supervise::Assistant,
        "last" => Supervise::Last,
        "completion" => Supervise::Completion,
        "all" => Supervise::All,
        _ => wrong_word("training.supervise", word, &[], range::SUPERVISE, Supervise::All, faults),
    }
}

fn base_dtype(word: &str, faults: &mut Faults) -> BaseDtype {
    match word {
        "auto" => BaseDtype::Auto,
        "f32" => BaseDtype::F32,
        "bf16" => BaseDtype::Bf16,
        "int8" => BaseDtype::Int8,
        "nf4" => BaseDtype::Nf4,
        _ => wrong_word("training.base_dtype", word, &[], range::BASE_DTYPE, BaseDtype::Auto, faults),
    }
}

/// A word that is none of those expected: either one of a later version, or none at all.
fn wrong_word<T>(field: &str, word: &str, later: &[&str], expected: &str, fallback: T, faults: &mut Faults) -> T {
    let not_yet = later.contains(&word);
    let value = quoted(word);
    faults.push(if not_yet { FieldError::not_yet(field, value) } else { FieldError::new(field, value, expected) });
    fallback
}

fn data(keys: &DataKeys, faults: &mut Faults) -> DataFilter {
    let tiers = marks("data.tiers", keys.tiers.as_deref(), range::TIERS, faults);
    for tier in tiers.iter().filter(|tier| !range::TIER_NAMES.contains(&tier.as_str())) {
        faults.push(FieldError::new("data.tiers", quoted(tier), range::TIERS));
    }
    DataFilter {
        quality_min: keys.quality_min.map(|least| range::QUALITY_MIN.check(least, faults)),
        tiers,
        human_reviewed: keys.human_reviewed,
        personas: marks("data.personas", keys.personas.as_deref(), range::MARKS, faults),
        arcs: marks("data.arcs", keys.arcs.as_deref(), range::MARKS, faults),
        topics: marks("data.topics", keys.topics.as_deref(), range::MARKS, faults),
    }
}

/// A list of names; an empty one would leave out everything or nothing, depending on who reads it.
fn marks(field: &str, names: Option<&[String]>, expected: &str, faults: &mut Faults) -> Vec<String> {
    let names = names.map(<[String]>::to_vec);
    let fits = |name: &String| !name.trim().is_empty() && name.chars().count() <= 200;
    if names.as_ref().is_some_and(|names| names.is_empty() || names.len() > 100 || !names.iter().all(fits)) {
        faults.push(FieldError::new(field, serde_json::to_string(&names).unwrap_or_default(), expected));
    }
    names.unwrap_or_default()
}

fn lora(keys: &LoraKeys, faults: &mut Faults) -> Lora {
    let (ranks, alphas) = (keys.rank_pattern.iter().flatten(), keys.alpha_pattern.iter().flatten());
    Lora {
        rank: range::RANK.check(keys.rank.unwrap_or(16), faults),
        alpha: range::ALPHA.check(keys.alpha.unwrap_or(32.0), faults),
        dropout: range::DROPOUT.check(keys.dropout.unwrap_or(0.1), faults),
        target_modules: targets(keys.target_modules.as_ref(), faults),
        exclude_modules: excluded(keys.exclude_modules.as_ref(), faults),
        layers_to_transform: keys.layers_to_transform.clone().unwrap_or_default(),
        rank_pattern: ranks.map(|(name, rank)| (name.clone(), range::PATTERN_RANK.check(*rank, faults))).collect(),
        alpha_pattern: alphas.map(|(name, alpha)| (name.clone(), range::PATTERN_ALPHA.check(*alpha, faults))).collect(),
        rslora: keys.rslora.unwrap_or(false),
        dora: keys.dora.unwrap_or(false),
        init: init(keys.init.as_deref().unwrap_or("default"), faults),
        plus_ratio: keys.plus_ratio.map(|ratio| range::PLUS_RATIO.check(ratio, faults)),
    }
}

fn init(word: &str, faults: &mut Faults) -> LoraInit {
    match word {
        "default" => LoraInit::Default,
        "pissa" => LoraInit::Pissa,
        _ => wrong_word("lora.init", word, &[], range::INIT, LoraInit::Default, faults),
    }
}

fn excluded(keys: Option<&Targets>, faults: &mut Faults) -> Option<TargetModules> {
    match keys? {
        Targets::Pattern(text) if !text.is_empty() => Some(TargetModules::Pattern(text.clone())),
        Targets::Names(names) if names.is_empty() => None,
        Targets::Names(names) if names.iter().all(|name| !name.is_empty()) => Some(TargetModules::Names(names.clone())),
        empty @ (Targets::Names(_) | Targets::Pattern(_)) => {
            let value = serde_json::to_string(empty).unwrap_or_default();
            faults.push(FieldError::new("lora.exclude_modules", value, range::EXCLUDE_MODULES));
            None
        }
    }
}

fn targets(keys: Option<&Targets>, faults: &mut Faults) -> TargetModules {
    match keys {
        None => TargetModules::AllLinear,
        Some(Targets::Pattern(text)) if text == "all-linear" => TargetModules::AllLinear,
        Some(Targets::Pattern(text)) if text.len() > range::PATTERN_BYTES => {
            let expected = format!("a regular expression of at most {} bytes", range::PATTERN_BYTES);
            faults.push(FieldError::new("lora.target_modules", quoted(text), expected));
            TargetModules::AllLinear
        }
        Some(Targets::Names(names))
            if names.len() > range::TARGETS || names.iter().any(|name| name.len() > range::TARGET_BYTES) =>
        {
            let expected = format!("at most {} names of at most {} bytes", range::TARGETS, range::TARGET_BYTES);
            faults.push(FieldError::new("lora.target_modules", format!("{} names", names.len()), expected));
            TargetModules::AllLinear
        }
        Some(Targets::Pattern(text)) if !text.is_empty() => TargetModules::Pattern(text.clone()),
        Some(Targets::Names(names)) if !names.is_empty() && names.iter().all(|name| !name.is_empty()) => {
            TargetModules::Names(names.clone())
        }
        Some(empty) => {
            let value = serde_json::to_string(empty).unwrap_or_default();
            faults.push(FieldError::new("lora.target_modules", value, range::TARGET_MODULES));
            TargetModules::AllLinear
        }
    }
}

fn resources(keys: &ResourceKeys, faults: &mut Faults) -> Resources {
    Resources {
        gpus: range::GPUS.check(keys.gpus.unwrap_or(1), faults),
        gpu: gpu("resources.gpu", keys.gpu.as_ref(), faults),
        min_driver: keys
            .min_driver
            .as_deref()
            .and_then(|text| or_fault(Driver::parse(text), "resources.min_driver", text, range::MIN_DRIVER, faults)),
        labels: labels("resources.labels", keys.labels.clone().unwrap_or_default(), faults),
        prefer: keys.prefer.as_ref().map(|keys| prefer(keys, faults)).unwrap_or_default(),
        exclusive: keys.exclusive.unwrap_or(true),
        max_runtime: range::MAX_RUNTIME.check(keys.max_runtime.as_deref().unwrap_or("24h"), faults),
    }
}

fn prefer(keys: &PreferKeys, faults: &mut Faults) -> Prefer {
    Prefer {
        gpu: keys.gpu.as_ref().map(|keys| gpu("resources.prefer.gpu", Some(keys), faults)),
        labels: labels("resources.prefer.labels", keys.labels.clone(), faults),
    }
}

fn gpu(field: &str, keys: Option<&GpuKeys>, faults: &mut Faults) -> GpuRequest {
    match keys {
        None => GpuRequest::Any,
        Some(GpuKeys::Name(name)) if name == "any" => GpuRequest::Any,
        Some(GpuKeys::Name(name)) => GpuRequest::Named(text(field, name, faults)),
        Some(GpuKeys::Least(least)) => least_gpu(field, least, faults),
    }
}

fn least_gpu(field: &str, least: &LeastGpu, faults: &mut Faults) -> GpuRequest {
    let min_memory_bytes = least.min_memory.as_deref().and_then(|text| {
        // What is too large for 64 bits is read as the largest number there is.
        let parsed =
            text.parse::<ByteSize>().ok().map(|size| size.as_u64()).filter(|bytes| (1..u64::MAX).contains(bytes));
        or_fault(parsed, &format!("{field}.min_memory"), text, "a size like \"40GiB\"", faults)
    });
    let min_compute = least.min_compute.as_deref().and_then(|text| {
        let parsed = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        or_fault(parsed, &format!("{field}.min_compute"), text, "a compute capability like \"8.0\"", faults)
    });
    GpuRequest::Least { min_memory_bytes, min_compute }
}

fn or_fault<T>(parsed: Option<T>, field: &str, text: &str, expected: &str, faults: &mut Faults) -> Option<T> {
    if parsed.is_none() {
        faults.push(FieldError::new(field, quoted(text), expected));
    }
    parsed
}

/// Labels are compared with those of nodes, which are short words; a job has no use for more than a handful.
fn labels(field: &str, labels: BTreeMap<String, String>, faults: &mut Faults) -> BTreeMap<String, String> {
    let fits = |text: &String| !text.is_empty() && text.len() <= 128 && is_plain(text);
    if labels.len() > 64 || !labels.iter().all(|(key, value)| fits(key) && fits(value)) {
        let value = serde_json::to_string(&labels).unwrap_or_default();
        let expected = "at most 64 labels, keys and values of 1…128 bytes";
        faults.push(FieldError::new(field, value, expected));
    }
    labels
}

fn policy(keys: &PolicyKeys, faults: &mut Faults) -> Policy {
    Policy {
        retries: range::RETRIES.check(keys.retries.unwrap_or(2), faults),
        lost_after: range::LOST_AFTER.check(keys.lost_after.as_deref().unwrap_or("5m"), faults),
        on_lost: on_lost(keys.on_lost.as_deref().unwrap_or("requeue"), faults),
        // Nothing is charged for yet, so nothing could be limited: `read` refuses the key.
        max_cost_micros: None,
    }
}

fn on_lost(word: &str, faults: &mut Faults) -> OnLost {
    match word {
        "requeue" => OnLost::Requeue,
        "wait" => OnLost::Wait,
        "fail" => OnLost::Fail,
        _ => wrong_word("policy.on_lost", word, &[], range::ON_LOST, OnLost::Requeue, faults),
    }
}
