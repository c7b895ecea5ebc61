//! The gain of one norm, and the norm with it.

use crate::ops::machine::{Buffer, Exact, Sums};
use crate::ops::profile::Op;

use super::pass::Pass;

/// The gain of a norm, as it multiplies.
#[derive(Debug)]
pub(super) struct Gain {
    /// Its name in the files.
    pub(super) tensor: String,
    pub(super) values: Exact,
}

impl Gain {
    /// `y = norm(x)`.
    pub(super) fn forward(&self, pass: &Pass<'_>, x: &Buffer, y: &mut Buffer) {
        pass.time(Op::Norm, || pass.machine.norm(x, &self.values, pass.config.rms_norm_eps, y));
    }

    /// `y += norm(x)`.
    pub(super) fn forward_add(&self, pass: &Pass<'_>, x: &Buffer, y: &mut Buffer) {
        pass.time(Op::Norm, || pass.machine.norm_add(x, &self.values, pass.config.rms_norm_eps, y));
    }

    /// Adds the gradient for `x` to `dx`, and where the model itself is trained its own to `grads`.
    pub(super) fn backward(&self, pass: &Pass<'_>, x: &Buffer, dy: &Buffer, dx: &mut Buffer, grads: &mut [Sums<'_>]) {
        let eps = pass.config.rms_norm_eps;
        pass.time(Op::Norm, || pass.machine.norm_backward(x, &self.values, eps, dy, dx));
        if let Some(dgain) = pass.own(&self.tensor, grads) {
            pass.time(Op::Norm, || pass.machine.gain_backward(x, eps, dy, dgain));
        }
    }
}
