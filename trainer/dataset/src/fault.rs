//! What is wrong with a file, by line and JSON path. The first hundred are kept, the rest is counted.

use serde::{Deserialize, Serialize};

/// Faults kept with their text; a file of noise must not fill memory with complaints.
pub const LISTED_FAULTS: usize = 100;

/// The largest `max_seq_length` that a job file may ask for; its ranges stand in `lorikeet-api`.
const MOST_TOKENS: u64 = 131_072;

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Line in the file, from 1.
    pub line: u64,
    /// JSON path, `$` for the whole line or document.
    pub path: String,
    /// What was expected and what was found.
    pub message: String,
    /// How many tokens would do, where the example is only longer than `max_seq_length`.
    #[serde(skip)]
    pub needed_tokens: Option<u64>,
}

impl Fault {
    /// A fault at that place.
    pub fn new(line: u64, path: impl Into<String>, message: impl Into<String>) -> Fault {
        Fault { line, path: path.into(), message: message.into(), needed_tokens: None }
    }
}

/// Faults in file order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// The first ones.
    pub listed: Vec<Fault>,
    /// All of them.
    pub count: u64,
    /// Those of examples that are only too long.
    #[serde(skip)]
    pub too_long: TooLong,
}

/// Examples that no history can be taken from any more and that still do not fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TooLong {
    /// How many.
    pub examples: u64,
    /// What the longest of them takes: the smallest `max_seq_length` for all.
    pub needed_tokens: u64,
}

impl TooLong {
    pub(crate) fn add(&mut self, needed_tokens: u64) {
        self.examples += 1;
        self.needed_tokens = self.needed_tokens.max(needed_tokens);
    }

    /// What would help, for whoever set `max_seq_length`.
    pub(crate) fn in_words(self) -> String {
        let TooLong { examples, needed_tokens } = self;
        let are = if examples == 1 { "example is" } else { "examples are" };
        if needed_tokens > MOST_TOKENS {
            return format!("{examples} {are} too long, the longest with {needed_tokens} tokens has to be split");
        }
        format!("{examples} {are} too long, training.max_seq_length = {needed_tokens} takes every one")
    }
}

impl Faults {
    /// Counts a fault, and keeps it if it is among the first.
    pub fn push(&mut self, fault: Fault) {
        self.count += 1;
        if let Some(tokens) = fault.needed_tokens {
            self.too_long.add(tokens);
        }
        if self.listed.len() < LISTED_FAULTS {
            self.listed.push(fault);
        }
    }

    /// All that a file's faults come to: the first of those that are only too long says what would do for every one.
    pub(crate) fn concluded(mut self) -> Faults {
        if let Some(first) = self.listed.iter_mut().find(|fault| fault.needed_tokens.is_some()) {
            first.message = format!("{}; {}", first.message, self.too_long.in_words());
        }
        self
    }

    /// Nothing is wrong.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}
