//! Many jobs of one file. A sweep owns nothing but the list: its children are ordinary jobs, in the one queue, under the limits of their
//! owner, and each ends by itself. What the sweep adds: no more than so many hold devices at once, the worse ones end early
//! (`asha`), and one cancel reaches all.
//!
//! ```text
//! children live ─► every child over ─► completed: leaves memory        one cancel: every live child is cancelled
//! ```

use super::{Action, Cause, Cluster, Now, Rows, asha, put, submit::Wanted};
use crate::{
    access::{Actor, Refusal},
    record::{ChildEnd, Job, Receipt, Record, Sweep, SweepChild},
};
use lorikeet_api::jobfile::{
    start::Start,
    sweep::{StopRule, Values},
};
use lorikeet_protocol::{
    agent::Progress,
    id::{JobId, SweepId},
    job::{Intent, JobSpec, Phase},
};

/// What is asked for with a sweep.
#[derive(Debug, Clone)]
pub struct NewSweep {
    /// Its id.
    pub id: SweepId,
    /// What people call it.
    pub name: String,
    /// Its jobs, with the ids they will have.
    pub children: Vec<(JobId, Values, JobSpec)>,
    /// So many of them hold devices at once.
    pub max_parallel: Option<u32>,
    /// Which of them end early.
    pub stop: Option<StopRule>,
    /// When each may start.
    pub start: Start,
}

impl Cluster {
    /// All of it or nothing: each child is judged before the first is made.
    pub(super) fn submit_sweep(
        &mut self,
        actor: Actor,
        sweep: NewSweep,
        rows: &Rows,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let NewSweep { id, name, children, max_parallel, stop, start } = sweep;
        let owner = actor.owner()?;
        if children.is_empty() {
            return Err(Refusal::invalid("sweep", "the sweep has no jobs"));
        }
        let inputs =
            children.iter().map(|(_, _, spec)| self.made_of(actor, spec, rows)).collect::<Result<Vec<_>, _>>()?;
        let waits_for = self.dependencies(actor, &start, &rows.named)?;
        let mut row = Sweep {
            id,
            owner,
            name,
            children: vec![],
            max_parallel,
            stop,
            rungs: vec![],
            cancelled: false,
            created: now.wall,
            completed_at: None,
        };
        for ((job, values, spec), inputs) in children.into_iter().zip(inputs) {
            let (start, waits_for) = (start.clone(), waits_for.clone());
            self.admit(owner, job, Wanted { spec, start, waits_for, parent: None, sweep: Some(id) }, inputs, now, out);
            row.children.push(SweepChild { job, values, stopped_at: None, end: None });
        }
        out.push(put(Record::Sweep(Box::new(row.clone()))));
        self.sweeps.insert(id, row);
        Ok(Receipt::Sweep(id))
    }

    /// Every child that is not over is cancelled with this reason.
    pub(super) fn cancel_sweep(
        &mut self,
        actor: Actor,
        id: SweepId,
        reason: Option<String>,
        cause: &Cause,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let sweep = actor.find(self.sweeps.get_mut(&id), |sweep| sweep.owner, "sweep")?;
        sweep.cancelled = true;
        out.push(put(Record::Sweep(Box::new(sweep.clone()))));
        let children: Vec<_> = sweep.children.iter().map(|child| child.job).collect();
        // One that waits for another of them may be gone by then.
        for job in children {
            if self.jobs.contains_key(&job) {
                self.cancel(actor, job, reason.clone(), cause, now, out)?;
            }
        }
        Ok(Receipt::Sweep(id))
    }

    /// Its children that hold devices.
    pub(super) fn placed_of(&self, id: SweepId) -> u32 {
        let children = self.sweeps.get(&id).map_or(&[][..], |sweep| &sweep.children);
        let placed = children.iter().filter(|child| self.jobs.get(&child.job).is_some_and(|job| job.attempt.is_some()));
        u32::try_from(placed.count()).unwrap_or(u32::MAX)
    }

    /// A child has come further; one that was just evaluated may end here.
    pub(super) fn judge_child(
        &mut self,
        id: JobId,
        before: Option<Progress>,
        progress: Progress,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let known = before.and_then(|before| before.validation_loss).map(f64::to_bits);
        let fresh = progress.validation_loss.filter(|loss| Some(loss.to_bits()) != known);
        let job = self.jobs.get(&id).filter(|job| job.record.intent == Intent::Run);
        let sweep = job.and_then(|job| job.record.sweep).and_then(|sweep| self.sweeps.get_mut(&sweep));
        let (Some(loss), Some(sweep)) = (fresh, sweep) else { return };
        // At its last step it is as good as done.
        let Some(rule) = sweep.stop.filter(|_| progress.step < progress.total_steps) else { return };
        let Some(goes_on) = asha::judge(rule, &mut sweep.rungs, id, progress.step, loss) else { return };
        if !goes_on && let Some(child) = sweep.children.iter_mut().find(|child| child.job == id) {
            child.stopped_at = Some(progress.step);
        }
        out.push(put(Record::Sweep(Box::new(sweep.clone()))));
        if !goes_on {
            let reason = format!(
                "stopped early: validation loss {loss:.4} after {} steps is not among the best of its sweep, one in {}",
                progress.step, rule.reduction
            );
            let stopped = self.cancel(Actor::System, id, Some(reason), &Cause::default(), now, out);
            debug_assert!(stopped.is_ok(), "a live job can be cancelled: {stopped:?}");
        }
    }

    /// A child is over.
    pub(super) fn child_ended(&mut self, job: &Job, phase: Phase, now: Now, out: &mut Vec<Action>) {
        let Some(sweep) = job.sweep.and_then(|sweep| self.sweeps.get_mut(&sweep)) else { return };
        if let Some(child) = sweep.children.iter_mut().find(|child| child.job == job.id) {
            let progress = job.progress.as_ref();
            child.end = Some(ChildEnd {
                phase,
                loss: progress.map(|progress| progress.loss),
                validation_loss: progress.and_then(|progress| progress.validation_loss),
            });
        }
        let over = sweep.children.iter().all(|child| child.end.is_some());
        if over {
            sweep.completed_at = Some(now.wall);
        }
        out.push(put(Record::Sweep(Box::new(sweep.clone()))));
        if over {
            let id = sweep.id;
            self.sweeps.remove(&id);
        }
    }
}

impl Sweep {
    /// The child with the lowest validation loss, where there are any; else the one that came through with the lowest loss.
    pub fn best(&self) -> Option<(JobId, f64)> {
        let lowest = |losses: Vec<(JobId, f64)>| {
            losses.into_iter().filter(|(_, loss)| loss.is_finite()).min_by(|one, other| one.1.total_cmp(&other.1))
        };
        let ends = || self.children.iter().filter_map(|child| Some((child.job, child.end?)));
        let done = || ends().filter(|(_, end)| end.phase == Phase::Succeeded);
        let judged = lowest(done().filter_map(|(job, end)| Some((job, end.validation_loss?))).collect());
        judged.or_else(|| lowest(done().filter_map(|(job, end)| Some((job, end.loss?))).collect()))
    }
}
