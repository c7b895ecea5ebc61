//! One batch of events in; the rows of the whole batch, and the effects that their commit releases, out. Pure: the driver and the
//! simulation run this same code.

use crate::{
    access::Actor,
    cluster::{Action, Cluster, Event, Now, ReplyKey, command::Query},
    record::Record,
};
use lorikeet_protocol::job::JobSpec;
use std::time::Duration;

/// What a batch comes to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To be written in one transaction, in this order.
    pub records: Vec<Record>,
    /// Not before that transaction is durable.
    pub effects: Vec<Action>,
    /// Before it; nothing, unless a test took the guard away.
    pub early: Vec<Action>,
}

/// The cluster and its way of taking events.
#[derive(Debug)]
pub struct Turn {
    cluster: Cluster,
}

impl Turn {
    /// Around a cluster.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// Takes a batch. Time passes at its end, so that what the batch changed is scheduled in the same transaction.
    pub fn run(&mut self, batch: impl IntoIterator<Item = Event>, now: Now) -> Outcome {
        let mut outcome = Outcome::default();
        for event in batch.into_iter().chain([Event::Ticked]) {
            for action in self.cluster.handle(event, now) {
                match action {
                    Action::Put(record) => outcome.records.push(*record),
                    effect @ (Action::Reply { .. }
                    | Action::Admit { .. }
                    | Action::TurnAway { .. }
                    | Action::Send { .. }
                    | Action::Close { .. }
                    | Action::Inspect(_)
                    | Action::JobChanged(_)) => outcome.effects.push(effect),
                }
            }
        }
        if !self.cluster.guards.commit_first() {
            outcome.early = std::mem::take(&mut outcome.effects);
        }
        outcome
    }

    /// Answers a question and lets no time pass, so that nothing is to be written: for a driver that cannot write.
    pub fn ask(&mut self, reply: ReplyKey, actor: Actor, query: Query, now: Now) -> Vec<Action> {
        self.cluster.handle(Event::Asked { reply, actor, query }, now)
    }

    /// Whether a job with these settings could be made, as far as memory knows: only then is it worth looking for more.
    pub(crate) fn can_make(&self, actor: Actor, spec: &JobSpec) -> bool {
        self.cluster.can_make(actor, spec)
    }

    /// When the next batch must come, if no event brings one.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.cluster.next_deadline()
    }

    /// For the simulation, after every batch.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        self.cluster.check_invariants();
    }
}
