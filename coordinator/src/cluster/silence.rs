//! Silence: unreachable after a lease, over after `lost_after`; an offer without an answer is withdrawn.

use super::{
    AT_ONCE, Action, Cause, Cluster, LiveNode, Now,
    alarm::Sleeper,
    attempt::over,
    job::{JobState, LiveJob, Obstacle},
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
        for _ in 0..AT_ONCE {
            if self.is_listening(now) {
                return;
            }
            let Some(sleeper) = self.alarms.ring(now.mono) else { return };
            match sleeper {
                Sleeper::Job(id) => {
                    self.expire_job(id, now, out);
                    self.file(id, now);
                }
                Sleeper::Node(id) => {
                    self.mark_if_silent(id, now, out);
                    self.end_drain(id, now, out);
                    self.end_probation(id, now, out);
                    self.wake_node(id, now);
                }
            }
        }
    }

    fn mark_if_silent(&mut self, id: NodeId, now: Now, out: &mut Vec<Action>) {
        let lease = self.timers.lease;
        let silent =
            self.nodes.get_mut(&id).filter(|node| node.unreachable_since.is_none() && node.silence(now) >= lease);
        if let Some(node) = silent {
            node.unreachable_since = Some(node.last_word(now));
            self.tell_watchers(id, out);
        }
    }

    /// The node spoke: its jobs are reachable again.
    pub(super) fn clear_unreachable(&mut self, node: NodeId, now: Now, out: &mut Vec<Action>) {
        let live = self.nodes.get_mut(&node);
        if live.is_some_and(|live| live.unreachable_since.take().is_some()) {
            self.wake_node(node, now);
            self.tell_watchers(node, out);
            self.unsettled = true;
        }
    }

    /// Since when the node that holds a job has been silent, longer than a lease or without a session in which it could speak.
    pub(super) fn unreachable_since(&self, job: &LiveJob, now: Now) -> Option<UnixMillis> {
        let node = self.nodes.get(&job.node()?)?;
        node.unreachable_since.or_else(|| node.session.is_none().then(|| node.last_word(now)))
    }

    fn tell_watchers(&self, node: NodeId, out: &mut Vec<Action>) {
        out.extend(self.placed_on(node).into_iter().map(|attempt| Action::JobChanged(attempt.job)));
    }

    fn expire_job(&mut self, id: JobId, now: Now, out: &mut Vec<Action>) {
        let (lease, offer) = (self.timers.lease, self.timers.offer);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some((attempt, node, phase)) = job.attempt.as_ref().map(|row| (row.id, row.members[0].node, row.phase))
        else {
            return self.moment_came(id, now, out);
        };
        if phase == AttemptPhase::Offered && now.mono.saturating_sub(job.offered) >= offer {
            out.push(Action::Send {
                node,
                message: ToAgent::Stop { attempt, how: StopHow::Discard, cause: StopCause::Superseded },
            });
            return self.end(attempt, over(Outcome::Withdrawn, "no answer to the offer"), &Cause::default(), now, out);
        }
        let lost_at = |node: &LiveNode| node.lost_at(job.record.spec.policy.lost_after.max(lease));
        if self.nodes.get(&node).is_none_or(|node| now.mono >= lost_at(node)) {
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
    pub(super) fn deadline(&self, job: &LiveJob, now: Now) -> Option<Duration> {
        let Some(attempt) = &job.attempt else {
            if job.record.state == JobState::Blocked(Obstacle::Until) {
                let left = job.record.start.not_before.map_or(0, |moment| moment.0.saturating_sub(now.wall.0));
                return Some(now.mono.saturating_add(Duration::from_millis(left)));
            }
            let backs_off = job.record.state == JobState::Queued && job.retry_at > now.mono;
            return backs_off.then_some(job.retry_at);
        };
        if attempt.phase == AttemptPhase::Offered {
            return Some(job.offered + self.timers.offer);
        }
        let policy = &job.record.spec.policy;
        let patience = policy.lost_after.max(self.timers.lease);
        let lost_at = self.nodes.get(&attempt.members[0].node).map_or(patience, |node| node.lost_at(patience));
        let waits = policy.on_lost == OnLost::Wait && job.record.intent != Intent::Cancel;
        (!waits).then_some(lost_at)
    }
}
