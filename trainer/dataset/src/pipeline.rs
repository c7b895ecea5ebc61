//! The way through a file that checking, preparing and job inspection share: read, encode on all cores, hand out in order.
//!
//! Memory is bounded by a batch: it is encoded and handed out before more is read. Beside it grow only a few bytes for each
//! conversation.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use rayon::prelude::*;

use crate::format::detect;
use crate::read::{Item, Summary, read};
use crate::split::half;
use crate::{DatasetError, Encoder, Example, Fault, Filters, Format, Key, Progress, Record};

/// Items in a batch.
const BATCH_ITEMS: usize = 512;
/// Bytes of text in a batch; enough for every core to have work, far below any machine's memory.
const BATCH_BYTES: usize = 8 << 20;

/// What comes out, in file order.
pub(crate) enum Outcome {
    /// An example, with its record; no tokens when there is no encoder.
    Example(Record, Example),
    /// A pair without a target, with the ordinal of its conversation.
    NoTarget(Key, u64),
    /// A record that the filters leave out, with the ordinal of its conversation.
    Filtered(Record, u64),
    /// Something wrong, in the file or in rendering it.
    Fault(Fault),
}

/// A way through a file.
pub(crate) struct Pipeline<'a> {
    pub(crate) path: &'a Path,
    /// Without one, records come out with empty examples.
    pub(crate) encoder: Option<Encoder<'a>>,
    pub(crate) filters: &'a Filters,
    pub(crate) stop: &'a dyn Fn() -> bool,
}

impl Pipeline<'_> {
    /// Runs to the end of the file, or until `stop` or the first error of `out`.
    pub(crate) fn run(
        &self,
        progress: &mut dyn FnMut(Progress),
        out: &mut dyn FnMut(Outcome) -> Result<(), DatasetError>,
    ) -> Result<Summary, DatasetError> {
        check_filters(self.path, self.filters)?;
        let total_bytes =
            self.path.metadata().map_err(|source| DatasetError::Read { path: self.path.to_owned(), source })?.len();
        let mut batch = Batch::default();
        let mut failed = None;
        let mut report = Progress { total_bytes, ..Progress::default() };
        let mut flush = |batch: &mut Batch, bytes: u64| {
            report.bytes = bytes;
            self.flush(batch, &mut report, progress, out)
        };
        let summary = read(self.path, &mut |item, bytes| {
            batch.push(item);
            if !batch.is_full() {
                return ControlFlow::Continue(());
            }
            match flush(&mut batch, bytes) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        match failed {
            Some(error) => Err(error),
            None => flush(&mut batch, total_bytes).map(|()| summary),
        }
    }

    fn flush(
        &self,
        batch: &mut Batch,
        report: &mut Progress,
        progress: &mut dyn FnMut(Progress),
        out: &mut dyn FnMut(Outcome) -> Result<(), DatasetError>,
    ) -> Result<(), DatasetError> {
        if (self.stop)() {
            return Err(DatasetError::Stopped);
        }
        let (encoder, filters) = (self.encoder, self.filters);
        let items = batch.take().into_par_iter();
        let outcomes: Vec<_> = items.map(|(item, number)| outcome(encoder, filters, item, number)).collect();
        for outcome in outcomes {
            report.examples += u64::from(matches!(outcome, Outcome::Example(..)));
            out(outcome)?;
        }
        progress(*report);
        Ok(())
    }
}

/// Only brightrun marks its pairs; elsewhere a filter would leave out everything without a word.
pub(crate) fn check_filters(path: &Path, filters: &Filters) -> Result<(), DatasetError> {
    if filters.is_empty() {
        return Ok(());
    }
    let format = detect(path)?.format;
    if format == Format::BrightrunLoraV4 {
        return Ok(());
    }
    Err(DatasetError::Filters { path: path.to_owned(), format })
}

/// Judges and encodes one item; runs on any thread.
fn outcome(encoder: Option<Encoder<'_>>, filters: &Filters, item: Item, conversation: u64) -> Outcome {
    let record = match item {
        Item::Record(record) => record,
        Item::NoTarget(key) => return Outcome::NoTarget(key, conversation),
        Item::Fault(fault) => return Outcome::Fault(fault),
    };
    if !filters.admit(&record) {
        return Outcome::Filtered(record, conversation);
    }
    match encoder.map(|encoder| encoder.encode(&record, conversation)) {
        Some(Ok(example)) => Outcome::Example(record, example),
        Some(Err(fault)) => Outcome::Fault(fault),
        None => {
            let example = Example { key: record.key.clone(), conversation, ..Example::default() };
            Outcome::Example(record, example)
        }
    }
}

/// Items that wait to be encoded, each with the ordinal of its conversation.
#[derive(Default)]
struct Batch {
    items: Vec<(Item, u64)>,
    bytes: usize,
    /// Ordinals by half a hash of the name: names themselves would be most of what grows with the file.
    conversations: HashMap<[u8; 16], u64>,
}

impl Batch {
    fn push(&mut self, item: Item) {
        let number = match &item {
            Item::Record(record) => {
                self.bytes += record.weight_bytes();
                self.number(&record.key)
            }
            Item::NoTarget(key) => self.number(key),
            Item::Fault(_) => 0,
        };
        self.items.push((item, number));
    }

    fn number(&mut self, key: &Key) -> u64 {
        let next = self.conversations.len() as u64;
        *self.conversations.entry(half(&blake3::hash(key.conversation.as_bytes()))).or_insert(next)
    }

    const fn is_full(&self) -> bool {
        self.items.len() >= BATCH_ITEMS || self.bytes >= BATCH_BYTES
    }

    fn take(&mut self) -> Vec<(Item, u64)> {
        self.bytes = 0;
        std::mem::take(&mut self.items)
    }
}
