//! What a file holds and what is wrong with it: `dataset check`, and the judgement behind an upload.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::encode::{Encoder, RenderedSample, shortened};
use crate::fault::TooLong;
use crate::pipeline::{Outcome, Pipeline};
use crate::record::Body;
use crate::{DatasetError, Fault, Faults, Filters, Format, Key, Progress, Record, Role, Supervise, Target, Tokenizer};

/// The `max_seq_length` of the presets, and of a job that says nothing.
const USUAL_TOKENS: usize = 2048;

/// Conversations shown.
const SAMPLES: usize = 3;

/// What is in a dataset. Token fields are `None` until a base is named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What the file is.
    pub format: Format,
    /// Different conversations.
    pub conversations: u64,
    /// Pairs of question and answer, with or without a target.
    pub pairs: u64,
    /// Pairs that train something.
    pub trainable_pairs: u64,
    /// Turns per conversation.
    pub average_turns_per_conversation: f64,
    /// Tokens of all examples as the base's template renders them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Targets per trainable pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_tokens_per_turn: Option<f64>,
    /// Tokens of the longest example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_example: Option<u64>,
    /// Worth knowing, not wrong.
    pub warnings: Vec<String>,
    /// The first faults.
    pub errors: Vec<Fault>,
    /// All faults.
    pub error_count: u64,
    /// The first conversations before rendering.
    pub samples: Vec<Sample>,
    /// The same rendered, when a base is named.
    pub rendered: Vec<RenderedSample>,
}

/// A conversation as the file holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Which conversation and turn.
    pub key: Key,
    /// Its messages.
    pub messages: Vec<SampleMessage>,
}

/// A message of a sample, long ones shortened in the middle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleMessage {
    /// `system`, `user`, `assistant`, `tool`; `text` where there is no conversation.
    pub role: String,
    /// What is said, calls of tools as JSON behind it.
    pub content: String,
    /// Whether the loss counts it (by `supervise = assistant` where the format leaves it open).
    pub supervised: bool,
}

/// Reads a whole file and counts; with a tokenizer, renders and tokenises it too.
pub fn check(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    progress: &mut dyn FnMut(Progress),
    stop: &dyn Fn() -> bool,
) -> Result<Check, DatasetError> {
    let encoder =
        tokenizer.map(|tokenizer| Encoder { tokenizer, supervise: Supervise::Assistant, max_seq_length: usize::MAX });
    let pipeline = Pipeline { path, encoder, filters: &Filters::default(), stop };
    let mut counts = Counts { encoder, ..Counts::default() };
    let summary = pipeline.run(progress, &mut |outcome| {
        counts.take(outcome);
        Ok(())
    })?;
    Ok(counts.into_check(summary.format, summary.warnings))
}

#[derive(Default)]
struct Counts<'a> {
    encoder: Option<Encoder<'a>>,
    /// Highest turn of each conversation, by its ordinal; 0 where none was counted.
    turns: Vec<u32>,
    pairs: u64,
    trainable: u64,
    tokens: u64,
    supervised: u64,
    longest: u64,
    /// By [`USUAL_TOKENS`].
    too_long: TooLong,
    faults: Faults,
    samples: Vec<Sample>,
    rendered: Vec<RenderedSample>,
}

impl Counts<'_> {
    fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Example(record, example) => {
                let spoken = record.messages().iter().filter(|message| message.role != Role::System).count();
                self.turn(example.conversation, &record.key, spoken.max(1) as u32);
                self.pairs += record.pairs();
                self.trainable += record.pairs();
                self.tokens += example.tokens.len() as u64;
                self.supervised += example.supervised_count() as u64;
                self.longest = self.longest.max(example.tokens.len() as u64);
                self.judge_length(&record, example.tokens.len());
                self.show(&record);
            }
            Outcome::NoTarget(key, conversation) => {
                self.turn(conversation, &key, 1);
                self.pairs += 1;
            }
            Outcome::Filtered(record, conversation) => {
                self.turn(conversation, &record.key, 1);
                self.pairs += record.pairs();
            }
            Outcome::Fault(fault) => self.faults.push(fault),
        }
    }

    /// A file that the presets cannot take is known before a job is refused.
    fn judge_length(&mut self, record: &Record, tokens: usize) {
        let Some(encoder) = self.encoder.filter(|_| tokens > USUAL_TOKENS) else { return };
        let shortest = encoder.shortest(record).unwrap_or(tokens);
        if shortest > USUAL_TOKENS {
            self.too_long.add(shortest as u64);
        }
    }

    /// A format that numbers its turns is believed; elsewhere the messages are counted.
    fn turn(&mut self, conversation: u64, key: &Key, spoken: u32) {
        let turns = if key.turn > 0 { key.turn } else { spoken };
        let ordinal = conversation as usize;
        if self.turns.len() <= ordinal {
            self.turns.resize(ordinal + 1, 0);
        }
        self.turns[ordinal] = turns.max(self.turns[ordinal]);
    }

    fn show(&mut self, record: &Record) {
        if self.samples.len() == SAMPLES {
            return;
        }
        self.samples.push(Sample { key: record.key.clone(), messages: sample_messages(record) });
        self.rendered.extend(self.encoder.and_then(|encoder| encoder.sample(record).ok()));
    }

    fn into_check(self, format: Format, mut warnings: Vec<String>) -> Check {
        if self.too_long.examples > 0 {
            let needed = self.too_long.in_words();
            warnings.push(format!("not every example fits into the {USUAL_TOKENS} tokens of the presets: {needed}"));
        }
        let named = self.encoder.is_some();
        let conversations = self.turns.iter().filter(|turns| **turns > 0).count() as u64;
        let turns: u64 = self.turns.iter().map(|turns| u64::from(*turns)).sum();
        let ratio = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        Check {
            format,
            conversations,
            pairs: self.pairs,
            trainable_pairs: self.trainable,
            average_turns_per_conversation: ratio(turns, conversations),
            tokens: named.then_some(self.tokens),
            average_tokens_per_turn: named.then(|| ratio(self.supervised, self.trainable)),
            longest_example: named.then_some(self.longest),
            warnings,
            errors: self.faults.listed,
            error_count: self.faults.count,
            samples: self.samples,
            rendered: self.rendered,
        }
    }
}

fn sample_messages(record: &Record) -> Vec<SampleMessage> {
    let (messages, target) = match &record.body {
        Body::Chat { messages, target, .. } => (messages, *target),
        Body::Text(text) => {
            return vec![SampleMessage { role: "text".to_owned(), content: shortened(text), supervised: true }];
        }
    };
    let last = messages.len().saturating_sub(1);
    let shown = messages.iter().enumerate().map(|(index, message)| {
        let calls = message.tool_calls.iter().map(|call| serde_json::to_string(call).unwrap_or_default());
        let said = Some(message.text().to_owned()).filter(|text| !text.is_empty()).into_iter().chain(calls);
        SampleMessage {
            role: message.role.name().to_owned(),
            content: shortened(&said.collect::<Vec<_>>().join("\n")),
            supervised: match target {
                Target::LastMessage => index == last,
                Target::AsSettings => message.role == Role::Assistant && message.trained,
            },
        }
    });
    shown.collect()
}
