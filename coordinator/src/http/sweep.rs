//! `/api/sweeps`: many jobs of one file.

use super::{
    App,
    ask::{Ask, Id, Params},
    caller::Caller,
    failure::Failure,
    job::{self, Submission},
    job_why,
    page::{Answered, Paging, one},
};
use crate::{
    access::Refusal,
    cluster::{command::Command, sweep::NewSweep},
    record::{Job, Receipt, Sweep},
};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use lorikeet_api::{
    Envelope, FieldError, JobFile, Timestamp,
    job::{CancelJob, JobStatus},
    jobfile::sweep::Sweep as Wanted,
    route,
    sweep::{self as api, BestChild, SweepChild, SweepDryRun, SweepStatus, SweepSummary},
};
use lorikeet_protocol::{
    id::{JobId, SweepId},
    job::Phase,
};
use serde::Deserialize;
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

/// Submits a job file with `[sweep]`; with `dry_run=true` only says what would happen.
#[utoipa::path(post, path = route::SWEEPS, tag = "sweeps", request_body = JobFile, params(("dry_run" = Option<bool>, Query)),
    responses((status = 201, body = Envelope<api::Sweep>), (status = 200, body = Envelope<SweepDryRun>, description = "With dry_run=true")))]
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    Params(submission): Params<Submission>,
    Ask { context, caller, body }: Ask<JobFile>,
) -> Result<Response, Failure> {
    let start = body.start().map_err(Failure::fields)?;
    let missing = || {
        Failure::fields(vec![FieldError::plain("sweep", "sweep is missing; a single job goes to /api/training-jobs")])
    };
    let sweep = body.sweep(&app.presets).map_err(Failure::fields)?.ok_or_else(missing)?;
    if submission.dry_run {
        let first = sweep.children.first().map(|child| child.spec.clone()).ok_or_else(missing)?;
        let first = job_why::dry_run(&app, caller.actor, first, start).await?;
        let values: Vec<_> = sweep.children.into_iter().map(|child| child.values).collect();
        return Ok(one(SweepDryRun { jobs: values.len() as u64, values, first })?.into_response());
    }
    app.space.check(0)?;
    let Wanted { name, children, max_parallel, stop } = sweep;
    let children = children.into_iter().map(|child| (JobId(Uuid::now_v7()), child.values, child.spec)).collect();
    let sweep = NewSweep { id: SweepId(Uuid::now_v7()), name, children, max_parallel, stop, start };
    let receipt = app.driver.command(context, Command::SubmitSweep(Box::new(sweep))).await?;
    let Receipt::Sweep(id) = receipt else { unreachable!("a sweep's command is answered with the sweep's id") };
    Ok((StatusCode::CREATED, shown(&app, &caller, id).await?).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Pages {
    page: Option<u32>,
    page_size: Option<u32>,
}

/// The caller's sweeps, newest first.
#[utoipa::path(get, path = route::SWEEPS, tag = "sweeps",
    params(("page" = Option<u32>, Query), ("pageSize" = Option<u32>, Query)),
    responses((status = 200, body = Envelope<Vec<SweepSummary>>)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Params(pages): Params<Pages>,
) -> Answered<Vec<SweepSummary>> {
    let paging = Paging::new(pages.page, pages.page_size)?;
    let listed = app.driver.sweeps(caller.actor, paging.rows()).await?;
    Ok(paging.answer(listed.rows.iter().map(summary).collect(), listed.total))
}

/// One sweep with its jobs.
#[utoipa::path(get, path = route::SWEEP, tag = "sweeps", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<api::Sweep>)))]
pub(super) async fn show(State(app): State<Arc<App>>, caller: Caller, Id(id): Id<SweepId>) -> Answered<api::Sweep> {
    shown(&app, &caller, id).await
}

/// Cancels every job of it that is not over; a sweep that is over stays as it is.
#[utoipa::path(post, path = route::SWEEP_CANCEL, tag = "sweeps", params(("id" = String, Path)), request_body = CancelJob,
    responses((status = 200, body = Envelope<api::Sweep>)))]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Id(id): Id<SweepId>,
    Ask { context, caller, body }: Ask<CancelJob>,
) -> Answered<api::Sweep> {
    let reason = Some(job::word(body.reason).to_owned());
    match app.driver.command(context, Command::CancelSweep { id, reason }).await {
        // One that is over is not among the live ones; whether it exists at all, its row says.
        Ok(_) | Err(Refusal::NotFound { .. }) => shown(&app, &caller, id).await,
        Err(refusal) => Err(refusal.into()),
    }
}

async fn shown(app: &App, caller: &Caller, id: SweepId) -> Result<Json<Envelope<api::Sweep>>, Failure> {
    let (row, jobs) = app.driver.sweep(caller.actor, id).await?;
    let jobs: BTreeMap<JobId, Job> = jobs.into_iter().map(|job| (job.id, job)).collect();
    let children = row.children.iter().filter_map(|child| {
        let job = jobs.get(&child.job)?;
        Some(SweepChild {
            job: child.job,
            name: job.spec.name.clone(),
            values: child.values.clone(),
            status: JobStatus::of(job.phase()),
            step: job.progress.map_or(0, |progress| progress.step),
            loss: job.progress.map(|progress| progress.loss),
            validation_loss: job.progress.and_then(|progress| progress.validation_loss),
            stopped_early_at: child.stopped_at,
        })
    });
    one(api::Sweep { summary: summary(&row), children: children.collect() })
}

fn summary(row: &Sweep) -> SweepSummary {
    let count = |wanted: &dyn Fn(Phase, Option<u64>) -> bool| {
        let ends = row.children.iter().filter_map(|child| Some((child.end?.phase, child.stopped_at)));
        ends.filter(|(phase, stopped)| wanted(*phase, *stopped)).count() as u64
    };
    SweepSummary {
        id: row.id,
        owner: row.owner,
        name: row.name.clone(),
        status: match (row.cancelled, row.completed_at) {
            (true, _) => SweepStatus::Cancelled,
            (false, Some(_)) => SweepStatus::Completed,
            (false, None) => SweepStatus::Running,
        },
        jobs: row.children.len() as u64,
        ended: count(&|_, _| true),
        succeeded: count(&|phase, _| phase == Phase::Succeeded),
        stopped_early: count(&|phase, stopped| phase == Phase::Cancelled && stopped.is_some()),
        max_parallel: row.max_parallel,
        stop: row.stop,
        best: row.best().map(|(job, loss)| BestChild { job, loss }),
        created_at: Timestamp(row.created),
        completed_at: row.completed_at.map(Timestamp),
    }
}
