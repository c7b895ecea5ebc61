//! The gain of one norm, and the norm with it.

use crate::ops::norm;
use crate::ops::profile::Op;

use super::pass::Pass;

/// The gain of a norm, as it multiplies.
#[derive(Debug)]
pub(super) struct Gain {
    /// Its name in the files.
    pub(super) tensor: String,
    pub(super) values: Vec<f32>,
}

impl Gain {
    /// `y = norm(x)`.
    pub(super) fn forward(&self, pass: &Pass<'_>, x: &[f32], y: &mut [f32]) {
        pass.time(Op::Norm, || norm::forward(x, &self.values, pass.config.rms_norm_eps, y));
    }

    /// `y += norm(x)`.
    pub(super) fn forward_add(&self, pass: &Pass<'_>, x: &[f32], y: &mut [f32]) {
        pass.time(Op::Norm, || norm::forward_add(x, &self.values, pass.config.rms_norm_eps, y));
    }

    /// Adds the gradient for `x` to `dx`, and where the model itself is trained its own to `grads`.
    pub(super) fn backward(&self, pass: &Pass<'_>, x: &[f32], dy: &[f32], dx: &mut [f32], grads: &mut [&mut [f32]]) {
        let eps = pass.config.rms_norm_eps;
        pass.time(Op::Norm, || norm::backward(x, &self.values, eps, dy, dx));
        if let Some(layout) = pass.weights {
            pass.time(Op::Norm, || norm::gain_backward(x, eps, dy, &mut grads[0][layout.place(&self.tensor)]));
        }
    }
}
