//! Silence: unreachable after a lease, over after `lost_after`; an offer without an answer is withdrawn.

use super::{
    Action, Cause, Cluster, Now,
    attempt::over,
    job::{JobState, LiveJob},
};
use lorikeet_protocol::{
    agent::{Ended, StopHow, ToAgent},
    id::{AttemptId, JobId, NodeId, UnixMillis},
    job::{AttemptPhase, FailureClass, Intent, OnLost, Outcome, StopCause},
};
use std::time::Duration;

impl Cluster {
    /// What time alone changes. A coordinator that was away listens before it judges anybody.
    pub(super) fn expire(&mut self, now: Now, out: &mut Vec<Action>) {
        self.unsettled |= self.jobs.values().any(|job| job.is_ready_again(now));
        if self.is_listening(now) {
            return;
        }
        self.mark_silent(now, out);
        for id in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.expire_job(id, now, out);
        }
    }

    fn mark_silent(&mut self, now: Now, out: &mut Vec<Action>) {
        let lease = self.timers.lease;
        let heard_until_now = self.nodes.values_mut().filter(|node| node.unreachable_since.is_none());
        let silent = heard_until_now.filter(|node| node.silence(now) >= lease).map(|node| {
            node.unreachable_since = Some(now.wall);
            node.record.id
        });
        for node in silent.collect::<Vec<_>>() {
            self.tell_watchers(node, out);
        }
    }

    /// The node spoke: its jobs are reachable again.
    pub(super) fn clear_unreachable(&mut self, node: NodeId, out: &mut Vec<Action>) {
        let live = self.nodes.get_mut(&node);
        if live.is_some_and(|live| live.unreachable_since.take().is_some()) {
            self.tell_watchers(node, out);
        }
    }

    /// Since when the node that holds a job has been silent longer than a lease.
    pub(super) fn unreachable_since(&self, job: &LiveJob) -> Option<UnixMillis> {
        job.node().and_then(|node| self.nodes.get(&node)).and_then(|node| node.unreachable_since)
    }

    fn tell_watchers(&self, node: NodeId, out: &mut Vec<Action>) {
        let there = self.jobs.values().filter(|job| job.node() == Some(node));
        out.extend(there.map(|job| Action::JobChanged(job.record.id)));
    }

    fn expire_job(&mut self, id: JobId, now: Now, out: &mut Vec<Action>) {
        let (lease, offer) = (self.timers.lease, self.timers.offer);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some((attempt, node, phase)) = job.attempt.as_ref().map(|row| (row.id, row.members[0].node, row.phase))
        else {
            return;
        };
        if phase == AttemptPhase::Offered && now.mono.saturating_sub(job.offered) >= offer {
            out.push(Action::Send {
                node,
                message: ToAgent::Stop { attempt, how: StopHow::Discard, cause: StopCause::Superseded },
            });
            return self.end(attempt, over(Outcome::Withdrawn, "no answer to the offer"), &Cause::default(), now, out);
        }
        let silence = self.nodes.get(&node).map_or(now.mono, |node| node.silence(now));
        if silence >= job.record.spec.policy.lost_after.max(lease) {
            self.lose(attempt, node, now, out);
        }
    }

    fn lose(&mut self, attempt: AttemptId, node: NodeId, now: Now, out: &mut Vec<Action>) {
        let job = &self.jobs[&attempt.job];
        let ended = over(Outcome::Lost, "its node was silent for longer than `lost_after`");
        match (job.record.intent, job.record.spec.policy.on_lost) {
            (Intent::Run | Intent::Pause, OnLost::Wait) => {}
            (Intent::Run | Intent::Pause, OnLost::Fail) => {
                let ended = Ended { outcome: Outcome::UserError, class: Some(FailureClass::Hardware), ..ended };
                self.end(attempt, ended, &Cause::node(node), now, out);
            }
            (Intent::Cancel, _) | (_, OnLost::Requeue) => self.end(attempt, ended, &Cause::node(node), now, out),
        }
    }

    /// When this job changes by itself.
    pub(super) fn deadline(&self, job: &LiveJob) -> Option<Duration> {
        let Some(attempt) = &job.attempt else {
            return (job.record.state == JobState::Queued && job.retry_at > Duration::ZERO).then_some(job.retry_at);
        };
        if attempt.phase == AttemptPhase::Offered {
            return Some(job.offered + self.timers.offer);
        }
        let heard = self.nodes.get(&attempt.members[0].node).map_or(Duration::ZERO, |node| node.heard);
        let policy = &job.record.spec.policy;
        (policy.on_lost != OnLost::Wait).then(|| heard + policy.lost_after.max(self.timers.lease))
    }
}

impl LiveJob {
    /// Its back-off has just ended.
    fn is_ready_again(&self, now: Now) -> bool {
        self.record.state == JobState::Queued && self.retry_at > Duration::ZERO && self.retry_at <= now.mono
    }
}
