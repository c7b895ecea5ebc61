//! The file formats.

use std::fmt;

use serde::{Deserialize, Serialize};

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

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::BrightrunLoraV4 => "BRIGHTRUN_LORA_V4",
            Format::ChatMessages => "CHAT_MESSAGES",
            Format::Sharegpt => "SHAREGPT",
            Format::Alpaca => "ALPACA",
            Format::PromptCompletion => "PROMPT_COMPLETION",
            Format::Text => "TEXT",
        })
    }
}
