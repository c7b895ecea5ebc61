//! `/api/training-jobs/{id}/metrics` and `/logs`: lines of the attempts' events files, as points and words.
//!
//! Of two lines for one step the later counts, and what an attempt did beyond the step from which the next one went on does not
//! count at all: each attempt's `plan` line says where it began, and cuts what came before.

use super::{
    App,
    ask::{Id, Params},
    caller::Caller,
    failure::Failure,
    page::{Answered, Paging, one},
};
use crate::series::{Line, Series};
use axum::extract::State;
use lorikeet_api::{
    Envelope, FieldError, Timestamp,
    job::{LogLine, MetricsPoint},
    route,
};
use lorikeet_protocol::{
    id::{AttemptId, JobId},
    worker::{EventLine, WorkerEvent},
};
use serde::Deserialize;
use std::{collections::BTreeMap, sync::Arc};

/// Lines read at once: some 100 KiB.
pub(super) const READ_LINES: usize = 500;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    #[serde(default)]
    from: u64,
    #[serde(default = "all_points")]
    limit: usize,
}

/// Points of one answer at most: some 20 MiB of JSON.
const MAX_POINTS: usize = 100_000;

fn all_points() -> usize {
    MAX_POINTS
}

/// One point per step and one per evaluation, in order.
#[utoipa::path(get, path = route::JOB_METRICS, tag = "jobs", params(("id" = String, Path), ("from" = Option<u64>, Query, description = "the first step"),
        ("limit" = Option<usize>, Query, description = "points at most, 1 to 100000; go on from the step behind the last")),
    responses((status = 200, body = Envelope<Vec<MetricsPoint>>)))]
pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id<JobId>,
    Params(From { from, limit }): Params<From>,
) -> Answered<Vec<MetricsPoint>> {
    if !(1..=MAX_POINTS).contains(&limit) {
        return Err(Failure::fields(vec![FieldError::new("limit", limit, format!("1 to {MAX_POINTS}"))]));
    }
    app.driver.job(caller.actor, id).await?;
    let mut curve = Curve { from, limit, points: BTreeMap::new() };
    each_line(&app.series, id, |attempt, line| curve.add(attempt, line)).await?;
    one(curve.points.into_values().collect())
}

/// The loss of every evaluation that counts, by the step it followed.
pub(super) async fn evaluations(app: &App, id: JobId) -> Result<BTreeMap<u64, f64>, Failure> {
    let mut curve = Curve { from: 0, limit: MAX_POINTS, points: BTreeMap::new() };
    each_line(&app.series, id, |attempt, line| {
        if matches!(line.event, WorkerEvent::Plan(_) | WorkerEvent::Eval { .. }) {
            curve.add(attempt, line);
        }
    })
    .await?;
    Ok(curve.points.into_iter().filter_map(|((step, _), point)| Some((step, point.validation_loss?))).collect())
}

/// What the workers said, oldest first.
#[utoipa::path(get, path = route::JOB_LOGS, tag = "jobs",
    params(("id" = String, Path), ("page" = Option<u32>, Query), ("pageSize" = Option<u32>, Query)),
    responses((status = 200, body = Envelope<Vec<LogLine>>)))]
pub(super) async fn logs(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id<JobId>,
    paging: Paging,
) -> Answered<Vec<LogLine>> {
    app.driver.job(caller.actor, id).await?;
    let (rows, total) = app.log_places.page(&app.series, id, paging.rows()).await?;
    Ok(paging.answer(rows, total))
}

/// Every line of a job, attempt after attempt; never all of them in memory.
async fn each_line(series: &Series, job: JobId, mut take: impl FnMut(AttemptId, EventLine)) -> Result<(), Failure> {
    for attempt in series.attempts(job).await? {
        let mut after = 0;
        loop {
            let lines = series.read(attempt, after, READ_LINES).await?;
            let Some(last) = lines.last() else { break };
            after = last.seq;
            lines.iter().filter_map(parse).for_each(|line| take(attempt, line));
        }
    }
    Ok(())
}

/// A line as an event; one of a later version is skipped.
pub(super) fn parse(line: &Line) -> Option<EventLine> {
    serde_json::from_str(&line.text).ok()
}

/// A job's points by step, evaluations behind the step they followed.
struct Curve {
    /// The first step that is wanted.
    from: u64,
    /// Points that are wanted, from there.
    limit: usize,
    points: BTreeMap<(u64, bool), MetricsPoint>,
}

impl Curve {
    fn add(&mut self, attempt: AttemptId, line: EventLine) {
        if let WorkerEvent::Plan(plan) = &line.event {
            // What was done beyond this step was lost with the worker that did it.
            self.points.retain(|(step, _), _| *step <= plan.from_step);
        }
        if let Some(point) = metrics_point(attempt, &line).filter(|point| point.step >= self.from) {
            self.points.insert((point.step, point.training_loss.is_none()), point);
        }
        // What falls out here no later line brings back: an attempt that goes on from an earlier step has points of its own for it.
        if self.points.len() > self.limit {
            self.points.pop_last();
        }
    }
}

/// The point of a step or an evaluation.
pub(super) fn metrics_point(attempt: AttemptId, line: &EventLine) -> Option<MetricsPoint> {
    let nothing = MetricsPoint {
        attempt,
        step: 0,
        epoch: None,
        time: Timestamp(line.time),
        training_loss: None,
        validation_loss: None,
        learning_rate: None,
        gradient_norm: None,
        tokens_per_second: None,
    };
    match &line.event {
        WorkerEvent::Step(step) => Some(MetricsPoint {
            step: step.step,
            epoch: Some(step.epoch),
            training_loss: Some(step.loss),
            learning_rate: Some(step.lr),
            gradient_norm: Some(step.grad_norm),
            tokens_per_second: (step.seconds > 0.0).then(|| step.tokens as f64 / step.seconds),
            ..nothing
        }),
        WorkerEvent::Eval { step, loss, .. } => {
            Some(MetricsPoint { step: *step, validation_loss: Some(*loss), ..nothing })
        }
        WorkerEvent::Stage { .. }
        | WorkerEvent::Plan(_)
        | WorkerEvent::Log { .. }
        | WorkerEvent::Checkpoint { .. }
        | WorkerEvent::Sample { .. }
        | WorkerEvent::Finished { .. }
        | WorkerEvent::Stopped { .. }
        | WorkerEvent::Failed { .. } => None,
    }
}

/// A word of the worker.
pub(super) fn log_line(attempt: AttemptId, line: EventLine) -> Option<LogLine> {
    let WorkerEvent::Log { level, message } = line.event else { return None };
    Some(LogLine { attempt, seq: line.seq, time: Timestamp(line.time), level, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::{
        id::{AttemptToken, UnixMillis},
        worker::{Plan, Step},
    };

    fn attempt(number: u32) -> AttemptId {
        AttemptId { job: JobId(uuid::Uuid::from_u128(1)), token: AttemptToken { generation: 1, number } }
    }

    fn step(step: u64, loss: f64) -> WorkerEvent {
        WorkerEvent::Step(Step {
            step,
            epoch: 0.0,
            loss,
            lr: 0.1,
            grad_norm: 1.0,
            tokens: 10,
            supervised_tokens: 5,
            seconds: 2.0,
        })
    }

    fn plan(from_step: u64) -> WorkerEvent {
        WorkerEvent::Plan(Plan {
            examples: 0,
            validation_examples: 0,
            conversations: 0,
            total_steps: 0,
            epoch_tokens: 0,
            supervised_tokens: 0,
            longest_tokens: 0,
            cut_examples: 0,
            cut_tokens: 0,
            trainable_parameters: 0,
            base_parameters: 0,
            micro_tokens: 0,
            from_step,
            ..Plan::default()
        })
    }

    #[test]
    fn each_step_counts_once_and_by_the_attempt_that_kept_it() {
        let mut curve = Curve { from: 0, limit: 3, points: BTreeMap::new() };
        let first = [plan(0), step(1, 9.0), step(2, 8.0), step(3, 7.0), step(4, 6.0)].to_vec();
        let second = [plan(2), step(3, 7.0), step(3, 7.5)].to_vec();
        for (number, events) in [(1, first.clone()), (2, second.clone())] {
            for (seq, event) in (1..).zip(events) {
                curve.add(attempt(number), EventLine { seq, time: UnixMillis(0), event });
            }
        }
        let points: Vec<_> =
            curve.points.values().map(|point| (point.step, point.attempt.token.number, point.training_loss)).collect();
        assert_eq!(points, [(1, 1, Some(9.0)), (2, 1, Some(8.0)), (3, 2, Some(7.5))]);
        let mut short = Curve { from: 2, limit: 1, points: BTreeMap::new() };
        for (number, events) in [(1, first), (2, second)] {
            for (seq, event) in (1..).zip(events) {
                short.add(attempt(number), EventLine { seq, time: UnixMillis(0), event });
            }
        }
        assert_eq!(short.points.keys().collect::<Vec<_>>(), [&(2, false)]);
        assert_eq!(curve.points[&(1, false)].tokens_per_second, Some(5.0));
    }
}
