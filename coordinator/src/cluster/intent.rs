//! What the owner of a job wants of it: run, pause, cancel, save now. Said to the agent, and said again at every reconnect.

use super::{Action, Cause, Cluster, Now, command::put_job, job::JobState, put};
use crate::{
    access::{Actor, Refusal},
    record::{Receipt, Record},
};
use lorikeet_protocol::{
    agent::{StopHow, ToAgent},
    id::{AttemptId, JobId},
    job::{AttemptPhase, Intent, StopCause},
};

impl Cluster {
    pub(super) fn cancel(
        &mut self,
        actor: Actor,
        id: JobId,
        reason: Option<String>,
        cause: &Cause,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let job = self.visible_mut(actor, id)?;
        job.record.cancel_reason = job.record.cancel_reason.take().or(reason);
        self.set_intent(actor, id, Intent::Cancel, cause, now, out)
    }

    pub(super) fn set_intent(
        &mut self,
        actor: Actor,
        id: JobId,
        intent: Intent,
        cause: &Cause,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let job = self.visible_mut(actor, id)?;
        if job.record.intent == Intent::Cancel && intent != Intent::Cancel {
            return Err(Refusal::conflict("the job is being cancelled"));
        }
        let before = job.record.phase();
        job.record.intent = intent;
        let placed = job.attempt.as_ref().map(|attempt| attempt.id);
        match (intent, placed, &job.record.state) {
            (Intent::Cancel, None, _) => self.settle(id, JobState::Cancelled, cause, now, out),
            (Intent::Pause, None, JobState::Queued | JobState::Blocked(_)) => {
                self.settle(id, JobState::Paused, cause, now, out)
            }
            (Intent::Run, None, JobState::Paused) => self.settle(id, JobState::Queued, cause, now, out),
            (_, Some(attempt), _) => {
                self.tell_intent(id, attempt, out);
                self.file(id, now);
                put_job(&self.jobs[&id].record, out);
                let after = self.jobs[&id].record.phase();
                if before != after {
                    self.audit_phase(id, (before, after), cause, now, out);
                }
            }
            _ => put_job(&job.record, out),
        }
        Ok(Receipt::Job(id))
    }

    /// What the owner wants of a placed job, said to its agent; said again in every welcome.
    pub(super) fn tell_intent(&self, id: JobId, attempt: AttemptId, out: &mut Vec<Action>) {
        let job = &self.jobs[&id];
        let leave = job.attempt.as_ref().and_then(|attempt| attempt.leave);
        let stop = match job.record.intent {
            Intent::Run => leave.map(|cause| (StopHow::Save, cause)),
            Intent::Pause => Some((StopHow::Save, StopCause::Pause)),
            Intent::Cancel => Some((StopHow::Discard, StopCause::Cancel)),
        };
        if let Some(((how, cause), node)) = stop.zip(job.node()) {
            out.push(Action::Send { node, message: ToAgent::Stop { attempt, how, cause } });
        }
    }

    /// An attempt saves its state and makes room; its job is queued again.
    pub(super) fn ask_to_leave(&mut self, attempt: AttemptId, cause: StopCause, out: &mut Vec<Action>) {
        let job = self.jobs.get_mut(&attempt.job).and_then(|job| job.attempt.as_mut());
        if let Some(row) = job.filter(|row| row.id == attempt && row.leave.is_none()) {
            row.leave = Some(cause);
            out.push(put(Record::Attempt(row.clone())));
            self.tell_intent(attempt.job, attempt, out);
        }
    }

    pub(super) fn save_now(&mut self, actor: Actor, id: JobId, out: &mut Vec<Action>) -> Result<Receipt, Refusal> {
        let job = self.visible(actor, id)?;
        match (job.node(), &job.record.state) {
            (Some(node), JobState::Placed { token, phase: AttemptPhase::Running, .. }) => {
                out.push(Action::Send { node, message: ToAgent::SaveNow(AttemptId { job: id, token: *token }) });
                Ok(Receipt::Job(id))
            }
            _ => Err(Refusal::conflict("the job is not running")),
        }
    }
}
