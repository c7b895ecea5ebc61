//! One thing asked of the model, without and with the adapter that was pulled.

use super::files::Files;
use crate::failure::{Failure, chain};
use lorikeet_dataset::{Item, Message, Role, Tokenizer, read};
use lorikeet_trainer::{
    generate::greedy,
    lora::{self, AdapterView, LoraLayout},
    model::Model,
};
use serde::Serialize;
use std::{ops::ControlFlow, path::Path};

/// Enough to see what was learnt.
const MOST_TOKENS: usize = 96;

/// A question and two answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Samples {
    pub(super) prompt: String,
    pub(super) before: String,
    pub(super) after: String,
}

/// Greedy answers to the first held-out question.
pub(super) fn both(files: &Files) -> Result<Samples, Failure> {
    let failed =
        |error: &(dyn std::error::Error + 'static)| Failure::bug(format!("generate a sample: {}", chain(error)));
    let tokenizer = Tokenizer::load(&files.base()).map_err(|error| failed(&error))?;
    let messages = question(&files.held_out())?;
    let prompt = tokenizer.prompt(&messages).map_err(|error| failed(&error))?;
    let model = Model::load(&files.base()).map_err(|error| failed(&error))?;
    let (layout, params) = adapter(&files.adapter(), &model)?;
    let view = AdapterView { layout: &layout, params: &params, dropout: None };
    let answer = |adapter: Option<&AdapterView<'_>>| {
        let tokens = greedy(&model, adapter, &prompt, MOST_TOKENS, tokenizer.eos_ids(), &|| false);
        let tokens = tokens.map_err(|error| failed(&error))?;
        let words: Vec<u32> = tokens.into_iter().filter(|token| !tokenizer.eos_ids().contains(token)).collect();
        tokenizer.decode(&words).map_err(|error| failed(&error))
    };
    let prompt = messages.last().map(|message| message.text().to_owned()).unwrap_or_default();
    Ok(Samples { prompt, before: answer(None)?, after: answer(Some(&view))? })
}

/// A conversation up to its first answer.
fn question(file: &Path) -> Result<Vec<Message>, Failure> {
    let mut found = Vec::new();
    let summary = read(file, &mut |item, _| {
        if let Item::Record(record) = item {
            found = record.messages().iter().take_while(|message| message.role != Role::Assistant).cloned().collect();
        }
        if found.is_empty() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    summary.map_err(|error| Failure::mistake(chain(&error)))?;
    if found.is_empty() {
        return Err(Failure::mistake(format!("{} holds no question to ask", file.display())));
    }
    Ok(found)
}

fn adapter(directory: &Path, model: &Model) -> Result<(LoraLayout, Vec<f32>), Failure> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::bug(format!("read the adapter in {}: {}", directory.display(), chain(error)))
    };
    lora::open(directory, model.config()).map_err(|error| failed(&error))
}
