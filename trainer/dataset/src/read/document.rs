//! One large JSON document, streamed: only the element being judged is in memory, with the line it began on.
//!
//! serde_json asks its reader for one byte at a time, so a reader that counts newlines knows the line of every element, and
//! one that counts bytes can end an element that grows beyond bounds. Behind such an element, as behind broken JSON, nothing
//! can be read any more: the fault says so and reading ends.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, BufRead, Read};
use std::ops::ControlFlow;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::lines::broken;
use super::{MAX_RECORD_BYTES, Read as ReadOne, Sink};
use crate::Fault;
use crate::format::brightrun;

/// Reads `[element, …]`, each at `$[i]`.
pub(crate) fn read_array(
    input: impl BufRead,
    sink: &mut Sink<'_>,
    item_of: &mut dyn FnMut(&Value, u64, &str) -> ReadOne,
) -> io::Result<()> {
    let place = Place::default();
    let mut index = 0;
    let outcome = stream(without_mark(input)?, &place, |deserializer| {
        Elements(&place, &mut |value, line| {
            let path = format!("$[{index}]");
            index += 1;
            place.set_path(format!("$[{index}]"));
            sink.give(item_of(&value, line, &path), place.bytes.get())
        })
        .deserialize(deserializer)
    });
    finish(outcome, &place, sink)
}

/// Reads a full brightrun file; returns its warnings.
pub(crate) fn read_brightrun(input: impl BufRead, sink: &mut Sink<'_>) -> io::Result<Vec<String>> {
    let place = Place::default();
    let mut document = brightrun::Document::default();
    let outcome = stream(without_mark(input)?, &place, |deserializer| {
        deserializer.deserialize_map(TopLevel { place: &place, document: &mut document, sink })
    });
    let whole = outcome.is_ok();
    finish(outcome, &place, sink)?;
    if whole {
        for fault in document.missing() {
            if sink.fault(fault, place.bytes.get()).is_break() {
                break;
            }
        }
    }
    Ok(document.warnings())
}

/// Where reading stands.
#[derive(Default)]
struct Place {
    line: Cell<u64>,
    bytes: Cell<u64>,
    /// Bytes at which the element in memory has grown too long; 0 while nothing is kept.
    limit: Cell<u64>,
    path: RefCell<String>,
    stopped: Cell<bool>,
}

impl Place {
    fn line(&self) -> u64 {
        self.line.get() + 1
    }

    fn set_path(&self, path: String) {
        *self.path.borrow_mut() = path;
    }

    fn path(&self) -> String {
        match self.path.borrow().as_str() {
            "" => "$".to_owned(),
            path => path.to_owned(),
        }
    }

    fn bound(&self) {
        self.limit.set(self.bytes.get() + MAX_RECORD_BYTES);
    }

    fn unbound(&self) {
        self.limit.set(0);
    }

    fn stop<E: serde::de::Error>(&self) -> E {
        self.stopped.set(true);
        E::custom("stopped")
    }
}

struct Counted<'a, R> {
    input: R,
    place: &'a Place,
}

impl<R: BufRead> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = self.place.limit.get();
        if limit != 0 && self.place.bytes.get() > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "too long"));
        }
        let count = self.input.read(buffer)?;
        self.place.bytes.set(self.place.bytes.get() + count as u64);
        let newlines = buffer[..count].iter().filter(|byte| **byte == b'\n').count();
        self.place.line.set(self.place.line.get() + newlines as u64);
        Ok(count)
    }
}

/// A byte order mark at the very beginning is no part of the text.
fn without_mark<R: BufRead>(mut input: R) -> io::Result<R> {
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    Ok(input)
}

type Json<'a, R> = serde_json::Deserializer<serde_json::de::IoRead<Counted<'a, R>>>;

fn stream<'a, R: BufRead>(
    input: R,
    place: &'a Place,
    read: impl FnOnce(&mut Json<'a, R>) -> Result<(), serde_json::Error>,
) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_reader(Counted { input, place });
    read(&mut deserializer)?;
    deserializer.end()
}

/// Broken JSON ends a document with a fault; only a failing disk is an error.
fn finish(outcome: Result<(), serde_json::Error>, place: &Place, sink: &mut Sink<'_>) -> io::Result<()> {
    let Err(error) = outcome else { return Ok(()) };
    if place.stopped.get() {
        return Ok(());
    }
    let message = match error.io_error_kind() {
        Some(io::ErrorKind::FileTooLarge) => {
            format!("the element is longer than {MAX_RECORD_BYTES} bytes; nothing behind it was read")
        }
        Some(_) => return Err(error.into()),
        None => format!("{}; nothing behind it was read", broken(&error)),
    };
    let line = if error.line() > 0 { error.line() as u64 } else { place.line() };
    let _ended_anyway = sink.fault(Fault::new(line, place.path(), message), place.bytes.get());
    Ok(())
}

/// A sequence whose elements are handed out one by one, each bounded.
struct Elements<'a, 'f>(&'a Place, &'f mut dyn FnMut(Value, u64) -> ControlFlow<()>);

impl<'de> DeserializeSeed<'de> for Elements<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.0.bound();
        while let Some((value, line)) = seq.next_element_seed(Located(self.0))? {
            if (self.1)(value, line).is_break() {
                return Err(self.0.stop());
            }
            self.0.bound();
        }
        self.0.unbound();
        Ok(())
    }
}

/// A value and the line it begins on: serde_json has read its first byte and nothing more when the seed is asked.
struct Located<'a>(&'a Place);

impl<'de> DeserializeSeed<'de> for Located<'_> {
    type Value = (Value, u64);
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(Value, u64), D::Error> {
        let line = self.0.line();
        Ok((serde::Deserialize::deserialize(deserializer)?, line))
    }
}

struct TopLevel<'a, 'd, 's, 'k> {
    place: &'a Place,
    document: &'d mut brightrun::Document,
    sink: &'s mut Sink<'k>,
}

impl<'de> Visitor<'de> for TopLevel<'_, '_, '_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with training_file_metadata and conversations")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            self.place.set_path(format!("$.{key}"));
            match key.as_str() {
                "training_file_metadata" => {
                    self.place.bound();
                    let (value, line) = map.next_value_seed(Located(self.place))?;
                    self.place.unbound();
                    if let Err(fault) = self.document.metadata(&value, line)
                        && self.sink.fault(fault, self.place.bytes.get()).is_break()
                    {
                        return Err(self.place.stop());
                    }
                }
                "conversations" => {
                    let (place, document, sink) = (self.place, &mut *self.document, &mut *self.sink);
                    map.next_value_seed(Conversations { place, document, sink })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            self.place.set_path(String::new());
        }
        Ok(())
    }
}

struct Conversations<'a, 'd, 's, 'k> {
    place: &'a Place,
    document: &'d mut brightrun::Document,
    sink: &'s mut Sink<'k>,
}

impl<'de> DeserializeSeed<'de> for Conversations<'_, '_, '_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Conversations<'_, '_, '_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of conversations")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Conversations { place, document, sink } = self;
        document.seen_conversations();
        let mut index = 0;
        loop {
            place.set_path(format!("$.conversations[{index}]"));
            let seed = Conversation { place, document: &mut *document, sink: &mut *sink, index };
            if seq.next_element_seed(seed)?.is_none() {
                return Ok(());
            }
            index += 1;
        }
    }
}

struct Conversation<'a, 'd, 's, 'k> {
    place: &'a Place,
    document: &'d mut brightrun::Document,
    sink: &'s mut Sink<'k>,
    index: usize,
}

impl<'de> DeserializeSeed<'de> for Conversation<'_, '_, '_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Conversation<'_, '_, '_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a conversation: an object with conversation_metadata and training_pairs")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Conversation { place, document, sink, index } = self;
        let mut reader = brightrun::ConversationReader::new(index, place.line());
        let mut give = |read: Vec<ReadOne>| read.into_iter().try_for_each(|found| sink.give(found, place.bytes.get()));
        while let Some(key) = map.next_key::<String>()? {
            place.set_path(format!("$.conversations[{index}].{key}"));
            match key.as_str() {
                "conversation_metadata" => {
                    place.bound();
                    let (value, line) = map.next_value_seed(Located(place))?;
                    place.unbound();
                    if give(reader.metadata(&value, line, document)).is_break() {
                        return Err(place.stop());
                    }
                }
                "training_pairs" => {
                    let mut each =
                        |value: Value, line: u64| give(reader.pair(value, line, place.bytes.get(), document));
                    map.next_value_seed(Elements(place, &mut each))?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        place.set_path(format!("$.conversations[{index}]"));
        match give(reader.finish()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(place.stop()),
        }
    }
}
