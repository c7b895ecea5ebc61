//! What the model answers without and with the adapter that was pulled: some samples, and of our own task how often each is right.

use super::files::Files;
use crate::{
    args::LocalModel,
    commands::{
        exact::{self, Count},
        local::Local,
    },
    failure::Failure,
};
use serde::Serialize;

/// Shown to a person.
const SHOWN: usize = 3;

/// A question and two answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Sample {
    pub(super) prompt: String,
    pub(super) expected: String,
    pub(super) before: String,
    pub(super) after: String,
}

/// How many of the held-out questions each answers to the letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct ExactMatch {
    pub(super) before: Count,
    pub(super) after: Count,
}

/// Everything that was found out by asking.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) samples: Vec<Sample>,
    /// None where base or conversations were brought: a large base would take its time, and not every answer has one wording.
    pub(super) exact_match: Option<ExactMatch>,
}

/// Asks every held-out question of our own task; one of whatever else was brought.
pub(super) fn ask(files: &Files) -> Result<Answers, Failure> {
    let local = Local::open(&LocalModel { base: files.base(), adapter: Some(files.adapter()) })?;
    let most = if files.is_ours() { usize::MAX } else { 1 };
    let questions = exact::questions(&files.held_out(), most)?;
    let before = exact::answers(&local, None, &questions)?;
    let after = exact::answers(&local, local.view().as_ref(), &questions)?;
    let count = |answers: &[String]| Count::of(&questions, answers);
    let exact_match = files.is_ours().then(|| ExactMatch { before: count(&before), after: count(&after) });
    let sample = |((question, before), after): ((&exact::Question, String), String)| Sample {
        prompt: question.asked().to_owned(),
        expected: question.expected.clone(),
        before,
        after,
    };
    let samples = questions.iter().zip(before).zip(after).take(SHOWN).map(sample).collect();
    Ok(Answers { samples, exact_match })
}
