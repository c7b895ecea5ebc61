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
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const START: Duration = Duration::ZERO;
    const LATE: Duration = Duration::from_secs(10);

    fn node(n: u128) -> NodeId {
        NodeId(uuid::Uuid::from_u128(n))
    }

    fn all(division: &mut Division, now: Duration) -> Vec<(Asked, u32)> {
        std::iter::from_fn(|| division.next(now)).collect()
    }

    #[test]
    fn without_nodes_the_coordinator_is_asked_for_everything() {
        let mut division = Division::new(vec![0, 1, 2], 2, LATE);
        assert_eq!(all(&mut division, START), [(Asked::Coordinator, 0), (Asked::Coordinator, 1)]);
        division.arrived(Asked::Coordinator, 0);
        assert_eq!(all(&mut division, START), [(Asked::Coordinator, 2)]);
        assert!(!division.is_done());
        division.arrived(Asked::Coordinator, 1);
        division.arrived(Asked::Coordinator, 2);
        assert!(division.is_done());
    }

    #[test]
    fn nodes_are_asked_first_and_evenly_and_one_chunk_is_the_coordinators() {
        let mut division = Division::new((0..9).collect(), 4, LATE);
        division.name([node(1), node(2)]);
        let asked = all(&mut division, START);
        let (one, two) = (Asked::Node(node(1)), Asked::Node(node(2)));
        let of_the_coordinator = (3..7).map(|chunk| (Asked::Coordinator, chunk));
        assert!(asked.into_iter().eq([(one, 0), (two, 1), (one, 2)].into_iter().chain(of_the_coordinator)));
        assert!(division.arrived(two, 1));
        assert_eq!(all(&mut division, START), [(two, 7)], "whoever brings is asked for more");
    }

    #[test]
    fn who_brings_faster_brings_more() {
        let mut division = Division::new((0..100).collect(), 8, LATE);
        division.name([node(1), node(2)]);
        let mut flying: BTreeMap<(u64, u32), Asked> = BTreeMap::new();
        let mut brought: BTreeMap<Asked, u32> = BTreeMap::new();
        let mut now = 0;
        while !division.is_done() {
            for (whom, chunk) in all(&mut division, Duration::from_millis(now)) {
                let takes = if whom == Asked::Node(node(1)) { 100 } else { 900 };
                flying.insert((now + takes, chunk), whom);
            }
            let ((at, chunk), whom) = flying.pop_first().expect("something is on its way");
            now = at;
            division.arrived(whom, chunk);
            *brought.entry(whom).or_default() += 1;
        }
        assert_eq!(brought.values().sum::<u32>(), 100, "nothing came twice");
        assert!(brought[&Asked::Node(node(1))] > 3 * brought[&Asked::Node(node(2))], "{brought:?}");
        assert!(brought[&Asked::Coordinator] > 0, "{brought:?}");
    }

    #[test]
    fn a_chunk_of_a_node_that_lied_comes_from_elsewhere_and_the_node_is_not_asked_again() {
        let mut division = Division::new(vec![0, 1, 2], 8, LATE);
        division.name([node(1), node(2)]);
        all(&mut division, START);
        division.failed(node(1), 0, Failure::Lied);
        assert_eq!(all(&mut division, START), [(Asked::Node(node(2)), 0)]);
        division.name([node(1)]);
        division.failed(node(2), 0, Failure::Away);
        assert_eq!(all(&mut division, START), [(Asked::Coordinator, 0)], "nobody else is left, whoever is named");
    }

    #[test]
    fn a_node_that_went_away_is_asked_again_once_it_is_named_again() {
        let mut division = Division::new(vec![0, 1], 4, LATE);
        division.name([node(1)]);
        assert_eq!(all(&mut division, START).len(), 2);
        division.failed(node(1), 0, Failure::Away);
        assert_eq!(all(&mut division, START), [(Asked::Coordinator, 0)]);
        division.failed(node(1), 1, Failure::Away);
        assert_eq!(
            all(&mut division, START),
            [(Asked::Coordinator, 1)],
            "a dead node leaves the coordinator all of it"
        );
        division.name([node(1)]);
        division.arrived(Asked::Coordinator, 1);
        division.arrived(Asked::Coordinator, 0);
        assert!(division.is_done());
        let mut division = Division::new(vec![0], 4, LATE);
        division.name([node(1)]);
        all(&mut division, START);
        division.failed(node(1), 0, Failure::Away);
        division.name([node(1)]);
        assert_eq!(all(&mut division, START), [(Asked::Node(node(1)), 0)]);
    }

    #[test]
    fn a_chunk_that_is_late_is_asked_of_the_coordinator_as_well_and_counts_once() {
        let mut division = Division::new(vec![0], 4, LATE);
        division.name([node(1)]);
        assert_eq!(all(&mut division, START), [(Asked::Node(node(1)), 0)]);
        assert_eq!(division.deadline(), Some(LATE));
        assert_eq!(all(&mut division, LATE / 2), []);
        assert_eq!(all(&mut division, LATE), [(Asked::Coordinator, 0)]);
        assert_eq!(division.deadline(), None, "it is asked of everybody");
        division.arrived(Asked::Coordinator, 0);
        assert!(division.is_done());
        division.failed(node(1), 0, Failure::Away);
        assert!(division.is_done(), "what comes late of it changes nothing");
    }

    #[test]
    fn a_coordinator_that_is_late_is_helped_out_by_a_node() {
        let mut division = Division::new((0..3).collect(), 4, LATE);
        division.name([node(1)]);
        let one = Asked::Node(node(1));
        assert_eq!(all(&mut division, START), [(one, 0), (one, 1), (Asked::Coordinator, 2)]);
        division.arrived(one, 0);
        division.arrived(one, 1);
        assert_eq!((division.deadline(), all(&mut division, START)), (Some(LATE), vec![]));
        assert_eq!(all(&mut division, LATE), [(one, 2)]);
        division.arrived(one, 2);
        assert!(division.is_done());
    }

    #[test]
    fn the_coordinators_part_shrinks_by_what_nodes_may_hold_that_have_brought_something() {
        let mut division = Division::new((0..100).collect(), 8, LATE);
        division.name([node(1), node(2), node(3)]);
        let part = |division: &mut Division| {
            all(division, START);
            division.open(Asked::Coordinator)
        };
        assert_eq!(part(&mut division), 8, "whom nobody has heard of yet takes nothing off");
        for (n, expected) in [(1, 6), (2, 4), (3, 2)] {
            assert!(division.arrived(Asked::Node(node(n)), n as u32 - 1));
            for chunk in (0..100)
                .filter(|chunk| division.asked.get(chunk).is_some_and(|by| by[0].0 == Asked::Coordinator))
                .collect::<Vec<_>>()
            {
                division.arrived(Asked::Coordinator, chunk);
            }
            assert_eq!(part(&mut division), expected, "{n} proved");
        }
        division.name([]);
        assert_eq!(part(&mut division), 8, "they have it no more");
    }

    #[test]
    fn a_node_that_was_not_reached_when_it_was_named_twice_is_not_asked_again() {
        let mut division = Division::new((0..4).collect(), 1, LATE);
        let asks_the_node =
            |division: &mut Division| all(division, START).into_iter().find(|(whom, _)| *whom == Asked::Node(node(1)));
        for naming in 1..=2 {
            division.name([node(1)]);
            let (_, chunk) = asks_the_node(&mut division).expect("it is named");
            division.failed(node(1), chunk, Failure::NotReached);
            // Another of its requests, after the first has failed.
            division.failed(node(1), 99, Failure::NotReached);
            assert_eq!(asks_the_node(&mut division), None, "{naming}");
        }
        division.name([node(1)]);
        assert_eq!(asks_the_node(&mut division), None, "out, whoever names it");
        division.name([node(2)]);
        assert!(all(&mut division, START).iter().any(|(whom, _)| *whom == Asked::Node(node(2))));
    }

    #[test]
    fn a_silent_node_is_given_no_more_than_it_already_holds() {
        let mut division = Division::new((0..6).collect(), 4, LATE);
        division.name([node(1)]);
        let (silent, coordinator) = (Asked::Node(node(1)), Asked::Coordinator);
        let of_the_coordinator = (2..6).map(|chunk| (coordinator, chunk));
        assert!(
            all(&mut division, START).into_iter().eq([(silent, 0), (silent, 1)].into_iter().chain(of_the_coordinator))
        );
        for chunk in 2..6 {
            division.arrived(coordinator, chunk);
        }
        assert_eq!(all(&mut division, START), []);
        assert_eq!(all(&mut division, LATE), [(coordinator, 0), (coordinator, 1)]);
        assert!(division.arrived(coordinator, 0) && division.arrived(coordinator, 1));
        assert!(division.is_done());
        assert!(!division.arrived(silent, 0), "what comes twice counts once");
    }

    #[test]
    fn where_one_is_asked_at_a_time_the_coordinator_is_asked_beside_it() {
        let mut division = Division::new(vec![0, 1], 1, LATE);
        division.name([node(1)]);
        assert_eq!(all(&mut division, START), [(Asked::Node(node(1)), 0), (Asked::Coordinator, 1)]);
    }
}
