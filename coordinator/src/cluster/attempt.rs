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
    command::put_job,
    job::{Failure, JobState, LiveJob, word},
    model_of, put,
    schedule::{self, Candidate, NodeView, Placement, WhyNot},
};
use crate::record::{Attempt, AttemptEnd, Base, Dataset, Job, Member, Record};
use lorikeet_protocol::{
    agent::{Ended, Offer, StopHow, ToAgent},
    id::{AttemptId, AttemptToken, DeviceId, Hash, JobId, NodeId},
    job::{AttemptPhase, FailureClass, Intent, OnLost, Outcome, StopCause},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A job whose process crashed this often in a row without a new checkpoint is the cause itself.
const CRASHES_IN_A_ROW: u32 = 8;

/// A job that crashed on this many nodes is the cause itself.
const CRASHED_NODES: usize = 3;

impl Cluster {
    /// Queued jobs whose back-off is over, for the scheduler; `now` of `None` takes all.
    pub(super) fn queue(&self, now: Option<Now>) -> Vec<Candidate<'_>> {
        let waiting = self.jobs.values().filter(|job| job.record.state == JobState::Queued);
        waiting
            .filter(|job| now.is_none_or(|now| job.retry_at <= now.mono))
            .filter_map(|job| self.candidate(job))
            .collect()
    }

    fn candidate<'a>(&'a self, job: &'a LiveJob) -> Option<Candidate<'a>> {
        let findings = job.record.findings.as_ref()?;
        let (base, dataset) = (self.bases.get(&job.record.base)?, self.datasets.get(&job.record.dataset)?);
        Some(Candidate {
            job: job.record.id,
            priority: job.record.spec.priority,
            since: job.record.created,
            resources: &job.record.spec.resources,
            cpu_bytes: findings.cpu_bytes,
            cuda_bytes: findings.cuda_bytes,
            files: Self::files(base, dataset),
            avoid: job.record.blamed.keys().copied().collect(),
        })
    }

    pub(super) fn files(base: &Base, dataset: &Dataset) -> Vec<Hash> {
        base.files
            .iter()
            .map(|file| file.manifest.hash)
            .chain(dataset.manifest.iter().map(|manifest| manifest.hash))
            .collect()
    }

    /// The nodes as the scheduler sees them.
    pub(super) fn views(&self, now: Now) -> Vec<NodeView<'_>> {
        let mut ledgers: BTreeMap<NodeId, BTreeMap<DeviceId, Vec<(AttemptId, u64)>>> = BTreeMap::new();
        for attempt in self.jobs.values().filter_map(|job| job.attempt.as_ref()) {
            for member in &attempt.members {
                let ledger = ledgers.entry(member.node).or_default();
                for device in &member.devices {
                    ledger.entry(device.clone()).or_default().push((attempt.id, attempt.planned_bytes));
                }
            }
        }
        let closed = |node: &'_ super::LiveNode| -> Option<WhyNot> {
            let quarantined = node.record.quarantine.clone().map(WhyNot::Quarantined);
            quarantined.or_else(|| {
                (node.session.is_none() || now.mono.saturating_sub(node.heard) >= self.timers.lease)
                    .then_some(WhyNot::Unreachable)
            })
        };
        let nodes = self.nodes.values();
        nodes
            .map(|node| NodeView {
                id: node.record.id,
                name: &node.record.name,
                closed: closed(node),
                labels: &node.labels,
                devices: &node.devices,
                ledger: ledgers.remove(&node.record.id).unwrap_or_default(),
                cached: &node.cached,
            })
            .collect()
    }

    /// Starts what can start.
    pub(super) fn place(&mut self, now: Now, out: &mut Vec<Action>) {
        let queue = self.queue(Some(now));
        if queue.is_empty() {
            return;
        }
        for placement in schedule::schedule(queue, &self.views(now)).placements {
            self.assign(placement, now, out);
        }
    }

    fn assign(&mut self, placement: Placement, now: Now, out: &mut Vec<Action>) {
        let generation = self.generation;
        let job = self.jobs.get_mut(&placement.job).expect("the scheduler places live jobs");
        let before = job.record.phase();
        job.record.attempts += 1;
        let token = AttemptToken { generation, number: job.record.attempts };
        let member = Member { node: placement.node, devices: placement.devices };
        job.record.state = JobState::Placed { token, member: member.clone(), phase: AttemptPhase::Offered };
        let attempt = Attempt {
            id: AttemptId { job: placement.job, token },
            owner: job.record.owner,
            members: vec![member],
            planned_bytes: placement.planned_bytes,
            phase: AttemptPhase::Offered,
            from_step: None,
            offered_at: now.wall,
            running_at: None,
            end: None,
        };
        job.attempt = Some(attempt.clone());
        job.offered = now.mono;
        job.unreachable_since = None;
        let after = job.record.phase();
        put_job(&job.record, out);
        out.push(put(Record::Attempt(attempt)));
        self.audit(
            &Cause::default(),
            "job.phase",
            placement.job.to_string(),
            (Some(word(before)), Some(word(after))),
            now,
            out,
        );
        self.offer(placement.job, out);
    }

    /// The offer, as often as it takes: it follows from the job's row.
    pub(super) fn offer(&self, id: JobId, out: &mut Vec<Action>) {
        let job = &self.jobs[&id];
        let attempt = job.attempt.as_ref().expect("only placed jobs are offered");
        let (base, dataset) = (&self.bases[&job.record.base], &self.datasets[&job.record.dataset]);
        let manifest = dataset.manifest.clone().expect("a ready dataset has its bytes");
        let member = &attempt.members[0];
        let offer = Offer {
            attempt: attempt.id,
            job: job.record.spec.clone(),
            devices: member.devices.clone(),
            planned_bytes: attempt.planned_bytes,
            base: base.files.clone(),
            dataset: lorikeet_protocol::file::NamedFile { path: dataset.stored_name(), manifest },
            resume: job.record.checkpoint.clone(),
            time_left: job.record.spec.resources.max_runtime.saturating_sub(job.record.held),
        };
        out.push(Action::Send { node: member.node, message: ToAgent::Offer(Box::new(offer)) });
    }

    /// The job that this attempt is the current placement of, on this node.
    pub(super) fn current(&self, node: NodeId, attempt: AttemptId) -> Option<&LiveJob> {
        let job = self.jobs.get(&attempt.job)?;
        (job.record.current_attempt() == Some(attempt) && job.node() == Some(node)).then_some(job)
    }

    pub(super) fn may_fetch(&self, node: NodeId, attempt: AttemptId, file: Hash) -> bool {
        self.current(node, attempt).is_some_and(|job| {
            let files = self.bases.get(&job.record.base).zip(self.datasets.get(&job.record.dataset));
            let checkpoint = job.record.checkpoint.iter().flat_map(|checkpoint| &checkpoint.files);
            files.is_some_and(|(base, dataset)| Self::files(base, dataset).contains(&file))
                || checkpoint.into_iter().any(|named| named.manifest.hash == file)
        })
    }

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
            if before != after {
                let node = job.node();
                let cause = node.map_or_else(Cause::default, Cause::node);
                self.audit(
                    &cause,
                    "job.phase",
                    attempt.job.to_string(),
                    (Some(word(before)), Some(word(after))),
                    now,
                    out,
                );
            }
        }
    }

    /// The agent's word, or the coordinator's, that the current attempt is over: frees its devices and decides what the job does next.
    pub(super) fn end(&mut self, attempt: AttemptId, ended: Ended, by: &Cause, now: Now, out: &mut Vec<Action>) {
        let job = self.jobs.get_mut(&attempt.job).expect("only live jobs have a current attempt");
        let mut row = job.attempt.take().expect("an attempt ends once");
        row.phase = AttemptPhase::Done;
        row.end = Some(AttemptEnd {
            outcome: ended.outcome,
            class: ended.class,
            message: ended.message.clone(),
            at: now.wall,
            held: ended.held,
        });
        out.push(put(Record::Attempt(row.clone())));
        job.record.held += ended.held;
        job.unreachable_since = None;
        let node = row.members.first().map(|member| member.node);
        let state = self.after(attempt, &ended, node, now, out);
        self.settle(attempt.job, state, by, now, out);
    }

    /// What a job does after an attempt: the one table of outcomes.
    fn after(
        &mut self,
        attempt: AttemptId,
        ended: &Ended,
        node: Option<NodeId>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> JobState {
        let timers = self.timers;
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
                out.push(put(Record::Model(new_model(record, attempt, ended, now))));
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
            (Intent::Pause, _) => JobState::Paused,
            (Intent::Run, Outcome::Preempted | Outcome::Superseded | Outcome::Cancelled) => {
                requeue(job, now, Duration::ZERO)
            }
            (Intent::Run, Outcome::Withdrawn) => requeue(job, now, timers.back_off),
            (Intent::Run, Outcome::PrepareFailed | Outcome::Lost | Outcome::Hardware | Outcome::DiskFull) => {
                // What the coordinator itself declares over has held nothing: silence is nobody's crash.
                if ended.held > Duration::ZERO {
                    record.infrastructure_failures += 1;
                    node.into_iter().for_each(|node| *record.blamed.entry(node).or_default() += 1);
                }
                if record.infrastructure_failures >= CRASHES_IN_A_ROW
                    || record.blamed.len() >= CRASHED_NODES && record.infrastructure_failures as usize >= CRASHED_NODES
                {
                    let message = format!(
                        "ended badly {} times in a row on {} nodes: {}",
                        record.infrastructure_failures,
                        record.blamed.len(),
                        ended.message.as_deref().unwrap_or("no word why")
                    );
                    return JobState::Failed(Failure { class: FailureClass::Internal, message });
                }
                let wait = timers.back_off * 2u32.saturating_pow(record.infrastructure_failures.clamp(1, 16) - 1);
                requeue(job, now, wait.min(timers.back_off_most))
            }
        }
    }

    /// Silence: unreachable after a lease, over after `lost_after`; an offer without an answer is withdrawn.
    pub(super) fn expire(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.jobs.values().any(|job| {
            job.record.state == JobState::Queued && job.retry_at > Duration::ZERO && job.retry_at <= now.mono
        }) {
            self.unsettled = true;
        }
        if self.is_listening(now) {
            return;
        }
        for id in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.expire_job(id, now, out);
        }
    }

    fn expire_job(&mut self, id: JobId, now: Now, out: &mut Vec<Action>) {
        let (lease, offer) = (self.timers.lease, self.timers.offer);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some((attempt, node, phase)) = job.attempt.as_ref().map(|row| (row.id, row.members[0].node, row.phase))
        else {
            return;
        };
        let silent = now.mono.saturating_sub(self.nodes.get(&node).map_or(Duration::ZERO, |node| node.heard));
        if phase == AttemptPhase::Offered && now.mono.saturating_sub(job.offered) >= offer {
            out.push(Action::Send {
                node,
                message: ToAgent::Stop { attempt, how: StopHow::Discard, cause: StopCause::Superseded },
            });
            return self.end(attempt, over(Outcome::Withdrawn, "no answer to the offer"), &Cause::default(), now, out);
        }
        let unreachable = silent >= lease;
        if unreachable != job.unreachable_since.is_some() {
            job.unreachable_since = unreachable.then_some(now.wall);
            out.push(Action::JobChanged(id));
        }
        if unreachable && silent >= job.record.spec.policy.lost_after.max(lease) {
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
        let lost = (job.record.spec.policy.on_lost != OnLost::Wait)
            .then(|| heard + job.record.spec.policy.lost_after.max(self.timers.lease));
        if job.unreachable_since.is_none() { Some(heard + self.timers.lease) } else { lost }
    }

    /// Nodes of placed attempts, for reconciliation.
    pub(super) fn placed_on(&self, node: NodeId) -> BTreeSet<AttemptId> {
        self.jobs
            .values()
            .filter(|job| job.node() == Some(node))
            .filter_map(|job| job.record.current_attempt())
            .collect()
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

fn new_model(job: &Job, attempt: AttemptId, ended: &Ended, now: Now) -> crate::record::Model {
    crate::record::Model {
        id: model_of(job.id),
        owner: job.owner,
        job: job.id,
        token: attempt.token,
        name: format!("Model from {}", job.spec.dataset),
        version: "1.0.0".into(),
        description: None,
        files: ended.files.clone(),
        summary: ended.summary.clone(),
        dataset: job.dataset,
        base: job.base,
        created: now.wall,
        deleted_at: None,
    }
}
