//! The life of a job. What is wanted ([`Intent`]) and what is observed ([`JobState`]) are two things.
//!
//! ```text
//! Submitted ─► Validating ─► Queued ─► Placed(offered … finalizing) ─► Succeeded
//!     │            │          ▲ │ │        │ infrastructure: Queued again, with back-off
//!     │            └► Rejected│ │ └► Paused│ time limit: Expired
//!     └── waits for its      Blocked       │ data, settings, out of retries: Failed
//!         dataset and base                 └ wanted so: Paused, Cancelled
//! Blocked waits for a base model, for other jobs, for a hand, for a moment; one after the other, each judged anew.
//! Whatever would be queued over other files of its base than it was validated with is Submitted again, or Rejected where its dataset is
//! of no use by now; with a checkpoint of them, Failed.
//! ```
//! A terminal state is never left: another try is another job, with this one as its parent.

use super::{Action, Cause, Cluster, Now, command::put_job, schedule::Standing};
use crate::record::{Attempt, Base, BaseState, Dataset, Job, Member, StoredCheckpoint};
use lorikeet_protocol::{
    id::{AttemptId, AttemptToken, DatasetId, JobId, ModelId, NodeId},
    inspect::Fault,
    job::{AttemptPhase, FailureClass, Intent, Phase},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

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
    Blocked(Obstacle),
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

/// What a blocked job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Obstacle {
    /// The files of its base model are no longer what was registered.
    BaseChanged,
    /// Other jobs have to end first.
    After,
    /// Somebody has to let it go.
    Held,
    /// A moment has to come.
    Until,
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
    /// Whether it trains or is evaluated on this dataset.
    pub fn names_dataset(&self, id: DatasetId) -> bool {
        self.dataset == id || self.validation == Some(id)
    }

    /// Where it is, in one word: what is observed, coloured by what is wanted.
    pub fn phase(&self) -> Phase {
        match &self.state {
            JobState::Submitted => Phase::Submitted,
            JobState::Validating => Phase::Validating,
            JobState::Queued => Phase::Queued,
            JobState::Blocked(_) => Phase::Blocked,
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
            | JobState::Blocked(_)
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
    /// Its checkpoints that are kept, oldest first.
    pub(super) checkpoints: Vec<StoredCheckpoint>,
    /// Offers that were declined or not answered, since the last that was taken.
    pub(super) refusals: u32,
    /// By whom, and where it ended for its machine's sake since then: it is tried elsewhere first.
    pub(super) shunned: BTreeSet<NodeId>,
    /// What was said at the end of its last attempt, if this process heard of that.
    pub(super) last_word: Option<String>,
    /// When the offer went out.
    pub(super) offered: Duration,
    /// Not placed before this moment.
    pub(super) retry_at: Duration,
    /// Where it stands in the queue, if it does.
    pub(super) standing: Option<Standing>,
    /// Whose progress its row tells, if this process heard it.
    pub(super) told_by: Option<AttemptId>,
}

impl LiveJob {
    pub(super) fn new(record: Job, attempt: Option<Attempt>, checkpoints: Vec<StoredCheckpoint>, now: Now) -> Self {
        Self {
            record,
            attempt,
            checkpoints,
            refusals: 0,
            shunned: BTreeSet::new(),
            last_word: None,
            offered: now.mono,
            retry_at: Duration::ZERO,
            standing: None,
            told_by: None,
        }
    }

    /// The node that holds it.
    pub fn node(&self) -> Option<NodeId> {
        self.attempt.as_ref().and_then(|attempt| attempt.members.first()).map(|member| member.node)
    }
}

impl Cluster {
    /// Moves a job to a state that holds no device. A terminal one takes it out of memory, and those that waited for it hear of it.
    pub(crate) fn settle(&mut self, id: JobId, state: JobState, cause: &Cause, now: Now, out: &mut Vec<Action>) {
        let mut over: Vec<_> = self.settle_one(id, state, cause, now, out).into_iter().collect();
        while let Some((ended, end)) = over.pop() {
            over.extend(self.tell_dependents(ended, end, now, out));
        }
    }

    /// The same without those that waited for it; answers how it ended, if it did.
    pub(super) fn settle_one(
        &mut self,
        id: JobId,
        state: JobState,
        cause: &Cause,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Option<(JobId, Phase)> {
        let job = self.jobs.get_mut(&id).expect("only live jobs settle");
        assert!(job.attempt.is_none(), "{id} still holds devices");
        let before = job.record.phase();
        let base = self.bases.get(&job.record.base);
        job.record.state =
            if state == JobState::Queued { waiting(&job.record, base, &self.datasets, now) } else { state };
        let after = job.record.phase();
        if after == Phase::Queued {
            job.record.queued_at = job.record.queued_at.or(Some(now.wall));
        }
        if after.is_terminal() {
            job.record.completed_at = Some(now.wall);
            job.last_checkpoints(now, out);
        }
        put_job(&job.record, out);
        if after.is_terminal() {
            self.unfile(id);
            let ended = self.jobs.remove(&id).expect("it was there a moment ago").record;
            self.child_ended(&ended, after, now, out);
        } else {
            self.file(id, now);
        }
        self.unsettled = true;
        self.audit_phase(id, (before, after), cause, now, out);
        if after == Phase::Submitted {
            self.validate_when_ready(id, now, out);
        }
        after.is_terminal().then_some((id, after))
    }

    /// One phase was left for another.
    pub(super) fn audit_phase(
        &mut self,
        id: JobId,
        (before, after): (Phase, Phase),
        cause: &Cause,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        self.audit(cause, "job.phase", id.to_string(), (Some(word(before)), Some(word(after))), now, out);
    }
}

/// A job that could be placed, unless somebody or something holds it back. A checkpoint never goes on over other weights.
fn waiting(job: &Job, base: Option<&Base>, datasets: &BTreeMap<DatasetId, Dataset>, now: Now) -> JobState {
    let ready = base.filter(|base| base.state == BaseState::Ready);
    match (job.intent, ready) {
        (Intent::Pause, _) => JobState::Paused,
        (Intent::Run | Intent::Cancel, None) => JobState::Blocked(Obstacle::BaseChanged),
        (Intent::Run | Intent::Cancel, Some(base)) if job.checkpoint.is_some() && job.base_files != base.hashes() => {
            JobState::Failed(Failure {
                class: FailureClass::Base,
                message: "its base model is no longer the one that its checkpoints were made on".into(),
            })
        }
        // What was found of it is of other files, so it is judged again.
        (Intent::Run | Intent::Cancel, Some(base)) if !job.base_files.is_empty() && job.base_files != base.hashes() => {
            // Nobody wakes it for the sake of a dataset that was judged before.
            let mut named =
                [Some(job.dataset), job.validation].into_iter().flatten().filter_map(|id| datasets.get(&id));
            match named.find_map(Dataset::fault) {
                Some(fault) => JobState::Rejected { faults: vec![fault] },
                None => JobState::Submitted,
            }
        }
        (Intent::Run | Intent::Cancel, Some(_)) => Obstacle::to(job, now).map_or(JobState::Queued, JobState::Blocked),
    }
}

pub(super) fn word(phase: Phase) -> String {
    format!("{phase:?}").to_lowercase()
}
