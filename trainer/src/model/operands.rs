//! What products take of an adapter: its numbers and, with DoRA, the lengths of the rows that it adapts. Both change with a step alone: they are
//! made once for all passes of one, and once for all tokens that are generated.

use std::collections::BTreeMap;

use crate::lora::{AdapterView, LoraEntry, Site};
use crate::ops::lora::Columns;
use crate::ops::machine::{Lengths, Operand, Pair};
use crate::ops::profile::Op;

use super::Model;

/// Of one adapter.
#[derive(Debug)]
pub(super) struct Operands<'a> {
    numbers: Operand<'a>,
    /// Of every module that has them.
    lengths: BTreeMap<Site, Lengths>,
}

impl Model {
    /// Of every adapter.
    pub(super) fn operands<'a>(&self, adapters: &[AdapterView<'a>]) -> Vec<Operands<'a>> {
        adapters.iter().map(|view| self.profile.time(Op::Lora, || self.operands_of(view))).collect()
    }

    fn operands_of<'a>(&self, view: &AdapterView<'a>) -> Operands<'a> {
        let mut operands = Operands { numbers: self.machine.operand(view.params), lengths: BTreeMap::new() };
        for entry in view.layout.entries().iter().filter(|entry| !entry.magnitude.is_empty()) {
            let (weight, rows) = self.weight_under(entry.site).expect("row lengths are a projection's or the head's");
            let columns = Columns { first: rows.start, count: rows.len(), stride: weight.rows() };
            let magnitude = (view.params, entry.magnitude.clone());
            let lengths = self.machine.lengths(weight, columns, &operands.pair(entry), magnitude);
            operands.lengths.insert(entry.site, lengths);
        }
        operands
    }
}

impl Operands<'_> {
    /// A and B of one module.
    pub(super) fn pair(&self, entry: &LoraEntry) -> Pair<'_> {
        let (a, b) = (self.numbers.part(entry.a.clone()), self.numbers.part(entry.b.clone()));
        Pair { a, b, rank: entry.rank, scale: entry.scale }
    }

    /// What a PiSSA adapter takes out again: the product it began with.
    pub(super) fn started(&self, entry: &LoraEntry) -> Option<Pair<'_>> {
        let [a, b] = entry.start.clone()?.map(|place| self.numbers.part(place));
        Some(Pair { a, b, rank: entry.rank, scale: -entry.scale })
    }

    /// The row lengths of one module, where it has them.
    pub(super) fn lengths(&self, site: Site) -> Option<&Lengths> {
        self.lengths.get(&site)
    }
}
