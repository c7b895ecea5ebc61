//! What keeps a job from its queue besides devices: other jobs, a hand that holds it, a moment that has not come.
//!
//! A job can only wait for jobs that are older than itself, so nobody ever waits in a circle. When one ends, those behind it
//! go on, or – where it did not end as they wanted – are cancelled with that reason, and those behind them with theirs.

use super::{
    Action, Cause, Cluster, Now,
    command::put_job,
    job::{JobState, Obstacle, word},
};
use crate::{
    access::{Actor, Refusal},
    record::{Dependency, Job, Receipt},
};
use lorikeet_api::jobfile::start::{After, Start, Wants};
use lorikeet_protocol::{
    id::JobId,
    job::{Intent, Phase},
};
use std::collections::{BTreeMap, BTreeSet};

/// Who waits for whom: the jobs' own lists, turned round.
#[derive(Debug, Default)]
pub(super) struct Dependents(BTreeMap<JobId, BTreeSet<JobId>>);

impl Dependents {
    pub(super) fn add(&mut self, job: &Job) {
        for dependency in &job.waits_for {
            self.0.entry(dependency.job).or_default().insert(job.id);
        }
    }

    fn of(&mut self, ended: JobId) -> BTreeSet<JobId> {
        self.0.remove(&ended).unwrap_or_default()
    }
}

/// Whether an end is the one that was waited for.
fn is_wanted(wants: Wants, end: Phase) -> bool {
    match wants {
        Wants::Any => true,
        Wants::Ok => end == Phase::Succeeded,
        Wants::Fail => matches!(end, Phase::Failed | Phase::Rejected | Phase::Expired),
    }
}

impl Cluster {
    /// The jobs that a submission has to wait for. What is over already counts at once. One that is another's, or none, is the
    /// same fault.
    pub(super) fn dependencies(
        &self,
        actor: Actor,
        start: &Start,
        finished: &[Job],
    ) -> Result<Vec<Dependency>, Refusal> {
        let called = self.called(actor, start);
        let mut waits_for = Vec::new();
        for after in &start.after {
            if let Some(job) = self.meant(actor, after, finished, &called)? {
                waits_for.push(Dependency { job, wants: after.wants });
            }
        }
        waits_for.sort_by_key(|dependency| (dependency.job, dependency.wants));
        waits_for.dedup();
        Ok(waits_for)
    }

    /// The live jobs that are called as `start` says, found in one walk for all of its words.
    fn called<'a>(&'a self, actor: Actor, start: &Start) -> BTreeMap<&'a str, Vec<&'a Job>> {
        let words: BTreeSet<&str> = start.after.iter().map(|after| after.job.as_str()).collect();
        let mut called = BTreeMap::<_, Vec<_>>::new();
        if words.is_empty() {
            return called;
        }
        let visible = self.jobs.values().map(|job| &job.record).filter(|job| actor.sees(job.owner));
        for job in visible.filter(|job| words.contains(job.spec.name.as_str())) {
            called.entry(job.spec.name.as_str()).or_default().push(job);
        }
        called
    }

    /// The job that is to be waited for: the one with this id, else of the live ones that are called so one's own before another's. None,
    /// where the one that is meant ended as wanted already.
    fn meant(
        &self,
        actor: Actor,
        after: &After,
        finished: &[Job],
        called: &BTreeMap<&str, Vec<&Job>>,
    ) -> Result<Option<JobId>, Refusal> {
        if let Ok(id) = after.job.parse::<JobId>() {
            if let Ok(job) = self.visible(actor, id) {
                return Ok(Some(job.record.id));
            }
            if let Some(job) = finished.iter().find(|job| job.id == id && actor.sees(job.owner)) {
                return ended_as_wanted(after, job).map(|()| None);
            }
        }
        let visible = called.get(after.job.as_str()).map_or(&[][..], Vec::as_slice);
        let own: Vec<_> = visible.iter().copied().filter(|job| Some(job.owner) == actor.user()).collect();
        match if own.is_empty() { visible } else { &own } {
            [] => Err(Refusal::invalid(
                "after",
                format!("no job `{}`; `lorikeet jobs` names them, and one that is over is named by its id", after.job),
            )),
            [only] => Ok(Some(only.id)),
            several => Err(Refusal::invalid(
                "after",
                format!("{} jobs are called `{}`; say which one by its id", several.len(), after.job),
            )),
        }
    }

    /// A job ended: what waited for it goes on or is cancelled. Answers whom it cancelled, with the phase they ended in.
    pub(super) fn tell_dependents(
        &mut self,
        ended: JobId,
        end: Phase,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Vec<(JobId, Phase)> {
        let mut over = Vec::new();
        for id in self.dependents.of(ended) {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let (told, left) = job.record.waits_for.drain(..).partition::<Vec<_>, _>(|waits| waits.job == ended);
            job.record.waits_for = left;
            if let Some(missed) = told.iter().find(|waits| !is_wanted(waits.wants, end)) {
                let ended_as = if end == Phase::Cancelled { "was cancelled" } else { "did not end so" };
                job.record.cancel_reason =
                    Some(format!("it was to start after {ended}:{}, which {ended_as}", missed.wants));
                job.record.intent = Intent::Cancel;
                over.extend(self.settle_one(id, JobState::Cancelled, &Cause::default(), now, out));
            } else if job.record.state == JobState::Blocked(Obstacle::After) {
                over.extend(self.settle_one(id, JobState::Queued, &Cause::default(), now, out));
            } else {
                put_job(&job.record, out);
            }
        }
        over
    }

    /// Somebody lets a held job go.
    pub(super) fn release(
        &mut self,
        actor: Actor,
        id: JobId,
        cause: &Cause,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let job = self.visible_mut(actor, id)?;
        job.record.released = true;
        if job.record.state == JobState::Blocked(Obstacle::Held) {
            self.settle(id, JobState::Queued, cause, now, out);
        } else {
            put_job(&job.record, out);
        }
        Ok(Receipt::Job(id))
    }

    /// As long as it has no device: then it has gone first already.
    pub(super) fn set_priority(
        &mut self,
        actor: Actor,
        id: JobId,
        priority: u8,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let job = self.visible_mut(actor, id)?;
        if priority > 100 {
            return Err(Refusal::invalid("priority", format!("priority is {priority}, expected a whole number 0…100")));
        }
        if job.attempt.is_some() {
            return Err(Refusal::conflict(format!(
                "the job is {}; its priority counts while it waits",
                word(job.record.phase())
            )));
        }
        job.record.spec.priority = priority;
        put_job(&job.record, out);
        self.file(id, now);
        self.unsettled = true;
        Ok(Receipt::Job(id))
    }

    /// The moment that a job waited for has come.
    pub(super) fn moment_came(&mut self, id: JobId, now: Now, out: &mut Vec<Action>) {
        let waits = |job: &super::LiveJob| job.record.state == JobState::Blocked(Obstacle::Until);
        let came = |job: &super::LiveJob| job.record.start.not_before.is_none_or(|moment| moment <= now.wall);
        if self.jobs.get(&id).is_some_and(|job| waits(job) && came(job)) {
            self.settle(id, JobState::Queued, &Cause::default(), now, out);
        }
    }
}

fn ended_as_wanted(after: &After, job: &Job) -> Result<(), Refusal> {
    if is_wanted(after.wants, job.phase()) {
        return Ok(());
    }
    let message = format!("{after} can not come true: the job is {}", word(job.phase()));
    Err(Refusal::invalid("after", message))
}

impl Obstacle {
    /// What keeps a job from its queue, besides its owner and its base model.
    pub(super) fn to(job: &Job, now: Now) -> Option<Self> {
        let early = job.start.not_before.is_some_and(|moment| moment > now.wall);
        let found = [
            (!job.waits_for.is_empty(), Self::After),
            (job.start.hold && !job.released, Self::Held),
            (early, Self::Until),
        ];
        found.into_iter().find_map(|(there, obstacle)| there.then_some(obstacle))
    }
}
