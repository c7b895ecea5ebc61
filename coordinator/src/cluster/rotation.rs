//! Rotation of the CA, as far as nodes are concerned: what each has said that it trusts, and who would be cut off if the older CA were
//! forgotten now. Being away is a condition, not a verdict: nobody is cut off unless a person says so, having read the names.

use super::{Action, Cluster, put};
use crate::{
    access::{Actor, Refusal},
    record::{Node, NodeTrust, Receipt, Record},
};
use lorikeet_protocol::{
    agent::Trusts,
    id::{Hash, NodeId},
};
use std::fmt;

/// Names in a refusal; of more their number is said.
const NAMED: usize = 10;

/// Why a node would be cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Its agent has not been here since it joined.
    Unheard,
    /// Its own key is not on record: its row is of a version that did not keep it, and it has not been here since.
    Unkeyed,
    /// Its agent is of a version that trusts what it joined with and nothing else.
    Older,
    /// It has not been here since the rotation began.
    Untold,
    /// It is here and has been told, but has not kept it yet.
    Unkept,
    /// It trusts the next one, and its certificate is of another.
    Uncertified,
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unheard => "its agent has not connected since it joined",
            Self::Unkeyed => {
                "its own key is not on record, because it has not been here since the coordinator was upgraded; before a rotation it has to be"
            }
            Self::Older => "its agent is older than this coordinator and knows no second authority; upgrade it",
            Self::Untold => "it does not trust the next authority yet; it does as soon as it is here",
            Self::Unkept => {
                "it is here and does not trust the next authority yet; if that lasts, its disk does not keep it: its log says why"
            }
            Self::Uncertified => "its certificate is of the older authority; it renews it as soon as it is here",
        })
    }
}

impl Node {
    /// Why it would be cut off if `next` were the only CA, being here or not; `None`: it would not.
    pub fn behind(&self, next: Hash, is_here: bool) -> Option<Behind> {
        if self.key.is_none() {
            return Some(Behind::Unkeyed);
        }
        let Some(trust) = &self.trust else { return Some(Behind::Unheard) };
        if trust.authorities.is_empty() {
            Some(Behind::Older)
        } else if !trust.authorities.contains(&next) {
            Some(if is_here { Behind::Unkept } else { Behind::Untold })
        } else if trust.issuer != Some(next) {
            Some(Behind::Uncertified)
        } else {
            None
        }
    }
}

impl Cluster {
    pub(super) fn trusts(&mut self, id: NodeId, said: Trusts, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let trust = Some(NodeTrust { authorities: said.authorities, issuer: said.issuer });
        if node.record.trust != trust {
            node.record.trust = trust;
            out.push(put(Record::Node(node.record.clone())));
        }
    }

    /// Whether the older CA may be forgotten. The receipt names the one that was judged: whoever repeats the request gets that again, and
    /// never leave to forget another.
    pub(super) fn finish_rotation(&self, actor: Actor, next: Option<Hash>, force: bool) -> Result<Receipt, Refusal> {
        actor.require_admin("rotate the certificate authority")?;
        let next =
            next.ok_or_else(|| Refusal::conflict("no rotation is under way; `lorikeet ca rotate` begins one"))?;
        let behind: Vec<String> = self
            .present_nodes()
            .filter_map(|node| {
                let behind = node.record.behind(next, node.session.is_some())?;
                Some(format!("{} ({}): {behind}", node.record.name, node.record.id))
            })
            .collect();
        if behind.is_empty() || force {
            return Ok(Receipt::Authority(next));
        }
        let more = behind.len().saturating_sub(NAMED);
        let more = if more == 0 { String::new() } else { format!("; and {more} more") };
        let named = behind.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
        Err(Refusal::conflict(format!("these nodes would be cut off and have to join again: {named}{more}")))
    }
}
