//! `/api/training-jobs/{id}/metrics` and `/logs`: lines of the attempts' events files, as points and words.

use super::{
    App,
    ask::{Id, Params},
    caller::Caller,
    curve,
    ends::Ends,
    failure::Failure,
    page::Paging,
};
use axum::{Json, extract::State, response::Response};
use lorikeet_api::{
    FieldError, LinesEnvelope, Timestamp,
    job::{LogLine, MetricsPoint},
    route,
};
use lorikeet_protocol::{
    id::{AttemptId, JobId},
    worker::{EventLine, WorkerEvent},
};
use serde::Deserialize;
use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Part {
    #[serde(default)]
    from: u64,
    #[serde(default = "all_points")]
    limit: usize,
    max_points: Option<usize>,
}

/// Points of one answer at most: some 20 MiB of JSON.
const MAX_POINTS: usize = 100_000;
/// Fewer are no curve: its ends, and the lowest and the highest of a stretch or two.
const THINNED: RangeInclusive<usize> = 10..=MAX_POINTS;

fn all_points() -> usize {
    MAX_POINTS
}

impl Part {
    fn check(&self) -> Result<(), Failure> {
        let mut faults = Vec::new();
        if !(1..=MAX_POINTS).contains(&self.limit) {
            faults.push(FieldError::new("limit", self.limit, format!("1 to {MAX_POINTS}")));
        }
        if let Some(most) = self.max_points.filter(|most| !THINNED.contains(most)) {
            faults.push(FieldError::new("maxPoints", most, format!("{} to {}", THINNED.start(), THINNED.end())));
        }
        if faults.is_empty() { Ok(()) } else { Err(Failure::fields(faults)) }
    }
}

/// One point per step and one per evaluation, in order; of a curve of more than 524,288 points half of them, of each stretch of steps the lowest and
/// the highest loss.
#[utoipa::path(get, path = route::JOB_METRICS, tag = "jobs", params(("id" = String, Path), ("from" = Option<u64>, Query, description = "the first step"),
        ("limit" = Option<usize>, Query, description = "points at most, 1 to 100000; go on from the step behind the last"),
        ("maxPoints" = Option<usize>, Query, description = "for a chart: the whole curve from `from` on in so many points, 10 to 100000; of each stretch of steps the lowest and the highest loss stay")),
    responses((status = 200, body = LinesEnvelope<Vec<MetricsPoint>>)))]
pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id<JobId>,
    Params(part): Params<Part>,
) -> Result<Response, Failure> {
    part.check()?;
    app.driver.job(caller.actor, id).await?;
    let ends = Ends::of(&app, caller.actor, id).await?;
    let (curve, missing) = app.curves.of((&app.series, &ends), id).await?;
    let points = curve.from(part.from);
    let points = match part.max_points {
        Some(most) => curve::thin(points, most),
        None => points.iter().take(part.limit).copied().collect(),
    };
    Ok(curve::answer(id, points, &missing))
}

/// The loss of every evaluation that counts, by the step it followed.
pub(super) async fn evaluations(app: &App, id: JobId) -> Result<BTreeMap<u64, f64>, Failure> {
    let (curve, _) = app.curves.of((&app.series, &Ends::default()), id).await?;
    Ok(curve.from(0).iter().filter_map(|point| Some((point.step, point.validation_loss()?))).collect())
}

/// What the workers said, oldest first.
#[utoipa::path(get, path = route::JOB_LOGS, tag = "jobs",
    params(("id" = String, Path), ("page" = Option<u32>, Query), ("pageSize" = Option<u32>, Query)),
    responses((status = 200, body = LinesEnvelope<Vec<LogLine>>)))]
pub(super) async fn logs(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id<JobId>,
    paging: Paging,
) -> Result<Json<LinesEnvelope<Vec<LogLine>>>, Failure> {
    app.driver.job(caller.actor, id).await?;
    let ends = Ends::of(&app, caller.actor, id).await?;
    let (rows, total, missing) = app.log_places.page((&app.series, &ends), id, paging.rows()).await?;
    Ok(Json(LinesEnvelope::page(rows, paging.place(total), missing)))
}

/// A line as an event; one of a later version is skipped.
pub(super) fn parse(text: &str) -> Option<EventLine> {
    serde_json::from_str(text).ok()
}

/// A word of the worker.
pub(super) fn log_line(attempt: AttemptId, line: EventLine) -> Option<LogLine> {
    let WorkerEvent::Log { level, message } = line.event else { return None };
    Some(LogLine { attempt, seq: line.seq, time: Timestamp(line.time), level, message })
}
