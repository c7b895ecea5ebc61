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
    /// Its agent is of a version that trusts what it joined with and nothing else.
    Older,
    /// It has not been here since the rotation began, or is just being told.
    Untold,
    /// It trusts the next one, and its certificate is of another.
    Uncertified,
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unheard => "its agent has not connected since it joined",
            Self::Older => "its agent is older than this coordinator and knows no second authority; upgrade it",
            Self::Untold => "it does not trust the next authority yet; it does as soon as it is here",
            Self::Uncertified => "its certificate is of the older authority; it renews it as soon as it is here",
        })
    }
}

impl Node {
    /// Why it would be cut off if `next` were the only CA; `None`: it would not.
    pub fn behind(&self, next: Hash) -> Option<Behind> {
        let Some(trust) = &self.trust else { return Some(Behind::Unheard) };
        if trust.authorities.is_empty() {
            Some(Behind::Older)
        } else if !trust.authorities.contains(&next) {
            Some(Behind::Untold)
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

    /// Whether the older CA may be forgotten.
    pub(super) fn finish_rotation(&self, actor: Actor, next: Hash, force: bool) -> Result<Receipt, Refusal> {
        actor.require_admin("rotate the certificate authority")?;
        let behind: Vec<String> = self
            .present_nodes()
            .filter_map(|node| {
                Some(format!("{} ({}): {}", node.record.name, node.record.id, node.record.behind(next)?))
            })
            .collect();
        if behind.is_empty() || force {
            return Ok(Receipt::Done);
        }
        let more = behind.len().saturating_sub(NAMED);
        let more = if more == 0 { String::new() } else { format!("; and {more} more") };
        let named = behind.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
        Err(Refusal::conflict(format!("these nodes would be cut off and have to join again: {named}{more}")))
    }
}
