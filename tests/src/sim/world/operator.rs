//! Who looks after the nodes: closes one, has one emptied, takes one out for good, and opens what was closed.

use super::*;
use lorikeet_coordinator::{
    access::Actor,
    cluster::command::{Answer, Command, NodeStatus, Query},
    record::{BaseState, Closed, Node as NodeRow},
};
use lorikeet_protocol::id::{DatasetId, UnixMillis};
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
    /// Opens every node that is closed, and reads the base model anew.
    Round,
    /// Jobs that ended longer ago than this many milliseconds are forgotten; as the coordinator's own sweep does.
    Forget(u64),
    /// A file of the base model is no longer what it was; registered anew it is.
    BaseChanges,
    BaseIsBack,
    /// And is another one.
    BaseIsOther,
    /// The bytes of the datasets that were late are here.
    DatasetsCome,
    /// Somebody looks at the list of nodes.
    Look,
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
        if self.chance.one_in(2) {
            let kept = self.chance.between(5_000, 60_000);
            (1..12).for_each(|round| self.at(round * 25_000, Happening::Deed(Deed::Forget(kept))));
        }
        if self.chance.one_in(4) {
            let when = self.chance.between(10_000, STORM / 2);
            let later = when + self.chance.between(5_000, 40_000);
            let back = if self.chance.one_in(2) { Deed::BaseIsBack } else { Deed::BaseIsOther };
            self.at(when, Happening::Deed(Deed::BaseChanges));
            self.at(later, Happening::Deed(back));
        }
        let when = self.chance.between(10_000, STORM / 2);
        self.at(when, Happening::Deed(Deed::DatasetsCome));
        self.at(STORM + 2_000, Happening::Deed(Deed::DatasetsCome));
        (1..20).for_each(|round| self.at(round * 12_000, Happening::Deed(Deed::Look)));
    }

    pub(super) fn deed(&mut self, deed: Deed) -> Kept {
        let id = |node: usize| self.nodes[node].id;
        let command = match deed {
            Deed::Cordon(node) => Command::CordonNode { id: id(node) },
            Deed::Drain(node) => {
                Command::DrainNode { id: id(node), patience: Duration::from_millis(self.chance.between(500, 30_000)) }
            }
            Deed::Open(node) => Command::OpenNode { id: id(node) },
            Deed::Revoke(node) => Command::RevokeNode { id: id(node) },
            Deed::BaseChanges => Command::MarkChanged { file: setup::base_file(false).manifest.hash },
            Deed::BaseIsBack => setup::base(),
            Deed::BaseIsOther => {
                self.promises.base_is_other = true;
                setup::base()
            }
            Deed::Forget(kept) => {
                self.forget(kept);
                return Ok(());
            }
            Deed::DatasetsCome => {
                setup::late().into_iter().for_each(|id| self.confirm(id));
                return Ok(());
            }
            Deed::Look => {
                self.look_at_nodes();
                return Ok(());
            }
            Deed::Round => {
                self.round();
                return Ok(());
            }
        };
        self.tally.count(format!("operator {}", command.name()));
        self.request(setup::client(setup::OWNER), command, None, Waiting::Intent);
        Ok(())
    }

    fn confirm(&mut self, id: DatasetId) {
        let command = Command::ConfirmDataset { id, manifest: setup::manifest() };
        self.request(setup::client(setup::OWNER), command, None, Waiting::Intent);
    }

    /// A few at once, as `coordinator/src/sweep/job.rs` asks for it.
    fn forget(&mut self, kept: u64) {
        let before = UnixMillis(self.brain.now(self.now).wall.0.saturating_sub(kept));
        let ids: Vec<_> = self.brain.store.ended_before(before).collect();
        if !ids.is_empty() {
            self.tally.count("retention at work");
            self.request(Actor::System, Command::ForgetJobs { ids, before }, None, Waiting::Intent);
        }
    }

    /// What `lorikeet nodes` would say of each (`coordinator/src/http/node.rs`).
    fn look_at_nodes(&mut self) {
        let now = self.brain.now(self.now);
        let Some(turn) = self.brain.turn.as_mut().filter(|_| self.now >= self.brain.paused_until) else { return };
        for action in turn.ask(0, Actor::System, Query::Nodes, now) {
            let Action::Reply { result: Ok(Answer::Nodes(nodes)), .. } = action else { continue };
            nodes.iter().for_each(|node| self.tally.count(format!("node seen {}", status(node))));
        }
    }

    /// As often as it takes: a coordinator that is away hears nothing, and a node may be closed later.
    fn round(&mut self) {
        let closed = |node: &&NodeRow| node.closed != Some(Closed::Retired) && node.closed_because().is_some();
        let closed: Vec<_> = self.brain.store.nodes.values().filter(closed).map(|node| node.id).collect();
        for id in closed {
            self.tally.count("operator opens what was closed");
            self.request(setup::client(setup::OWNER), Command::OpenNode { id }, None, Waiting::Intent);
        }
        if self.brain.store.bases.values().any(|base| base.state == BaseState::Changed) {
            self.request(setup::client(setup::OWNER), setup::base(), None, Waiting::Intent);
        }
        self.at(ROUND, Happening::Deed(Deed::Round));
    }

    /// Whether a node was taken out for good.
    pub(super) fn is_gone(&self, node: usize) -> bool {
        self.brain.store.nodes.get(&self.nodes[node].id).is_some_and(|row| row.closed == Some(Closed::Retired))
    }
}

fn status(node: &NodeStatus) -> &'static str {
    let is_empty = node.attempts.is_empty();
    match (node.record.closed, node.connected) {
        _ if node.record.quarantine.is_some() || node.record.fault().is_some() => "quarantined",
        (Some(Closed::Draining { .. }), _) if !is_empty => "draining",
        (Some(_), _) => "cordoned",
        (None, true) => "online",
        (None, false) if is_empty => "offline",
        (None, false) => "unreachable",
    }
}
