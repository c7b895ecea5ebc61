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
use std::path::Path;

/// Weights, tokenizer, adapter.
pub(super) struct Local {
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
    adapter: Option<(LoraLayout, Vec<f32>)>,
}

impl Local {
    /// The small files are judged first: they are read at once, and weights take their time.
    pub(super) fn open(args: &LocalModel) -> Result<Self, Failure> {
        exists(&args.base, "the base model's directory")?;
        args.adapter.as_deref().map_or(Ok(()), |adapter| exists(adapter, "the adapter's directory"))?;
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
        self.adapter.as_ref().map(|(layout, params)| AdapterView { layout, params, dropout: None })
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

fn exists(dir: &Path, what: &str) -> Result<(), Failure> {
    dir.read_dir().map(drop).map_err(|error| Failure::file(&format!("open {what}"), dir, &error))
}
