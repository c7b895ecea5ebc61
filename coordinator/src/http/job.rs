//! `/api/training-jobs`: submitting, looking, cancelling, asking why.

use super::{
    App,
    ask::{Ask, Id, Nothing, Params},
    caller::Caller,
    failure::Failure,
    job_series::evaluations,
    job_view::sentence,
    job_why,
    page::{Answered, Paging, Search, one},
};
use crate::{
    access::{Actor, Context, Refusal},
    cluster::command::Command,
    history::Keep,
    record::{Job, Receipt, StoredCheckpoint},
};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use lorikeet_api::{
    Envelope, ErrorCode, JobFile, Timestamp,
    job::{self as api, CancelJob, CancelReason, CheckpointView, DryRun, JobStatus, PatchJob},
    model::FileView,
    route,
};
use lorikeet_protocol::{
    id::JobId,
    job::{Intent, Phase},
};
use serde::Deserialize;
use std::sync::Arc;
use uuid::Uuid;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    #[serde(default)]
    pub(super) dry_run: bool,
}

/// Submits a job file; with `dry_run=true` only says what would happen.
#[utoipa::path(post, path = route::JOBS, tag = "jobs", request_body = JobFile, params(("dry_run" = Option<bool>, Query)),
    responses((status = 201, body = Envelope<api::Job>), (status = 200, body = Envelope<DryRun>, description = "With dry_run=true")))]
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    Params(submission): Params<Submission>,
    Ask { context, caller, body }: Ask<JobFile>,
) -> Result<Response, Failure> {
    if body.sweep.is_some() {
        return Err(Failure::field("sweep", "sweep stands for several jobs; it is submitted to /api/sweeps"));
    }
    let spec = body.resolve(&app.presets).map_err(Failure::fields)?;
    let start = body.start().map_err(Failure::fields)?;
    if submission.dry_run {
        return Ok(one(job_why::dry_run(&app, caller.actor, spec, start).await?).into_response());
    }
    app.space.check(0)?;
    let command = Command::SubmitJob { id: JobId(Uuid::now_v7()), spec: Box::new(spec), start };
    let job = made(&app, caller.actor, app.driver.command(context, command).await?).await?;
    Ok((StatusCode::CREATED, job).into_response())
}

async fn made(app: &App, actor: Actor, receipt: Receipt) -> Result<Json<Envelope<api::Job>>, Failure> {
    let Receipt::Job(id) = receipt else { unreachable!("a job's command is answered with the job's id") };
    shown(app, actor, id).await
}

/// As it is; of one whose machine is silent, what is known and no guess.
async fn shown(app: &App, actor: Actor, id: JobId) -> Answered<api::Job> {
    let job = job_why::view(app, actor, app.driver.job(actor, id).await?).await?;
    one(match job_why::silence(app, actor, id).await {
        Some(reason) => api::Job { reason: Some(reason), seconds_left: None, tokens_per_second: None, ..job },
        None => job,
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Filter {
    page: Option<u32>,
    page_size: Option<u32>,
    status: Option<JobStatus>,
    name: Option<String>,
    search: Option<Search>,
}

/// The caller's jobs, newest first.
#[utoipa::path(get, path = route::JOBS, tag = "jobs",
    params(("page" = Option<u32>, Query), ("pageSize" = Option<u32>, Query), ("status" = Option<JobStatus>, Query),
        ("name" = Option<String>, Query, description = "the whole of a name"),
        ("search" = Option<String>, Query, description = "part of a name, whatever its case")),
    responses((status = 200, body = Envelope<Vec<api::Job>>)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Params(filter): Params<Filter>,
) -> Answered<Vec<api::Job>> {
    let paging = Paging::new(filter.page, filter.page_size)?;
    let Filter { status, name, search, .. } = filter;
    let wants_all = status.is_none() && name.is_none() && search.is_none();
    let keep = move |job: &Job| {
        status.is_none_or(|status| status == JobStatus::of(job.phase()))
            && name.as_ref().is_none_or(|name| *name == job.spec.name)
            && search.as_ref().is_none_or(|part| part.is_in(&job.spec.name))
    };
    let keep: Option<Keep<Job>> = (!wants_all).then(|| Box::new(keep) as _);
    let listed = app.driver.jobs(caller.actor, paging.rows(), keep).await?;
    Ok(paging.answer(job_why::views(&app, caller.actor, listed.rows).await?, listed.total))
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
        phase if phase.is_terminal() && phase != Phase::Cancelled => Err(over("cancel", phase)),
        _ => one(job_why::view(&app, caller.actor, job).await?),
    }
}

pub(super) fn word(reason: CancelReason) -> &'static str {
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
    order(&app, caller.actor, context, id, ("pause", Command::SetIntent { id, intent: Intent::Pause })).await
}

/// It goes on from where it was.
#[utoipa::path(post, path = route::JOB_RESUME, tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<api::Job>)))]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Id(id): Id<JobId>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Answered<api::Job> {
    order(&app, caller.actor, context, id, ("resume", Command::SetIntent { id, intent: Intent::Run })).await
}

/// A job that was submitted with `hold` goes on its way.
#[utoipa::path(post, path = route::JOB_RELEASE, tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<api::Job>)))]
pub(super) async fn release(
    State(app): State<Arc<App>>,
    Id(id): Id<JobId>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Answered<api::Job> {
    order(&app, caller.actor, context, id, ("release", Command::ReleaseJob { id })).await
}

/// Changes what may be changed of a job that has no device yet: its priority.
#[utoipa::path(patch, path = route::JOB, tag = "jobs", params(("id" = String, Path)), request_body = PatchJob,
    responses((status = 200, body = Envelope<api::Job>)))]
pub(super) async fn patch(
    State(app): State<Arc<App>>,
    Id(id): Id<JobId>,
    Ask { context, caller, body }: Ask<PatchJob>,
) -> Answered<api::Job> {
    order(&app, caller.actor, context, id, ("change", Command::SetPriority { id, priority: body.priority })).await
}

/// It saves a checkpoint now and goes on.
#[utoipa::path(post, path = route::JOB_CHECKPOINT, tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<api::Job>)))]
pub(super) async fn checkpoint(
    State(app): State<Arc<App>>,
    Id(id): Id<JobId>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Answered<api::Job> {
    order(&app, caller.actor, context, id, ("save", Command::SaveNow { id })).await
}

/// An order to a job that is not over. One that is over is a conflict, one that never was is not found.
async fn order(
    app: &App,
    actor: Actor,
    context: Context,
    id: JobId,
    (what, command): (&str, Command),
) -> Answered<api::Job> {
    match app.driver.command(context, command).await {
        Ok(_) => shown(app, actor, id).await,
        Err(Refusal::NotFound { .. }) => {
            let phase = app.driver.job(actor, id).await?.phase();
            Err(over(what, phase))
        }
        Err(refusal) => Err(refusal.into()),
    }
}

/// Nothing can be done to it any more.
fn over(what: &str, phase: Phase) -> Failure {
    Failure::new(ErrorCode::Conflict, format!("nothing to {what}, the job is over: {}", sentence(phase)))
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

/// A job's verified checkpoints, oldest first.
#[utoipa::path(get, path = route::JOB_CHECKPOINTS, tag = "jobs", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<Vec<CheckpointView>>)))]
pub(super) async fn checkpoints(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id<JobId>,
) -> Answered<Vec<CheckpointView>> {
    let rows = app.driver.checkpoints(caller.actor, id).await?;
    let mut views: Vec<_> =
        rows.into_iter().filter(|row| !row.orphan && row.removed_at.is_none()).map(checkpoint_view).collect();
    let evaluations = evaluations(&app, id).await?;
    for view in &mut views {
        view.validation_loss = evaluations.get(&view.step).copied();
    }
    one(views)
}

pub(super) fn checkpoint_view(row: StoredCheckpoint) -> CheckpointView {
    let files: Vec<FileView> = row.checkpoint.files.iter().map(FileView::from).collect();
    CheckpointView {
        attempt: row.attempt,
        step: row.checkpoint.step,
        loss: row.checkpoint.loss,
        validation_loss: None,
        kind: row.checkpoint.kind,
        size_bytes: files.iter().map(|file| file.size_bytes).sum(),
        files,
        created_at: Some(Timestamp(row.at)),
    }
}
