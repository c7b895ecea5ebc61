//! Who looks after the nodes: closes one, has one emptied, takes one out for good, and opens what was closed.

use super::*;
use lorikeet_coordinator::{
    cluster::command::Command,
    record::{Closed, Node as NodeRow},
};
use std::time::Duration;

/// How often somebody looks whether a node is closed that should not be.
const ROUND: u64 = 60_000;

/// What is done to a node.
#[derive(Debug, Clone, Copy)]
pub(super) enum Deed {
    Cordon(usize),
    Drain(usize),
    Open(usize),
    Revoke(usize),
    /// Opens every node that is closed.
    Round,
}

impl World {
    /// Some nodes are closed and opened again, and in some worlds one is taken out for good.
    pub(super) fn plan_deeds(&mut self) {
        for _ in 0..self.chance.below(4) {
            let node = self.chance.below(self.nodes.len() as u64) as usize;
            let when = self.chance.between(10_000, STORM / 2);
            let deed = if self.chance.one_in(2) { Deed::Cordon(node) } else { Deed::Drain(node) };
            let later = when + self.chance.between(5_000, 60_000);
            self.at(when, Happening::Deed(deed));
            self.at(later, Happening::Deed(Deed::Open(node)));
        }
        // One that no job needs: of those with one device there are others.
        if self.nodes.len() > 4 && self.chance.one_in(4) {
            let when = self.chance.between(20_000, STORM / 2);
            self.at(when, Happening::Deed(Deed::Revoke(0)));
        }
        self.at(STORM + 1_000, Happening::Deed(Deed::Round));
    }

    pub(super) fn deed(&mut self, deed: Deed) {
        let id = |node: usize| self.nodes[node].id;
        let command = match deed {
            Deed::Cordon(node) => Command::CordonNode { id: id(node) },
            Deed::Drain(node) => {
                Command::DrainNode { id: id(node), patience: Duration::from_millis(self.chance.between(500, 30_000)) }
            }
            Deed::Open(node) => Command::OpenNode { id: id(node) },
            Deed::Revoke(node) => Command::RevokeNode { id: id(node) },
            Deed::Round => return self.round(),
        };
        self.tally.count(format!("operator {}", command.name()));
        self.request(setup::client(setup::OWNER), command, None, Waiting::Intent);
    }

    /// As often as it takes: a coordinator that is away hears nothing, and a node may be closed later.
    fn round(&mut self) {
        let closed = |node: &&NodeRow| node.closed != Some(Closed::Retired) && node.closed_because().is_some();
        let closed: Vec<_> = self.brain.store.nodes.values().filter(closed).map(|node| node.id).collect();
        for id in closed {
            self.tally.count("operator opens what was closed");
            self.request(setup::client(setup::OWNER), Command::OpenNode { id }, None, Waiting::Intent);
        }
        self.at(ROUND, Happening::Deed(Deed::Round));
    }

    /// Whether a node was taken out for good.
    pub(super) fn is_gone(&self, node: usize) -> bool {
        self.brain.store.nodes.get(&self.nodes[node].id).is_some_and(|row| row.closed == Some(Closed::Retired))
    }
}
