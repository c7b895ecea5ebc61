//! From submit to queue: names are resolved, files awaited, and `lorikeet inspect job` says what the job comes to.

use super::{
    Action, Cause, Cluster, Inspect, Now,
    command::put_job,
    job::{JobState, LiveJob},
};
use crate::{
    access::{Actor, Refusal},
    record::{BaseState, DatasetState, Job, Receipt},
};
use lorikeet_protocol::{
    id::JobId,
    inspect::{Fault, Inspection, JobFindings},
    job::{Intent, JobSpec},
};
use std::time::Duration;

impl Cluster {
    pub(super) fn submit(
        &mut self,
        actor: Actor,
        id: JobId,
        spec: JobSpec,
        parent: Option<JobId>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let owner = actor.owner()?;
        let (base, dataset) = self.resolve(actor, &spec)?;
        if matches!(base.state, BaseState::Error | BaseState::Changed) {
            return Err(Refusal::invalid(
                "base",
                format!("base model `{}` cannot be used; `lorikeet base list` says why", base.name),
            ));
        }
        if matches!(dataset.state, DatasetState::Error | DatasetState::Uploading) {
            return Err(Refusal::invalid(
                "dataset",
                format!("dataset `{}` is not ready; `lorikeet dataset show {}` says why", dataset.name, dataset.id),
            ));
        }
        let record = Job {
            id,
            owner,
            base: base.id,
            dataset: dataset.id,
            spec,
            parent,
            intent: Intent::Run,
            state: JobState::Submitted,
            attempts: 0,
            infrastructure_failures: 0,
            user_failures: 0,
            blamed: Default::default(),
            findings: None,
            progress: None,
            checkpoint: None,
            base_files: vec![],
            held: Duration::ZERO,
            created: now.wall,
            queued_at: None,
            started_at: None,
            completed_at: None,
            cancel_reason: None,
        };
        self.jobs.insert(id, LiveJob::new(record, None, vec![], now));
        self.validate_when_ready(id, out);
        put_job(&self.jobs[&id].record, out);
        Ok(Receipt::Job(id))
    }

    pub(super) fn retry(
        &mut self,
        actor: Actor,
        old: JobId,
        new: JobId,
        row: Option<Job>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        if self.visible(actor, old).is_ok() {
            return Err(Refusal::conflict("the job is not over yet; cancel it first"));
        }
        let job = actor.find(row.filter(|row| row.id == old), |job| job.owner, "job")?;
        let mut spec = job.spec;
        spec.name = next_name(&spec.name);
        self.submit(actor, new, spec, Some(old), now, out)
    }

    /// A submitted job is validated once both its files are ready.
    pub(super) fn validate_when_ready(&mut self, id: JobId, out: &mut Vec<Action>) {
        let ready = self.jobs.get(&id).is_some_and(|job| {
            job.record.state == JobState::Submitted
                && self.bases.get(&job.record.base).is_some_and(|base| base.state == BaseState::Ready)
                && self.datasets.get(&job.record.dataset).is_some_and(|dataset| dataset.state == DatasetState::Ready)
        });
        if let (true, Some(job)) = (ready, self.jobs.get_mut(&id)) {
            job.record.state = JobState::Validating;
            put_job(&job.record, out);
            let inspection = self.job_inspection(&self.jobs[&id].record);
            out.extend(inspection.map(Action::Inspect));
        }
    }

    /// Jobs that waited for a dataset or base that has been judged now.
    pub(crate) fn wake_submitted(
        &mut self,
        waits_for: impl Fn(&Job) -> bool,
        broken: Option<Fault>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let waiting =
            self.jobs.values().filter(|job| job.record.state == JobState::Submitted && waits_for(&job.record));
        for id in waiting.map(|job| job.record.id).collect::<Vec<_>>() {
            match &broken {
                Some(fault) => {
                    self.settle(id, JobState::Rejected { faults: vec![fault.clone()] }, &Cause::default(), now, out)
                }
                None => self.validate_when_ready(id, out),
            }
        }
    }

    pub(super) fn job_inspection(&self, job: &Job) -> Option<Inspect> {
        let (base, dataset) = (self.bases.get(&job.base)?, self.datasets.get(&job.dataset)?);
        (job.state == JobState::Validating).then(|| Inspect::Job {
            id: job.id,
            spec: Box::new(job.spec.clone()),
            base: base.path.clone(),
            dataset: dataset.manifest.clone().expect("a ready dataset has its bytes"),
        })
    }

    pub(super) fn job_inspected(
        &mut self,
        id: JobId,
        result: Result<Inspection, String>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.record.state == JobState::Validating) else { return };
        let state = match result {
            Ok(Inspection::Job(findings)) => {
                job.record.findings = Some(JobFindings { rendered: vec![], ..findings });
                if job.record.intent == Intent::Pause { JobState::Paused } else { JobState::Queued }
            }
            Ok(Inspection::Refused { faults }) => JobState::Rejected { faults },
            Ok(Inspection::Dataset(_) | Inspection::Base(_)) => {
                JobState::Rejected { faults: vec![Fault::whole("the inspection answered another question")] }
            }
            Err(message) => JobState::Rejected { faults: vec![Fault::whole(message)] },
        };
        self.settle(id, state, &Cause::default(), now, out);
    }
}

/// The most characters of a job's name.
const NAME: usize = 200;

/// "tone" → "tone (retry 2)" → "tone (retry 3)", shortened where it would grow too long.
fn next_name(name: &str) -> String {
    let counted = name.strip_suffix(')').and_then(|rest| rest.rsplit_once(" (retry "));
    let (stem, number) = counted
        .and_then(|(stem, number)| Some((stem, number.parse::<u32>().ok()?.saturating_add(1))))
        .unwrap_or((name, 2));
    let suffix = format!(" (retry {number})");
    let stem: String = stem.chars().take(NAME - suffix.len()).collect();
    stem + &suffix
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_retry_says_which_one_it_is() {
        assert_eq!(super::next_name("tone"), "tone (retry 2)");
        assert_eq!(super::next_name("tone (retry 2)"), "tone (retry 3)");
        assert_eq!(super::next_name(&"ä".repeat(200)).chars().count(), 200);
    }
}
