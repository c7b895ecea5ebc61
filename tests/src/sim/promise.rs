//! What is promised, and what was seen of it.
//!
//! | promise | seen in |
//! |---|---|
//! | what was acknowledged is there, or was forgotten when it was over | answers against the store, after every start and at the end |
//! | a token stands for one placement on one node | every offer that leaves |
//! | an attempt goes on from the last checkpoint that counts | every offer that leaves, and every attempt that runs |
//! | a success is applied once, and is the current attempt's | every model that is written |
//! | an attempt ends well by its own word, never by another's | every end that is written, against what arrived |
//! | nobody is lost who was heard in time | every end by silence, against the arrivals |
//! | a cancelled job never succeeds | answers against the store |
//! | a line is let go when it is recorded, and is what its worker wrote | every attempt that an agent forgets |
//! | every step is recorded once | the lines of all attempts, at the end |
//!
//! What every batch of rows has to keep to is in `sim/books.rs`.

use super::{
    books::Books,
    nature::Nature,
    store::Store,
    worker::{STEPS, Worker},
};
use lorikeet_coordinator::{
    cluster::{Action, job::JobState},
    record::{Attempt, Closed, Job, Model, Record, Sweep, SweepChild},
};
use lorikeet_protocol::{
    agent::{Checkpoint, FromAgent, Report, ToAgent},
    id::{AttemptId, JobId, NodeId},
    job::{FailureClass, Outcome, Phase},
    worker::{EventLine, WorkerEvent},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// In which world.
    pub seed: u64,
    /// When, in virtual milliseconds.
    pub at: u64,
    /// Which, and how.
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} after {} ms: {}", self.seed, self.at, self.what)
    }
}

/// The witness.
#[derive(Debug, Default)]
pub(super) struct Promises {
    placed: BTreeMap<AttemptId, NodeId>,
    /// The step that each was offered to go on from.
    offered: BTreeMap<AttemptId, u64>,
    submitted: BTreeSet<JobId>,
    cancelled: BTreeSet<JobId>,
    /// A cancel was asked for, whether or not an answer came.
    pub(super) unwanted: BTreeSet<JobId>,
    /// How each job is.
    pub(super) natures: BTreeMap<JobId, Nature>,
    /// Where a job's worker died by no fault of its own.
    struck: BTreeMap<JobId, Vec<NodeId>>,
    /// What a job's worker said at a machine's fault, which ends a job.
    excused: BTreeSet<JobId>,
    /// The base model's files are others: what was begun on the old ones is over.
    pub(super) base_is_other: bool,
    /// How jobs ended that were forgotten.
    gone: BTreeMap<JobId, Phase>,
    /// Attempts of which the coordinator was told that they had ended well.
    done: BTreeSet<AttemptId>,
    /// When a word of a node last reached the coordinator's door.
    arrived: BTreeMap<NodeId, u64>,
    /// The series: lines that were acknowledged to agents.
    pub(super) series: BTreeMap<AttemptId, Vec<EventLine>>,
}

type Kept = Result<(), String>;

impl Promises {
    /// A word of a node is at the door.
    pub(super) fn arrived(&mut self, node: NodeId, now: u64) {
        let last = self.arrived.entry(node).or_default();
        *last = now.max(*last);
    }

    /// A new session began with a hello of that time: what was said in the one before since then is nobody's word.
    pub(super) fn admitted(&mut self, node: NodeId, since: u64) {
        self.arrived.insert(node, since);
    }

    /// And says this.
    pub(super) fn heard(&mut self, message: &FromAgent) {
        if let FromAgent::Report(Report { attempt, body, .. }) = message
            && body.end().is_some_and(|ended| ended.outcome == Outcome::Ok)
        {
            self.done.insert(*attempt);
        }
    }

    /// A submission was acknowledged.
    pub(super) fn submitted(&mut self, job: JobId) {
        self.submitted.insert(job);
    }

    /// A job's worker dies, and it is its machine's fault.
    pub(super) fn struck(&mut self, job: JobId, node: NodeId) {
        self.struck.entry(job).or_default().push(node);
    }

    /// A job's worker takes more memory than there is, through no fault of its own: that ends the job.
    pub(super) fn swelled(&mut self, job: JobId) {
        self.excused.insert(job);
    }

    /// A cancel was acknowledged.
    pub(super) fn cancelled(&mut self, job: JobId) {
        self.cancelled.insert(job);
    }

    /// An effect leaves.
    pub(super) fn effect(&mut self, effect: &Action, store: &Store) -> Kept {
        let Action::Send { node, message: ToAgent::Offer(offer) } = effect else { return Ok(()) };
        let step = |checkpoint: Option<&Checkpoint>| checkpoint.map_or(0, |checkpoint| checkpoint.step);
        let resumes = step(offer.resume.as_ref());
        let latest = step(store.jobs.get(&offer.attempt.job).and_then(|job| job.checkpoint.as_ref()));
        if resumes != latest {
            return Err(format!("{} goes on from step {resumes}, and step {latest} counts", offer.attempt));
        }
        self.offered.entry(offer.attempt).or_insert(resumes);
        match self.placed.insert(offer.attempt, *node) {
            Some(before) if before != *node => {
                Err(format!("{} was offered to {before} and then to {node}: one token, two placements", offer.attempt))
            }
            _ => Ok(()),
        }
    }

    /// A batch is about to be written.
    pub(super) fn written(&self, records: &[Record], store: &Store, now: u64) -> Kept {
        let mut models = BTreeMap::new();
        for record in records {
            match record {
                Record::Model(model) => {
                    // Its job is forgotten in this batch: then it takes over the settings, and nothing else.
                    if store.models.get(&model.id).is_some_and(|known| Model { spec: None, ..model.clone() } == *known)
                    {
                        continue;
                    }
                    let before = store.models.get(&model.id).or(models.get(&model.id).copied());
                    self.is_the_last_attempts(model, before, store)?;
                    models.insert(model.id, model);
                }
                Record::Attempt(attempt) => self.ended_rightly(attempt, store, now)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// By its own word, or by silence that was long enough.
    fn ended_rightly(&self, attempt: &Attempt, store: &Store, now: u64) -> Kept {
        let offered = self.offered.get(&attempt.id);
        if attempt.from_step.is_some_and(|from| offered != Some(&from)) {
            return Err(format!("{} began at {:?}, and was to go on from {offered:?}", attempt.id, attempt.from_step));
        }
        let Some(end) = &attempt.end else { return Ok(()) };
        if end.outcome == Outcome::Ok && !self.done.contains(&attempt.id) {
            return Err(format!("{} was ended well, and its own worker had not said so", attempt.id));
        }
        let by_silence = end.message.as_ref().is_some_and(|why| why.contains("silent"));
        let silent = end.outcome == Outcome::Lost && end.held.is_zero() && by_silence;
        let job = store.jobs.get(&attempt.id.job).filter(|_| silent);
        let Some(lost_after) = job.map(|job| job.spec.policy.lost_after) else { return Ok(()) };
        let node = attempt.members[0].node;
        let ago = now - self.arrived.get(&node).copied().unwrap_or(0);
        if u128::from(ago) < lost_after.as_millis() {
            return Err(format!(
                "{} was given up though {node} spoke {ago} ms ago, less than {lost_after:?}",
                attempt.id
            ));
        }
        Ok(())
    }

    fn is_the_last_attempts(&self, model: &Model, before: Option<&Model>, store: &Store) -> Kept {
        if before.is_some() {
            return Err(format!("{} got a second model", model.job));
        }
        let id = AttemptId { job: model.job, token: model.token };
        let last = store.attempts_of(model.job).next_back();
        if last.is_some_and(|last| last.id > id) {
            return Err(format!("{} got its model from {id}, whose token was no longer current", model.job));
        }
        Ok(())
    }

    /// A coordinator starts from this store.
    pub(super) fn remembered(&self, store: &Store, books: &Books) -> Kept {
        let there = |job: &JobId| store.jobs.contains_key(job) || books.forgotten.contains(job);
        let missing = self.submitted.iter().find(|job| !there(job));
        missing.map_or(Ok(()), |job| Err(format!("{job} was acknowledged, and is gone")))
    }

    /// A job is about to be forgotten: nobody can look at it later.
    pub(super) fn let_go(&mut self, job: &Job) -> Kept {
        self.gone.insert(job.id, job.phase());
        self.ended_as_it_may(job)
    }

    /// An agent has let go of all that an attempt wrote: it is recorded line for line, unless its job was forgotten before.
    pub(super) fn dropped(&self, id: AttemptId, worker: &Worker, books: &Books) -> Kept {
        let recorded = self.series.get(&id).map(Vec::as_slice).unwrap_or_default();
        let same = recorded.iter().zip(&worker.lines).all(|(recorded, written)| recorded == written);
        if same && (recorded.len() >= worker.lines.len() || books.forgotten.contains(&id.job)) {
            return Ok(());
        }
        Err(format!(
            "{id} wrote {} lines, {} are recorded, and the others are gone",
            worker.lines.len(),
            recorded.len()
        ))
    }

    /// The world has ended.
    pub(super) fn at_the_end(&self, store: &Store, books: &Books) -> Kept {
        self.remembered(store, books)?;
        for (id, job) in &store.jobs {
            self.ended_as_it_may(job)?;
            if job.phase() == Phase::Succeeded {
                self.every_step_once(*id, store)?;
            }
        }
        store.sweeps.values().try_for_each(|sweep| self.sweep_is_whole(sweep, store))
    }

    fn ended_as_it_may(&self, job: &Job) -> Kept {
        let id = job.id;
        if !job.phase().is_terminal() {
            return Err(format!("{id} never ended: it is {:?}", job.state));
        }
        if self.cancelled.contains(&id) && job.phase() == Phase::Succeeded {
            return Err(format!("{id} was cancelled, acknowledged, and succeeded"));
        }
        let nature = self.natures[&id];
        let swelled = self.excused.contains(&id) && is_failed(job, FailureClass::OutOfMemory);
        let excused = swelled || self.base_is_other && is_failed(job, FailureClass::Base);
        if nature.may_end(job) || self.may_be_cancelled(job) || self.looks_like_poison(job) || excused {
            return Ok(());
        }
        Err(format!("{id} ended as {:?} for {:?}, and it is {nature:?}", job.state, job.cancel_reason))
    }

    /// Machines failed under it so often, or so many of them, that nobody could tell it from a job that kills its own process.
    fn looks_like_poison(&self, job: &Job) -> bool {
        let struck = self.struck.get(&job.id).map(Vec::as_slice).unwrap_or_default();
        let nodes: BTreeSet<_> = struck.iter().collect();
        is_failed(job, FailureClass::Internal) && (nodes.len() >= 3 || struck.len() >= 8)
    }

    /// By a person, by the job it was to start after, or by its sweep.
    fn may_be_cancelled(&self, job: &Job) -> bool {
        let by_rule = !job.waits_for.is_empty()
            || job
                .cancel_reason
                .as_ref()
                .is_some_and(|why| why.starts_with("it was to start") || why.starts_with("stopped early"));
        job.phase() == Phase::Cancelled && (by_rule || self.unwanted.contains(&job.id))
    }

    /// A sweep has ended when all its children have, says how each did, and did not stop the best of them.
    fn sweep_is_whole(&self, sweep: &Sweep, store: &Store) -> Kept {
        let phase = |job: &JobId| store.jobs.get(job).map(Job::phase).or(self.gone.get(job).copied());
        let ended = |child: &SweepChild| child.end.is_some_and(|end| Some(end.phase) == phase(&child.job));
        if sweep.completed_at.is_none() || !sweep.children.iter().all(ended) {
            return Err(format!("{} does not say how its children ended: {sweep:?}", sweep.id));
        }
        if sweep.children.iter().all(|child| child.stopped_at.is_some()) {
            return Err(format!("{} stopped all its children early", sweep.id));
        }
        Ok(())
    }

    /// Of each attempt the steps up to where the next one went on, as people see them.
    fn every_step_once(&self, id: JobId, store: &Store) -> Kept {
        let attempts: Vec<_> = store.attempts_of(id).collect();
        let ran: Vec<_> = attempts.iter().filter_map(|attempt| Some((attempt.id, attempt.from_step?))).collect();
        let mut seen = BTreeMap::<u64, u32>::new();
        for (index, (attempt, _)) in ran.iter().enumerate() {
            let through = ran.get(index + 1).map_or(u64::MAX, |(_, from)| *from);
            let lines = self.series.get(attempt).map(Vec::as_slice).unwrap_or_default();
            let steps = lines
                .iter()
                .filter_map(|line| if let WorkerEvent::Step(step) = &line.event { Some(step.step) } else { None });
            steps.filter(|step| *step <= through).for_each(|step| *seen.entry(step).or_default() += 1);
        }
        // What a revoked node had not yet said it never will.
        let mute = |node: &NodeId| store.nodes.get(node).is_some_and(|row| row.closed == Some(Closed::Retired));
        let unsaid = attempts.iter().flat_map(|attempt| &attempt.members).any(|member| mute(&member.node));
        let right = |seen: Option<&u32>| seen == Some(&1) || unsaid && seen.is_none();
        let wrong: Vec<_> = (1..=STEPS).filter(|step| !right(seen.get(step))).collect();
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(format!("{id}: steps {wrong:?} are not recorded once each: {ran:?} {seen:?}"))
        }
    }
}

fn is_failed(job: &Job, of: FailureClass) -> bool {
    matches!(&job.state, JobState::Failed(failure) if failure.class == of)
}

/// For the tally: where a job is.
pub(super) fn state_word(state: &JobState) -> &'static str {
    match state {
        JobState::Submitted => "submitted",
        JobState::Validating => "validating",
        JobState::Queued => "queued",
        JobState::Blocked(_) => "blocked",
        JobState::Paused => "paused",
        JobState::Placed { .. } => "placed",
        JobState::Succeeded { .. } => "succeeded",
        JobState::Failed(_) => "failed",
        JobState::Rejected { .. } => "rejected",
        JobState::Expired => "expired",
        JobState::Cancelled => "cancelled",
    }
}
