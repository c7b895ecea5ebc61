//! The learning rate as a function of the step, step for step as transformers computes it.
//!
//! A linear warm-up over `warmup` steps, then the curve over what is left. The first step of a warm-up has rate 0.

use serde::{Deserialize, Serialize};

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Curve {
    /// Half a cosine down to zero.
    Cosine,
    /// A straight line down to zero.
    Linear,
    /// No decay.
    Constant,
    /// No decay at first, then half a cosine to zero over this share of all steps.
    Wsd {
        /// Share of all steps.
        decay_ratio: f64,
    },
}

/// The rate of every step of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// What follows the warm-up.
    pub curve: Curve,
    /// Steps over which the rate rises.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
}

impl Schedule {
    /// The rate of the step that follows `done` steps.
    pub fn rate(&self, done: u64) -> f64 {
        self.peak * self.factor(done)
    }

    fn factor(&self, done: u64) -> f64 {
        if done < self.warmup {
            return done as f64 / self.warmup as f64;
        }
        match self.curve {
            Curve::Cosine => half_cosine(share(done - self.warmup, self.total.saturating_sub(self.warmup))),
            Curve::Linear => share(self.total.saturating_sub(done), self.total.saturating_sub(self.warmup)),
            Curve::Constant => 1.0,
            Curve::Wsd { decay_ratio } => self.after_stable(done, ratio_of(self.total, decay_ratio)),
        }
    }

    fn after_stable(&self, done: u64, decay: u64) -> f64 {
        let begins = self.total.saturating_sub(decay).max(self.warmup);
        match done {
            _ if done < begins => 1.0,
            _ if done < begins + decay => half_cosine(share(done - begins, decay)),
            _ => 0.0,
        }
    }
}

/// A share of a number of steps, rounded up, as transformers rounds the warm-up.
pub fn ratio_of(steps: u64, ratio: f64) -> u64 {
    (steps as f64 * ratio).ceil() as u64
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn half_cosine(progress: f64) -> f64 {
    (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Printed by `transformers.get_scheduler` (5.23): ten steps, two of warm-up; WSD with three of decay.
    const REFERENCE: [(Curve, [f64; 10]); 4] = [
        (
            Curve::Cosine,
            [
                0.0,
                0.5,
                1.0,
                0.9619397662556434,
                0.8535533905932737,
                0.6913417161825449,
                0.5,
                0.30865828381745514,
                0.14644660940672627,
                0.03806023374435663,
            ],
        ),
        (Curve::Linear, [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (Curve::Constant, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (Curve::Wsd { decay_ratio: 0.3 }, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.2500000000000001]),
    ];

    #[test]
    fn every_curve_equals_transformers_step_for_step() {
        for (curve, rates) in REFERENCE {
            let schedule = Schedule { peak: 1.0, curve, warmup: 2, total: 10 };
            for (done, rate) in rates.into_iter().enumerate() {
                assert!((schedule.rate(done as u64) - rate).abs() < 1e-15, "{curve:?}, after {done} steps");
            }
        }
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_peak_and_a_warm_up_is_rounded_up() {
        let schedule = Schedule { peak: 2e-4, curve: Curve::Cosine, warmup: 0, total: 5 };
        assert_eq!(schedule.rate(0), 2e-4);
        assert_eq!((ratio_of(11, 0.1), ratio_of(10, 0.1), ratio_of(10, 0.0)), (2, 1, 0));
    }
}
