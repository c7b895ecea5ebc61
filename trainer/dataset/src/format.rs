//! The file formats: which one a file is, and one file per format that turns its JSON into records.

mod alpaca;
pub(crate) mod brightrun;
mod chat;
mod completion;
mod detect;
mod node;
mod shape;
mod sharegpt;
mod text;
mod tool;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use detect::{Detected, detect};
pub(crate) use shape::{EXPECTED, Shape};

use crate::read::{Found, Read};
use crate::{Fault, Json, Message};
use shape::Verdict;

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
    /// All of them; the one that gives way to any other stands last.
    pub const ALL: [Format; 6] = [
        Format::BrightrunLoraV4,
        Format::ChatMessages,
        Format::Sharegpt,
        Format::Alpaca,
        Format::PromptCompletion,
        Format::Text,
    ];

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
    /// JSON objects one after the other, each over several lines; often only one.
    Objects,
    /// One JSON list.
    List,
    /// One JSON object that holds everything.
    Document,
    /// Rows of a parquet file.
    Rows,
}

/// Formats whose records stand alone, one JSON object each; and brightrun's lines.
pub(crate) enum Records {
    Brightrun(brightrun::Lines),
    Flat(Flat),
}

/// Formats whose records need nothing but themselves.
pub(crate) struct Flat {
    format: Format,
    trimmed: u64,
    beside_text: u64,
}

impl Records {
    pub(crate) fn of(format: Format) -> Records {
        match format {
            Format::BrightrunLoraV4 => Records::Brightrun(brightrun::Lines::default()),
            Format::ChatMessages | Format::Sharegpt | Format::Alpaca | Format::PromptCompletion | Format::Text => {
                Records::Flat(Flat { format, trimmed: 0, beside_text: 0 })
            }
        }
    }

    pub(crate) fn item(&mut self, value: &Json, line: u64, path: &str) -> Read {
        match self {
            Records::Brightrun(lines) => lines.items(value, line, path),
            Records::Flat(flat) => flat.item(value, line, path),
        }
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        match self {
            Records::Brightrun(lines) => lines.warnings(),
            Records::Flat(flat) => flat.warnings(),
        }
    }
}

impl Flat {
    fn item(&mut self, value: &Json, line: u64, path: &str) -> Read {
        let node = node::Node::new(value, line, path);
        let shape = Shape::of(value);
        let read = match self.format {
            Format::PromptCompletion => completion::item(&node),
            Format::Sharegpt => sharegpt::item(&node, &mut self.trimmed),
            Format::Alpaca => alpaca::item(&node),
            Format::Text => text::item(&node),
            Format::ChatMessages | Format::BrightrunLoraV4 => chat::item(&node, &mut self.trimmed),
        };
        let mut beside = false;
        match shape.verdict() {
            // said of what could not be read, and of what could be read as two things
            Verdict::Record { format, .. } if format != self.format => return Err(self.mixed(&node, format)),
            Verdict::Ambiguous(formats) => return Err(node.fault(ambiguous(&shape, &formats))),
            Verdict::Record { beside_text, .. } => beside = beside_text,
            Verdict::BrightrunDocument | Verdict::Unknown => {}
        }
        let item = read?;
        self.beside_text += u64::from(beside);
        Ok(Some(Found { item, place: None }))
    }

    fn mixed(&self, node: &node::Node<'_>, found: Format) -> Fault {
        let expected = self.format;
        node.fault(format!("is a record of {found}, in a file that began as {expected}; expected one format per file"))
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.trimmed > 0 {
            let count = self.trimmed;
            warnings
                .push(format!("{count} conversation(s) go on after the last answer; what stands there trains nothing"));
        }
        if self.beside_text > 0 {
            let (count, format) = (self.beside_text, self.format);
            warnings.push(format!("{count} record(s) hold a text beside their {format}; the text is not used"));
        }
        warnings
    }
}

pub(crate) fn ambiguous(shape: &Shape, formats: &[Format]) -> String {
    let names = formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(" and ");
    format!("the keys {} are those of {names}; expected the keys of one format", shape.shown())
}

impl Shape {
    /// Of a whole value; empty when it is no object.
    pub(crate) fn of(value: &Json) -> Shape {
        let names = |value: &Json| -> Vec<String> {
            value.as_object().unwrap_or_default().iter().map(|(name, _)| name.clone()).collect()
        };
        let first_turn = value.get("conversations").and_then(Json::as_list).and_then(<[Json]>::first);
        Shape { names: names(value), turn_names: first_turn.map(names).unwrap_or_default() }
    }
}

/// One message as CHAT_MESSAGES writes it.
pub(crate) fn message(value: &Json) -> Result<Message, Fault> {
    chat::read_message(&node::Node::new(value, 1, "$"))
}
