//! One large JSON document, streamed: only the element being judged is in memory, with the line it began on.
//!
//! serde_json asks its reader for one byte at a time, so a reader that counts newlines knows the line of every element, and
//! one that counts bytes can end an element that grows beyond bounds. Behind such an element, as behind broken JSON, nothing
//! can be read any more: the fault says so and reading ends.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, BufRead, Read};
use std::ops::ControlFlow;

use super::lines::broken;
use super::{ItemOf, MAX_RECORD_BYTES, Read as ReadOne, Sink};
use crate::format::brightrun;
use crate::{Fault, Json};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Reads `[element, …]`, each at `$[i]`.
pub(crate) fn read_list(input: impl BufRead, sink: &mut Sink<'_>, item_of: ItemOf<'_>) -> io::Result<()> {
    let place = Place::default();
    let mut index = 0;
    let outcome = stream(without_mark(input)?, &place, |deserializer| {
        place.set_path("$[0]".to_owned());
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

/// Reads objects one after the other, each over as many lines as it likes; the whole file is usually one.
pub(crate) fn read_objects(input: impl BufRead, sink: &mut Sink<'_>, item_of: ItemOf<'_>) -> io::Result<()> {
    let place = Place::default();
    let mut input = Counted { input: without_mark(input)?, place: &place };
    loop {
        place.unbound();
        match input.skip_blanks() {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return finish(Err(serde_json::Error::io(error)), &place, sink),
        }
        let line = place.line();
        place.bound();
        let mut deserializer = serde_json::Deserializer::from_reader(&mut input);
        match serde::Deserialize::deserialize(&mut deserializer) {
            Ok(value) => {
                let value: Json = value;
                if sink.give(item_of(&value, line, "$"), place.bytes.get()).is_break() {
                    return Ok(());
                }
            }
            Err(error) => return finish_at(place.line(), &error, &place, sink),
        }
    }
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

impl<R: BufRead> Counted<'_, R> {
    /// Up to the next byte that is no blank; whether there is one.
    fn skip_blanks(&mut self) -> io::Result<bool> {
        loop {
            let available = self.input.fill_buf()?;
            let blanks = available.iter().position(|byte| !byte.is_ascii_whitespace());
            let count = blanks.unwrap_or(available.len());
            let newlines = available[..count].iter().filter(|byte| **byte == b'\n').count();
            let at_end = available.is_empty();
            self.place.bytes.set(self.place.bytes.get() + count as u64);
            self.place.line.set(self.place.line.get() + newlines as u64);
            self.input.consume(count);
            if blanks.is_some() || at_end {
                return Ok(blanks.is_some());
            }
        }
    }
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

type Parser<'a, R> = serde_json::Deserializer<serde_json::de::IoRead<Counted<'a, R>>>;

fn stream<'a, R: BufRead>(
    input: R,
    place: &'a Place,
    read: impl FnOnce(&mut Parser<'a, R>) -> Result<(), serde_json::Error>,
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
    let line = if error.line() > 0 { error.line() as u64 } else { place.line() };
    finish_at(line, &error, place, sink)
}

fn finish_at(line: u64, error: &serde_json::Error, place: &Place, sink: &mut Sink<'_>) -> io::Result<()> {
    let (line, message) = match error.io_error_kind() {
        Some(io::ErrorKind::FileTooLarge) => (line, format!("the element is longer than {MAX_RECORD_BYTES} bytes")),
        Some(io::ErrorKind::InvalidData) => (place.line(), error.to_string()),
        Some(kind) => return Err(io::Error::new(kind, error.to_string())),
        None => (line, broken(error)),
    };
    let fault = Fault::new(line, place.path(), format!("{message}; nothing behind it was read"));
    let _ended_anyway = sink.fault(fault, place.bytes.get());
    Ok(())
}

/// A sequence whose elements are handed out one by one, each bounded.
struct Elements<'a, 'f>(&'a Place, &'f mut dyn FnMut(Json, u64) -> ControlFlow<()>);

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
    type Value = (Json, u64);
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(Json, u64), D::Error> {
        let line = self.0.line();
        Ok((serde::Deserialize::deserialize(deserializer)?, line))
    }
}

/// The next key of an object, which is held as a value is and bounded likewise.
fn next_key<'de, A: MapAccess<'de>>(place: &Place, map: &mut A) -> Result<Option<String>, A::Error> {
    place.bound();
    let key = map.next_key();
    place.unbound();
    key
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
        while let Some(key) = next_key(self.place, &mut map)? {
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
        while let Some(key) = next_key(place, &mut map)? {
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
                    let mut each = |value: Json, line: u64| give(reader.pair(value, line, place.bytes.get(), document));
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
