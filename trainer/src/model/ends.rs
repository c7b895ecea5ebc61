//! How each half of a block begins and ends, the same for attention and MLP.
//!
//! ```text
//! entry: y = W norm(x)            exit: x + W a, or x + norm(W a) where the model has a norm behind the half too
//! ```

use crate::ops::machine::{Buffer, Machine, Sums};

use super::gain::Gain;
use super::linear::{Linear, LinearKept};
use super::pass::Pass;

/// Projections of the normed residual stream.
#[derive(Debug)]
pub(super) struct Entry {
    /// The norm.
    pub(super) norm: Gain,
    /// The projections, side by side.
    pub(super) linear: Linear,
}

impl Entry {
    pub(super) fn forward(&self, pass: &Pass<'_>, layer: usize, x: &Buffer) -> (Buffer, LinearKept) {
        let h = self.normed(pass, x);
        let mut y = pass.machine.take(pass.rows() * self.linear.outputs());
        let kept = self.linear.forward(pass, layer, &h, &mut y);
        pass.machine.give(h);
        (y, kept)
    }

    /// Adds to `dx` what arrives through the projections; in the lowest layer only the adapters take theirs.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        (x, kept): (&Buffer, &LinearKept),
        dy: &Buffer,
        (dx, below): (&mut Buffer, bool),
        grads: &mut [Sums<'_>],
    ) {
        let h = self.normed(pass, x);
        let mut dh = pass.machine.take(x.len());
        self.linear.backward(pass, layer, (&h, kept), dy, below.then_some(&mut dh), grads);
        if below {
            self.norm.backward(pass, x, &dh, dx, grads);
        }
        pass.machine.give(h);
        pass.machine.give(dh);
    }

    fn normed(&self, pass: &Pass<'_>, x: &Buffer) -> Buffer {
        let mut h = pass.machine.take(x.len());
        self.norm.forward(pass, x, &mut h);
        h
    }
}

/// The way back into the residual stream.
#[derive(Debug)]
pub(super) struct Exit {
    pub(super) linear: Linear,
    /// The norm behind it, where there is one.
    pub(super) norm: Option<Gain>,
}

/// What its backward needs beside its input.
#[derive(Debug)]
pub(super) struct ExitKept {
    linear: LinearKept,
    /// What goes into the norm behind.
    unnormed: Option<Buffer>,
}

impl ExitKept {
    pub(super) fn give(self, machine: &Machine) {
        self.linear.give(machine);
        self.unnormed.into_iter().for_each(|buffer| machine.give(buffer));
    }
}

impl Exit {
    /// The residual stream `x` with this half's part added.
    pub(super) fn forward(&self, pass: &Pass<'_>, layer: usize, a: &Buffer, x: &Buffer) -> (Buffer, ExitKept) {
        let Some(norm) = &self.norm else {
            let mut next = pass.machine.take(x.len());
            let linear = self.linear.forward_onto(pass, layer, a, x, &mut next);
            return (next, ExitKept { linear, unnormed: None });
        };
        let mut next = pass.machine.copy(x);
        let mut y = pass.machine.take(x.len());
        let linear = self.linear.forward(pass, layer, a, &mut y);
        norm.forward_add(pass, &y, &mut next);
        (next, ExitKept { linear, unnormed: Some(y) })
    }

    /// From the gradient of the stream behind it to that of `a`, where one is wanted.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        (a, kept): (&Buffer, &ExitKept),
        dx: &Buffer,
        da: Option<&mut Buffer>,
        grads: &mut [Sums<'_>],
    ) {
        let (Some(norm), Some(y)) = (&self.norm, &kept.unnormed) else {
            return self.linear.backward(pass, layer, (a, &kept.linear), dx, da, grads);
        };
        let mut dy = pass.machine.zeros(dx.len());
        norm.backward(pass, y, dx, &mut dy, grads);
        self.linear.backward(pass, layer, (a, &kept.linear), &dy, da, grads);
        pass.machine.give(dy);
    }
}
