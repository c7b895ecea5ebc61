//! AdamW with a state that can be saved: two moments as flat as the adapter, and the number of updates.

use crate::ops::adamw::{AdamW, adamw};

/// The optimizer of one adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    /// Everything but the rate, which each update brings.
    pub settings: AdamWSettings,
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
    /// Moments of zero for `len` weights.
    pub fn new(len: usize, settings: AdamWSettings) -> Optimizer {
        Optimizer { settings, m: vec![0.0; len], v: vec![0.0; len] }
    }

    /// Update number `step` (from 1) with gradients times `clip`.
    pub fn update(&mut self, params: &mut [f32], grads: &[f32], step: u64, rate: f64, clip: f64) {
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        let settings = AdamW { lr: rate, beta1, beta2, eps: epsilon, weight_decay };
        adamw(params, &mut self.m, &mut self.v, grads, settings, step, clip);
    }
}
