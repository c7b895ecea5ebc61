//! From queue to offer: what the scheduler is told, and what its placements become.

use super::{
    Action, Cause, Cluster, LiveNode, Now,
    attempt::over,
    command::put_job,
    job::{JobState, LiveJob, word},
    put,
    schedule::{self, Candidate, NodeView, Placement, WhyNot},
};
use crate::record::{Attempt, Base, Dataset, Member, Record};
use lorikeet_protocol::{
    agent::{Ended, Offer, ToAgent},
    codec,
    file::NamedFile,
    id::{AttemptId, AttemptToken, DeviceId, Hash, JobId, NodeId},
    job::{AttemptPhase, FailureClass, Outcome},
};
use std::collections::BTreeMap;

/// What no agent could be told would be told for ever.
fn unsayable() -> Ended {
    let message = "the job, its base model and its checkpoint are too much for one message to a node";
    Ended { class: Some(FailureClass::Settings), ..over(Outcome::UserError, message) }
}

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
            avoid: job.record.blamed.keys().chain(&job.refused_by).copied().collect(),
        })
    }

    pub(super) fn files(base: &Base, dataset: &Dataset) -> Vec<Hash> {
        base.hashes().into_iter().chain(dataset.manifest.iter().map(|manifest| manifest.hash)).collect()
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
        let closed = |node: &LiveNode| {
            let quarantined = node.record.quarantine.clone().map(WhyNot::Quarantined);
            let silent = node.session.is_none() || node.silence(now) >= self.timers.lease;
            quarantined.or_else(|| silent.then_some(WhyNot::Unreachable))
        };
        self.nodes
            .values()
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
        if job.record.checkpoint.is_none() {
            job.record.base_files = self.bases[&job.record.base].hashes();
        }
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
        let (row, attempt) = (attempt.clone(), attempt.id);
        job.attempt = Some(row.clone());
        job.offered = now.mono;
        let after = job.record.phase();
        put_job(&job.record, out);
        out.push(put(Record::Attempt(row)));
        self.audit(
            &Cause::default(),
            "job.phase",
            placement.job.to_string(),
            (Some(word(before)), Some(word(after))),
            now,
            out,
        );
        let said = out.len();
        self.offer(placement.job, out);
        let too_long = |action: &Action| matches!(action, Action::Send { message, .. } if !codec::fits(message));
        if out[said..].iter().any(too_long) {
            out.truncate(said);
            self.end(attempt, unsayable(), &Cause::default(), now, out);
        }
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
            dataset: NamedFile { path: dataset.stored_name(), manifest },
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
}
