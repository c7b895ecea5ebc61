//! The network: connections whose messages arrive in order, late, or not at all. A cut in either direction ends a connection
//! after the idle time-out; until then the other direction still works.

use super::Chance;
use std::collections::BTreeMap;

/// QUIC's idle time-out.
pub(super) const IDLE: u64 = 15_000;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    ToBrain,
    ToNode,
}

/// One connection's state.
#[derive(Debug, Default)]
struct Connection {
    /// When the last message in each direction arrives: the next one is not earlier.
    last: BTreeMap<Way, u64>,
}

/// Every connection there is.
#[derive(Debug, Default)]
pub(super) struct Wire {
    open: BTreeMap<u64, (usize, Connection)>,
    next: u64,
    /// Nothing gets through this way until then.
    cuts: BTreeMap<(usize, Way), u64>,
    /// Messages of this node arrive twice until then.
    repeats: BTreeMap<usize, u64>,
}

impl Wire {
    /// A new connection of a node.
    pub(super) fn connect(&mut self, node: usize) -> u64 {
        self.next += 1;
        self.open.insert(self.next, (node, Connection::default()));
        self.next
    }

    /// Whose it is.
    pub(super) fn node_of(&self, connection: u64) -> Option<usize> {
        self.open.get(&connection).map(|(node, _)| *node)
    }

    /// Whether both ends still believe in it.
    pub(super) fn is_open(&self, connection: u64) -> bool {
        self.open.contains_key(&connection)
    }

    /// It is over.
    pub(super) fn close(&mut self, connection: u64) {
        self.open.remove(&connection);
    }

    /// All that are open.
    pub(super) fn all(&self) -> Vec<(usize, u64)> {
        self.open.iter().map(|(connection, (node, _))| (*node, *connection)).collect()
    }

    /// When a message sent now arrives; `None`: never.
    pub(super) fn arrival(&mut self, connection: u64, way: Way, now: u64, chance: &mut Chance) -> Option<u64> {
        let (node, open) = self.open.get_mut(&connection)?;
        if self.cuts.get(&(*node, way)).is_some_and(|until| now < *until) {
            return None;
        }
        let delay = if chance.one_in(20) { chance.between(50, 2_000) } else { chance.between(1, 30) };
        let at = (now + delay).max(open.last.get(&way).copied().unwrap_or(0));
        open.last.insert(way, at);
        Some(at)
    }

    /// Nothing gets through this way for a while.
    pub(super) fn cut(&mut self, node: usize, way: Way, until: u64) {
        let old = self.cuts.entry((node, way)).or_default();
        *old = until.max(*old);
    }

    /// Whether anything gets through.
    pub(super) fn is_cut(&self, node: usize, now: u64) -> bool {
        let cut = |way| self.cuts.get(&(node, way)).is_some_and(|until| now < *until);
        cut(Way::ToBrain) || cut(Way::ToNode)
    }

    /// Messages arrive twice for a while.
    pub(super) fn repeat(&mut self, node: usize, until: u64) {
        self.repeats.insert(node, until);
    }

    /// Whether they do.
    pub(super) fn repeats(&self, node: usize, now: u64) -> bool {
        self.repeats.get(&node).is_some_and(|until| now < *until)
    }

    /// Faults are over.
    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        self.repeats.clear();
    }
}
