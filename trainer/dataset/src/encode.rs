//! One record to tokens and targets: rendered whole, tokenised whole, once.

use serde::{Deserialize, Serialize};

use crate::Key;

/// Which messages are targets; formats that name their own target overrule it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supervise {
    /// Every assistant message with its end of turn.
    #[default]
    Assistant,
    /// The last assistant message with its end of turn.
    Last,
    /// The same, under the name that prompt and completion files know.
    Completion,
    /// Every token but the first, which nothing predicts.
    All,
}

/// What one example lost to fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Messages dropped, oldest first.
    pub messages: u32,
    /// Tokens dropped.
    pub tokens: u32,
}

/// One example, ready to train on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The whole conversation.
    pub tokens: Vec<u32>,
    /// Whether token i is a target; as long as `tokens`, never true for the first.
    pub supervised: Vec<bool>,
    /// Ordinal of its conversation in the file.
    pub conversation: u64,
    /// Which conversation and turn.
    pub key: Key,
    /// What was dropped to fit.
    pub cut: Cut,
}

impl Example {
    /// How many tokens are targets.
    pub fn supervised_count(&self) -> usize {
        self.supervised.iter().filter(|on| **on).count()
    }
}
