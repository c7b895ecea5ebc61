//! A dataset file, read once from front to back: never held whole, each record judged where it stands.

mod document;
mod lines;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::Value;

pub(crate) use lines::BoundedLines;

use crate::format::{self, Format, Layout};
use crate::{DatasetError, Fault, Key, Record};

/// The longest line, and the longest record of a document. The longest known real ones are some 20 kB; parsed, a record of
/// this size that was made to hurt takes a few hundred megabytes.
pub const MAX_RECORD_BYTES: u64 = 8 << 20;

/// What a reader meets, in file order.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// Something to train on.
    Record(Record),
    /// A pair without a target: counted, trains nothing.
    NoTarget(Key),
    /// Something wrong.
    Fault(Fault),
}

/// What is known once the whole file was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// What the file is.
    pub format: Format,
    /// Worth knowing, not wrong.
    pub warnings: Vec<String>,
}

/// Reads a file; `sink` gets each item and the bytes read so far, and may end the reading.
pub fn read(path: &Path, sink: &mut dyn FnMut(Item, u64) -> ControlFlow<()>) -> Result<Summary, DatasetError> {
    let detected = format::detect(path)?;
    let file = open(path)?;
    let failed = |source: io::Error| DatasetError::Read { path: path.to_owned(), source };
    let mut sink = Sink { sink, seen: HashSet::new() };
    let warnings = match (detected.format, detected.layout) {
        (Format::BrightrunLoraV4, Layout::Document) => document::read_brightrun(file, &mut sink).map_err(failed)?,
        (Format::BrightrunLoraV4, Layout::Lines) => {
            let mut lines = format::brightrun::Lines::default();
            lines::read(file, &mut sink, &mut |value, line| lines.items(value, line)).map_err(failed)?;
            lines.warnings()
        }
        (Format::ChatMessages | Format::PromptCompletion, layout) => {
            let mut flat = format::Flat::new(detected.format);
            match layout {
                Layout::Lines => {
                    lines::read(file, &mut sink, &mut |value, line| flat.item(value, line, "$")).map_err(failed)?;
                }
                Layout::Array | Layout::Document => {
                    document::read_array(file, &mut sink, &mut |value, line, path| flat.item(value, line, path))
                        .map_err(failed)?;
                }
            }
            flat.warnings()
        }
        (format, _) => return Err(DatasetError::UnsupportedFormat { path: path.to_owned(), format }),
    };
    Ok(Summary { format: detected.format, warnings })
}

pub(crate) fn open(path: &Path) -> Result<BufReader<File>, DatasetError> {
    let failed = |source| DatasetError::Read { path: path.to_owned(), source };
    // opening a pipe would wait for ever
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")));
    }
    File::open(path).map(|file| BufReader::with_capacity(1 << 18, file)).map_err(failed)
}

/// The caller's sink behind the one check that needs memory of the whole file: a turn may stand only once.
pub(crate) struct Sink<'a> {
    sink: &'a mut dyn FnMut(Item, u64) -> ControlFlow<()>,
    /// Half a hash of each key; two in a billion keys collide with a chance of 1e-20.
    seen: HashSet<u128>,
}

impl Sink<'_> {
    pub(crate) fn fault(&mut self, fault: Fault, bytes: u64) -> ControlFlow<()> {
        (self.sink)(Item::Fault(fault), bytes)
    }

    pub(crate) fn give(&mut self, read: Read, bytes: u64) -> ControlFlow<()> {
        let item = match read {
            Ok(None) => return ControlFlow::Continue(()),
            Ok(Some(Found { item, place })) => self.once(item, place),
            Err(fault) => Item::Fault(fault),
        };
        (self.sink)(item, bytes)
    }

    fn once(&mut self, item: Item, place: Option<(u64, String)>) -> Item {
        let (Some((line, path)), Some(key)) = (place, item.key()) else { return item };
        let hash = blake3::Hasher::new().update(key.conversation.as_bytes()).update(&key.turn.to_le_bytes()).finalize();
        let half = hash.as_bytes()[..16].iter().fold(0u128, |n, b| n << 8 | u128::from(*b));
        if self.seen.insert(half) {
            return item;
        }
        let message = format!("turn {} of conversation {} stands twice", key.turn, key.conversation);
        Item::Fault(Fault::new(line, format!("{path}.turn_number"), message))
    }
}

impl Item {
    const fn key(&self) -> Option<&Key> {
        match self {
            Item::Record(record) => Some(&record.key),
            Item::NoTarget(key) => Some(key),
            Item::Fault(_) => None,
        }
    }
}

/// An item as a format read it; `place` where its key must be the only one of its kind.
pub(crate) struct Found {
    pub(crate) item: Item,
    pub(crate) place: Option<(u64, String)>,
}

/// What became of one JSON value; `None` when it is no record of its own.
pub(crate) type Read = Result<Option<Found>, Fault>;

/// A format's way with one JSON value on a line.
pub(crate) type ItemOf<'a> = &'a mut dyn FnMut(&Value, u64) -> Read;
