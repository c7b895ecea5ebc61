//! Everything before the first step: data, memory plan, base, and the newest checkpoint if there is one.

use std::fs;
use std::path::Path;
use std::time::Instant;

use lorikeet_dataset::{DatasetError, Prepared, Tokenizer, prepare};
use lorikeet_plan::{AdapterShape, MemoryPlan, ModelConfig, parameters};

use super::{Events, Run, Session, memory};
use crate::checkpoint::{self, Found, Identity};
use crate::config::{Config, MicroTokens};
use crate::event::{Event, Level, Outcome, Plan, Stage};
use crate::lora;
use crate::model::Model;
use crate::staged;
use crate::stop::{Stop, Wish};
use crate::{TrainError, Trained};

/// Tokens per micro-batch that are tried, the fastest first; beyond the first nothing is gained.
const MICRO_TOKENS: [usize; 4] = [2048, 1024, 512, 256];

pub(super) fn session<'a, 'e>(
    config: &'a Config,
    stop: &'a Stop,
    events: &'a mut Events<'e>,
) -> Result<Session<'a, 'e>, TrainError> {
    let mut tell = |event| events(event).map_err(TrainError::Report);
    let shape = model_config(&config.base)?;
    let trained = Trained::new(&shape, &config.settings)?;
    let found = find_checkpoint(config, &mut tell)?;

    tell(Event::Stage(Stage::Data))?;
    let tokenizer = read_tokenizer(config, &shape)?;
    let data = prepare(&config.prepare(), &tokenizer, &mut |_| {}, &|| stop.is_asked())?;
    for warning in &data.report.warnings {
        tell(Event::Log { level: Level::Warning, message: warning.clone() })?;
    }
    let planned = found.as_ref().map(checkpoint::read_saved).transpose()?.map(|saved| saved.micro_tokens);
    let (micro_tokens, memory) = plan_memory(config, &shape, trained.shape(), &data, planned)?;

    tell(Event::Stage(Stage::Loading))?;
    let mut model = Model::load_unless(&config.base, &|| stop.is_asked())?;
    let params = match (&trained, config.init_adapter.as_deref()) {
        (Trained::Adapter(layout), Some(dir)) => lora::load(dir, layout)?,
        (Trained::Adapter(layout), None) => model.start(layout, config.settings.seed),
        (Trained::Model(layout), _) => model.weights(layout),
    };
    let watched = matches!(trained, Trained::Adapter(_)).then(|| params.clone());
    let mut run = Run::new(&config.settings, trained, params, data.train.clone());
    let identity = Identity {
        settings: config.settings.clone(),
        data: data.report.fingerprint.clone(),
        base: base_fingerprint(&config.base)?,
    };
    if let Some(found) = &found {
        let (_, differing) = checkpoint::restore(found, &mut run, &identity)?;
        let message = [vec![format!("goes on from {}", found.name())], differing].concat().join("; ");
        tell(Event::Log { level: Level::Info, message })?;
    }
    let start = watched.filter(|_| !run.is_past_movement());
    run.put_into(&mut model);
    if stop.is_asked() {
        return Err(TrainError::Stopped);
    }
    tell(Event::Plan(what_will_be_done(&run, &data, &shape, micro_tokens, memory)))?;
    let saved = found.map(|found| found.manifest.step);
    let saved_at = Instant::now();
    Ok(Session { config, stop, events, model, data, tokenizer, run, start, micro_tokens, identity, saved, saved_at })
}

/// Told to stop before there was a run: what is on disk is the state.
pub(super) fn stopped_early(config: &Config, stop: &Stop) -> Result<Outcome, TrainError> {
    let found = checkpoint::newest(&config.out.join("checkpoints"), &mut |_| {})?;
    let step = found.as_ref().map_or(0, |found| found.manifest.step);
    let checkpoint = found.filter(|_| stop.wish() != Wish::Discard).map(|found| found.name());
    Ok(Outcome::Stopped { step, checkpoint })
}

fn find_checkpoint(
    config: &Config,
    tell: &mut dyn FnMut(Event) -> Result<(), TrainError>,
) -> Result<Option<Found>, TrainError> {
    let mut rejected = Vec::new();
    let found = checkpoint::newest(&config.out.join("checkpoints"), &mut |error| rejected.push(error.to_string()))?;
    for reason in rejected {
        tell(Event::Log { level: Level::Warning, message: format!("passed over: {reason}") })?;
    }
    Ok(found)
}

fn model_config(base: &Path) -> Result<ModelConfig, TrainError> {
    let path = base.join("config.json");
    let text = fs::read_to_string(&path)
        .map_err(|error| TrainError::Base { path: path.clone(), reason: format!("cannot be read: {error}") })?;
    ModelConfig::parse(&text).map_err(|error| TrainError::Base { path, reason: error.to_string() })
}

fn read_tokenizer(config: &Config, shape: &ModelConfig) -> Result<Tokenizer, TrainError> {
    Tokenizer::load(&config.base)
        .and_then(|tokenizer| tokenizer.check_fits(shape.vocab_size).map(|()| tokenizer))
        .map_err(|error| TrainError::Base { path: config.base.clone(), reason: error.to_string() })
}

impl From<DatasetError> for TrainError {
    fn from(error: DatasetError) -> TrainError {
        match error {
            DatasetError::Stopped => TrainError::Stopped,
            DatasetError::Read { path, source } => TrainError::Io { verb: "read", path, source },
            DatasetError::UnknownFormat { .. }
            | DatasetError::Filters { .. }
            | DatasetError::Faulty { .. }
            | DatasetError::Empty { .. }
            | DatasetError::Split { .. }
            | DatasetError::Cache { .. } => TrainError::Dataset { reason: error.to_string() },
        }
    }
}

/// The micro-batch of this run and the memory it takes. A resumed run keeps the plan it began with: its bits depend on it.
fn plan_memory(
    config: &Config,
    shape: &ModelConfig,
    trained: AdapterShape,
    data: &Prepared,
    planned: Option<usize>,
) -> Result<(usize, MemoryPlan), TrainError> {
    let longest = data.report.longest_example as usize;
    let cost = |tokens: usize| memory::plan_for(shape, trained, tokens.max(longest), longest);
    let fixed = planned.or(match config.micro_tokens {
        MicroTokens::Tokens(tokens) => Some(tokens),
        MicroTokens::Auto => None,
    });
    let available = memory::allowed_bytes(config.memory_limit);
    let fits = |tokens: &usize| available.is_none_or(|bytes| cost(*tokens).total <= bytes);
    let tokens = fixed.or_else(|| MICRO_TOKENS.into_iter().find(fits)).unwrap_or(1);
    let memory = cost(tokens);
    match available {
        Some(available_bytes) if memory.total > available_bytes => Err(TrainError::OutOfMemory {
            what: format!("{} tokens at a time", tokens.max(longest)),
            needed_bytes: memory.total,
            available_bytes,
        }),
        Some(_) | None => Ok((tokens, memory)),
    }
}

/// Names a base by its config and the names and sizes of its weights: enough to tell models apart without reading them.
fn base_fingerprint(base: &Path) -> Result<String, TrainError> {
    let config = base.join("config.json");
    let mut hasher = blake3::Hasher::new();
    hasher.update(&fs::read(&config).map_err(TrainError::io("read", &config))?);
    for name in staged::file_names(base)?.iter().filter(|name| name.ends_with(".safetensors")) {
        let path = base.join(name);
        let size = fs::metadata(&path).map_err(TrainError::io("read", &path))?.len();
        hasher.update(name.as_bytes()).update(&size.to_le_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn what_will_be_done(run: &Run, data: &Prepared, shape: &ModelConfig, micro_tokens: usize, memory: MemoryPlan) -> Plan {
    let report = &data.report;
    Plan {
        examples: run.numbers.examples,
        validation_examples: data.validation.len() as u64,
        conversations: report.conversations,
        total_steps: run.numbers.total_steps,
        warmup_steps: run.numbers.warmup_steps,
        epoch_tokens: report.train_tokens,
        supervised_tokens: report.train_supervised_tokens,
        longest_tokens: report.longest_example,
        cut_examples: report.cut.examples,
        cut_tokens: report.cut.tokens,
        trainable_parameters: run.trained.trained() as u64,
        base_parameters: parameters(shape),
        micro_tokens: micro_tokens as u64,
        memory_bytes: memory.total,
        from_step: run.state.step,
    }
}
