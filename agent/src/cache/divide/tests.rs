//! Requests that are made and come to an end, in any order; no clock and no socket.

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
    assert_eq!(all(&mut division, START), [(Asked::Coordinator, 1)], "a dead node leaves the coordinator all of it");
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
    assert!(all(&mut division, START).into_iter().eq([(silent, 0), (silent, 1)].into_iter().chain(of_the_coordinator)));
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
