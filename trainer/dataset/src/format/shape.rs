//! Which format a record is, from the names of its keys alone.
//!
//! A format is recognised when all of its keys are there. Keys of two formats in one record are an error that names both,
//! with one exception: many published files carry, beside their messages, a `text` that somebody rendered from them. Then the
//! messages count, and the reader says so.

use super::Format;

/// Keys shown in a message.
const SHOWN_KEYS: usize = 12;

/// What a person may write, for messages.
pub(crate) const EXPECTED: &str = "BRIGHTRUN_LORA_V4 (training_file_metadata, conversations; or lines with target_response), \
CHAT_MESSAGES (messages), SHAREGPT (conversations of from, value), ALPACA (instruction, output), \
PROMPT_COMPLETION (prompt, completion) or TEXT (text)";

/// The names of a record's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Its own.
    pub(crate) names: Vec<String>,
    /// Those of the first element of `conversations`.
    pub(crate) turn_names: Vec<String>,
}

/// What a shape is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A record of that format; `beside_text` when a `text` stands there that is not used.
    Record { format: Format, beside_text: bool },
    /// A full brightrun file.
    BrightrunDocument,
    /// Keys of several formats.
    Ambiguous(Vec<Format>),
    /// None that is known.
    Unknown,
}

impl Shape {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    fn turns_have(&self, names: [&str; 2]) -> bool {
        names.iter().all(|name| self.turn_names.iter().any(|known| known == name))
    }

    /// A full brightrun file is known before it is read to its end.
    pub(crate) fn is_brightrun_document(&self) -> bool {
        self.has("training_file_metadata")
            || self.has("consultant_profile")
            || self.turn_names.iter().any(|name| name == "training_pairs" || name == "conversation_metadata")
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.is_brightrun_document() {
            return Verdict::BrightrunDocument;
        }
        let formats: Vec<Format> = Format::ALL.into_iter().filter(|format| self.fits(*format)).collect();
        match formats[..] {
            [] => Verdict::Unknown,
            [format] => Verdict::Record { format, beside_text: false },
            [format, Format::Text] => Verdict::Record { format, beside_text: true },
            _ => Verdict::Ambiguous(formats),
        }
    }

    fn fits(&self, format: Format) -> bool {
        match format {
            Format::BrightrunLoraV4 => {
                self.has("_meta") || self.has("target_response") || self.has("current_user_input")
            }
            Format::ChatMessages => self.has("messages") || self.turns_have(["role", "content"]),
            Format::Sharegpt => self.turns_have(["from", "value"]),
            Format::Alpaca => self.has("instruction") && self.has("output"),
            Format::PromptCompletion => self.has("prompt") && self.has("completion"),
            Format::Text => self.has("text"),
        }
    }

    /// The keys, for a message.
    pub(crate) fn shown(&self) -> String {
        let mut shown = self.names.iter().take(SHOWN_KEYS).cloned().collect::<Vec<_>>().join(", ");
        if self.names.len() > SHOWN_KEYS {
            shown.push_str(", …");
        }
        if !self.turn_names.is_empty() {
            shown.push_str(&format!("; its conversations hold {}", self.turn_names.join(", ")));
        }
        shown
    }
}
