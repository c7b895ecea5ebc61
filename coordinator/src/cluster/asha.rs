//! Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), in its stopping form: nobody waits for anybody.
//!
//! Rung r stands at `min_steps · reduction^r` optimizer steps. Whoever comes to a rung with a fresh validation loss is compared
//! with all who came there before: among the best 1/reduction of them it goes on, else it ends there. The first of a rung always goes
//! on, and who was let go on is not judged again before the next rung. Who ended is never started again.

use lorikeet_api::jobfile::sweep::StopRule;
use lorikeet_protocol::id::JobId;

/// What became of the losses at one rung.
pub(super) type Rung = Vec<(JobId, f64)>;

/// A loss that was no number is the worst of all; and JSON has no word for it.
const WORST: f64 = f64::MAX;

/// Which rung a step has reached; `None`: not even the first.
fn reached(rule: StopRule, step: u64) -> Option<usize> {
    let mut rung = None;
    let mut at = rule.min_steps.max(1);
    while at <= step {
        rung = Some(rung.map_or(0, |rung| rung + 1));
        at = at.saturating_mul(u64::from(rule.reduction.max(2)));
        if at == u64::MAX {
            break;
        }
    }
    rung
}

/// A job has been evaluated after `step`. Writes its loss down at the rung it has reached; `Some(false)`: it ends here. `None`: nothing
/// was to be judged.
pub(super) fn judge(rule: StopRule, rungs: &mut Vec<Rung>, job: JobId, step: u64, loss: f64) -> Option<bool> {
    let rung = reached(rule, step)?;
    while rungs.len() <= rung {
        rungs.push(Rung::new());
    }
    let there = &mut rungs[rung];
    if there.iter().any(|(known, _)| *known == job) {
        return None;
    }
    let loss = if loss.is_finite() { loss } else { WORST };
    there.push((job, loss));
    let better = there.iter().filter(|(other, before)| *other != job && *before < loss).count();
    let places = (there.len() / rule.reduction.max(2) as usize).max(1);
    Some(better < places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULE: StopRule = StopRule { min_steps: 10, reduction: 3 };

    fn job(n: u128) -> JobId {
        JobId(uuid::Uuid::from_u128(n))
    }

    #[test]
    fn rungs_stand_at_powers_of_the_reduction() {
        let at = [0, 9, 10, 29, 30, 89, 90, 270].map(|step| reached(RULE, step));
        assert_eq!(at, [None, None, Some(0), Some(0), Some(1), Some(1), Some(2), Some(3)]);
        assert!(reached(StopRule { min_steps: 1, reduction: 2 }, u64::MAX).is_some());
    }

    #[test]
    fn the_best_third_goes_on_and_the_first_of_a_rung_always() {
        let mut rungs = vec![];
        let mut told = |n, step, loss| judge(RULE, &mut rungs, job(n), step, loss);
        assert_eq!(told(1, 5, 9.0), None, "before the first rung");
        assert_eq!(told(1, 10, 3.0), Some(true));
        assert_eq!(told(2, 11, 4.0), Some(false), "the worse of two");
        assert_eq!(told(3, 12, 2.0), Some(true));
        assert_eq!(told(4, 12, 2.5), Some(false), "one of four goes on, and a better one was there");
        assert_eq!(told(5, 12, f64::NAN), Some(false));
        assert_eq!(told(6, 12, 2.1), Some(true), "the second of six: two go on");
        assert_eq!(told(1, 20, 9.0), None, "judged once at a rung");
        assert_eq!(told(1, 30, 9.0), Some(true), "the first at the next");
    }

    proptest! {
        #[test]
        fn whoever_is_best_so_far_goes_on_and_who_stops_is_never_among_the_best(
            losses in proptest::collection::vec(0.0_f64..10.0, 1..60), reduction in 2_u32..6,
        ) {
            let rule = StopRule { min_steps: 4, reduction };
            let (mut rungs, mut seen, mut on) = (vec![], Vec::<f64>::new(), 0);
            for (n, loss) in losses.iter().enumerate() {
                let goes_on = judge(rule, &mut rungs, job(n as u128), 4, *loss) == Some(true);
                let better = seen.iter().filter(|before| *before < loss).count();
                seen.push(*loss);
                prop_assert!(goes_on || better > 0, "the best so far was stopped");
                prop_assert!(!goes_on || better < (seen.len() / reduction as usize).max(1));
                on += usize::from(goes_on);
            }
            prop_assert!(on >= 1);
        }
    }
}
