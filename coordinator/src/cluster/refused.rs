//! What strangers and agents asked for and did not get, as far as it is written down. Who asks costs nothing by it, so a flood of it must not fill the store: of
//! each kind a few are written down one by one in a minute, and how many more there were at its end.

use super::{Action, Cause, Cluster, Now};
use std::{collections::BTreeMap, time::Duration};

/// Of one kind, each with who and why: enough to see what is going on.
pub(super) const ONE_BY_ONE: u32 = 8;
/// With the record of the rest that is nine of a kind in a minute.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// The minutes that have begun, one for each kind.
#[derive(Debug, Default)]
pub(super) struct Refused(BTreeMap<&'static str, Window>);

#[derive(Debug)]
struct Window {
    ends: Duration,
    told: u32,
    more: u64,
    last: Cause,
}

impl Refused {
    /// Whether this one is written down by itself.
    fn note(&mut self, kind: &'static str, by: &Cause, now: Duration) -> bool {
        let fresh = || Window { ends: now + WINDOW, told: 0, more: 0, last: Cause::default() };
        let window = self.0.entry(kind).or_insert_with(fresh);
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
        if self.refused.note(kind, by, now.mono) {
            self.audit(by, kind, subject, (None, Some(why)), now, out);
        }
    }

    /// How many more there were in minutes that are over.
    pub(super) fn tell_refused(&mut self, now: Now, out: &mut Vec<Action>) {
        let over: Vec<_> = self.refused.0.extract_if(.., |_, window| window.ends <= now.mono).collect();
        for (kind, Window { more, last, .. }) in over {
            if more > 0 {
                let why = format!("{more} more within {} s, the last from {}", WINDOW.as_secs(), last.from);
                self.audit(&last, kind, String::new(), (None, Some(why)), now, out);
            }
        }
    }
}
