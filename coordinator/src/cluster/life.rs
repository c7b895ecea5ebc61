//! What a person decides about a node: cordon, retire, revoke, and taking it back.
//!
//! ```text
//! open ⇄ cordoned (nothing new)      quarantined (`node`) ─ open ─► open            closed for bad ends: `blame`
//!   └─► draining (`drain.rs`) ─► cordoned
//! cordoned, empty ─► retired: its certificates are worth nothing any more           any ─ revoke ─► the same, at once
//! ```

use super::{Action, Cause, Cluster, Now, attempt::over, put};
use crate::{
    access::{Actor, Refusal},
    record::{Closed, Receipt, Record},
};
use lorikeet_protocol::{
    agent::{Farewell, ToAgent},
    id::NodeId,
    job::Outcome,
};

impl Cluster {
    /// A person has seen to it: the node takes work again.
    pub(super) fn open_node(
        &mut self,
        actor: Actor,
        id: NodeId,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let node = self.changed_node(actor, id)?;
        node.record.quarantine = None;
        node.record.probation = None;
        node.record.suspected_by.clear();
        node.record.closed = None;
        node.record.drain = None;
        node.trust_again();
        self.node_changed(id, now, out)
    }

    /// What is there goes on; nothing new comes.
    pub(super) fn cordon_node(
        &mut self,
        actor: Actor,
        id: NodeId,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let node = self.changed_node(actor, id)?;
        node.record.closed = Some(Closed::Cordoned);
        node.record.break_off_drain(now);
        self.node_changed(id, now, out)
    }

    /// For ever: its certificates are worth nothing any more, and its session ends.
    pub(super) fn retire_node(
        &mut self,
        actor: Actor,
        id: NodeId,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        actor.require_admin("change nodes")?;
        if let Some(attempt) = self.placed_on(id).first() {
            return Err(Refusal::conflict(format!("{attempt} is placed on the node; drain it first")));
        }
        self.send_away(actor, id, now, out)
    }

    /// The same at once, whatever is placed on it: its key may be in other hands. What it computes from now on counts for nothing.
    pub(super) fn revoke_node(
        &mut self,
        actor: Actor,
        id: NodeId,
        by: &Cause,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let receipt = self.send_away(actor, id, now, out)?;
        self.end_invitations(now, out);
        for attempt in self.placed_on(id) {
            self.end(attempt, over(Outcome::Lost, "its node was revoked"), by, now, out);
        }
        Ok(receipt)
    }

    fn send_away(&mut self, actor: Actor, id: NodeId, now: Now, out: &mut Vec<Action>) -> Result<Receipt, Refusal> {
        let node = self.changed_node(actor, id)?;
        node.record.closed = Some(Closed::Retired);
        node.record.break_off_drain(now);
        node.record.gone_at = Some(now.wall);
        node.record.serials.clear();
        if let Some(session) = node.session.take() {
            out.push(Action::Close { node: id, session: session.number, farewell: Farewell::Revoked });
        }
        // What it reads from other nodes, and they from it, ends as its connections here do.
        let here = self.nodes.values().filter(|node| node.session.is_some()).map(|node| node.record.id);
        out.extend(here.map(|node| Action::Send { node, message: ToAgent::Expelled(id) }));
        self.node_changed(id, now, out)
    }

    pub(super) fn changed_node(&mut self, actor: Actor, id: NodeId) -> Result<&mut super::LiveNode, Refusal> {
        actor.require_admin("change nodes")?;
        let found = self.nodes.get_mut(&id).filter(|node| node.record.closed != Some(Closed::Retired));
        found.ok_or_else(|| Refusal::not_found("node"))
    }

    pub(super) fn node_changed(&mut self, id: NodeId, now: Now, out: &mut Vec<Action>) -> Result<Receipt, Refusal> {
        out.push(put(Record::Node(self.nodes[&id].record.clone())));
        self.wake_node(id, now);
        self.unsettled = true;
        Ok(Receipt::Node(id))
    }
}
