//! The life of a job. What is wanted ([`Intent`]) and what is observed ([`JobState`]) are two things.
//!
//! ```text
//! Submitted ─► Validating ─► Queued ─► Placed(offered … finalizing) ─► Succeeded
//!     │            │          ▲ │ │        │ infrastructure: Queued again, with back-off
//!     │            └► Rejected│ │ └► Paused│ time limit: Expired
//!     └── waits for its      Blocked       │ data, settings, out of retries: Failed
//!         dataset and base                 └ wanted so: Paused, Cancelled
//! ```
//! A terminal state is never left: another try is another job, with this one as its parent.

use super::{Action, Cause, Cluster, Inspect, Now, command::put_job, schedule};
use crate::{
    access::{Actor, Refusal},
    record::{Attempt, BaseState, DatasetState, Job, Member, Receipt},
};
use lorikeet_protocol::{
    agent::{StopHow, ToAgent},
    id::{AttemptId, AttemptToken, JobId, ModelId, NodeId, UnixMillis},
    inspect::{Fault, Inspection, JobFindings},
    job::{AttemptPhase, FailureClass, Intent, JobSpec, Phase, StopCause},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What is observed of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum JobState {
    /// Waits for its dataset and its base to be judged.
    Submitted,
    /// `lorikeet inspect job` computes what it comes to.
    Validating,
    /// Waits for a device.
    Queued,
    /// Waits for something that no free device would change.
    Blocked {
        /// For what.
        reason: String,
    },
    /// Stays where it is until resumed.
    Paused,
    /// Has devices.
    Placed {
        /// Under this token.
        token: AttemptToken,
        /// These.
        member: Member,
        /// As far as this.
        phase: AttemptPhase,
    },
    /// The adapter is here.
    Succeeded {
        /// Its record.
        model: ModelId,
    },
    /// It will not be tried again.
    Failed(Failure),
    /// Its files or settings do not fit together.
    Rejected {
        /// What is wrong.
        faults: Vec<Fault>,
    },
    /// Its time limit is over.
    Expired,
    /// As asked.
    Cancelled,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Whose fault.
    pub class: FailureClass,
    /// What happened.
    pub message: String,
}

impl Job {
    /// Where it is, in one word: what is observed, coloured by what is wanted.
    pub fn phase(&self) -> Phase {
        match &self.state {
            JobState::Submitted => Phase::Submitted,
            JobState::Validating => Phase::Validating,
            JobState::Queued => Phase::Queued,
            JobState::Blocked { .. } => Phase::Blocked,
            JobState::Paused => Phase::Paused,
            JobState::Placed { .. } if self.intent == Intent::Cancel => Phase::Cancelling,
            JobState::Placed { phase, .. } => match phase {
                AttemptPhase::Offered | AttemptPhase::Accepted => Phase::Assigned,
                AttemptPhase::Preparing => Phase::Preparing,
                AttemptPhase::Running => Phase::Running,
                AttemptPhase::Finalizing | AttemptPhase::Done => Phase::Finalizing,
            },
            JobState::Succeeded { .. } => Phase::Succeeded,
            JobState::Failed(_) => Phase::Failed,
            JobState::Rejected { .. } => Phase::Rejected,
            JobState::Expired => Phase::Expired,
            JobState::Cancelled => Phase::Cancelled,
        }
    }

    /// The attempt whose word counts.
    pub fn current_attempt(&self) -> Option<AttemptId> {
        match &self.state {
            JobState::Placed { token, .. } => Some(AttemptId { job: self.id, token: *token }),
            JobState::Submitted
            | JobState::Validating
            | JobState::Queued
            | JobState::Blocked { .. }
            | JobState::Paused
            | JobState::Succeeded { .. }
            | JobState::Failed(_)
            | JobState::Rejected { .. }
            | JobState::Expired
            | JobState::Cancelled => None,
        }
    }
}

/// A job in memory: its row, its attempt, and what no row needs.
#[derive(Debug)]
pub struct LiveJob {
    /// The row.
    pub record: Job,
    /// The current attempt.
    pub attempt: Option<Attempt>,
    /// Since when its node has been silent longer than a lease.
    pub unreachable_since: Option<UnixMillis>,
    /// When the offer went out.
    pub(super) offered: Duration,
    /// Not placed before this moment.
    pub(super) retry_at: Duration,
}

impl LiveJob {
    pub(super) fn new(record: Job, attempt: Option<Attempt>, now: Now) -> Self {
        Self { record, attempt, unreachable_since: None, offered: now.mono, retry_at: Duration::ZERO }
    }

    /// The node that holds it.
    pub fn node(&self) -> Option<NodeId> {
        self.attempt.as_ref().and_then(|attempt| attempt.members.first()).map(|member| member.node)
    }
}

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
        if base.state == BaseState::Error {
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
            held: Duration::ZERO,
            created: now.wall,
            started_at: None,
            completed_at: None,
            cancel_reason: None,
        };
        self.jobs.insert(id, LiveJob::new(record, None, now));
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
        job.record.intent = intent;
        let placed = job.attempt.as_ref().map(|attempt| attempt.id);
        match (intent, placed, &job.record.state) {
            (Intent::Cancel, None, _) => self.settle(id, JobState::Cancelled, cause, now, out),
            (Intent::Pause, None, JobState::Queued | JobState::Blocked { .. }) => {
                self.settle(id, JobState::Paused, cause, now, out)
            }
            (Intent::Run, None, JobState::Paused) => self.settle(id, JobState::Queued, cause, now, out),
            (_, Some(attempt), _) => {
                self.tell_intent(id, attempt, out);
                put_job(&self.jobs[&id].record, out);
            }
            _ => put_job(&job.record, out),
        }
        Ok(Receipt::Job(id))
    }

    /// What the owner wants of a placed job, said to its agent; said again in every welcome.
    pub(super) fn tell_intent(&self, id: JobId, attempt: AttemptId, out: &mut Vec<Action>) {
        let job = &self.jobs[&id];
        let stop = match job.record.intent {
            Intent::Run => None,
            Intent::Pause => Some((StopHow::Save, StopCause::Pause)),
            Intent::Cancel => Some((StopHow::Discard, StopCause::Cancel)),
        };
        if let Some(((how, cause), node)) = stop.zip(job.node()) {
            out.push(Action::Send { node, message: ToAgent::Stop { attempt, how, cause } });
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

    /// Moves a job to a state that holds no device. A terminal one takes it out of memory.
    pub(super) fn settle(&mut self, id: JobId, state: JobState, cause: &Cause, now: Now, out: &mut Vec<Action>) {
        let job = self.jobs.get_mut(&id).expect("only live jobs settle");
        assert!(job.attempt.is_none(), "{id} still holds devices");
        let before = job.record.phase();
        job.record.state = state;
        let after = job.record.phase();
        if after.is_terminal() {
            job.record.completed_at = Some(now.wall);
        }
        put_job(&job.record, out);
        if after.is_terminal() {
            self.jobs.remove(&id);
        }
        self.unsettled = true;
        self.audit(cause, "job.phase", id.to_string(), (Some(word(before)), Some(word(after))), now, out);
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
                JobState::Rejected { faults: vec![fault("the inspection answered another question")] }
            }
            Err(message) => JobState::Rejected { faults: vec![fault(&message)] },
        };
        self.settle(id, state, &Cause::default(), now, out);
    }

    /// Why a job waits; `None` when it does not.
    pub(super) fn why(&self, job: &LiveJob, now: Now) -> Option<schedule::Why> {
        let schedule = schedule::schedule(self.queue(None), &self.views(now));
        schedule.waiting.get(&job.record.id).cloned()
    }

    pub(super) fn dry_run(
        &self,
        actor: Actor,
        spec: &JobSpec,
        findings: &JobFindings,
        now: Now,
    ) -> Result<Option<schedule::Why>, Refusal> {
        let (base, dataset) = self.resolve(actor, spec)?;
        let id = JobId(uuid::Uuid::max());
        let candidate = schedule::Candidate {
            job: id,
            priority: spec.priority,
            since: UnixMillis(u64::MAX),
            resources: &spec.resources,
            cpu_bytes: findings.cpu_bytes,
            cuda_bytes: findings.cuda_bytes,
            files: Self::files(base, dataset),
            avoid: Default::default(),
        };
        let mut queue = self.queue(None);
        queue.push(candidate);
        Ok(schedule::schedule(queue, &self.views(now)).waiting.remove(&id))
    }
}

/// "tone" → "tone (retry 2)" → "tone (retry 3)".
fn next_name(name: &str) -> String {
    let counted = name.strip_suffix(')').and_then(|rest| rest.rsplit_once(" (retry "));
    match counted.and_then(|(stem, number)| Some((stem, number.parse::<u32>().ok()?))) {
        Some((stem, number)) => format!("{stem} (retry {})", number.saturating_add(1)),
        None => format!("{name} (retry 2)"),
    }
}

pub(crate) fn fault(message: &str) -> Fault {
    Fault { line: None, path: String::new(), message: message.into() }
}

pub(super) fn word(phase: Phase) -> String {
    format!("{phase:?}").to_lowercase()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_retry_says_which_one_it_is() {
        assert_eq!(super::next_name("tone"), "tone (retry 2)");
        assert_eq!(super::next_name("tone (retry 2)"), "tone (retry 3)");
    }
}
