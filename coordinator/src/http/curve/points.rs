//! Points in order of their steps, an evaluation behind the step it followed, and how those of several attempts become one curve.

use super::{line::Said, thin::thin};
use crate::felt::Felt;
use lorikeet_protocol::{
    id::{AttemptId, AttemptToken, UnixMillis},
    worker::Step,
};
use std::sync::Arc;

/// Points of one curve that are held in memory: some 60 MiB. Beyond that half of them stay, of each stretch the lowest and the highest loss: a run is
/// bounded by what a job's lines may take on disk alone, and that is more than a few such curves.
pub(super) const MOST: usize = 1 << 19;

/// What was measured after one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) step: u64,
    /// By which attempt of the job.
    pub(crate) token: AttemptToken,
    /// By the node's clock.
    pub(crate) time: UnixMillis,
    pub(crate) what: Measured,
    /// How its devices were.
    pub(crate) felt: Option<Felt>,
}

/// By a step, or by an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Measured {
    Step { epoch: f64, loss: f64, lr: f64, grad_norm: f64, tokens_per_second: Option<f64> },
    Evaluation { loss: f64 },
}

impl Measured {
    pub(crate) fn of_step(step: &Step) -> Self {
        let Step { epoch, loss, lr, grad_norm, tokens, seconds, .. } = *step;
        Self::Step { epoch, loss, lr, grad_norm, tokens_per_second: (seconds > 0.0).then(|| tokens as f64 / seconds) }
    }

    pub(super) fn loss(self) -> f64 {
        match self {
            Self::Step { loss, .. } | Self::Evaluation { loss } => loss,
        }
    }
}

impl Point {
    /// Its place in a curve; there is one point for each.
    pub(super) fn place(&self) -> (u64, bool) {
        (self.step, self.is_evaluation())
    }

    /// Of an evaluation.
    pub(crate) fn validation_loss(&self) -> Option<f64> {
        self.is_evaluation().then(|| self.what.loss())
    }

    pub(super) fn is_evaluation(&self) -> bool {
        matches!(self.what, Measured::Evaluation { .. })
    }
}

/// A curve, or an attempt's part of one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Points {
    /// In order of their places, each once.
    points: Vec<Point>,
    /// The step from which the attempt went on: what others did beyond it was lost with them.
    begins: Option<u64>,
}

impl Points {
    pub(crate) fn len(&self) -> usize {
        self.points.len()
    }

    /// All points from a step on.
    pub(crate) fn from(&self, step: u64) -> &[Point] {
        &self.points[self.points.partition_point(|point| point.step < step)..]
    }

    /// What an attempt says next.
    pub(super) fn extend(&mut self, attempt: AttemptId, said: impl IntoIterator<Item = Said>) {
        for said in said {
            match said {
                Said::Begins(step) => {
                    self.begins = Some(self.begins.map_or(step, |begins| begins.min(step)));
                    self.points.retain(|point| point.step <= step);
                }
                Said::Measured { step, time, what, felt } => {
                    self.points.push(Point { step, token: attempt.token, time, what, felt });
                }
            }
        }
        self.put_in_order();
        self.hold(MOST);
    }

    /// What an attempt did, and what the next one did after it.
    pub(super) fn join(earlier: Arc<Self>, later: Arc<Self>) -> Arc<Self> {
        if earlier.points.is_empty() {
            return later;
        }
        let kept = earlier.points.iter().filter(|point| later.begins.is_none_or(|begins| point.step <= begins));
        let points = kept.chain(&later.points).copied().collect();
        let mut whole = Self { points, begins: None };
        whole.put_in_order();
        whole.hold(MOST);
        Arc::new(whole)
    }

    /// Half of so many points, if they are more.
    fn hold(&mut self, most: usize) {
        if self.points.len() > most {
            self.points = thin(&self.points, most / 2);
        }
    }

    /// Of two for one place the later counts.
    fn put_in_order(&mut self) {
        if self.points.is_sorted_by(|one, next| one.place() < next.place()) {
            return;
        }
        self.points.sort_by_key(Point::place);
        self.points.dedup_by(|next, kept| {
            let same = next.place() == kept.place();
            if same {
                *kept = *next;
            }
            same
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::id::JobId;

    fn attempt(number: u32) -> AttemptId {
        AttemptId { job: JobId(uuid::Uuid::from_u128(1)), token: AttemptToken { generation: 1, number } }
    }

    fn step(step: u64, loss: f64) -> Said {
        let what = Measured::Step { epoch: 0.0, loss, lr: 0.1, grad_norm: 1.0, tokens_per_second: None };
        Said::Measured { step, time: UnixMillis(0), what, felt: None }
    }

    fn evaluation(step: u64, loss: f64) -> Said {
        Said::Measured { step, time: UnixMillis(0), what: Measured::Evaluation { loss }, felt: None }
    }

    fn curve(attempts: &[&[Said]]) -> Points {
        let parts = (1..).zip(attempts).map(|(number, said)| {
            let mut points = Points::default();
            // As it comes: piece by piece.
            said.chunks(2).for_each(|piece| points.extend(attempt(number), piece.iter().copied()));
            Arc::new(points)
        });
        Arc::unwrap_or_clone(parts.reduce(Points::join).unwrap_or_default())
    }

    fn shown(points: &[Point]) -> Vec<(u64, u32, f64)> {
        points.iter().map(|point| (point.step, point.token.number, point.what.loss())).collect()
    }

    #[test]
    fn each_step_counts_once_and_by_the_attempt_that_kept_it() {
        let first = [Said::Begins(0), step(1, 9.0), step(2, 8.0), step(3, 7.0), step(4, 6.0)];
        let second = [Said::Begins(2), step(3, 7.0), step(3, 7.5)];
        let whole = curve(&[&first, &second]);
        assert_eq!(shown(whole.from(0)), [(1, 1, 9.0), (2, 1, 8.0), (3, 2, 7.5)]);
        assert_eq!(shown(whole.from(2)), [(2, 1, 8.0), (3, 2, 7.5)]);
    }

    #[test]
    fn an_evaluation_stands_behind_its_step_and_an_attempt_that_begins_again_forgets_its_own() {
        let said = [
            evaluation(0, 5.0),
            evaluation(2, 3.0),
            step(1, 4.0),
            step(2, 3.5),
            step(3, 1.0),
            Said::Begins(2),
            step(3, 2.0),
        ];
        assert_eq!(shown(curve(&[&said]).from(0)), [(0, 1, 5.0), (1, 1, 4.0), (2, 1, 3.5), (2, 1, 3.0), (3, 1, 2.0)]);
    }

    #[test]
    fn a_curve_without_end_is_thinned_and_keeps_its_extremes() {
        let (mut points, steps) = (Points::default(), MOST as u64 + 9);
        let loss = |at| if at == 4_711 { 99.0 } else { 1.0 };
        points.extend(attempt(1), (1..=steps).map(|at| step(at, loss(at))));
        assert!(points.len() <= MOST / 2, "{}", points.len());
        let shown = shown(points.from(0));
        assert!(shown.contains(&(4_711, 1, 99.0)));
        assert_eq!((shown[0].0, shown.last().unwrap().0), (1, steps));
        points.extend(attempt(1), [step(steps + 1, 0.5)]);
        assert_eq!(points.from(steps + 1).len(), 1, "what comes goes on as it is");
    }

    #[test]
    fn an_attempt_that_never_said_where_it_began_replaces_what_it_did_again() {
        let whole = curve(&[&[step(1, 9.0), step(2, 8.0)], &[], &[step(2, 7.0), step(3, 6.0)]]);
        assert_eq!(shown(whole.from(0)), [(1, 1, 9.0), (2, 3, 7.0), (3, 3, 6.0)]);
    }
}
