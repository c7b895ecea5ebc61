//! A job's record as the API shows it: the row, the names it stands on, and the arithmetic that people expect.

use super::{failure::Failure, job, job_why};
use crate::{
    cluster::job::JobState,
    driver::Handle,
    record::{Attempt, Base, Dataset, Job, Node},
    store::{Store, StoreError},
};
use lorikeet_api::{
    JobFile, Timestamp,
    job::{self as api, CancelReason, JobError, JobStage, JobStatus},
};
use lorikeet_protocol::{
    agent::Progress,
    id::{AttemptId, ModelId, NodeId},
    inspect::Fault,
    job::{FailureClass, Phase},
};

/// What a job's row only refers to.
struct Names {
    base: String,
    dataset: String,
    attempt: Option<AttemptId>,
    node: Option<NodeId>,
    node_name: Option<String>,
}

/// Several, in one read.
pub(super) async fn views(driver: &Handle, jobs: Vec<Job>) -> Result<Vec<api::Job>, Failure> {
    let read = move |store: &Store| {
        jobs.into_iter().map(|job| names(store, &job).map(|names| (job, names))).collect::<Result<Vec<_>, _>>()
    };
    Ok(driver.read(read).await?.into_iter().map(|(job, names)| assemble(job, names)).collect())
}

/// Deleted rows too: a job keeps the names of what it was made from.
fn names(store: &Store, job: &Job) -> Result<Names, StoreError> {
    let base = store.get::<Base>(&job.base.bytes())?.map_or_else(|| job.spec.base.clone(), |base| base.name);
    let dataset = store.get::<Dataset>(&job.dataset.bytes())?.map_or_else(|| job.spec.dataset.clone(), |row| row.name);
    let attempt = store.scan(&job.id.bytes(), |_: &Attempt| true)?.pop();
    let node = attempt.as_ref().and_then(|attempt| attempt.members.first()).map(|member| member.node);
    let node_name = node.map(|node| store.get::<Node>(&node.bytes())).transpose()?.flatten().map(|node| node.name);
    Ok(Names { base, dataset, attempt: attempt.map(|attempt| attempt.id), node, node_name })
}

fn assemble(job: Job, names: Names) -> api::Job {
    let (phase, progress) = (job.phase(), job.progress);
    let planned = job.findings.as_ref().map(|findings| findings.total_steps);
    let total_steps = progress.map(|progress| progress.total_steps).or(planned);
    let step = progress.map_or(0, |progress| progress.step);
    api::Job {
        id: job.id,
        owner: job.owner,
        name: job.spec.name.clone(),
        status: JobStatus::of(phase),
        phase,
        intent: job.intent,
        stage: JobStage::of(phase),
        progress: percent(phase, step, total_steps),
        step,
        total_steps,
        epoch: progress.map(|progress| progress.epoch),
        loss: progress.map(|progress| progress.loss),
        validation_loss: progress.and_then(|progress| progress.validation_loss),
        learning_rate: progress.map(|progress| progress.learning_rate),
        tokens_per_second: progress.map(|progress| progress.tokens_per_second),
        seconds_left: progress.filter(|_| phase == Phase::Running).and_then(|progress| seconds_left(&job, &progress)),
        estimated_cost_micros: None,
        current_cost_micros: 0,
        energy_kwh: job.energy_joules.map(|joules| joules as f64 / 3.6e6),
        attempt: names.attempt,
        node: names.node,
        node_name: names.node_name,
        reason: reason(&job),
        never: false,
        error: error(&job),
        retries: job.user_failures,
        parent: job.parent,
        sweep: job.sweep,
        infrastructure_failures: job.infrastructure_failures,
        base_id: job.base,
        base: names.base,
        dataset_id: job.dataset,
        dataset: names.dataset,
        model: model(&job.state),
        priority: job.spec.priority,
        spec: JobFile::from(&job.spec).starting(&job.start),
        created_at: Timestamp(job.created),
        queued_at: job.queued_at.map(Timestamp),
        started_at: job.started_at.map(Timestamp),
        completed_at: job.completed_at.map(Timestamp),
    }
}

fn model(state: &JobState) -> Option<ModelId> {
    let JobState::Succeeded { model } = state else { return None };
    Some(*model)
}

fn percent(phase: Phase, step: u64, total: Option<u64>) -> f64 {
    match total {
        _ if phase == Phase::Succeeded => 100.0,
        Some(total) if total > 0 => (step as f64 / total as f64 * 100.0).min(100.0),
        Some(_) | None => 0.0,
    }
}

/// Steps left, at the tokens of an average step and the speed of the last ones.
fn seconds_left(job: &Job, progress: &Progress) -> Option<f64> {
    let epoch_tokens = job.findings.as_ref()?.epoch_tokens as f64;
    let tokens_per_step = epoch_tokens * progress.epoch / progress.step.max(1) as f64;
    let left = progress.total_steps.saturating_sub(progress.step) as f64;
    (progress.tokens_per_second > 0.0).then(|| left * tokens_per_step / progress.tokens_per_second)
}

/// Why it waits or stands still, or why it ended as it did.
pub(super) fn reason(job: &Job) -> Option<String> {
    match &job.state {
        JobState::Submitted => Some("it waits for its dataset and base model to be judged".into()),
        JobState::Blocked(_) => job_why::blocked(job).map(|why| why.summary),
        JobState::Failed(_) | JobState::Rejected { .. } | JobState::Expired => error(job).map(|error| error.message),
        // Who gave no reason is told none.
        JobState::Cancelled => {
            let given = job.cancel_reason.as_deref().filter(|reason| *reason != job::word(CancelReason::Other));
            // A reason that is chosen from a list is one word; a sentence may have ids in it.
            let said = |reason: &str| if reason.contains(' ') { reason.into() } else { reason.replace('_', " ") };
            given.map(|reason| format!("cancelled: {}", said(reason)))
        }
        JobState::Validating
        | JobState::Queued
        | JobState::Paused
        | JobState::Placed { .. }
        | JobState::Succeeded { .. } => None,
    }
}

/// What keeps datasets, a base and settings from fitting together, with its place. Of these only datasets have lines.
pub(super) fn fault_in_words(job: &JobFile, Fault { line, path, message }: &Fault) -> String {
    let held_out = job.data.validation_dataset.as_ref().map(|name| format!(" or {name}")).unwrap_or_default();
    let line = line.map(|line| format!("dataset {}{held_out}, line {line}, ", job.dataset)).unwrap_or_default();
    let path = if path.is_empty() { String::new() } else { format!("{path}: ") };
    format!("{line}{path}{message}")
}

fn error(job: &Job) -> Option<JobError> {
    match &job.state {
        JobState::Failed(failure) => Some(JobError {
            class: Some(failure.class),
            message: failure.message.clone(),
            hint: hint(failure.class).map(str::to_owned),
        }),
        JobState::Rejected { faults } => Some(JobError {
            class: None,
            message: faults.first().map_or_else(
                || sentence(Phase::Rejected).into(),
                |fault| fault_in_words(&JobFile::from(&job.spec), fault),
            ),
            hint: Some("`lorikeet submit --dry-run` shows what would be trained".into()),
        }),
        JobState::Expired => Some(JobError {
            class: None,
            message: sentence(Phase::Expired).into(),
            hint: Some("raise resources.max_runtime and retry".into()),
        }),
        JobState::Submitted
        | JobState::Validating
        | JobState::Queued
        | JobState::Blocked(_)
        | JobState::Paused
        | JobState::Placed { .. }
        | JobState::Succeeded { .. }
        | JobState::Cancelled => None,
    }
}

/// What would help.
fn hint(class: FailureClass) -> Option<&'static str> {
    match class {
        FailureClass::OutOfMemory => Some(
            "lower training.micro_tokens, training.max_seq_length or lora.rank, or ask for a device with more memory",
        ),
        FailureClass::NonFinite => {
            Some("lower training.learning_rate; where no step was taken yet, look at the base's own numbers")
        }
        FailureClass::Dataset => Some("`lorikeet dataset check` names the lines"),
        FailureClass::Base => Some("`lorikeet base list` shows what was registered"),
        FailureClass::Settings => Some("`lorikeet submit --dry-run` shows what the settings come to"),
        FailureClass::DiskFull => Some("free space on the node, then retry"),
        FailureClass::Hardware => Some("look at the node's devices, then retry"),
        FailureClass::Internal => None,
    }
}

/// A phase as a clause about the job.
pub(super) fn sentence(phase: Phase) -> &'static str {
    match phase {
        Phase::Submitted => "it has been recorded",
        Phase::Validating => "dataset, base model and settings are put together",
        Phase::Queued => "it waits for a device",
        Phase::Blocked => "it waits for something that no free device would change",
        Phase::Paused => "it is paused",
        Phase::Assigned => "a machine is asked to take it",
        Phase::Preparing => "its files are fetched and its worker is started",
        Phase::Running => "it trains",
        Phase::Finalizing => "its files are on their way",
        Phase::Cancelling => "its worker is being stopped",
        Phase::Succeeded => "the adapter is here",
        Phase::Failed => "it failed",
        Phase::Rejected => "its files or settings do not fit together",
        Phase::Expired => "its time limit was reached",
        Phase::Cancelled => "it was cancelled",
    }
}
