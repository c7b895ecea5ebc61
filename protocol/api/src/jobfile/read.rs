//! From text to [`JobFile`]: types and names of keys. TOML and JSON become the same tree first, so that they cannot differ.

use super::{DataKeys, FieldError, JobFile, LoraKeys, PolicyKeys, Presets, ResourceKeys, TrainingKeys, range, sweep};
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};
use std::{collections::BTreeMap, ops::Range};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// TOML as a tree.
pub(super) fn toml(text: &str) -> Result<Value, FieldError> {
    let table = DeTable::parse(text).map_err(|error| syntax(text, error.message(), error.span()))?;
    Ok(Value::Object(object(table.get_ref())))
}

fn syntax(text: &str, message: &str, span: Option<Range<usize>>) -> FieldError {
    let line = span.map(|span| line_of(text, span.start));
    FieldError { line, ..FieldError::plain("", format!("not valid TOML: {}", message.replace('\n', ", "))) }
}

fn line_of(text: &str, offset: usize) -> u64 {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count() as u64
}

fn object(table: &DeTable<'_>) -> Map<String, Value> {
    table.iter().map(|(key, value)| (key.get_ref().to_string(), tree(value.get_ref()))).collect()
}

fn tree(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            let digits = number.as_str();
            i64::from_str_radix(digits, number.radix()).map_or_else(|_| Value::String(digits.into()), Value::from)
        }
        // inf and nan have no place in JSON; as words they are refused like any other word.
        DeValue::Float(number) => {
            let parsed = number.as_str().parse().ok().and_then(Number::from_f64);
            parsed.map_or_else(|| Value::String(number.as_str().into()), Value::Number)
        }
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(moment) => Value::String(moment.to_string()),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| tree(item.get_ref())).collect()),
        DeValue::Table(table) => Value::Object(object(table)),
    }
}

/// The line of every key, by its dotted name.
pub(super) fn lines(text: &str) -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    if let Ok(table) = DeTable::parse(text) {
        collect_lines(text, "", table.get_ref(), &mut lines);
    }
    lines
}

fn collect_lines(text: &str, prefix: &str, table: &DeTable<'_>, lines: &mut BTreeMap<String, u64>) {
    for (key, value) in table {
        let name = join(prefix, key.get_ref());
        lines.insert(name.clone(), line_of(text, Spanned::span(key).start));
        if let DeValue::Table(inner) = value.get_ref() {
            collect_lines(text, &name, inner, lines);
        }
    }
}

/// The dotted name of a key.
pub(super) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

/// Puts `value`, as TOML writes it, at the dotted `key`.
pub(super) fn set(tree: &mut Value, key: &str, value: &str) -> Result<(), FieldError> {
    let value = value_of(key, value)?;
    // A section is no value: what it does not name stays as it is.
    if let (Value::Object(keys), false) = (&value, key.contains('.')) {
        return keys.iter().try_for_each(|(name, value)| put(tree, &join(key, name), value.clone()));
    }
    put(tree, key, value)
}

/// Puts `value` at the dotted `key`.
pub(super) fn put(tree: &mut Value, key: &str, value: Value) -> Result<(), FieldError> {
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().filter(|last| !last.is_empty());
    let last = last.ok_or_else(|| FieldError::plain(key, format!("`{key}` is no key; expected KEY=VALUE")))?;
    let mut place = tree;
    for part in parts {
        let table = place.as_object_mut().ok_or_else(|| FieldError::plain(key, format!("{key} is unknown")))?;
        place = table.entry(part).or_insert_with(|| Value::Object(Map::new()));
    }
    let table = place.as_object_mut().ok_or_else(|| FieldError::plain(key, format!("{key} is unknown")))?;
    match key {
        "training.epochs" => _ = table.remove("max_steps"),
        "training.max_steps" => _ = table.remove("epochs"),
        _ => {}
    }
    table.insert(last.to_owned(), value);
    Ok(())
}

/// A value as TOML writes it; what is none there is a bare word, unless it begins as a text or a list does.
fn value_of(key: &str, text: &str) -> Result<Value, FieldError> {
    match DeValue::parse(text) {
        Ok(value) => Ok(tree(value.get_ref())),
        Err(error) if text.starts_with(['"', '\'', '[']) => {
            let hint = if text.contains('\\') { " (a backslash is kept in '…')" } else { "" };
            Err(FieldError::plain(key, format!("{key}: {text} is no value in TOML: {}{hint}", error.message())))
        }
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

/// The whole file. When something is wrong with it, the ranges of what could be read are judged as well: a person sees all faults
/// at once. A preset may be unknown here and known elsewhere.
pub(super) fn job_file(value: &Value) -> Result<JobFile, Vec<FieldError>> {
    let mut faults = Vec::new();
    let file = Table::open("", Some(value), &mut faults).map(|top| read_top(top, &mut faults));
    let Some(file) = file else { return Err(faults) };
    if faults.is_empty() {
        return Ok(file);
    }
    let named = |fault: &FieldError| fault.field == "preset" || faults.iter().any(|known| known.field == fault.field);
    let ranges = file.resolve(&Presets::embedded()).err().unwrap_or_default();
    let ranges: Vec<_> = ranges.into_iter().filter(|fault| !named(fault)).collect();
    Err([faults, ranges].concat())
}

/// A preset: `[training]` and `[lora]` of a job file.
pub(super) fn preset(value: &Value) -> Result<(TrainingKeys, LoraKeys), Vec<FieldError>> {
    let mut faults = Vec::new();
    let Some(mut top) = Table::open("", Some(value), &mut faults) else { return Err(faults) };
    let keys = (section(&mut top, "training", training, &mut faults), section(&mut top, "lora", lora, &mut faults));
    top.close(&[], &mut faults);
    if faults.is_empty() { Ok(keys) } else { Err(faults) }
}

fn read_top(mut top: Table, faults: &mut Vec<FieldError>) -> JobFile {
    let file = JobFile {
        name: top.take("name", range::NAME, faults),
        base: top.require("base", "the name or id of a base model", faults),
        dataset: top.require("dataset", "the name or id of a dataset", faults),
        init_adapter: top.take("init_adapter", range::INIT_ADAPTER, faults),
        preset: top.take("preset", "the name of a preset", faults),
        priority: top.take("priority", &range::PRIORITY.expected(), faults),
        after: top.take("after", range::AFTER, faults),
        hold: top.take("hold", "true or false", faults),
        not_before: top.take("not_before", range::NOT_BEFORE, faults),
        training: section(&mut top, "training", training, faults),
        data: section(&mut top, "data", data, faults),
        lora: section(&mut top, "lora", lora, faults),
        resources: section(&mut top, "resources", resources, faults),
        policy: section(&mut top, "policy", policy, faults),
        sweep: sweep::read_keys(top.left.remove("sweep"), faults),
    };
    top.known.push("sweep".to_owned());
    top.close(&[], faults);
    file
}

fn training(table: &mut Table, faults: &mut Vec<FieldError>) -> TrainingKeys {
    TrainingKeys {
        method: table.take("method", range::METHOD, faults),
        learning_rate: table.take("learning_rate", &range::LEARNING_RATE.expected(), faults),
        batch_size: table.take("batch_size", &range::BATCH_SIZE.expected(), faults),
        micro_tokens: table.take("micro_tokens", &range::MICRO_TOKENS.or_word("auto"), faults),
        epochs: table.take("epochs", &range::EPOCHS.expected(), faults),
        max_steps: table.take("max_steps", &range::MAX_STEPS.expected(), faults),
        max_seq_length: table.take("max_seq_length", &range::MAX_SEQ_LENGTH.expected(), faults),
        schedule: table.take("schedule", range::SCHEDULE, faults),
        adam_beta1: table.take("adam_beta1", &range::ADAM_BETA1.expected(), faults),
        adam_beta2: table.take("adam_beta2", &range::ADAM_BETA2.expected(), faults),
        adam_epsilon: table.take("adam_epsilon", &range::ADAM_EPSILON.expected(), faults),
        warmup_ratio: table.take("warmup_ratio", &range::WARMUP_RATIO.expected(), faults),
        weight_decay: table.take("weight_decay", &range::WEIGHT_DECAY.expected(), faults),
        max_grad_norm: table.take("max_grad_norm", &range::MAX_GRAD_NORM.expected(), faults),
        shuffle: table.take("shuffle", "true or false", faults),
        seed: table.take("seed", &range::SEED.expected(), faults),
        validation_fraction: table.take("validation_fraction", &range::VALIDATION_FRACTION.expected(), faults),
        supervise: table.take("supervise", range::SUPERVISE, faults),
        eval_every: table.take("eval_every", &range::EVAL_EVERY.or_word("epoch"), faults),
        checkpoint_every: table.take("checkpoint_every", &range::CHECKPOINT_EVERY.or_word("epoch"), faults),
        base_dtype: table.take("base_dtype", range::BASE_DTYPE, faults),
        early_stopping: table.take("early_stopping", &range::EARLY_STOPPING.expected(), faults),
        sample_prompts: table.take("sample_prompts", range::SAMPLE_PROMPTS, faults),
        grad_norms: table.take("grad_norms", "true or false", faults),
    }
}

fn data(table: &mut Table, faults: &mut Vec<FieldError>) -> DataKeys {
    DataKeys {
        quality_min: table.take("quality_min", &range::QUALITY_MIN.expected(), faults),
        tiers: table.take("tiers", range::TIERS, faults),
        human_reviewed: table.take("human_reviewed", "true or false", faults),
        personas: table.take("personas", range::MARKS, faults),
        arcs: table.take("arcs", range::MARKS, faults),
        topics: table.take("topics", range::MARKS, faults),
        validation_dataset: table.take("validation_dataset", range::VALIDATION_DATASET, faults),
    }
}

fn lora(table: &mut Table, faults: &mut Vec<FieldError>) -> LoraKeys {
    LoraKeys {
        rank: table.take("rank", &range::RANK.expected(), faults),
        alpha: table.take("alpha", &range::ALPHA.expected(), faults),
        dropout: table.take("dropout", &range::DROPOUT.expected(), faults),
        target_modules: table.take("target_modules", range::TARGET_MODULES, faults),
        exclude_modules: table.take("exclude_modules", range::EXCLUDE_MODULES, faults),
        layers_to_transform: table.take("layers_to_transform", range::LAYERS_TO_TRANSFORM, faults),
        rank_pattern: table.take("rank_pattern", range::RANK_PATTERN, faults),
        alpha_pattern: table.take("alpha_pattern", range::ALPHA_PATTERN, faults),
        rslora: table.take("rslora", "true or false", faults),
        dora: table.take("dora", "true or false", faults),
        init: table.take("init", range::INIT, faults),
        plus_ratio: table.take("plus_ratio", &range::PLUS_RATIO.expected(), faults),
    }
}

fn resources(table: &mut Table, faults: &mut Vec<FieldError>) -> ResourceKeys {
    ResourceKeys {
        gpus: table.take("gpus", &range::GPUS.expected(), faults),
        gpu: table.take("gpu", range::GPU, faults),
        min_driver: table.take("min_driver", range::MIN_DRIVER, faults),
        labels: table.take("labels", "a table of strings", faults),
        prefer: table.take("prefer", range::PREFER, faults),
        exclusive: table.take("exclusive", "true or false", faults),
        max_runtime: table.take("max_runtime", &range::MAX_RUNTIME.expected(), faults),
    }
}

fn policy(table: &mut Table, faults: &mut Vec<FieldError>) -> PolicyKeys {
    let keys = PolicyKeys {
        retries: table.take("retries", &range::RETRIES.expected(), faults),
        lost_after: table.take("lost_after", &range::LOST_AFTER.expected(), faults),
        on_lost: table.take("on_lost", range::ON_LOST, faults),
    };
    table.refuse(&["max_cost"], faults);
    keys
}

/// A table whose keys are taken one by one; what is left at the end is unknown.
struct Table {
    path: String,
    left: Map<String, Value>,
    /// Every key that was asked for, those of inner tables too, to tell what an unknown one may have meant.
    known: Vec<String>,
}

impl Table {
    fn open(path: &str, value: Option<&Value>, faults: &mut Vec<FieldError>) -> Option<Self> {
        let left = match value {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(other) => {
                let name = if path.is_empty() { "the job file" } else { path };
                faults.push(FieldError { field: path.into(), ..FieldError::new(name, other, "a table") });
                return None;
            }
        };
        Some(Self { path: path.to_owned(), left, known: Vec::new() })
    }

    fn take<T: DeserializeOwned>(&mut self, key: &str, expected: &str, faults: &mut Vec<FieldError>) -> Option<T> {
        self.known.push(key.to_owned());
        let value = self.left.remove(key).filter(|value| !value.is_null())?;
        let taken = T::deserialize(&value).ok();
        if taken.is_none() {
            faults.push(FieldError::new(join(&self.path, key), value, expected));
        }
        taken
    }

    fn require(&mut self, key: &str, expected: &str, faults: &mut Vec<FieldError>) -> String {
        if self.left.get(key).is_none_or(Value::is_null) {
            let name = join(&self.path, key);
            faults.push(FieldError {
                expected: Some(expected.to_owned()),
                ..FieldError::plain(name.clone(), format!("{name} is missing, expected {expected}"))
            });
        }
        self.take(key, expected, faults).unwrap_or_default()
    }

    fn refuse(&mut self, later: &[&str], faults: &mut Vec<FieldError>) {
        for key in later {
            if let Some(value) = self.left.remove(*key).filter(|value| !value.is_null()) {
                faults.push(FieldError::not_yet(join(&self.path, key), value));
            }
        }
    }

    fn close(mut self, later: &[&str], faults: &mut Vec<FieldError>) {
        self.refuse(later, faults);
        for (key, _) in self.left {
            let name = join(&self.path, &key);
            let last = |known: &String| known.rsplit_once('.').map_or(known.as_str(), |(_, last)| last).to_owned();
            let ours = of_peft(&key).unwrap_or(&key);
            let elsewhere = self.known.iter().find(|known| last(known) == ours);
            let slips = self.known.iter().filter(|known| resembles(&key, known));
            let meant = elsewhere.or_else(|| slips.min_by_key(|known| distance(&key, known)));
            let meant = meant.map(|known| join(&self.path, known));
            let meant = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
            faults.push(FieldError::plain(name.clone(), format!("{name} is unknown{meant}")));
        }
    }
}

/// What PEFT and transformers call a key of ours.
fn of_peft(key: &str) -> Option<&'static str> {
    const WORDS: [(&str, &str); 12] = [
        ("r", "rank"),
        ("lora_r", "rank"),
        ("lora_alpha", "alpha"),
        ("lora_dropout", "dropout"),
        ("use_rslora", "rslora"),
        ("use_dora", "dora"),
        ("lr", "learning_rate"),
        ("num_train_epochs", "epochs"),
        ("per_device_train_batch_size", "batch_size"),
        ("lr_scheduler_type", "schedule"),
        ("save_steps", "checkpoint_every"),
        ("max_length", "max_seq_length"),
    ];
    WORDS.into_iter().find_map(|(theirs, ours)| (theirs == key).then_some(ours))
}

/// One or two slips of the finger apart, or the beginning of it.
fn resembles(key: &str, known: &str) -> bool {
    key.len() >= 3 && (known.starts_with(key) || distance(key, known) <= 2)
}

/// Letters to add, drop or change until one is the other (Levenshtein), row by row.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], index + 1);
        for (place, same) in other.iter().map(|known| *known == letter).enumerate() {
            let changed = before + usize::from(!same);
            before = row[place + 1];
            row[place + 1] = changed.min(before + 1).min(row[place] + 1);
        }
    }
    row[other.len()]
}

fn section<T: Default>(
    top: &mut Table,
    name: &str,
    read: impl FnOnce(&mut Table, &mut Vec<FieldError>) -> T,
    faults: &mut Vec<FieldError>,
) -> T {
    top.known.push(name.to_owned());
    let value = top.left.remove(name);
    let Some(mut table) = Table::open(name, value.as_ref(), faults) else { return T::default() };
    let keys = read(&mut table, faults);
    // So that a key that stands outside its table is told where it belongs.
    top.known.extend(table.known.iter().map(|key| join(name, key)));
    table.close(&[], faults);
    keys
}
