//! How a machine becomes a node: a single-use secret, then a certificate whose serial number is on record; and how it is known again.
//!
//! Who has a CA's key can put any name and any serial number into a certificate. What it cannot have is the node's own key: that is
//! what a node is known by, on each connection and in each renewal, so that a CA that was rotated out takes every such certificate along.
//!
//! A node that was sent away – retired or revoked – stays away, by its id and by its key: its certificates are worth nothing, new ones are not
//! made for it, no join string brings it back, and strings that nobody has used yet end with it, because it may hold one. The machine comes
//! back as another node: with a key of its own and a join string that an administrator makes for it. Its name is not asked about: a machine says of itself
//! what it likes.

use super::{Action, Cluster, LiveNode, Now, put};
use crate::{
    access::{Actor, Refusal},
    record::{JoinSecret, Node, NodeTrust, Receipt, Record},
};
use lorikeet_protocol::id::{Hash, NodeId, UnixMillis};

/// Certificates of one node that are let in at once: the one in use, and successors whose delivery may have failed.
const SERIALS: usize = 8;

/// The certificate that a connection showed, as far as it tells who is there. TLS has verified it, and that its key is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its serial number, in hex.
    pub serial: String,
    /// BLAKE3 of its public key (SPKI).
    pub key: Hash,
    /// Whether the CA that signs now has signed it, rather than the one before.
    pub is_newest: bool,
}

impl Cluster {
    pub(super) fn invite(
        &mut self,
        actor: Actor,
        secret: JoinSecret,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        actor.require_admin("invite nodes")?;
        // Their rows go by themselves; here they would stay until the next start.
        self.secrets.retain(|_, secret| !secret.is_over(now.wall));
        out.push(put(Record::JoinSecret(secret.clone())));
        self.secrets.insert(secret.hash, secret);
        Ok(Receipt::Done)
    }

    /// The same key may ask again: its answer may have been lost. Another key never.
    #[expect(clippy::too_many_arguments, reason = "one joining is these values")]
    pub(super) fn join(
        &mut self,
        actor: Actor,
        secret: Hash,
        key: Hash,
        name: String,
        node: NodeId,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        actor.require_admin("let nodes join")?;
        let refused = |message: &str| Err(Refusal::conflict(message));
        // By the secret too: rows of before did not keep the key.
        let was = self.secrets.get(&secret).and_then(|found| found.used).filter(|(first, _)| *first == key);
        let is_that = |node: &Node| node.key == Some(key) || was.is_some_and(|(_, id)| id == node.id);
        if let Some(gone) = self.nodes.values().find(|node| node.record.is_gone() && is_that(&node.record)) {
            let node = gone.record.id;
            return refused(&format!(
                "this machine's key is that of {node}, which was sent away for ever; move identity/ aside, so that it makes another, and ask for a new join string"
            ));
        }
        let Some(found) = self.secrets.get_mut(&secret) else {
            return refused("this join secret is unknown; ask for a new join string");
        };
        match found.used {
            Some((first, node)) if first == key => return Ok(Receipt::Node(node)),
            Some(_) => return refused("this join secret was used by another key; ask for a new join string"),
            None if found.expires <= now.wall => {
                return refused(
                    "this join secret has expired, or ended when a node was revoked; ask for a new join string",
                );
            }
            None => found.used = Some((key, node)),
        }
        out.push(put(Record::JoinSecret(found.clone())));
        let record = Node { key: Some(key), ..Node::new(node, name, now.wall) };
        out.push(put(Record::Node(record.clone())));
        self.nodes.insert(node, LiveNode::new(record, now));
        Ok(Receipt::Node(node))
    }

    /// Strings that nobody has used yet: who is sent away for what it did may hold one, and none says for whom it was made.
    pub(super) fn end_invitations(&mut self, now: Now, out: &mut Vec<Action>) {
        for secret in self.secrets.values_mut().filter(|secret| secret.used.is_none() && secret.expires > now.wall) {
            secret.expires = now.wall;
            out.push(put(Record::JoinSecret(secret.clone())));
        }
    }

    pub(super) fn certify(
        &mut self,
        actor: Actor,
        node: NodeId,
        serial: String,
        joined: Option<Hash>,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        actor.require_admin("certify nodes")?;
        let found = self.nodes.get_mut(&node).ok_or_else(|| Refusal::not_found("node"))?;
        // It may have been sent away between its question and this.
        if found.record.is_gone() {
            return Err(Refusal::conflict(format!("{node} was sent away for ever; no certificate is made for it")));
        }
        found.record.serials.push(serial);
        if let Some(ca) = joined {
            // Before it has said so itself: it knows nothing else, and one that never comes must not hold a rotation up that it would survive.
            found.record.trust = Some(NodeTrust { authorities: vec![ca], issuer: Some(ca) });
        }
        // An older one goes when a newer one has spoken; answers that were lost must not shut the node out.
        let surplus = found.record.serials.len().saturating_sub(SERIALS);
        found.record.serials.drain(1..=surplus);
        out.push(put(Record::Node(found.record.clone())));
        Ok(Receipt::Node(node))
    }
}

impl Node {
    /// A machine that nobody has heard yet.
    pub(crate) fn new(id: NodeId, name: String, joined: UnixMillis) -> Self {
        Self {
            id,
            name,
            joined,
            serials: vec![],
            key: None,
            quarantine: None,
            boot: None,
            sessions: 0,
            last_report: 0,
            closed: None,
            suspected_by: vec![],
            probation: None,
            trust: None,
            gone_at: None,
            drain: None,
        }
    }

    /// Whether this is a certificate of this node's and the node is let in: its serial number is on record, and it is for this node's key. Where that was not kept
    /// the certificate is believed if the CA that signs now has signed it: the key of one before may be why it was rotated.
    pub(super) fn knows(&self, shown: &Shown) -> bool {
        !self.is_gone() && self.serials.contains(&shown.serial) && self.has_key_of(shown)
    }

    pub(super) fn has_key_of(&self, shown: &Shown) -> bool {
        self.key.map_or(shown.is_newest, |key| key == shown.key)
    }

    /// The certificate with this serial number has spoken: older ones have no business any more.
    pub(super) fn retire_serials_before(&mut self, serial: &str) {
        let spoken = self.serials.iter().position(|known| known == serial).unwrap_or(0);
        self.serials.drain(..spoken);
    }
}
