//! Everything before the first step: data, memory plan, base, and the newest checkpoint if there is one. A follower has the
//! leader's state in its place.

use std::cell::OnceCell;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lorikeet_dataset::{DatasetError, Prepared, Progress, Tokenizer, prepare};
use lorikeet_plan::{Fitted, MAX_CONFIG_BYTES, ModelConfig, parameters, read_text};

use super::memory::{self, Needs, Thrift};
use super::{Events, Run, Session, State, fingerprint};
use crate::checkpoint::{self, Found, Identity};
use crate::config::{Config, Device, MicroTokens, Numbers, Settings};
use crate::event::{Event, Level, Outcome, Plan, Reached, Stage};
use crate::lora;
use crate::model::{Model, read_weights, refusable_for};
use crate::ops::machine::Machine;
use crate::ranks::Ranks;
use crate::stop::{Stop, Wish};
use crate::{TrainError, Trained};

/// Between two words on how far the data are.
const SPEAKS_EVERY: Duration = Duration::from_secs(60);

pub(super) fn session<'a, 'e>(
    config: &'a Config,
    mut ranks: Ranks,
    stop: &'a Stop,
    events: &'a mut Events<'e>,
) -> Result<Session<'a, 'e>, TrainError> {
    let mut tell = |event| events(event).map_err(TrainError::Report);
    let (shape, trained) = what_is_trained(config)?;
    let machine = machine(config)?;
    let found = find_checkpoint(config, &mut tell)?;

    tell(Event::Stage(Stage::Data))?;
    let (tokenizer, data) = read_data_aloud(config, &shape, stop, SPEAKS_EVERY, &mut tell)?;
    for warning in &data.report.warnings {
        tell(Event::Log { level: Level::Warning, message: warning.clone() })?;
    }
    let saved = found.as_ref().map(checkpoint::read_saved).transpose()?;
    let needs = Needs::new(&shape, trained.shape(), &data, config);
    let available = memory::available(&machine, config.memory_limit)?;
    let fitted = plan_memory(config, &needs, (saved.as_ref().map(|saved| saved.micro_tokens), available), &mut tell)?;
    let thrift = Thrift { micro_tokens: fitted.micro_tokens, recompute: fitted.recompute };
    let state = saved.map(|saved| saved.state).unwrap_or_default();
    tell(Event::Plan(what_will_be_done(config, &trained, &data, &shape, fitted, &state)))?;

    tell(Event::Stage(Stage::Loading))?;
    let mut model = load(config, machine, stop)?;
    model.set_recompute(thrift.recompute);
    let params = match (&trained, config.init_adapter.as_deref()) {
        (Trained::Adapter(layout), Some(dir)) => lora::load(dir, layout)?,
        (Trained::Adapter(layout), None) => {
            refusable_for(|| "the adapter's start".into(), || Ok(model.start(layout, config.settings.seed)))?
        }
        (Trained::Model(layout), _) => read_weights(&config.base, layout, &|| stop.is_asked())?,
    };
    let mut run = Run::new(&config.settings, trained, params, data.train.clone());
    let identity = Identity {
        settings: config.settings.clone(),
        data: data.report.fingerprint.clone(),
        base: fingerprint::of_shapes(&config.base)?,
        weights: Some(fingerprint::of_weights(&config.base, &|| stop.is_asked())?),
    };
    if let Some(found) = &found {
        let (_, differing) = checkpoint::restore(found, &mut run, &identity)?;
        let message = [vec![format!("goes on from {}", found.name())], differing].concat().join("; ");
        tell(Event::Log { level: Level::Info, message })?;
    }
    if stop.is_asked() {
        return Err(TrainError::Stopped);
    }
    if let Some(why) = ranks.begin(&run, model.machine(), &|| stop.is_asked())? {
        let message = format!("{why}, gradients go through main memory");
        tell(Event::Log { level: Level::Warning, message })?;
    }
    run.settle(&model)?;
    run.put_into(&mut model)?;
    let saved = found.map(|found| found.manifest.step);
    let saved_at = Instant::now();
    Ok(Session { config, stop, events, model, data, tokenizer, run, ranks, needs, thrift, identity, saved, saved_at })
}

/// The leader's run in this process. The base is read while the leader prepares, the data when that is done: its tokens are
/// in the cache then.
pub(super) fn follower(config: &Config, leader: UnixStream, stop: &Stop) -> Result<(Model, Run, Ranks), TrainError> {
    let is_stopped = || stop.is_asked();
    let (shape, trained) = what_is_trained(config)?;
    let mut model = load(config, machine(config)?, stop)?;
    let (mut ranks, state, meeting) = Ranks::follow(leader, &is_stopped)?;
    let (_, data) = read_data(config, &shape, &mut |_| {}, &is_stopped)?;
    let nothing = vec![0.0; trained.len()];
    let mut run = Run::new(&config.settings, trained, nothing, data.train);
    ranks.take_up(&mut run, &is_stopped)?;
    if let Some(meeting) = meeting {
        ranks.meet(model.machine(), &meeting, &is_stopped)?;
    }
    run.state = state;
    run.settle(&model)?;
    run.put_into(&mut model)?;
    Ok((model, run, ranks))
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
    let (path, mut rejected) = (config.out.join("checkpoints"), Vec::new());
    let found = checkpoint::newest(&path, &mut |error| rejected.push(error))?;
    if config.must_go_on && found.is_none() {
        nothing_to_go_on_from(path, &mut rejected)?;
    }
    for error in rejected {
        tell(Event::Log { level: Level::Warning, message: format!("passed over: {error}") })?;
    }
    Ok(found)
}

/// One that is there and could not be read may be whole: that is said, for what is over by the next attempt ends no job.
fn nothing_to_go_on_from(path: PathBuf, rejected: &mut Vec<TrainError>) -> Result<(), TrainError> {
    let is_there =
        |error: &TrainError| matches!(error, TrainError::Io { source, .. } if source.kind() != ErrorKind::NotFound);
    if let Some(unread) = rejected.iter().position(is_there) {
        return Err(rejected.swap_remove(unread));
    }
    if rejected.is_empty() {
        return Ok(());
    }
    let reason = rejected.iter().map(TrainError::to_string).collect::<Vec<_>>().join("; ");
    Err(TrainError::NoCheckpoint { path, reason })
}

fn what_is_trained(config: &Config) -> Result<(ModelConfig, Trained), TrainError> {
    let shape = model_config(&config.base)?;
    let trained = Trained::new(&shape, &config.settings)?;
    if let (Trained::Model(_), Some(found)) = (&trained, shape.quantisation) {
        let reason = format!("full trains the base's weights, and those are quantised to {}", found.dtype().name());
        return Err(TrainError::Config { key: "training.method", reason });
    }
    config.device.takes(&shape, &config.settings)?;
    Ok((shape, trained))
}

/// Opens what the run computes on.
fn machine(config: &Config) -> Result<Machine, TrainError> {
    match config.device {
        Device::Cpu => Ok(Machine::default()),
        Device::Gpu(ordinal) => Machine::gpu(ordinal),
    }
}

/// As below, and tells now and then how far it is: a run that says nothing for long is taken for one that hangs, and a large set takes hours.
fn read_data_aloud(
    config: &Config,
    shape: &ModelConfig,
    stop: &Stop,
    every: Duration,
    tell: &mut dyn FnMut(Event) -> Result<(), TrainError>,
) -> Result<(Tokenizer, Prepared), TrainError> {
    let (refused, mut told) = (OnceCell::new(), Instant::now());
    let mut progress = |progress: Progress| {
        if refused.get().is_none() && told.elapsed() >= every {
            told = Instant::now();
            if let Err(error) = tell(how_far(progress)) {
                refused.get_or_init(|| error);
            }
        }
    };
    let read = read_data(config, shape, &mut progress, &|| stop.is_asked() || refused.get().is_some());
    refused.into_inner().map_or(read, Err)
}

fn how_far(progress: Progress) -> Event {
    let Progress { bytes, total_bytes, examples } = progress;
    let message = format!("tokenising: {} of {} MiB, {examples} examples", bytes >> 20, total_bytes >> 20);
    Event::Log { level: Level::Info, message }
}

fn read_data(
    config: &Config,
    shape: &ModelConfig,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
) -> Result<(Tokenizer, Prepared), TrainError> {
    let tokenizer = read_tokenizer(config, shape)?;
    let data = prepare(&config.prepare(), &tokenizer, progress, stop)?;
    Ok((tokenizer, data))
}

fn load(config: &Config, machine: Machine, stop: &Stop) -> Result<Model, TrainError> {
    Model::load_on(machine, &config.base, config.settings.base_dtype, &|| stop.is_asked())
}

fn model_config(base: &Path) -> Result<ModelConfig, TrainError> {
    let path = base.join("config.json");
    let text = read_text(&path, MAX_CONFIG_BYTES)
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
            // a folder, a pipe, a device: nothing that a disk could do better another time
            DatasetError::Read { path, source } if source.kind() == ErrorKind::InvalidInput => {
                TrainError::Dataset { reason: format!("read {}: {source}", path.display()) }
            }
            DatasetError::Read { path, source } => TrainError::Io { verb: "read", path, source },
            DatasetError::Cache { verb, path, source } => TrainError::Io { verb, path, source },
            DatasetError::Damaged { path, reason } => {
                TrainError::Io { verb: "read", path, source: io::Error::new(ErrorKind::InvalidData, reason) }
            }
            DatasetError::UnknownFormat { .. }
            | DatasetError::Filters { .. }
            | DatasetError::Faulty { .. }
            | DatasetError::Empty { .. }
            | DatasetError::Split { .. }
            | DatasetError::TooMany { .. } => TrainError::Dataset { reason: error.to_string() },
        }
    }
}

/// The micro-batch of this run and the memory it takes. A resumed run keeps the plan it began with, since its bits depend on it,
/// unless there is no longer room for that.
fn plan_memory(
    config: &Config,
    needs: &Needs,
    (begun_with, available): (Option<usize>, Option<u64>),
    tell: &mut dyn FnMut(Event) -> Result<(), TrainError>,
) -> Result<Fitted, TrainError> {
    let asked = match config.micro_tokens {
        MicroTokens::Tokens(tokens) => Some(tokens),
        MicroTokens::Auto => None,
    };
    let Some(tokens) = begun_with else {
        return needs.fit(asked, available).map_err(|short| TrainError::from(*short));
    };
    if let Ok(fitted) = needs.fit(Some(tokens), available) {
        return Ok(fitted);
    }
    let fitted = needs.fit(None, available).map_err(|short| TrainError::from(*short))?;
    let less = fitted.micro_tokens;
    let message =
        format!("micro-batches of {less} tokens instead of {tokens}: there is less memory than when the run began");
    tell(Event::Log { level: Level::Warning, message })?;
    Ok(fitted)
}

fn what_will_be_done(
    config: &Config,
    trained: &Trained,
    data: &Prepared,
    shape: &ModelConfig,
    fitted: Fitted,
    state: &State,
) -> Plan {
    let (report, numbers) = (&data.report, Numbers::new(&config.settings, data.train.len() as u64));
    Plan {
        examples: numbers.examples,
        validation_examples: data.validation.len() as u64,
        conversations: report.conversations,
        total_steps: numbers.total_steps,
        warmup_steps: numbers.warmup_steps,
        epoch_tokens: report.train_tokens,
        supervised_tokens: report.train_supervised_tokens,
        longest_tokens: report.longest_example,
        cut_examples: report.cut.examples,
        cut_tokens: report.cut.tokens,
        trainable_parameters: trained.trained() as u64,
        base_parameters: parameters(shape),
        micro_tokens: fitted.micro_tokens as u64,
        recompute: fitted.recompute as u64,
        memory: fitted.memory,
        modules: trained.matched(),
        from_step: state.step,
        reached: reached(&config.settings, &numbers, state),
    }
}

/// As it was told when that step was heard; `None` before the first.
fn reached(settings: &Settings, numbers: &Numbers, state: &State) -> Option<Reached> {
    let lr = numbers.schedule(settings).rate(state.step.checked_sub(1)?);
    Some(Reached { epoch: state.cursor.epochs(numbers.examples), loss: state.last_loss?, lr })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::FailureClass;

    #[test]
    fn how_far_the_data_are_is_told_while_they_are_prepared_and_a_word_that_is_refused_ends_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (base, file) = (dir.path().join("base"), dir.path().join("data.jsonl"));
        let vocab_size = lorikeet_dataset::write_byte_tokenizer(&base).expect("a tokenizer");
        let line = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
        fs::write(&file, format!("{line}\n").repeat(4)).expect("written");
        let shape = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        });
        let shape = ModelConfig::parse(&shape.to_string()).expect("a shape");
        let config = Config::new(base, file, dir.path().join("out"));
        let (stop, hour) = (Stop::new(), Duration::from_secs(3600));
        let mut told = Vec::new();
        let mut read = |every, takes: bool| {
            let mut tell = |event| {
                told.push(event);
                if takes { Ok(()) } else { Err(TrainError::Report(ErrorKind::StorageFull.into())) }
            };
            let read = read_data_aloud(&config, &shape, &stop, every, &mut tell);
            let _begun_anew = fs::remove_dir_all(&config.data.cache);
            (read.map(|(_, data)| data.train.len() + data.validation.len()), std::mem::take(&mut told))
        };
        let (refused, _) = read(Duration::ZERO, false);
        assert!(matches!(refused, Err(TrainError::Report(_))), "{refused:?}");
        let (whole, told) = read(Duration::ZERO, true);
        assert_eq!(whole.expect("prepared"), 4);
        let is_progress = |event: &Event| matches!(event, Event::Log { message, .. } if message == "tokenising: 0 of 0 MiB, 4 examples");
        assert!(told.iter().any(is_progress), "{told:?}");
        assert!(read(hour, true).1.is_empty(), "not more often than it is of use");
    }

    #[test]
    fn a_checkpoint_that_cannot_be_read_now_is_no_checkpoint_that_is_lost() {
        let path = || PathBuf::from("checkpoints/step-00000002");
        let unread = |kind: ErrorKind| TrainError::Io { verb: "read", path: path(), source: kind.into() };
        let torn =
            || TrainError::Checkpoint { path: path(), reason: "state.json is not what the manifest says".into() };
        let over = |mut rejected: Vec<TrainError>| nothing_to_go_on_from("checkpoints".into(), &mut rejected);
        assert!(over(vec![]).is_ok(), "there never was one");
        for (rejected, class) in [
            (vec![torn()], FailureClass::Checkpoint),
            (vec![torn(), unread(ErrorKind::NotFound)], FailureClass::Checkpoint),
            (vec![torn(), unread(ErrorKind::StaleNetworkFileHandle)], FailureClass::Io),
            (vec![unread(ErrorKind::Other), torn()], FailureClass::Io),
        ] {
            let error = over(rejected).expect_err("nothing to go on from");
            assert_eq!(error.class(), class, "{error}");
        }
    }

    #[test]
    fn what_a_disk_does_to_the_cache_is_no_fault_of_the_data() {
        let path = || "cache/a.tokens".into();
        let cache = |kind: ErrorKind| DatasetError::Cache { verb: "write", path: path(), source: kind.into() };
        let damaged = DatasetError::Damaged { path: path(), reason: "the footer does not fit the file".into() };
        let folder = DatasetError::Read { path: path(), source: ErrorKind::InvalidInput.into() };
        for (error, class) in [
            (cache(ErrorKind::StorageFull), FailureClass::DiskFull),
            (cache(ErrorKind::PermissionDenied), FailureClass::Io),
            (damaged, FailureClass::Io),
            (folder, FailureClass::Dataset),
        ] {
            let error = TrainError::from(error);
            assert_eq!(error.class(), class, "{error}");
        }
    }
}
