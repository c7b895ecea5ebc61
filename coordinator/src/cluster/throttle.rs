//! What is written down of strangers and agents because of what they do again and again as they please: joins and reports that were refused, devices that go out
//! and come back. It costs them nothing, so a flood of it must not fill the store: of each kind a few are written down one by one in a minute, and how many more
//! there were at its end.

use super::{Action, Cause, Cluster, Now};
use lorikeet_protocol::id::NodeId;
use std::{collections::BTreeMap, time::Duration};

/// Of one kind, each with who and why: enough to see what is going on, and as many as a machine has GPUs.
pub(super) const ONE_BY_ONE: u32 = 8;
/// With the record of the rest that is nine of a kind in a minute.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// What is counted together: a kind, of one node or of everybody. Nodes are no more than have a session.
type Key = (&'static str, Option<NodeId>);

/// The minutes that have begun.
#[derive(Debug, Default)]
pub(super) struct Throttle(BTreeMap<Key, Window>);

#[derive(Debug)]
struct Window {
    ends: Duration,
    told: u32,
    more: u64,
    last: Cause,
}

impl Throttle {
    /// Whether this one is written down by itself.
    fn note(&mut self, key: Key, by: &Cause, now: Duration) -> bool {
        let fresh = || Window { ends: now + WINDOW, told: 0, more: 0, last: Cause::default() };
        let window = self.0.entry(key).or_insert_with(fresh);
        if window.told < ONE_BY_ONE {
            window.told += 1;
            return true;
        }
        window.more += 1;
        window.last.clone_from(by);
        false
    }

    /// When the first of them ends.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.0.values().map(|window| window.ends).min()
    }
}

impl Cluster {
    /// Something was refused, or taken and not believed.
    pub(super) fn refuse(
        &mut self,
        kind: &'static str,
        by: &Cause,
        subject: String,
        why: String,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        if self.throttle.note((kind, None), by, now.mono) {
            self.audit(by, kind, subject, (None, Some(why)), now, out);
        }
    }

    /// Something of a node has changed, by what it says.
    pub(super) fn audit_node(
        &mut self,
        node: NodeId,
        kind: &'static str,
        subject: String,
        change: (Option<String>, Option<String>),
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let by = Cause::node(node);
        if self.throttle.note((kind, Some(node)), &by, now.mono) {
            self.audit(&by, kind, subject, change, now, out);
        }
    }

    /// How many more there were in minutes that are over.
    pub(super) fn tell_throttled(&mut self, now: Now, out: &mut Vec<Action>) {
        let over: Vec<_> = self.throttle.0.extract_if(.., |_, window| window.ends <= now.mono).collect();
        for ((kind, node), Window { more, last, .. }) in over {
            if more > 0 {
                let why = format!("{more} more within {} s, the last from {}", WINDOW.as_secs(), last.from);
                let subject = node.map(|node| node.to_string()).unwrap_or_default();
                self.audit(&last, kind, subject, (None, Some(why)), now, out);
            }
        }
    }
}
