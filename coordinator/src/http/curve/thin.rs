//! Fewer points for a chart. Of each stretch of steps the lowest and the highest loss stay, so that no spike and no dip disappears;
//! evaluations are thinned by themselves, because few of them say more than many steps.

use super::points::Point;

/// At most so many of these points, the first and the last among them; all of them, if they are no more.
pub(in super::super) fn thin(points: &[Point], most: usize) -> Vec<Point> {
    if points.len() <= most {
        return points.to_vec();
    }
    let (evaluations, steps): (Vec<_>, Vec<_>) = points.iter().copied().partition(Point::is_evaluation);
    // Steps leave evaluations half of the room, and take what those do not need.
    let share = most.saturating_sub(steps.len()).max(most / 2);
    let evaluations = extremes(&evaluations, share);
    let mut kept = extremes(&steps, most - evaluations.len());
    kept.extend(evaluations);
    kept.sort_by_key(Point::place);
    kept
}

/// The first, the last, and of each stretch between them the lowest and the highest.
fn extremes(points: &[Point], most: usize) -> Vec<Point> {
    let stretches = most.saturating_sub(2) / 2;
    let [first, between @ .., last] = points else { return points.to_vec() };
    if points.len() <= most {
        return points.to_vec();
    }
    let ends = |stretch: usize| between.len() * stretch / stretches;
    let kept = (0..stretches).flat_map(|stretch| lowest_and_highest(&between[ends(stretch)..ends(stretch + 1)]));
    [*first].into_iter().chain(kept).chain([*last]).take(most).collect()
}

/// In their order; one, if it is both.
fn lowest_and_highest(points: &[Point]) -> Vec<Point> {
    let of = |point: &&Point| point.what.loss();
    let lowest = points.iter().min_by(|a, b| of(a).total_cmp(&of(b)));
    let highest = points.iter().max_by(|a, b| of(a).total_cmp(&of(b)));
    let mut both: Vec<Point> = lowest.into_iter().chain(highest).copied().collect();
    both.sort_by_key(Point::place);
    both.dedup_by_key(|point| point.place());
    both
}

#[cfg(test)]
mod tests {
    use super::super::points::Measured;
    use super::*;
    use lorikeet_protocol::id::{AttemptToken, UnixMillis};
    use proptest::prelude::*;

    fn point(step: u64, is_evaluation: bool, loss: f64) -> Point {
        let what = if is_evaluation {
            Measured::Evaluation { loss }
        } else {
            Measured::Step { epoch: 0.0, loss, lr: 0.0, grad_norm: 0.0, tokens_per_second: None }
        };
        Point { step, token: AttemptToken { generation: 1, number: 1 }, time: UnixMillis(0), what, felt: None }
    }

    #[test]
    fn a_spike_of_one_step_among_a_hundred_thousand_stays() {
        let loss = |step| {
            if step == 77_777 {
                99.0
            } else if step == 33_333 {
                -99.0
            } else {
                1.0 / step as f64
            }
        };
        let points: Vec<_> = (1..=100_000).map(|step| point(step, false, loss(step))).collect();
        let thinned = thin(&points, 1_000);
        assert!((900..=1_000).contains(&thinned.len()), "{}", thinned.len());
        assert!(thinned.contains(&points[77_776]) && thinned.contains(&points[33_332]));
        assert_eq!((thinned[0], thinned[thinned.len() - 1]), (points[0], points[99_999]));
    }

    #[test]
    fn few_evaluations_all_stay_among_many_steps() {
        let points: Vec<_> = (1..=10_000).map(|step| point(step, step % 500 == 0, 1.0)).collect();
        let thinned = thin(&points, 100);
        assert!(thinned.len() <= 100);
        assert_eq!(thinned.iter().filter(|point| point.is_evaluation()).count(), 20);
    }

    proptest! {
        #[test]
        fn what_stays_is_some_of_it_in_order_with_its_extremes(losses in prop::collection::vec(-1e3..1e3, 1..400), every in 1usize..50, most in 10usize..200) {
            let points: Vec<_> = (0..).zip(&losses).map(|(step, loss)| point(step, (step as usize).is_multiple_of(every), *loss)).collect();
            let thinned = thin(&points, most);
            prop_assert!(thinned.len() <= most.max(1));
            prop_assert!(thinned.is_sorted_by(|one, next| one.place() < next.place()));
            prop_assert!(thinned.iter().all(|point| points.contains(point)));
            for kind in [false, true] {
                let highest = |points: &[Point]| points.iter().filter(|point| point.is_evaluation() == kind).map(|point| point.what.loss()).reduce(f64::max);
                prop_assert_eq!(highest(&thinned), highest(&points));
            }
            if points.len() <= most {
                prop_assert_eq!(thinned, points);
            }
        }
    }
}
