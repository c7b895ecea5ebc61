//! Exact match: how often a model says, letter for letter, what a file answers. The one place where it is counted; `eval` and
//! the demo ask here.
//!
//! Every answer of a conversation that may be learnt is asked for with what was said before it. The model takes the likeliest
//! token each time; blanks at either end do not count, because templates differ in them.

use super::local::{Local, failed};
use crate::failure::{Failure, chain};
use lorikeet_dataset::{Body, Item, Json, Message, Record, Role, Target, TokenizerError, read};
use lorikeet_trainer::{generate::greedy, lora::AdapterView};
use serde::Serialize;
use std::{fmt, ops::ControlFlow, path::Path};

/// Tokens that an answer may be longer than the expected one before it is cut: enough to see how it goes wrong.
const BEYOND: usize = 16;

/// Something to ask, and what is expected.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    before: Vec<Message>,
    tools: Vec<Json>,
    pub(super) expected: String,
}

/// How many were asked, and how many answers were those expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Count {
    pub(super) asked: u64,
    pub(super) right: u64,
}

impl Count {
    /// Of the questions and what was said to each.
    pub(super) fn of(questions: &[Question], answers: &[String]) -> Self {
        let right = |(question, answer): &(&Question, &String)| question.expected.trim() == answer.trim();
        Self { asked: questions.len() as u64, right: questions.iter().zip(answers).filter(right).count() as u64 }
    }
}

impl fmt::Display for Count {
    /// `97 of 100, 97.0 %`
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.right as f64 / self.asked as f64;
        write!(out, "{} of {}, {share:.1} %", self.right, self.asked)
    }
}

impl Question {
    /// What was said last before the answer.
    pub(super) fn asked(&self) -> &str {
        self.before.last().map_or("", Message::text)
    }
}

/// The first questions of a file, `most` at most; whoever asks has had the file checked.
pub(super) fn questions(file: &Path, most: usize) -> Result<Vec<Question>, Failure> {
    let mut found = Vec::new();
    let summary = read(file, &mut |item, _| {
        if let Item::Record(record) = item {
            found.extend(of_record(record));
        }
        if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    summary.map_err(|error| Failure::mistake(chain(&error)))?;
    found.truncate(most);
    if found.is_empty() {
        return Err(Failure::mistake(format!("{} holds no question with an answer", file.display())));
    }
    Ok(found)
}

fn of_record(record: Record) -> Vec<Question> {
    let Body::Chat { messages, tools, target } = record.body else { return Vec::new() };
    let last = messages.len().saturating_sub(1);
    let counts = |(at, message): &(usize, &Message)| {
        let is_target = message.trained && (target == Target::AsSettings || *at == last);
        message.role == Role::Assistant && message.tool_calls.is_empty() && is_target
    };
    let question = |(at, message): (usize, &Message)| Question {
        before: messages[..at].to_vec(),
        tools: tools.clone(),
        expected: message.text().to_owned(),
    };
    messages.iter().enumerate().filter(counts).map(question).collect()
}

/// What the model says to each, cut some way behind the length of what is expected.
pub(super) fn answers(
    local: &Local,
    adapter: Option<&AdapterView<'_>>,
    questions: &[Question],
) -> Result<Vec<String>, Failure> {
    questions.iter().map(|question| answer(local, adapter, question)).collect()
}

fn answer(local: &Local, adapter: Option<&AdapterView<'_>>, question: &Question) -> Result<String, Failure> {
    let (model, tokenizer) = (&local.model, &local.tokenizer);
    let unusable = |error: TokenizerError| Failure::mistake(chain(&error));
    let encode = |text: &str| tokenizer.encode(text).map_err(unusable);
    let prompt = encode(&tokenizer.render_with(&question.before, &question.tools, true).map_err(unusable)?)?;
    let room = model.config().max_position_embeddings.saturating_sub(prompt.len());
    let most = room.min(encode(&question.expected)?.len() + BEYOND);
    let end = tokenizer.eos_ids();
    let said = greedy(model, adapter, &prompt, most, end, &|| false).map_err(|error| failed("answer", &error))?;
    let words: Vec<u32> = said.into_iter().filter(|token| !end.contains(token)).collect();
    tokenizer.decode(&words).map_err(unusable)
}
