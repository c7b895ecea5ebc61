//! Who has to be looked at when, if nothing happens before. An alarm may ring early; then the sleeper sets the next one.

use lorikeet_protocol::id::{JobId, NodeId};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Who sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sleeper {
    Job(JobId),
    Node(NodeId),
}

/// At most one alarm per sleeper.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    due: BTreeSet<(Duration, Sleeper)>,
    set: BTreeMap<Sleeper, Duration>,
}

impl Alarms {
    /// Replaces the sleeper's alarm.
    pub(super) fn set(&mut self, sleeper: Sleeper, at: Option<Duration>) {
        if let Some(old) = self.set.remove(&sleeper) {
            self.due.remove(&(old, sleeper));
        }
        if let Some(at) = at {
            self.set.insert(sleeper, at);
            self.due.insert((at, sleeper));
        }
    }

    /// The earliest.
    pub(super) fn next(&self) -> Option<Duration> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes out one that is due.
    pub(super) fn ring(&mut self, now: Duration) -> Option<Sleeper> {
        let (at, sleeper) = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.remove(&(at, sleeper));
        self.set.remove(&sleeper);
        Some(sleeper)
    }

    /// When a sleeper is looked at.
    pub(super) fn of(&self, sleeper: Sleeper) -> Option<Duration> {
        self.set.get(&sleeper).copied()
    }
}
