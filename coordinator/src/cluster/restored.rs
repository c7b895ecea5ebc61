//! After a restore: the agents of today meet the memory of yesterday. What both know goes on. What only the agents know is
//! stopped with its state saved, applied to nothing, and kept where it lies.
//!
//! ```text
//! certificate issued since the backup        let in where it is for the node's key, or its key is not known and the CA that signs now signed it
//! attempt that is current here               adopted
//! attempt under an older generation          stopped (save), its result an orphan, its directory kept for 30 days
//! ```

use super::{Action, Cause, Cluster, LiveNode, Now, Shown};
use crate::{record::Node, serial::drawn_at};
use lorikeet_protocol::{
    agent::{KnownAttempt, StopHow, ToAgent},
    id::{AttemptId, NodeId, UnixMillis},
    job::{AttemptPhase, StopCause},
};

/// Files of attempts that the backup does not know stay on their machines this long.
const KEPT_MILLIS: u64 = 30 * 86_400_000;

/// That this store was restored from a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was taken.
    pub taken: UnixMillis,
    /// When it was restored.
    pub at: UnixMillis,
}

impl Cluster {
    /// A node whose certificate was issued after the backup was taken is no stranger, though no record names the certificate, or
    /// even the node. One that was retired before stays out. What was revoked since is let in: the operator revokes it again.
    /// Of a node whose key no record tells, only a certificate of the CA that signs now is believed.
    pub(super) fn know_again(&mut self, id: NodeId, shown: &Shown, name: &str, now: Now, out: &mut Vec<Action>) {
        let Some(restored) = self.restored else { return };
        let since = drawn_at(&shown.serial).is_some_and(|drawn| drawn > restored.taken && drawn <= restored.at);
        if !since {
            return;
        }
        if !self.nodes.get(&id).map_or(shown.is_newest, |node| node.record.has_key_of(shown)) {
            return;
        }
        let node = self.nodes.entry(id).or_insert_with(|| LiveNode::new(Node::new(id, name.to_owned(), now.wall), now));
        let known = node.record.serials.contains(&shown.serial);
        if !known && !node.record.is_gone() {
            node.record.serials.push(shown.serial.clone());
            let why = "its certificate was issued after the backup that was restored".to_owned();
            self.audit(&Cause::node(id), "node.readmit", id.to_string(), (None, Some(why)), now, out);
        }
    }

    /// An attempt of before the restore that this memory does not know as current.
    pub(super) fn is_kept_stranger(&self, node: NodeId, attempt: AttemptId, now: Now) -> bool {
        let fresh = self.restored.is_some_and(|restored| now.wall.0 < restored.at.0.saturating_add(KEPT_MILLIS));
        fresh && attempt.token.generation < self.generation && self.current(node, attempt).is_none()
    }

    /// Stops them, each with its state saved.
    pub(super) fn stop_strangers(&self, node: NodeId, known: &[KnownAttempt], now: Now, out: &mut Vec<Action>) {
        let alive = known.iter().filter(|known| known.phase != AttemptPhase::Done);
        for KnownAttempt { id, .. } in alive.filter(|known| self.is_kept_stranger(node, known.id, now)) {
            let message = ToAgent::Stop { attempt: *id, how: StopHow::Save, cause: StopCause::Superseded };
            out.push(Action::Send { node, message });
        }
    }
}
