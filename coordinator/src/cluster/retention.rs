//! What is over and old is forgotten: the rows of a job, its attempts and its checkpoints. Audit records stay, and so does the model, which
//! then carries the settings that were its job's.

use super::{Action, Cause, Cluster, Now, Rows, job::word, put};
use crate::{
    access::{Actor, Refusal},
    record::{Job, Model, Receipt, Record},
};
use lorikeet_protocol::id::UnixMillis;

impl Cluster {
    /// Of the jobs that the driver has read, those that nobody needs any more.
    pub(super) fn forget(
        &mut self,
        actor: Actor,
        before: UnixMillis,
        rows: Rows,
        cause: &Cause,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        actor.require_admin("forget jobs")?;
        for (job, model) in rows.old {
            if self.is_needed(&job, before) {
                continue;
            }
            let was = Some(word(job.phase()));
            self.audit(cause, "job.forget", job.id.to_string(), (was, None), now, out);
            out.extend(model.map(|model| put(Record::Model(with_spec(model, &job)))));
            out.push(put(Record::Forgotten(Box::new(job))));
        }
        Ok(Receipt::Done)
    }

    /// Whether it is not over, or not for long enough, or a sweep that goes on still compares others with it.
    fn is_needed(&self, job: &Job, before: UnixMillis) -> bool {
        let ended = job.completed_at.filter(|_| job.phase().is_terminal());
        let compared = job.sweep.is_some_and(|sweep| self.sweeps.contains_key(&sweep));
        compared || self.jobs.contains_key(&job.id) || ended.is_none_or(|ended| ended >= before)
    }
}

fn with_spec(model: Model, job: &Job) -> Model {
    Model { spec: Some(Box::new(job.spec.clone())), ..model }
}
