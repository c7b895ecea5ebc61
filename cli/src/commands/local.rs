//! A model of this machine, opened: weights, tokenizer and, if there is one, the adapter on it.

use crate::{
    args::LocalModel,
    failure::{Failure, chain},
};
use lorikeet_dataset::{Tokenizer, TokenizerError};
use lorikeet_trainer::{
    FailureClass, TrainError,
    lora::{self, AdapterView, LoraLayout},
    model::Model,
};
use std::path::{Path, PathBuf};

/// Weights, tokenizer, adapter.
pub(super) struct Local {
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
    adapter: Option<(LoraLayout, Vec<f32>)>,
}

impl Local {
    /// The small files are judged first: they are read at once, and weights take their time.
    pub(super) fn open(args: &LocalModel) -> Result<Self, Failure> {
        base(&args.base)?;
        args.adapter.as_deref().map(adapter).transpose()?;
        let broken = |error: TokenizerError| Failure::mistake(chain(&error));
        let tokenizer = Tokenizer::load(&args.base).map_err(broken)?;
        let model = Model::load(&args.base).map_err(|error| failed("load the model", &error))?;
        tokenizer.check_fits(model.config().vocab_size).map_err(broken)?;
        let open = |dir| lora::open(dir, model.config()).map_err(TrainError::from);
        let adapter =
            args.adapter.as_deref().map(open).transpose().map_err(|error| failed("read the adapter", &error))?;
        Ok(Self { model, tokenizer, adapter })
    }

    /// The adapter as a pass sees it.
    pub(super) fn view(&self) -> Option<AdapterView<'_>> {
        self.adapter.as_ref().map(|(layout, params)| AdapterView { layout, params: params.into(), dropout: None })
    }
}

/// What the trainer could not do, by whose doing it is.
pub(super) fn failed(doing: &str, error: &TrainError) -> Failure {
    if matches!(error, TrainError::Stopped) {
        return Failure::interrupted();
    }
    let message = format!("failed to {doing}: {}", chain(error));
    if error.class() == FailureClass::Io {
        // A cluster may try again elsewhere; here it is this machine's file.
        return Failure::mistake(message);
    }
    Failure::of_trainer(lorikeet_worker::class(error), message, error.hint())
}

/// A base model's directory; where something beside it was named, a hint at what is meant.
pub(super) fn base(dir: &Path) -> Result<PathBuf, Failure> {
    let is_base = |dir: &Path| dir.join("config.json").is_file();
    if dir.is_file() {
        let failure = Failure::mistake(format!("{} is a file, expected the base model's directory", dir.display()));
        return Err(meant(dir.parent().filter(|dir| is_base(dir)), failure));
    }
    let found = dir.canonicalize().map_err(|error| {
        Failure::file("open the base model's directory", dir, &error)
            .hint("--base names a directory of this machine; nothing is fetched from a hub")
    })?;
    let inner = || dir.read_dir().ok()?.flatten().map(|entry| entry.path()).find(|dir| is_base(dir));
    match if is_base(dir) { None } else { inner() } {
        Some(inner) => Err(meant(Some(&inner), Failure::mistake(format!("{} holds no config.json", dir.display())))),
        None => Ok(found),
    }
}

/// An adapter's directory; likewise.
pub(super) fn adapter(dir: &Path) -> Result<PathBuf, Failure> {
    let is_adapter = |dir: &Path| dir.join("adapter_config.json").is_file();
    let inner = dir.join("adapter");
    if !is_adapter(dir) && is_adapter(&inner) {
        let failure = Failure::mistake(format!("{} holds no adapter_config.json", dir.display()));
        return Err(meant(Some(&inner), failure));
    }
    dir.canonicalize().map_err(|error| Failure::file("open the adapter's directory", dir, &error))
}

fn meant(dir: Option<&Path>, failure: Failure) -> Failure {
    dir.map(|dir| format!("is {} meant?", dir.display())).into_iter().fold(failure, Failure::hint)
}
