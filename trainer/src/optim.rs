//! AdamW with a state that can be saved: two moments as flat as the adapter, which lie where it lies, and the number of updates. Parts of the
//! buffer may have a learning rate of their own, or no weight decay.

use std::ops::Range;

use crate::ops::adamw::AdamW;
use crate::ops::machine::{Clip, Exact, Machine};

/// The optimizer of one adapter.
#[derive(Debug)]
pub struct Optimizer {
    /// Everything but the rate, which each update brings.
    pub settings: AdamWSettings,
    /// Parts of the buffer that are not all treated alike.
    pub parts: Vec<Part>,
    /// First moment, one number per weight.
    pub m: Exact,
    /// Second moment, one number per weight.
    pub v: Exact,
}

/// A part of the buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Where it lies.
    pub place: Range<usize>,
    /// What its learning rate is multiplied by.
    pub rate: f64,
    /// What its weight decay is multiplied by.
    pub decay: f64,
}

impl From<(Range<usize>, f64)> for Part {
    /// A part with a rate of its own, which decays as all do.
    fn from((place, rate): (Range<usize>, f64)) -> Part {
        Part { place, rate, decay: 1.0 }
    }
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
    /// Moments of zero for `len` weights that are treated alike, on the host.
    pub fn new(len: usize, settings: AdamWSettings) -> Optimizer {
        let zeros = || Exact::Host(vec![0.0; len]);
        Optimizer { settings, parts: vec![(0..len, 1.0).into()], m: zeros(), v: zeros() }
    }

    /// The same by parts; together they are the whole.
    pub fn with_parts(self, parts: Vec<Part>) -> Optimizer {
        assert_eq!(
            parts.iter().map(|part| part.place.len()).sum::<usize>(),
            self.m.len(),
            "every weight is in one part"
        );
        Optimizer { parts, ..self }
    }

    /// Update number `step` (from 1) with gradients as far as `clip` lets them through.
    pub fn update(&mut self, machine: &Machine, params: &mut Exact, passed: (&Exact, &Clip), step: u64, rate: f64) {
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        for Part { place, rate: factor, decay } in &self.parts {
            let weight_decay = weight_decay * decay;
            let settings = AdamW { lr: rate * factor, beta1, beta2, eps: epsilon, weight_decay };
            machine.adamw([params, &mut self.m, &mut self.v], passed, place.clone(), settings, step);
        }
    }
}
