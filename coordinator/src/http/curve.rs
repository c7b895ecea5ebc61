//! A job's curve: what its steps and evaluations measured, decoded once from its attempts' lines and kept in memory, so that whoever
//! looks again reads only what came since.
//!
//! ```text
//! curve/line.rs    a line as a point, or as the beginning of an attempt      curve/thin.rs    fewer points, extremes kept
//! curve/points.rs  points in order, and how attempts become one curve        curve/answer.rs  points as JSON, in a stream
//! ```

mod answer;
mod line;
mod points;
mod thin;

use super::{ends::Ends, failure::Failure, learnt::Learnt};
use crate::series::Series;
pub(super) use answer::answer;
use line::Said;
use lorikeet_api::job::{MetricsPoint, MissingLines};
use lorikeet_protocol::{
    id::{AttemptId, JobId},
    worker::EventLine,
};
use points::{Point, Points};
use std::sync::Arc;
pub(super) use thin::thin;

/// Points that are remembered over all attempts: as many as one curve may have. Beyond that all are forgotten.
const POINTS: usize = points::MOST;

/// Of each attempt its points.
#[derive(Debug)]
pub(crate) struct Curves(Learnt<Arc<Points>>);

impl Default for Curves {
    fn default() -> Self {
        Self(Learnt::new(POINTS))
    }
}

impl Curves {
    /// A job's points, and the lines that cannot be read. Of two points for one step the later counts, and what an attempt did beyond the
    /// step from which the next one went on does not count at all.
    pub(super) async fn of(
        &self,
        (series, ends): (&Series, &Ends),
        job: JobId,
    ) -> Result<(Arc<Points>, Vec<MissingLines>), Failure> {
        let (mut whole, mut missing) = (Arc::default(), Vec::new());
        for attempt in ends.attempts(series, job).await? {
            let add = |points: &mut Arc<Points>, said: Vec<Said>| {
                let points = Arc::make_mut(points);
                points.extend(attempt, said);
                points.len()
            };
            let (next, gaps) = self.0.read((series, ends), attempt, |_, line| line::read(&line.text), add).await?;
            whole = Points::join(whole, next);
            missing.extend(gaps);
        }
        Ok((whole, missing))
    }
}

/// What a line measured, as others see it.
pub(super) fn point(attempt: AttemptId, line: &EventLine, text: &str) -> Option<MetricsPoint> {
    match line::said(line, text)? {
        Said::Begins(_) => None,
        Said::Measured { step, time, what, felt } => {
            Some(answer::view(attempt.job, &Point { step, token: attempt.token, time, what, felt }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::{agent::EventLines, id::AttemptToken};

    fn line(seq: u64, step: u64) -> String {
        let event = format!(r#""type":"step","step":{step},"epoch":0.5,"loss":1.0,"lr":0.1,"grad_norm":1.0"#);
        format!(r#"{{"seq":{seq},"time":1000,{event},"tokens":10,"supervised_tokens":5,"seconds":2.0}}"#)
    }

    #[tokio::test]
    async fn who_looks_again_reads_what_came_since_and_a_second_attempt_goes_on_behind_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let (series, _thread) = Series::open(folder.path(), crate::series::Limits::default()).unwrap();
        let attempt =
            |number| AttemptId { job: JobId(uuid::Uuid::from_u128(3)), token: AttemptToken { generation: 1, number } };
        let append = async |number, first, lines: Vec<String>| {
            series.append(EventLines { attempt: attempt(number), first, lines }).await.unwrap();
        };
        let curves = Curves::default();
        let steps = async || {
            let (curve, missing) = curves.of((&series, &Ends::default()), attempt(1).job).await.unwrap();
            assert_eq!(missing, []);
            curve.from(0).iter().map(|point| (point.step, point.token.number)).collect::<Vec<_>>()
        };
        append(1, 1, vec![line(1, 1), line(2, 2)]).await;
        assert_eq!(steps().await, [(1, 1), (2, 1)]);
        append(1, 3, vec![line(3, 3)]).await;
        append(2, 1, vec![line(1, 3), line(2, 4)]).await;
        assert_eq!(steps().await, [(1, 1), (2, 1), (3, 2), (4, 2)]);
        assert_eq!(curves.0.of(attempt(1)).through, 3);
    }
}
