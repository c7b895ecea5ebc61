//! One decoder block: attention, then MLP, and what both keep for their backward.

use std::borrow::Cow;

use lorikeet_plan::Module;

use crate::ops::buffer::Buffers;

use super::attention::{self, Attention, AttentionKept};
use super::mlp::{Mlp, MlpKept};
use super::pass::Pass;

/// Frozen weights of one block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention: Attention,
    pub(super) mlp: Mlp,
}

/// What the backward of one block needs.
#[derive(Debug)]
pub(super) struct Kept {
    x: Vec<f32>,
    attention: AttentionKept,
    mid: Vec<f32>,
    mlp: MlpKept,
}

impl Kept {
    /// The block's input; everything else is handed back.
    pub(super) fn into_input(self, buffers: &Buffers) -> Vec<f32> {
        self.attention.give(buffers);
        buffers.give(self.mid);
        self.mlp.give(buffers);
        self.x
    }

    /// Hands the buffers back.
    pub(super) fn give(self, buffers: &Buffers) {
        let x = self.into_input(buffers);
        buffers.give(x);
    }
}

impl Block {
    /// The frozen weight of one projection.
    pub(super) fn weight_of(&self, module: Module) -> Cow<'_, [f32]> {
        let (attention, mlp) = (&self.attention, &self.mlp);
        [&attention.entry.linear, &attention.exit.linear, &mlp.entry.linear, &mlp.exit.linear]
            .into_iter()
            .find_map(|linear| linear.weight_of(module))
            .expect("a layout names modules of its model only")
    }

    /// Hands every weight and bias to `visit`.
    pub(super) fn visit(&mut self, layer: usize, visit: &mut dyn FnMut(&str, &mut [f32])) {
        let (attention, mlp) = (&mut self.attention, &mut self.mlp);
        for linear in [&mut attention.entry.linear, &mut attention.exit.linear] {
            linear.visit(layer, visit);
        }
        for linear in [&mut mlp.entry.linear, &mut mlp.exit.linear] {
            linear.visit(layer, visit);
        }
    }

    /// Hands the gain of every norm to `visit`.
    pub(super) fn visit_gains(&mut self, visit: &mut dyn FnMut(&str, &mut [f32])) {
        let (attention, mlp) = (&mut self.attention, &mut self.mlp);
        let inner = attention.qk_norm.iter_mut().flatten();
        let ends = [Some(&mut attention.entry.norm), attention.exit.norm.as_mut()];
        let others = [Some(&mut mlp.entry.norm), mlp.exit.norm.as_mut()];
        for gain in ends.into_iter().chain(others).flatten().chain(inner) {
            visit(&gain.tensor, &mut gain.values);
        }
    }

    /// The next layer's input.
    pub(super) fn forward(&self, pass: &Pass<'_>, layer: usize, x: Vec<f32>) -> (Vec<f32>, Kept) {
        let (mid, attention) = self.attention.forward(pass, layer, &x);
        let (next, mlp) = self.mlp.forward(pass, layer, &mid);
        (next, Kept { x, attention, mid, mlp })
    }

    /// Turns the gradient of the block's output into that of its input and adds the adapters' to `grads`.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        mut kept: Kept,
        dx: &mut [f32],
        grads: &mut [&mut [f32]],
    ) {
        self.mlp.backward(pass, layer, (&kept.mid, &mut kept.mlp), dx, grads);
        if pass.reaches(layer, &attention::MODULES) {
            self.attention.backward(pass, layer, (&kept.x, &kept.attention), dx, grads);
        }
        kept.give(pass.buffers);
    }
}
