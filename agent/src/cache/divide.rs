//! Who is asked for which chunk: the missing ones are dealt out to the coordinator and to nodes that have the file, as fast as each
//! brings them. Pure: what was asked and what came of it goes in, and so does the time.
//!
//! ```text
//!            ┌── arrived ────────────────────────────────────────────────► done
//! waiting ─► asked of a node ── lied: the node is out for good ──┐
//!    ▲            │ ├── not reached, twice: the node is out for good ┤
//!    ▲            │ └────────── broke off, refused: out until it is named again ──┐
//!    │            └── late: the coordinator is asked as well, and the other way  │
//!    └────────────────────────────────────────────────────────────────────────────┘
//! ```
//! Nodes are asked first, because what they bring the coordinator need not. It is always asked for one chunk at a time all the same:
//! then no node, slow, dead or lying, can hold up a file, and a good line to the coordinator is not left idle. Only what nodes may hold
//! that have brought a chunk is taken off its part: those that are merely named may never bring one.

use lorikeet_protocol::id::NodeId;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// Of one node: a chunk on its way, and the next one right behind it.
const OF_ONE_NODE: usize = 2;
/// A node that cannot be reached costs a chunk the time of a handshake, each time it is named.
const NOT_REACHED: u32 = 2;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    /// It has everything.
    Coordinator,
    /// It said that it has the file.
    Node(NodeId),
}

/// What came of asking a node, if not the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Other bytes came.
    Lied,
    /// There is no way to it.
    NotReached,
    /// Nothing came.
    Away,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Gives,
    Away,
    /// For good.
    Out,
}

/// One file's chunks.
#[derive(Debug)]
pub(super) struct Division {
    parallel: usize,
    late: Duration,
    /// Nobody is asked for them now.
    waiting: VecDeque<u32>,
    /// Who was asked for each, and when.
    asked: BTreeMap<u32, Vec<(Asked, Duration)>>,
    /// Requests that have not come to an end, wanted or not.
    open: BTreeMap<Asked, usize>,
    /// In the order in which they were named.
    nodes: Vec<(NodeId, Standing)>,
    /// Those that have brought a chunk.
    proved: BTreeSet<NodeId>,
    /// How often, of those that were named, there was no way to one.
    not_reached: BTreeMap<NodeId, u32>,
}

impl Division {
    /// At most `parallel` requests to the coordinator at a time, and fewer than that to nodes; once nothing else is left to ask for, what takes
    /// longer than `late` is asked elsewhere as well.
    pub(super) fn new(missing: Vec<u32>, parallel: usize, late: Duration) -> Self {
        let (asked, open, not_reached) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (nodes, proved) = (Vec::new(), BTreeSet::new());
        Self { parallel, late, waiting: missing.into(), asked, open, nodes, proved, not_reached }
    }

    /// These nodes have the file now; others are asked no more, and one that is out for good is not asked again whoever names it.
    pub(super) fn name(&mut self, named: impl IntoIterator<Item = NodeId>) {
        let mut nodes: Vec<_> = self.nodes.iter().copied().filter(|(_, standing)| *standing == Standing::Out).collect();
        for node in named {
            if !nodes.iter().any(|(known, _)| *known == node) {
                nodes.push((node, Standing::Gives));
            }
        }
        self.nodes = nodes;
    }

    /// The next request to make now; it counts as made.
    pub(super) fn next(&mut self, now: Duration) -> Option<(Asked, u32)> {
        let (whom, chunk) = self.of_a_node(now).or_else(|| self.of_the_coordinator(now))?;
        self.waiting.retain(|waiting| *waiting != chunk);
        self.asked.entry(chunk).or_default().push((whom, now));
        *self.open.entry(whom).or_default() += 1;
        Some((whom, chunk))
    }

    /// When there is something to ask for though nothing came, if there is.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let of_nodes = self.alone(false).filter(|_| self.coordinator_may());
        let of_the_coordinator = self.alone(true).filter(|_| self.free_node().is_some());
        let moments = of_nodes.chain(of_the_coordinator).map(|(since, _)| since + self.late);
        moments.min().filter(|_| self.waiting.is_empty())
    }

    /// A chunk came and is what it should be. Whether it is the first time: what was late may come twice.
    pub(super) fn arrived(&mut self, whom: Asked, chunk: u32) -> bool {
        self.close(whom);
        if let Asked::Node(node) = whom {
            self.proved.insert(node);
        }
        self.asked.remove(&chunk).is_some()
    }

    /// A node did not bring a chunk: it comes from elsewhere.
    pub(super) fn failed(&mut self, node: NodeId, chunk: u32, failure: Failure) {
        let whom = Asked::Node(node);
        self.close(whom);
        if let Some((_, standing)) = self.nodes.iter_mut().find(|(known, _)| *known == node) {
            // Both chunks that it was asked for fail together: that counts once for each naming.
            let not_reached = self.not_reached.entry(node).or_default();
            *not_reached += u32::from(failure == Failure::NotReached && *standing == Standing::Gives);
            let is_out = failure == Failure::Lied || *standing == Standing::Out || *not_reached >= NOT_REACHED;
            *standing = if is_out { Standing::Out } else { Standing::Away };
        }
        if let Some(others) = self.asked.get_mut(&chunk) {
            others.retain(|(other, _)| *other != whom);
            if others.is_empty() {
                self.asked.remove(&chunk);
                self.waiting.push_front(chunk);
            }
        }
    }

    /// Every chunk came.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.asked.is_empty()
    }

    fn of_a_node(&self, now: Duration) -> Option<(Asked, u32)> {
        Some((self.free_node()?, self.wanted(true, now)?))
    }

    fn of_the_coordinator(&self, now: Duration) -> Option<(Asked, u32)> {
        self.coordinator_may().then_some(())?;
        Some((Asked::Coordinator, self.wanted(false, now)?))
    }

    /// The next chunk that nobody is asked for; without one, the oldest that is late where it was asked.
    fn wanted(&self, of_the_coordinator: bool, now: Duration) -> Option<u32> {
        let late = || self.alone(of_the_coordinator).filter(|(since, _)| *since + self.late <= now).min();
        self.waiting.front().copied().or_else(|| Some(late()?.1))
    }

    /// Chunks that only the coordinator, or only nodes, were asked for; and since when.
    fn alone(&self, of_the_coordinator: bool) -> impl Iterator<Item = (Duration, u32)> {
        let only = move |(whom, _): &(Asked, Duration)| (*whom == Asked::Coordinator) == of_the_coordinator;
        let chunks = self.asked.iter().filter(move |(_, asked)| asked.iter().all(only));
        chunks.filter_map(|(chunk, asked)| Some((asked.first()?.1, *chunk)))
    }

    /// The node that is asked for least, if one may be asked for more.
    fn free_node(&self) -> Option<Asked> {
        let nodes = self.nodes.iter().filter(|(_, standing)| *standing == Standing::Gives);
        let nodes = nodes.map(|(node, _)| Asked::Node(*node)).filter(|node| self.open(*node) < OF_ONE_NODE);
        let least = nodes.min_by_key(|node| self.open(*node))?;
        let of_nodes: usize = self.open.values().sum::<usize>() - self.open(Asked::Coordinator);
        (of_nodes < self.most_of_nodes()).then_some(least)
    }

    fn most_of_nodes(&self) -> usize {
        self.parallel.saturating_sub(1).max(1)
    }

    fn coordinator_may(&self) -> bool {
        let proved =
            |(node, standing): &&(NodeId, Standing)| *standing == Standing::Gives && self.proved.contains(node);
        let of_proved = (self.nodes.iter().filter(proved).count() * OF_ONE_NODE).min(self.most_of_nodes());
        self.open(Asked::Coordinator) < self.parallel.saturating_sub(of_proved).max(1)
    }

    fn open(&self, whom: Asked) -> usize {
        self.open.get(&whom).copied().unwrap_or(0)
    }

    fn close(&mut self, whom: Asked) {
        if let Some(open) = self.open.get_mut(&whom) {
            *open = open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
