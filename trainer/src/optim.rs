//! AdamW with a state that can be saved: two moments as flat as the adapter, and the number of updates. Parts of the buffer may
//! have a learning rate of their own.

use std::ops::Range;

use crate::ops::adamw::{AdamW, adamw};

/// The optimizer of one adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    /// Everything but the rate, which each update brings.
    pub settings: AdamWSettings,
    /// Parts of the buffer, and what their rate is multiplied by.
    pub rates: Vec<(Range<usize>, f64)>,
    /// First moment, one number per weight.
    pub m: Vec<f32>,
    /// Second moment, one number per weight.
    pub v: Vec<f32>,
}

/// What does not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Keeps the quotient finite.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Optimizer {
    /// Moments of zero for `len` weights of one rate.
    pub fn new(len: usize, settings: AdamWSettings) -> Optimizer {
        Optimizer { settings, rates: vec![(0..len, 1.0)], m: vec![0.0; len], v: vec![0.0; len] }
    }

    /// The same with rates by part; together the parts are the whole.
    pub fn with_rates(self, rates: Vec<(Range<usize>, f64)>) -> Optimizer {
        assert_eq!(rates.iter().map(|(part, _)| part.len()).sum::<usize>(), self.m.len(), "every weight has one rate");
        Optimizer { rates, ..self }
    }

    /// Update number `step` (from 1) with gradients times `clip`.
    pub fn update(&mut self, params: &mut [f32], grads: &[f32], step: u64, rate: f64, clip: f64) {
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        for (part, factor) in &self.rates {
            let settings = AdamW { lr: rate * factor, beta1, beta2, eps: epsilon, weight_decay };
            let part = || part.clone();
            let (m, v) = (&mut self.m[part()], &mut self.v[part()]);
            adamw(&mut params[part()], m, v, &grads[part()], settings, step, clip);
        }
    }
}
