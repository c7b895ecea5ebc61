//! From queue to offer: what the scheduler is told, and what its placements become.

use super::{
    Action, Cause, Cluster, LiveNode, Now,
    attempt::over,
    command::{Named, put_job},
    fair::Account,
    job::{JobState, LiveJob},
    put,
    schedule::{self, Candidate, Holder, Lookup, NodeView, Placement, Queue, Schedule, Standing, Why, WhyNot},
};
use crate::{
    access::{Actor, Refusal},
    record::{Attempt, Closed, Dataset, Job, Member, Record},
};
use lorikeet_protocol::{
    agent::{Ended, Offer, ToAgent},
    codec,
    file::NamedFile,
    id::{AttemptId, AttemptToken, Hash, JobId, NodeId, SweepId, UnixMillis, UserId},
    inspect::JobFindings,
    job::{AttemptPhase, BaseDtype, FailureClass, Intent, JobSpec, Method, Outcome, StopCause, Task},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What no agent could be told would be told for ever.
fn unsayable() -> Ended {
    let message = "the job, its base model and its checkpoint are too much for one message to a node";
    Ended { class: Some(FailureClass::Settings), ..over(Outcome::UserError, message) }
}

/// What the scheduler looks up: the cluster as it is, and the job of a dry run.
struct Books<'a> {
    cluster: &'a Cluster,
    now: Now,
    extra: Option<Candidate<'a>>,
}

impl Lookup for Books<'_> {
    fn candidate(&self, job: JobId) -> Option<Candidate<'_>> {
        self.extra
            .clone()
            .filter(|extra| extra.job == job)
            .or_else(|| self.cluster.candidate(self.cluster.jobs.get(&job)?))
    }

    fn holder(&self, attempt: AttemptId) -> Option<Holder> {
        self.cluster.jobs.get(&attempt.job).and_then(|job| job.holder(self.now))
    }

    fn placed_of(&self, sweep: SweepId) -> u32 {
        self.cluster.placed_of(sweep)
    }

    fn user(&self, user: UserId) -> Account {
        let Cluster { fair, users, rules, .. } = self.cluster;
        let weight = users.get(&user).and_then(|row| rules.weights.get(&row.email)).copied().unwrap_or(1.0);
        Account { load: fair.load(user), used: fair.used(user, self.now), weight }
    }
}

impl Cluster {
    fn candidate<'a>(&'a self, job: &'a LiveJob) -> Option<Candidate<'a>> {
        let findings = job.record.findings.as_ref()?;
        Some(Candidate {
            job: job.record.id,
            owner: job.record.owner,
            priority: job.record.spec.priority,
            resources: &job.record.spec.resources,
            cpu_bytes: findings.cpu_bytes,
            cuda_bytes: findings.cuda_bytes,
            cpu_only: cpu_only(&job.record.spec),
            gpu_only: gpu_only(&job.record.spec),
            files: self.inputs(&job.record)?,
            avoid: job.record.blamed.keys().chain(&job.shunned).copied().collect(),
            lasts: job.time_left(),
            sweep: job.record.sweep.and_then(|sweep| Some((sweep, self.sweeps.get(&sweep)?.max_parallel?))),
        })
    }

    /// Why a job waits; `None` when it does not.
    pub(super) fn why(&self, id: JobId, now: Now) -> Option<Why> {
        let job = &self.jobs[&id];
        let waits = job.record.state == JobState::Queued;
        // One that backs off is asked about as if it were over.
        let mut queue = self.queue.clone();
        if waits && job.standing.is_none() {
            queue.insert(id, job.standing_when_ready());
        }
        let books = Books { cluster: self, now, extra: None };
        let why = waits.then(|| self.run(&queue, &books, now, Some(id)).why).flatten();
        let left = job.retry_at.saturating_sub(now.mono);
        let until = (waits && left > Duration::ZERO).then(|| later(now.wall, left));
        // One that would start now if it were not backing off waits for that alone.
        let why = why.or_else(|| until.map(|until| Why { position: 1, expected: Some(until), ..Why::default() }));
        let last_word = job.last_word.clone().filter(|_| until.is_some());
        why.map(|why| {
            let expected = why.expected.map(|at| until.map_or(at, |until| at.max(until)));
            Why { expected, backs_off_until: until, last_word, ..why }
        })
    }

    /// Of these jobs those that wait for a device and cannot get one as things are.
    pub(super) fn stuck(&self, actor: Actor, ids: &[JobId], now: Now) -> BTreeMap<JobId, Why> {
        let visible = ids.iter().filter_map(|id| self.visible(actor, *id).ok());
        let waiting = visible.filter(|job| job.record.state == JobState::Queued);
        schedule::stuck(waiting.filter_map(|job| self.candidate(job)), &self.views(now), &self.rules)
    }

    pub(super) fn dry_run(
        &self,
        actor: Actor,
        spec: &JobSpec,
        findings: &JobFindings,
        now: Now,
    ) -> Result<Option<Why>, Refusal> {
        let owner = actor.owner()?;
        let named = self.resolve(actor, spec)?;
        let id = JobId(uuid::Uuid::max());
        let candidate = Candidate {
            job: id,
            owner,
            priority: spec.priority,
            resources: &spec.resources,
            cpu_bytes: findings.cpu_bytes,
            cuda_bytes: findings.cuda_bytes,
            cpu_only: cpu_only(spec),
            gpu_only: gpu_only(spec),
            files: named.files(),
            avoid: BTreeSet::new(),
            lasts: spec.resources.max_runtime,
            sweep: None,
        };
        let mut queue = self.queue.clone();
        queue.insert(id, Standing { priority: spec.priority, owner, since: UnixMillis(u64::MAX) });
        let books = Books { cluster: self, now, extra: Some(candidate) };
        Ok(self.run(&queue, &books, now, Some(id)).why)
    }

    fn run(&self, queue: &Queue, books: &Books<'_>, now: Now, about: Option<JobId>) -> Schedule {
        schedule::schedule(queue, &self.views(now), books, &self.rules, (now.mono, now.wall), about)
    }

    /// What the names in a job's row stand for; `None` when one of them is gone.
    pub(super) fn named(&self, job: &Job) -> Option<Named<'_>> {
        let (base, dataset) = (self.bases.get(&job.base)?, self.datasets.get(&job.dataset)?);
        let validation = job.validation.map(|id| self.datasets.get(&id).ok_or(())).transpose().ok()?;
        Some(Named { base, dataset, validation })
    }

    /// Every file that an attempt of this job begins with.
    fn inputs(&self, job: &Job) -> Option<Vec<Hash>> {
        let adapter = job.init_adapter.iter().map(|file| file.manifest.hash);
        Some(self.named(job)?.files().into_iter().chain(adapter).collect())
    }

    /// The nodes as the scheduler sees them.
    fn views(&self, now: Now) -> Vec<NodeView<'_>> {
        let view = |node| LiveNode::view(node, self.timers.lease, now);
        self.present_nodes().map(view).collect()
    }

    /// Starts what can start, and asks those to leave who have to.
    pub(super) fn place(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.queue.is_empty() {
            return;
        }
        let books = Books { cluster: self, now, extra: None };
        let schedule = self.run(&self.queue, &books, now, None);
        self.unsettled = schedule.is_cut;
        for placement in schedule.placements {
            self.assign(placement, now, out);
        }
        for victim in schedule.victims {
            self.ask_to_leave(victim, StopCause::Preempt, out);
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
            leave: None,
            energy_joules: None,
            end: None,
        };
        let (row, attempt) = (attempt.clone(), attempt.id);
        job.attempt = Some(row.clone());
        job.offered = now.mono;
        let after = job.record.phase();
        if self.guards.token_first() {
            put_job(&job.record, out);
            out.push(put(Record::Attempt(row)));
        }
        self.hold_devices(placement.job, now);
        self.file(placement.job, now);
        self.audit_phase(placement.job, (before, after), &Cause::default(), now, out);
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
        let Named { base, dataset, validation } =
            self.named(&job.record).expect("what a live job names cannot be deleted");
        let member = &attempt.members[0];
        let offer = Offer {
            attempt: attempt.id,
            job: job.record.spec.clone(),
            devices: member.devices.clone(),
            planned_bytes: attempt.planned_bytes,
            base: base.files.clone(),
            dataset: stored(dataset),
            validation: validation.map(stored),
            init_adapter: job.record.init_adapter.clone(),
            resume: job.record.checkpoint.clone(),
            time_left: job.record.spec.resources.max_runtime.saturating_sub(job.record.held),
        };
        out.push(Action::Send { node: member.node, message: ToAgent::Offer(Box::new(offer)) });
    }

    /// The job that this attempt is the current placement of, on this node.
    pub(super) fn current(&self, node: NodeId, attempt: AttemptId) -> Option<&LiveJob> {
        let job = self.jobs.get(&attempt.job)?;
        let is_current = job.record.current_attempt() == Some(attempt) && job.node() == Some(node);
        (is_current || !self.guards.fence() && job.attempt.is_some()).then_some(job)
    }

    pub(super) fn may_fetch(&self, node: NodeId, attempt: AttemptId, file: Hash) -> bool {
        self.current(node, attempt).is_some_and(|job| {
            let checkpoint = job.record.checkpoint.iter().flat_map(|checkpoint| &checkpoint.files);
            self.inputs(&job.record).is_some_and(|files| files.contains(&file))
                || checkpoint.into_iter().any(|named| named.manifest.hash == file)
        })
    }
}

fn stored(dataset: &Dataset) -> NamedFile {
    let manifest = dataset.manifest.clone().expect("a ready dataset has its bytes");
    NamedFile { path: dataset.stored_name(), manifest }
}

impl LiveNode {
    fn view(&self, lease: Duration, now: Now) -> NodeView<'_> {
        let fault = || self.record.quarantine.clone().or_else(|| self.record.fault());
        let quarantined = || fault().map(WhyNot::Quarantined);
        let closed = || match self.record.closed? {
            Closed::Draining { .. } => Some(WhyNot::Draining),
            Closed::Cordoned | Closed::Retired => Some(WhyNot::Cordoned),
        };
        let is_away = self.session.is_none() || self.silence(now) >= lease;
        let closed = match (quarantined().or_else(closed), is_away) {
            (Some(why), true) => Some(WhyNot::ClosedAndAway(Box::new(why))),
            (None, true) => Some(WhyNot::Unreachable),
            (closed, false) => closed,
        };
        NodeView {
            id: self.record.id,
            name: &self.record.name,
            closed,
            labels: &self.labels,
            devices: &self.devices,
            is_known: self.seen.is_some(),
            devices_age: now.mono.saturating_sub(self.told),
            ledger: &self.ledger,
            cached: &self.cached,
        }
    }
}

impl LiveJob {
    /// What its time limit leaves it.
    fn time_left(&self) -> Duration {
        self.record.spec.resources.max_runtime.saturating_sub(self.record.held)
    }

    /// Its attempt, as somebody sees it who waits for the devices.
    fn holder(&self, now: Now) -> Option<Holder> {
        let attempt = self.attempt.as_ref()?;
        let running = attempt.running_at.map_or(Duration::ZERO, |since| elapsed(since, now));
        let steps = self.record.progress.map(|progress| (progress.step, progress.total_steps));
        let done = steps.map(|(step, _)| step.saturating_sub(attempt.from_step.unwrap_or(0))).filter(|done| *done > 0);
        let left = steps.zip(done).map(|((step, total), done)| {
            let left = running.as_secs_f64() / done as f64 * total.saturating_sub(step) as f64;
            // An agent says what it likes; the end of time is far enough.
            Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX)
        });
        let saved = self.checkpoints.iter().rev().find(|row| row.attempt == attempt.id);
        let at_stake = saved.map_or(running, |row| elapsed(row.at, now));
        Some(Holder {
            priority: self.record.spec.priority,
            ends: now.mono.saturating_add(left.unwrap_or_else(|| self.time_left().saturating_sub(running))),
            at_stake: at_stake.saturating_mul(attempt.devices()),
            leaving: attempt.leave.is_some() || self.record.intent != Intent::Run,
        })
    }
}

/// A moment after another; none is later than the last that can be said.
pub(super) fn later(moment: UnixMillis, by: Duration) -> UnixMillis {
    UnixMillis(moment.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
}

fn elapsed(since: UnixMillis, now: Now) -> Duration {
    Duration::from_millis(now.wall.0.saturating_sub(since.0))
}

/// The setting for which a job is trained on a processor alone: what a worker on a GPU would refuse (`trainer/src/model/gpu.rs`).
fn cpu_only(spec: &JobSpec) -> Option<&'static str> {
    let Task::Train(train) = &spec.task;
    (train.training.base_dtype == BaseDtype::F32).then_some("training.base_dtype = f32")
}

/// Whether a worker on a processor would refuse it: a model that is trained itself lies there in 32-bit floats (`trainer/src/config/check.rs`).
fn gpu_only(spec: &JobSpec) -> bool {
    let Task::Train(train) = &spec.task;
    train.training.method == Method::Full && train.training.base_dtype == BaseDtype::Bf16
}
