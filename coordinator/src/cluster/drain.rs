//! Draining a node: what is there saves its state and goes elsewhere, and it is written down what became of each.
//!
//! ```text
//! draining(until) ─ the last has left, or the time is up: what is left is stopped as it is ─► cordoned, with a report
//!        └── cordoned or revoked by a person meanwhile: over, and nothing is stopped
//!
//! an attempt: leaving ─┬─► saved      its state of its last step is here, its job goes on from there elsewhere
//!                      ├─► requeued   without that: its job goes on from the checkpoint before
//!                      ├─► over       its job ended, or a person took it from the queue
//!                      └─► stopped    it had not left in time; its last checkpoint counts
//! ```

use super::{Action, Cause, Cluster, Now, place::later, put};
use crate::{
    access::{Actor, Refusal},
    record::{Became, Closed, Drain, Drained, Node, Receipt, Record},
};
use lorikeet_protocol::{
    agent::{Ended, StopHow, ToAgent},
    id::{AttemptId, NodeId},
    job::{Outcome, Phase, StopCause},
};
use std::time::Duration;

impl Cluster {
    /// Within `patience`. A drain that is ordered again goes on with another end.
    pub(super) fn drain_node(
        &mut self,
        actor: Actor,
        id: NodeId,
        patience: Duration,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let (until, here) = (later(now.wall, patience), self.placed_on(id));
        let node = self.changed_node(actor, id)?;
        node.drained_at = now.mono.saturating_add(patience);
        // Opening the node ends the report: what left it before that belongs to it, however often a drain is ordered.
        let before = node.record.drain.take();
        let started = before.as_ref().map_or(now.wall, |drain| drain.started);
        let mut attempts: Vec<_> = before.into_iter().flat_map(|drain| drain.attempts).collect();
        // Those that have left are reported; none comes while it is closed, so there are never more than were placed.
        attempts.retain(|drained| !here.contains(&drained.attempt));
        attempts.extend(here.iter().map(|attempt| Drained::leaving(*attempt)));
        node.record.closed = Some(Closed::Draining { until });
        node.record.drain = Some(Drain { started, until, ended: None, attempts });
        for attempt in here {
            self.ask_to_leave(attempt, StopCause::Drain, out);
        }
        self.end_if_drained(id, now, out);
        self.node_changed(id, now, out)
    }

    /// The end of a drain: what has not left is stopped as it is; its last checkpoint counts.
    pub(super) fn end_drain(&mut self, id: NodeId, now: Now, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if !matches!(node.record.closed, Some(Closed::Draining { .. })) || now.mono < node.drained_at {
            return;
        }
        for drained in node.record.drain.iter_mut().flat_map(|drain| &mut drain.attempts) {
            if drained.became == Became::Leaving {
                drained.became = Became::Stopped;
            }
        }
        for attempt in self.placed_on(id) {
            out.push(Action::Send {
                node: id,
                message: ToAgent::Stop { attempt, how: StopHow::Discard, cause: StopCause::Drain },
            });
        }
        self.report_drain(id, now, out);
    }

    /// An attempt ended that was placed on this node.
    pub(super) fn has_left(&mut self, id: NodeId, attempt: AttemptId, ended: &Ended, now: Now, out: &mut Vec<Action>) {
        let job = self.jobs.get(&attempt.job).map(|job| &job.record);
        let checkpoint = job.and_then(|job| job.checkpoint.as_ref()).map(|checkpoint| checkpoint.step);
        let waits = job.is_some_and(|job| job.phase() != Phase::Paused);
        let drains = self.nodes.get_mut(&id).and_then(|node| node.record.drain.as_mut());
        let of_it = |drained: &&mut Drained| drained.attempt == attempt && drained.left.is_none();
        let Some(drained) = drains.and_then(|drain| drain.attempts.iter_mut().find(of_it)) else { return };
        (drained.left, drained.checkpoint) = (Some(now.wall), checkpoint);
        if drained.became == Became::Leaving {
            let is_saved = ended.outcome == Outcome::Preempted && checkpoint.is_some_and(|step| step >= ended.step);
            drained.became = match (waits, is_saved) {
                (false, _) => Became::Over,
                (true, true) => Became::Saved,
                (true, false) => Became::Requeued,
            };
        }
        out.push(put(Record::Node(self.nodes[&id].record.clone())));
        self.end_if_drained(id, now, out);
    }

    fn end_if_drained(&mut self, id: NodeId, now: Now, out: &mut Vec<Action>) {
        let drains = matches!(self.nodes[&id].record.closed, Some(Closed::Draining { .. }));
        if drains && self.placed_on(id).is_empty() {
            self.report_drain(id, now, out);
        }
    }

    fn report_drain(&mut self, id: NodeId, now: Now, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.record.closed = Some(Closed::Cordoned);
        // One that an older program began has no list.
        let report = node.record.drain.as_mut().map(|drain| {
            drain.ended = Some(now.wall);
            drain.to_string()
        });
        out.push(put(Record::Node(node.record.clone())));
        self.wake_node(id, now);
        self.audit(&Cause::default(), "node.drained", id.to_string(), (None, report), now, out);
    }
}

impl Node {
    /// Something else is wanted of it: nothing is waited for any more. What was asked to leave does so, and is written down.
    pub(super) fn break_off_drain(&mut self, now: Now) {
        if let Some(drain) = self.drain.as_mut().filter(|drain| drain.ended.is_none()) {
            drain.ended = Some(now.wall);
        }
    }
}

impl Drained {
    fn leaving(attempt: AttemptId) -> Self {
        Self { attempt, became: Became::Leaving, checkpoint: None, left: None }
    }
}

impl std::fmt::Display for Drain {
    /// `2 saved, 1 stopped`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = [
            (Became::Leaving, "leaving"),
            (Became::Saved, "saved"),
            (Became::Requeued, "requeued"),
            (Became::Over, "over"),
            (Became::Stopped, "stopped"),
        ];
        let count = |became| self.attempts.iter().filter(|drained| drained.became == became).count();
        let counts = words.map(|(became, word)| (count(became), word));
        let told: Vec<_> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(n, word)| format!("{n} {word}")).collect();
        f.write_str(if told.is_empty() { "nothing was placed on it" } else { "" })?;
        f.write_str(&told.join(", "))
    }
}
