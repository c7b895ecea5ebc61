//! The life of an attempt: one placement of a job, fenced by its token.
//!
//! ```text
//! Offered ─► Accepted ─► Preparing ─► Running ─► Finalizing ─► ended(outcome)
//!    └ no answer in time: ended(withdrawn); a late yes is told to stop
//! ```
//! The token is part of the job's row, and so is durable before the offer leaves. An attempt ends by the agent's own word, by the end of
//! `lost_after`, or by a person; silence alone only makes it unreachable.

use super::{
    Action, Cause, Cluster, Now,
    blame::is_suspicious,
    command::put_job,
    job::{Failure, JobState, LiveJob},
    model_of, put,
};
use crate::record::{Attempt, AttemptEnd, Job, Record};
use lorikeet_protocol::{
    agent::Ended,
    id::{AttemptId, NodeId, UserId},
    job::{AttemptPhase, FailureClass, Intent, Outcome},
};
use std::time::Duration;

/// Clocks of machines differ, and devices are let go a moment after they are given back.
const HELD_MORE: Duration = Duration::from_secs(60);

/// No device draws more, as with telemetry.
const MOST_WATTS: u64 = 10_000;

impl Cluster {
    /// Moves the current attempt forward; never back.
    pub(super) fn advance(&mut self, attempt: AttemptId, to: AttemptPhase, now: Now, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&attempt.job) else { return };
        let before = job.record.phase();
        if let (Some(current), JobState::Placed { phase, .. }) = (&mut job.attempt, &mut job.record.state)
            && *phase < to
        {
            *phase = to;
            current.phase = to;
            if to == AttemptPhase::Running {
                current.running_at = Some(now.wall);
                job.record.started_at = job.record.started_at.or(Some(now.wall));
            }
            let (row, after) = (current.clone(), job.record.phase());
            put_job(&job.record, out);
            out.push(put(Record::Attempt(row)));
            self.file(attempt.job, now);
            if before != after {
                let node = self.jobs[&attempt.job].node();
                let cause = node.map_or_else(Cause::default, Cause::node);
                self.audit_phase(attempt.job, (before, after), &cause, now, out);
            }
        }
    }

    fn give_back(
        &mut self,
        row: &Attempt,
        owner: UserId,
        since: Duration,
        held: Duration,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        for member in &row.members {
            if let Some(node) = self.nodes.get_mut(&member.node) {
                node.ledger.release(&member.devices, row.id);
            }
        }
        let usage = self.fair.release(owner, row.devices(), since, held, now);
        out.extend(usage.map(|usage| put(Record::Usage(usage))));
    }

    /// What the devices of the current attempt drew, said with its end and written down with that: once, for an attempt ends once. Nothing
    /// draws more than it can for as long as it was placed, whatever an agent says.
    pub(super) fn drew(&mut self, attempt: AttemptId, joules: u64, now: Now) {
        let job = self.jobs.get_mut(&attempt.job).expect("only live jobs have a current attempt");
        let row = job.attempt.as_mut().expect("it is current");
        let placed = Duration::from_millis(now.wall.0.saturating_sub(row.offered_at.0));
        let placed = placed.max(now.mono.saturating_sub(job.offered)) + HELD_MORE;
        let joules = joules.min(placed.as_secs().saturating_mul(MOST_WATTS).saturating_mul(row.devices().into()));
        row.energy_joules = Some(joules);
        let sum = job.record.energy_joules.unwrap_or(0).saturating_add(joules);
        job.record.energy_joules = Some(sum);
    }

    /// The agent's word, or the coordinator's, that the current attempt is over: frees its devices and decides what the job does next.
    pub(super) fn end(&mut self, attempt: AttemptId, mut ended: Ended, by: &Cause, now: Now, out: &mut Vec<Action>) {
        let job = self.jobs.get_mut(&attempt.job).expect("only live jobs have a current attempt");
        let mut row = job.attempt.take().expect("an attempt ends once");
        // Nobody holds devices for longer than they were placed, whatever an agent says.
        let placed = Duration::from_millis(now.wall.0.saturating_sub(row.offered_at.0));
        ended.held = ended.held.min(placed.max(now.mono.saturating_sub(job.offered)) + HELD_MORE);
        row.phase = AttemptPhase::Done;
        row.end = Some(AttemptEnd {
            outcome: ended.outcome,
            class: ended.class,
            message: ended.message.clone(),
            at: now.wall,
            held: ended.held,
            last_event: ended.last_event,
        });
        out.push(put(Record::Attempt(row.clone())));
        job.last_word.clone_from(&ended.message);
        job.record.held += ended.held;
        let owner = job.record.owner;
        let since = job.offered;
        self.give_back(&row, owner, since, ended.held, now, out);
        let node = row.members.first().map(|member| member.node);
        let state = self.after(&row, &ended, now, out);
        match node {
            Some(node) if is_suspicious(&ended) => self.suspect_node(node, attempt.job, &ended, now, out),
            Some(node) if ended.outcome == Outcome::Ok => self.praise(node, now, out),
            Some(_) | None => {}
        }
        self.settle(attempt.job, state, by, now, out);
        if let Some(node) = node {
            self.has_left(node, attempt, &ended, now, out);
        }
    }

    /// What a job does after an attempt: the one table of outcomes.
    fn after(&mut self, row: &Attempt, ended: &Ended, now: Now, out: &mut Vec<Action>) -> JobState {
        let (timers, attempt) = (self.timers, row.id);
        let node = row.members.first().map(|member| member.node);
        let job = self.jobs.get_mut(&attempt.job).expect("the caller has it");
        let record = &mut job.record;
        match (record.intent, ended.outcome) {
            (Intent::Cancel, _) => {
                if ended.outcome == Outcome::Ok {
                    out.push(orphan(attempt, ended, "the job was cancelled before its result came", now));
                }
                JobState::Cancelled
            }
            (_, Outcome::Ok) => {
                // The job may have said its id.
                let dataset = self.datasets.get(&record.dataset).map_or(&record.spec.dataset, |dataset| &dataset.name);
                out.push(put(Record::Model(new_model(record, dataset, attempt, ended, now))));
                JobState::Succeeded { model: model_of(record.id) }
            }
            (_, Outcome::TimedOut) => JobState::Expired,
            (_, Outcome::Oom) => failed(ended, FailureClass::OutOfMemory),
            (_, Outcome::UserError) => {
                let class = ended.class.unwrap_or(FailureClass::Internal);
                record.user_failures += 1;
                if class == FailureClass::Internal && record.user_failures <= record.spec.policy.retries {
                    requeue(job, now, timers.back_off)
                } else {
                    failed(ended, class)
                }
            }
            // Somebody else than the coordinator ended it, and may do so again: elsewhere if there is another place.
            (Intent::Run, Outcome::Preempted) if row.leave.is_none() => {
                job.shunned.extend(node);
                requeue(job, now, timers.back_off)
            }
            (_, Outcome::Preempted | Outcome::Superseded | Outcome::Cancelled) => requeue(job, now, Duration::ZERO),
            (_, Outcome::Withdrawn) => {
                job.refusals += 1;
                job.shunned.extend(node);
                let wait = timers.wait(job.refusals);
                requeue(job, now, wait)
            }
            (_, Outcome::PrepareFailed | Outcome::Lost | Outcome::Hardware | Outcome::DiskFull) => {
                if let Some(message) = record.suspect(node, ended) {
                    return JobState::Failed(Failure { class: FailureClass::Internal, message });
                }
                let wait = timers.wait(record.infrastructure_failures);
                job.shunned.extend(node);
                requeue(job, now, wait)
            }
        }
    }

    /// What is placed on a node.
    pub(super) fn placed_on(&self, node: NodeId) -> Vec<AttemptId> {
        self.nodes.get(&node).map(|node| node.ledger.attempts().into_keys().collect()).unwrap_or_default()
    }
}

fn requeue(job: &mut LiveJob, now: Now, wait: Duration) -> JobState {
    job.retry_at = now.mono + wait;
    JobState::Queued
}

fn failed(ended: &Ended, class: FailureClass) -> JobState {
    JobState::Failed(Failure {
        class,
        message: ended.message.clone().unwrap_or_else(|| "the worker said no more".into()),
    })
}

/// An end that the coordinator itself declares.
pub(super) fn over(outcome: Outcome, message: &str) -> Ended {
    Ended {
        outcome,
        class: None,
        message: Some(message.into()),
        step: 0,
        held: Duration::ZERO,
        files: vec![],
        summary: None,
        last_event: 0,
    }
}

pub(super) fn orphan(attempt: AttemptId, ended: &Ended, reason: &str, now: Now) -> Action {
    put(Record::Orphan(crate::record::Orphan {
        attempt,
        outcome: ended.outcome,
        files: ended.files.clone(),
        at: now.wall,
        reason: reason.into(),
    }))
}

fn new_model(job: &Job, dataset: &str, attempt: AttemptId, ended: &Ended, now: Now) -> crate::record::Model {
    crate::record::Model {
        id: model_of(job.id),
        owner: job.owner,
        job: job.id,
        token: attempt.token,
        name: format!("Model from {dataset}"),
        version: "1.0.0".into(),
        description: None,
        files: ended.files.clone(),
        summary: ended.summary.clone(),
        dataset: job.dataset,
        base: job.base,
        spec: None,
        created: now.wall,
        deleted_at: None,
    }
}
