//! A dataset file, read once from front to back: never held whole, each record judged where it stands.

mod document;
mod lines;
mod source;
mod table;

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;

pub(crate) use lines::BoundedLines;
pub(crate) use source::{Container, container, open, open_text};
pub(crate) use table::shape as table_shape;

use crate::format::{self, Detected, Format, Layout, Records};
use crate::{DatasetError, Fault, Json, Key, Record};

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

/// Reads a file; `sink` gets each item and the bytes of the file taken so far, and may end the reading.
pub fn read(path: &Path, sink: &mut dyn FnMut(Item, u64) -> ControlFlow<()>) -> Result<Summary, DatasetError> {
    let detected = format::detect(path)?;
    let warnings = match detected.layout {
        Layout::Rows => {
            let mut records = Records::of(detected.format);
            table::read(path, &mut Sink::new(sink), &mut |value, row, place| records.item(value, row, place))?;
            records.warnings()
        }
        Layout::Lines | Layout::Objects | Layout::List | Layout::Document => read_text(path, detected, sink)?,
    };
    Ok(Summary { format: detected.format, warnings })
}

fn read_text(
    path: &Path,
    detected: Detected,
    sink: &mut dyn FnMut(Item, u64) -> ControlFlow<()>,
) -> Result<Vec<String>, DatasetError> {
    let text = open_text(path)?;
    let meter = text.meter();
    let mut metered = |item, _| sink(item, meter.load(Ordering::Relaxed));
    let mut sink = Sink::new(&mut metered);
    let failed = |source: io::Error| DatasetError::Read { path: path.to_owned(), source };
    let mut records = Records::of(detected.format);
    let mut item = |value: &Json, line: u64, place: &str| records.item(value, line, place);
    match detected.layout {
        Layout::Document => return document::read_brightrun(text, &mut sink).map_err(failed),
        Layout::List => document::read_list(text, &mut sink, &mut item),
        Layout::Objects => document::read_objects(text, &mut sink, &mut item),
        Layout::Lines | Layout::Rows => lines::read(text, &mut sink, &mut item),
    }
    .map_err(failed)?;
    Ok(records.warnings())
}

/// The caller's sink behind the one check that needs memory of the whole file: a turn may stand only once.
pub(crate) struct Sink<'a> {
    sink: &'a mut dyn FnMut(Item, u64) -> ControlFlow<()>,
    /// Half a hash of each key; two in a billion keys collide with a chance of 1e-20.
    seen: HashSet<u128>,
}

impl<'a> Sink<'a> {
    fn new(sink: &'a mut dyn FnMut(Item, u64) -> ControlFlow<()>) -> Sink<'a> {
        Sink { sink, seen: HashSet::new() }
    }

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

/// A format's way with one JSON value: the value, its line or row, its path.
pub(crate) type ItemOf<'a> = &'a mut dyn FnMut(&Json, u64, &str) -> Read;
