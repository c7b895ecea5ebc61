//! The file formats: which one a file is, and one file per format that turns its JSON into records.

pub(crate) mod brightrun;
mod chat;
mod completion;
mod detect;
mod node;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use detect::detect;

use crate::read::{Found, Read};

/// A dataset format, spelled as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Format {
    /// brightrun-lora-v4 and v5, full file or lines.
    BrightrunLoraV4,
    /// `{"messages": [{"role", "content"}]}`.
    ChatMessages,
    /// `{"conversations": [{"from", "value"}]}`.
    Sharegpt,
    /// `{"instruction", "input", "output"}`.
    Alpaca,
    /// `{"prompt", "completion"}`.
    PromptCompletion,
    /// `{"text"}`.
    Text,
}

impl Format {
    /// As on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Format::BrightrunLoraV4 => "BRIGHTRUN_LORA_V4",
            Format::ChatMessages => "CHAT_MESSAGES",
            Format::Sharegpt => "SHAREGPT",
            Format::Alpaca => "ALPACA",
            Format::PromptCompletion => "PROMPT_COMPLETION",
            Format::Text => "TEXT",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How records lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One JSON object per line.
    Lines,
    /// One JSON list.
    Array,
    /// One JSON object that holds everything.
    Document,
}

/// Formats whose records stand alone, one JSON object each.
pub(crate) struct Flat {
    format: Format,
    trimmed: u64,
}

impl Flat {
    pub(crate) const fn new(format: Format) -> Flat {
        Flat { format, trimmed: 0 }
    }

    pub(crate) fn item(&mut self, value: &Value, line: u64, path: &str) -> Read {
        let node = node::Node::new(value, line, path);
        let item = match self.format {
            Format::PromptCompletion => completion::item(&node)?,
            Format::BrightrunLoraV4 | Format::ChatMessages | Format::Sharegpt | Format::Alpaca | Format::Text => {
                chat::item(&node, &mut self.trimmed)?
            }
        };
        Ok(Some(Found { item, place: None }))
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        match self.trimmed {
            0 => Vec::new(),
            count => {
                vec![format!("{count} conversation(s) go on after the last answer; what stands there trains nothing")]
            }
        }
    }
}
