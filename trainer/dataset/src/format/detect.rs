//! Which format a file is, from the keys of its first object, read no further than needed.
//!
//! A first line that is broken does not hide the format: then the first lines that are whole decide. What is recognised is
//! always said; what is not is an error with the keys that were found.

use std::cell::RefCell;
use std::fmt;
use std::io::{BufRead, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Format, Layout};
use crate::DatasetError;
use crate::read::{BoundedLines, open};

/// How far the first object is followed; a decisive key stands long before.
const SNIFF_BYTES: u64 = 64 << 20;
/// Lines tried when the first one is broken.
const TRIED_LINES: usize = 100;
/// Keys remembered for the message.
const SHOWN_KEYS: usize = 12;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Detected {
    pub(crate) format: Format,
    pub(crate) layout: Layout,
}

/// Looks at the beginning of a file.
pub(crate) fn detect(path: &Path) -> Result<Detected, DatasetError> {
    let unknown = |found: String| DatasetError::UnknownFormat { path: path.to_owned(), found };
    let failed = |source| DatasetError::Read { path: path.to_owned(), source };
    let mut input = open(path)?;
    let first = first_byte(&mut input).map_err(failed)?;
    let Some(first) = first else { return Err(unknown("the file is empty".into())) };
    let sniffed = match first {
        b'[' => sniff(input, |d, seen| d.deserialize_seq(FirstElement(seen))),
        b'{' => sniff(input, |d, seen| d.deserialize_map(Keys(seen))),
        _ => Keys::none(),
    };
    let by_lines = || by_lines(path);
    let (decided, keys) = match sniffed.verdict {
        Some(verdict) => (Some(verdict), Vec::new()),
        None if first == b'[' => (None, sniffed.names),
        None => (by_lines()?, sniffed.names),
    };
    match decided {
        Some(Verdict { format, whole_file: true }) => Ok(Detected { format, layout: Layout::Document }),
        Some(Verdict { format, .. }) if first == b'[' => Ok(Detected { format, layout: Layout::Array }),
        Some(Verdict { format, .. }) => Ok(Detected { format, layout: Layout::Lines }),
        None if keys.is_empty() => Err(unknown(format!("it begins with {}, not with a JSON object", shown(first)))),
        None => Err(unknown(format!("its first object has the keys {}", keys.join(", ")))),
    }
}

/// Skips a byte order mark and blanks; the first byte stays unread.
fn first_byte(input: &mut impl BufRead) -> std::io::Result<Option<u8>> {
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() {
            return Ok(None);
        }
        match available.iter().position(|byte| !byte.is_ascii_whitespace()) {
            Some(position) => {
                let byte = available[position];
                input.consume(position);
                return Ok(Some(byte));
            }
            None => {
                let length = available.len();
                input.consume(length);
            }
        }
    }
}

fn by_lines(path: &Path) -> Result<Option<Verdict>, DatasetError> {
    let mut lines = BoundedLines::new(open(path)?);
    for _ in 0..TRIED_LINES {
        let next = lines.next().map_err(|source| DatasetError::Read { path: path.to_owned(), source })?;
        let Some(line) = next else { break };
        let Ok(Some(Value::Object(map))) = line.value() else { continue };
        let mut seen = Seen::default();
        for (name, value) in &map {
            seen.note(name, || turn_names(value));
        }
        if let Some(verdict) = seen.finish() {
            return Ok(Some(verdict));
        }
    }
    Ok(None)
}

fn turn_names(value: &Value) -> Vec<String> {
    let first = value.as_array().and_then(|list| list.first()).and_then(Value::as_object);
    first.map(|turn| turn.keys().cloned().collect()).unwrap_or_default()
}

fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("{:?}", char::from(byte)) } else { format!("byte 0x{byte:02x}") }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict {
    format: Format,
    whole_file: bool,
}

/// Keys met so far and what they mean.
#[derive(Debug, Default)]
struct Seen {
    names: Vec<String>,
    verdict: Option<Verdict>,
}

impl Seen {
    /// Notes a key; `inside` names the keys of the first element below it, asked only where they matter.
    fn note(&mut self, name: &str, inside: impl FnOnce() -> Vec<String>) {
        let record = |format| Some(Verdict { format, whole_file: false });
        let whole = Some(Verdict { format: Format::BrightrunLoraV4, whole_file: true });
        let has = |other: &str| self.names.iter().any(|seen| seen == other);
        let verdict = match name {
            "training_file_metadata" | "consultant_profile" => whole,
            "_meta" | "target_response" | "current_user_input" => record(Format::BrightrunLoraV4),
            "messages" => record(Format::ChatMessages),
            "prompt" if has("completion") => record(Format::PromptCompletion),
            "completion" if has("prompt") => record(Format::PromptCompletion),
            "instruction" => record(Format::Alpaca),
            "conversations" => {
                let inside = inside();
                let any = |wanted: [&str; 2]| inside.iter().any(|name| wanted.contains(&name.as_str()));
                match (any(["training_pairs", "conversation_metadata"]), any(["from", "value"])) {
                    (true, _) => whole,
                    (false, true) => record(Format::Sharegpt),
                    (false, false) => None,
                }
            }
            _ => None,
        };
        self.verdict = self.verdict.or(verdict);
        if self.names.len() < SHOWN_KEYS {
            self.names.push(name.to_owned());
        }
    }

    /// `text` means something only when nothing else does.
    fn finish(&self) -> Option<Verdict> {
        let text = self.names.iter().any(|name| name == "text");
        self.verdict.or(text.then_some(Verdict { format: Format::Text, whole_file: false }))
    }
}

type Json<R> = serde_json::Deserializer<serde_json::de::IoRead<R>>;

/// Follows the first object until it is decided. How parsing ends does not matter: it is ended on purpose, too.
fn sniff<R: Read>(
    input: R,
    read: impl FnOnce(&mut Json<std::io::Take<R>>, &RefCell<Seen>) -> Result<(), serde_json::Error>,
) -> Seen {
    let seen = RefCell::new(Seen::default());
    let mut deserializer = serde_json::Deserializer::from_reader(input.take(SNIFF_BYTES));
    let ended = read(&mut deserializer, &seen);
    let mut seen = seen.into_inner();
    if ended.is_ok() {
        seen.verdict = seen.finish();
    }
    seen
}

struct Keys<'a>(&'a RefCell<Seen>);

impl Keys<'_> {
    fn none() -> Seen {
        Seen::default()
    }
}

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == "conversations" {
                let inside = RefCell::new(Seen::default());
                let ended = map.next_value_seed(FirstElement(&inside));
                self.0.borrow_mut().note(&name, || inside.into_inner().names);
                ended?;
            } else {
                self.0.borrow_mut().note(&name, Vec::new);
            }
            if self.0.borrow().verdict.is_some() {
                return Err(A::Error::custom("decided"));
            }
            if name != "conversations" {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Keys<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// The keys of a list's first element; the rest of the list is passed over.
struct FirstElement<'a>(&'a RefCell<Seen>);

impl<'de> Visitor<'de> for FirstElement<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if seq.next_element_seed(Keys(self.0))?.is_some() {
            return Err(A::Error::custom("decided"));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for FirstElement<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}
