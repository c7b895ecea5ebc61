//! The certificate authority and its rotation as tables.

use super::{fields, grid, moment, short, with_below, word};
use crate::output::View;
use lorikeet_api::ca::{CaCertificate, CaFacts, NodeTrust, Rotation};
use lorikeet_protocol::id::Hash;

impl View for CaCertificate {
    fn table(&self) -> String {
        format!("{}\n\nhash: {}", self.pem.trim_end(), self.hash)
    }
}

impl View for Rotation {
    fn table(&self) -> String {
        let facts =
            |facts: &CaFacts| format!("{}, until {} ({} days)", facts.hash, moment(facts.expires_at), facts.days_left);
        let table = fields([
            ("phase", Some(word(&self.phase))),
            ("current", Some(facts(&self.current))),
            ("next", self.next.as_ref().map(facts)),
            ("began", self.began_at.map(moment)),
            ("finishes", self.finishes_at.map(|at| format!("{}, or `lorikeet ca finish`", moment(at)))),
        ]);
        let waits = self.waits_for.iter().map(|what| format!("- {what}")).collect::<Vec<_>>().join("\n");
        let table = with_below(table, "waits for:", Some(waits));
        let row = |node: &NodeTrust| {
            let trusts: Vec<_> = node.trusts.iter().map(|hash| self.role(*hash)).collect();
            let holds = node.holds.map(|hash| self.role(hash)).unwrap_or_default();
            let behind = node.behind.clone().unwrap_or_default();
            [node.id.to_string(), short(&node.name, 24), trusts.join(", "), holds, behind]
        };
        let nodes = grid(["node", "name", "trusts", "certificate of", "behind"], self.nodes.iter().map(row));
        with_below(table, "nodes:", (!self.nodes.is_empty()).then_some(nodes))
    }
}

trait Roles {
    /// What an authority is here: `current`, `next`, or the beginning of its hash.
    fn role(&self, hash: Hash) -> String;
}

impl Roles for Rotation {
    fn role(&self, hash: Hash) -> String {
        if hash == self.current.hash {
            "current".into()
        } else if self.next.as_ref().is_some_and(|next| next.hash == hash) {
            "next".into()
        } else {
            hash.to_string().chars().take(8).collect()
        }
    }
}
