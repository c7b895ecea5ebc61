//! Where a job belongs at this moment: in the queue, behind an alarm, on a device, or nowhere. Whoever changes a job's state files
//! it again, so that no decision ever has to walk through all jobs.

use super::{
    Cluster, Now,
    alarm::Sleeper,
    job::{JobState, LiveJob, Obstacle},
    ledger::{Memory, Share},
    node::LiveNode,
    schedule::Standing,
};
use crate::record::{Closed, Job};
use lorikeet_api::jobfile::start::Start;
use lorikeet_protocol::id::{JobId, NodeId, UnixMillis};
use std::{collections::BTreeSet, time::Duration};

impl Cluster {
    /// After a start: everything.
    pub(super) fn file_all(&mut self, now: Now) {
        for id in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.hold_devices(id, now);
            self.dependents.add(&self.jobs[&id].record);
            self.file(id, now);
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.wake_node(id, now);
        }
    }

    /// Queue and alarm of one job.
    pub(super) fn file(&mut self, id: JobId, now: Now) {
        let Some(job) = self.jobs.get_mut(&id) else { return self.alarms.set(Sleeper::Job(id), None) };
        let standing = job.stands(now);
        if job.standing != standing {
            let before = std::mem::replace(&mut job.standing, standing);
            before.into_iter().for_each(|before| self.queue.remove(id, before));
            standing.into_iter().for_each(|standing| self.queue.insert(id, standing));
            self.unsettled |= standing.is_some();
        }
        let alarm = self.deadline(&self.jobs[&id], now);
        self.alarms.set(Sleeper::Job(id), alarm);
    }

    /// The job leaves memory.
    pub(super) fn unfile(&mut self, id: JobId) {
        self.alarms.set(Sleeper::Job(id), None);
        let standing = self.jobs.get_mut(&id).and_then(|job| job.standing.take());
        standing.into_iter().for_each(|standing| self.queue.remove(id, standing));
    }

    /// The devices of its attempt are taken, and count against its owner.
    pub(super) fn hold_devices(&mut self, id: JobId, now: Now) {
        let job = &self.jobs[&id];
        let Some(attempt) = &job.attempt else { return };
        let exclusive = job.record.spec.resources.exclusive;
        let memory = Memory::Planned;
        let share = Share { attempt: attempt.id, planned_bytes: attempt.planned_bytes, exclusive, memory };
        for member in &attempt.members {
            if let Some(node) = self.nodes.get_mut(&member.node) {
                node.ledger.take(&member.devices, share);
            }
        }
        self.fair.take(attempt.owner, attempt.devices(), job.offered.min(now.mono));
    }

    /// When the node is looked at again: its lease, or the end of its drain.
    pub(super) fn wake_node(&mut self, id: NodeId, now: Now) {
        let alarm = self.nodes.get(&id).and_then(|node| node.deadline(self.timers.lease, now));
        self.alarms.set(Sleeper::Node(id), alarm);
    }

    /// Tests hold the indexes against the records they were made from.
    pub(super) fn check_filed(&self, now: Duration) {
        let queue: BTreeSet<JobId> = self.queue.jobs().collect();
        for (id, job) in &self.jobs {
            let now = Now { mono: now, wall: UnixMillis(0) };
            let placed = job.attempt.iter().flat_map(|attempt| &attempt.members).all(|member| {
                let node = &self.nodes[&member.node];
                member.devices.iter().all(|device| {
                    let attempt = job.attempt.as_ref().map(|attempt| attempt.id);
                    node.ledger.shares(device).iter().any(|share| Some(share.attempt) == attempt)
                })
            });
            assert!(placed, "{id} is not in the ledger of its node");
            let queued = queue.contains(id);
            assert_eq!(queued, job.standing.is_some(), "{id} is not where it stands");
            let rung = self.alarms.of(Sleeper::Job(*id));
            assert!(
                self.deadline(job, now).is_none_or(|due| rung.is_some_and(|rung| rung <= due)),
                "{id} would sleep too long"
            );
            let waits = matches!(job.record.state, JobState::Queued | JobState::Blocked(Obstacle::Until));
            for dependency in &job.record.waits_for {
                assert!(self.jobs.contains_key(&dependency.job), "{id} waits for {}, which is over", dependency.job);
            }
            assert!(!waits || queued || rung.is_some(), "{id} waits and nobody knows");
        }
        let held = self.nodes.values().flat_map(|node| node.ledger.attempts().into_keys());
        for attempt in held {
            assert_eq!(self.jobs.get(&attempt.job).and_then(|job| job.record.current_attempt()), Some(attempt));
        }
    }
}

impl LiveJob {
    /// Its place in the queue; `None`: it does not wait for a device, or not yet.
    fn stands(&self, now: Now) -> Option<Standing> {
        let ready = self.record.state == JobState::Queued && self.retry_at <= now.mono;
        ready.then(|| self.standing_when_ready())
    }

    /// Where it would stand.
    pub(super) fn standing_when_ready(&self) -> Standing {
        let Job { owner, created, spec, start, queued_at, .. } = &self.record;
        // One that was kept from the queue is as old as its first day in it.
        let since = if *start == Start::default() { *created } else { queued_at.unwrap_or(*created) };
        Standing { priority: spec.priority, owner: *owner, since }
    }
}

impl LiveNode {
    fn deadline(&self, lease: Duration, now: Now) -> Option<Duration> {
        let silent = self.unreachable_since.is_none().then(|| self.heard + lease);
        let drained = matches!(self.record.closed, Some(Closed::Draining { .. })).then_some(self.drained_at);
        let tried = self.record.probation.as_ref().and_then(|probation| probation.until);
        let comes = |until: UnixMillis| now.mono.saturating_add(Duration::from_millis(until.0 - now.wall.0));
        let tried = tried.filter(|until| *until > now.wall).map(comes);
        silent.into_iter().chain(drained).chain(tried).min()
    }
}
