//! `/api/training-jobs`: submitting, looking, cancelling, asking why.

use super::{
    App,
    ask::{Ask, Id, Nothing, Params},
    caller::Caller,
    failure::Failure,
    job_view::{self, sentence},
    page::{Answered, Paging, one},
};
use crate::{
    access::{Actor, Context, Refusal},
    cluster::{
        command::{Answer, Command, Query},
        schedule::{self, WhyNot},
    },
    history::Keep,
    record::{BaseState, DatasetState, Job, Receipt, StoredCheckpoint},
};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use lorikeet_api::{
    Envelope, ErrorCode, JobFile, Timestamp,
    job::{self as api, CancelJob, CancelReason, CheckpointView, DryRun, JobStatus, NodeReason, Why},
    model::FileView,
    route,
};
use lorikeet_protocol::{
    id::JobId,
    inspect::{Fault, Inspection, JobFindings},
    job::{Intent, JobSpec, Phase},
};
use serde::Deserialize;
use std::{path::PathBuf, sync::Arc};
use uuid::Uuid;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    #[serde(default)]
    dry_run: bool,
}

/// Submits a job file; with `dry_run=true` only says what would happen.
#[utoipa::path(post, path = route::JOBS, tag = "jobs", request_body = JobFile, params(("dry_run" = Option<bool>, Query)),
    responses((status = 201, body = Envelope<api::Job>), (status = 200, body = Envelope<DryRun>, description = "With dry_run=true")))]
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    Params(submission): Params<Submission>,
    Ask { context, caller, body }: Ask<JobFile>,
) -> Result<Response, Failure> {
    let spec = body.resolve(&app.presets).map_err(Failure::fields)?;
    if submission.dry_run {
        return Ok(one(dry_run(&app, caller.actor, spec).await?).into_response());
    }
    app.space.check(0)?;
    let command = Command::SubmitJob { id: JobId(Uuid::now_v7()), spec: Box::new(spec) };
    let job = made(&app, caller.actor, app.driver.command(context, command).await?).await?;
    Ok((StatusCode::CREATED, job).into_response())
}

async fn made(app: &App, actor: Actor, receipt: Receipt) -> Result<Json<Envelope<api::Job>>, Failure> {
    let Receipt::Job(id) = receipt else { unreachable!("a job's command is answered with the job's id") };
    shown(app, actor, id).await
}

/// As it is; of one whose machine is silent, what is known and no guess.
async fn shown(app: &App, actor: Actor, id: JobId) -> Answered<api::Job> {
    let job = job_view::view(&app.driver, app.driver.job(actor, id).await?).await?;
    one(match silence(app, actor, id).await {
        Some(reason) => api::Job { reason: Some(reason), seconds_left: None, tokens_per_second: None, ..job },
        None => job,
    })
}

/// Since when a live job's machine has not been heard, as a sentence.
async fn silence(app: &App, actor: Actor, id: JobId) -> Option<String> {
    let Ok(Answer::Unreachable(Some(since))) = app.driver.query(actor, Query::Unreachable(id)).await else {
        return None;
    };
    Some(format!("its machine has not been heard since {}; it is believed to go on", Timestamp(since)))
}

/// Inspects without a record, and asks the schedule without placing.
async fn dry_run(app: &App, actor: Actor, spec: JobSpec) -> Result<DryRun, Failure> {
    let answer = app.driver.query(actor, Query::Resolve(Box::new(spec.clone()))).await?;
    let Answer::Resolved { base, dataset, validation } = answer else {
        unreachable!("names are answered with what they stand for")
    };
    let file = JobFile::from(&spec);
    let datasets = || [&dataset].into_iter().chain(&validation);
    let ready = base.state == BaseState::Ready && datasets().all(|dataset| dataset.state == DatasetState::Ready);
    let manifests: Option<Vec<_>> = datasets().map(|dataset| dataset.manifest.as_ref()).collect();
    let Some(manifests) = manifests.filter(|_| ready) else {
        let message = format!("base model `{}` or dataset `{}` is not ready", base.name, dataset.name);
        return Ok(not_fitting(file, vec![Fault { line: None, path: String::new(), message }]));
    };
    let mut paths = Vec::new();
    for manifest in manifests {
        paths.push(app.blobs.path(manifest.hash).await?);
    }
    let data = (paths[0].as_path(), paths.get(1).map(PathBuf::as_path));
    match app.inspector.dry_run(actor.owner()?, &base.path, data, spec.clone()).await? {
        Inspection::Job(findings) => placed(app, actor, spec, file, findings).await,
        Inspection::Refused { faults } => Ok(not_fitting(file, faults)),
        Inspection::Dataset(_) | Inspection::Base(_) => {
            Err(Failure::new(ErrorCode::Internal, "the inspection answered another question"))
        }
    }
}

async fn placed(
    app: &App,
    actor: Actor,
    spec: JobSpec,
    file: JobFile,
    findings: JobFindings,
) -> Result<DryRun, Failure> {
    let query = Query::DryRun { spec: Box::new(spec), findings: findings.clone() };
    let Answer::Why(waits) = app.driver.query(actor, query).await? else { unreachable!("a dry run says why") };
    let why = match waits {
        Some(waits) => waiting(Phase::Queued, waits),
        None => settled(Phase::Assigned, "it would start now".into()),
    };
    Ok(DryRun { spec: file, findings: Some(findings.into()), faults: Vec::new(), why })
}

fn not_fitting(spec: JobFile, faults: Vec<Fault>) -> DryRun {
    let summary = faults.first().map_or_else(|| "it would be rejected".into(), |fault| fault.message.clone());
    let faults = faults.into_iter().map(Into::into).collect();
    DryRun { spec, findings: None, faults, why: settled(Phase::Rejected, summary) }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Filter {
    page: Option<u32>,
    page_size: Option<u32>,
    status: Option<JobStatus>,
}

/// The caller's jobs, newest first.
#[utoipa::path(get, path = route::JOBS, tag = "jobs",
    params(("page" = Option<u32>, Query), ("pageSize" = Option<u32>, Query), ("status" = Option<String>, Query)),
    responses((status = 200, body = Envelope<Vec<api::Job>>)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Params(filter): Params<Filter>,
) -> Answered<Vec<api::Job>> {
    let paging = Paging::new(filter.page, filter.page_size)?;
    let wanted = |status| Box::new(move |job: &Job| status == JobStatus::of(job.phase())) as Keep<Job>;
    let keep = filter.status.map(wanted);
    let listed = app.driver.jobs(caller.actor, paging.rows(), keep).await?;
    Ok(paging.answer(job_view::views(&app.driver, listed.rows).await?, listed.total))
}

/// One job.
#[utoipa::path(get, path = route::JOB, tag = "jobs", params(("id" = String, Path)), responses((status = 200, body = Envelope<api::Job>)))]
pub(super) async fn show(State(app): State<Arc<App>>, caller: Caller, Id(id): Id<JobId>) -> Answered<api::Job> {
    shown(&app, caller.actor, id).await
}

/// Ends a job; one that is over already stays as it is.
#[utoipa::path(post, path = route::JOB_CANCEL, tag = "jobs", params(("id" = String, Path)), request_body = CancelJob,
    responses((status = 200, body = Envelope<api::Job>)))]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Id(id): Id<JobId>,
    Ask { context, caller, body }: Ask<CancelJob>,
) -> Answered<api::Job> {
    let reason = Some(word(body.reason).to_owned());
    match app.driver.command(context, Command::CancelJob { id, reason }).await {
        // A job that is over is not among the live ones; whether it exists at all, its row says.
        Ok(_) | Err(Refusal::NotFound { .. }) => {}
        Err(refusal) => return Err(refusal.into()),
    }
    let job = app.driver.job(caller.actor, id).await?;
    match job.phase() {
        phase if phase.is_terminal() && phase != Phase::Cancelled => {
            Err(Failure::new(ErrorCode::Conflict, format!("the job is over: {}", sentence(phase))))
        }
        _ => one(job_view::view(&app.driver, job).await?),
    }
}

fn word(reason: CancelReason) -> &'static str {
    match reason {
        CancelReason::CostConcern => "cost_concern",
        CancelReason::PoorPerformance => "poor_performance",
        CancelReason::WrongConfig => "wrong_config",
        CancelReason::NoLongerNeeded => "no_longer_needed",
        CancelReason::Other => "other",
    }
}

/// It saves its state, gives its devices back and waits.
#[utoipa::path(post, path = route::JOB_PAUSE, tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<api::Job>)))]
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    Id(id): Id<JobId>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Answered<api::Job> {
    order(&app, caller.actor, context, id, Command::SetIntent { id, intent: Intent::Pause }).await
}

/// It goes on from where it was.
#[utoipa::path(post, path = route::JOB_RESUME, tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<api::Job>)))]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Id(id): Id<JobId>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Answered<api::Job> {
    order(&app, caller.actor, context, id, Command::SetIntent { id, intent: Intent::Run }).await
}

/// It saves a checkpoint now and goes on.
#[utoipa::path(post, path = route::JOB_CHECKPOINT, tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<api::Job>)))]
pub(super) async fn checkpoint(
    State(app): State<Arc<App>>,
    Id(id): Id<JobId>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Answered<api::Job> {
    order(&app, caller.actor, context, id, Command::SaveNow { id }).await
}

/// An order to a job that is not over. One that is over is a conflict, one that never was is not found.
async fn order(app: &App, actor: Actor, context: Context, id: JobId, command: Command) -> Answered<api::Job> {
    match app.driver.command(context, command).await {
        Ok(_) => shown(app, actor, id).await,
        Err(Refusal::NotFound { .. }) => {
            let phase = app.driver.job(actor, id).await?.phase();
            Err(Failure::new(ErrorCode::Conflict, format!("the job is over: {}", sentence(phase))))
        }
        Err(refusal) => Err(refusal.into()),
    }
}

/// The same again, as a new job.
#[utoipa::path(post, path = route::JOB_RETRY, tag = "jobs", params(("id" = String, Path)),
    responses((status = 201, body = Envelope<api::Job>)))]
pub(super) async fn retry(
    State(app): State<Arc<App>>,
    Id(old): Id<JobId>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Result<(StatusCode, Json<Envelope<api::Job>>), Failure> {
    let command = Command::RetryJob { old, new: JobId(Uuid::now_v7()) };
    let job = made(&app, caller.actor, app.driver.command(context, command).await?).await?;
    Ok((StatusCode::CREATED, job))
}

/// Why a job is where it is.
#[utoipa::path(get, path = route::JOB_WHY, tag = "jobs", params(("id" = String, Path)), responses((status = 200, body = Envelope<Why>)))]
pub(super) async fn why(State(app): State<Arc<App>>, caller: Caller, Id(id): Id<JobId>) -> Answered<Why> {
    let job = app.driver.job(caller.actor, id).await?;
    let phase = job.phase();
    if phase == Phase::Queued
        && let Ok(Answer::Why(Some(waits))) = app.driver.query(caller.actor, Query::Why(id)).await
    {
        return one(waiting(phase, waits));
    }
    if let Some(summary) = silence(&app, caller.actor, id).await {
        return one(settled(phase, summary));
    }
    one(settled(phase, job_view::reason(&job).unwrap_or_else(|| sentence(phase).into())))
}

fn settled(phase: Phase, summary: String) -> Why {
    Why { phase, summary, position: None, expected_start: None, nodes: Vec::new() }
}

fn waiting(phase: Phase, waits: schedule::Why) -> Why {
    let reason = |(node, name, why)| {
        let (code, message) = explain(&why);
        NodeReason { node, name, fits: false, code: code.into(), message }
    };
    let nodes: Vec<NodeReason> = waits.nodes.into_iter().map(reason).collect();
    let summary = match nodes.as_slice() {
        _ if waits.limit.is_some() => waits.limit.map(over_limit).unwrap_or_default(),
        [] => "no machine has joined yet; `lorikeet node token` makes a join string".to_owned(),
        [only] => format!("it waits for a device: {} {}", only.name, only.message),
        several => format!("it waits for a device: none of {} machines takes it now", several.len()),
    };
    let expected_start = waits.expected.map(Timestamp);
    Why { phase, summary, position: Some(waits.position as u64), expected_start, nodes }
}

fn over_limit(limit: schedule::Limit) -> String {
    match limit {
        schedule::Limit::Jobs(most) => format!("its owner has {most} jobs on devices already, as many as are allowed"),
        schedule::Limit::Devices(most) => {
            format!("its owner would hold more than {most} devices, as many as are allowed")
        }
    }
}

/// A word for programs and a sentence for people, to follow a node's name.
fn explain(why: &WhyNot) -> (&'static str, String) {
    let size = |bytes: u64| bytesize::ByteSize(bytes).to_string();
    match why {
        WhyNot::Unreachable => ("unreachable", "is not connected".into()),
        WhyNot::Quarantined(reason) => ("quarantined", format!("is closed: {reason}")),
        WhyNot::Cordoned => ("cordoned", "takes nothing new".into()),
        WhyNot::Label { key, value } => ("labels", format!("lacks the label {key}={value}")),
        WhyNot::NoSuchDevice => ("gpu", "has no device of the kind asked for".into()),
        WhyNot::Unusable(reason) => ("unusable", format!("cannot train on its device: {reason}")),
        WhyNot::Busy => ("busy", "is busy with other attempts".into()),
        WhyNot::Memory { needed_bytes, free_bytes } => {
            ("memory", format!("has {} of device memory free, {} are needed", size(*free_bytes), size(*needed_bytes)))
        }
        WhyNot::Outrun => ("outrun", "takes a job that goes first".into()),
        WhyNot::Reserved => ("reserved", "is kept for a job that goes first".into()),
    }
}

/// A job's verified checkpoints, oldest first.
#[utoipa::path(get, path = route::JOB_CHECKPOINTS, tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<Vec<CheckpointView>>)))]
pub(super) async fn checkpoints(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id<JobId>,
) -> Answered<Vec<CheckpointView>> {
    let rows = app.driver.checkpoints(caller.actor, id).await?;
    one(rows.into_iter().filter(|row| !row.orphan && row.removed_at.is_none()).map(checkpoint_view).collect())
}

pub(super) fn checkpoint_view(row: StoredCheckpoint) -> CheckpointView {
    let files: Vec<FileView> = row.checkpoint.files.iter().map(FileView::from).collect();
    CheckpointView {
        attempt: row.attempt,
        step: row.checkpoint.step,
        loss: row.checkpoint.loss,
        kind: row.checkpoint.kind,
        size_bytes: files.iter().map(|file| file.size_bytes).sum(),
        files,
        created_at: Some(Timestamp(row.at)),
    }
}
