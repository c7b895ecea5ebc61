//! One decoder block: attention, then MLP, and what both keep for their backward.

use std::ops::Range;

use lorikeet_plan::Module;

use crate::ops::machine::{Buffer, Machine, Sums, Weight};

use super::attention::{self, Attention, AttentionKept};
use super::ends::{Entry, Exit};
use super::mlp::{Mlp, MlpKept};
use super::new::New;
use super::pass::Pass;

/// Weights of one block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention: Attention,
    pub(super) mlp: Mlp,
}

/// What the backward of one block needs.
#[derive(Debug)]
pub(super) struct Kept {
    x: Buffer,
    attention: AttentionKept,
    mid: Buffer,
    mlp: MlpKept,
}

impl Kept {
    /// The block's input; everything else is handed back.
    pub(super) fn into_input(self, machine: &Machine) -> Buffer {
        self.attention.give(machine);
        machine.give(self.mid);
        self.mlp.give(machine);
        self.x
    }

    /// Hands the buffers back.
    pub(super) fn give(self, machine: &Machine) {
        let x = self.into_input(machine);
        machine.give(x);
    }
}

impl Block {
    /// The weight that holds one projection, and the rows of it that are.
    pub(super) fn weight_of(&self, module: Module) -> (&Weight, Range<usize>) {
        let (attention, mlp) = (&self.attention, &self.mlp);
        [&attention.entry.linear, &attention.exit.linear, &mlp.entry.linear, &mlp.exit.linear]
            .into_iter()
            .find_map(|linear| linear.weight_of(module))
            .expect("a layout names modules of its model only")
    }

    /// Takes new numbers.
    pub(super) fn set(&mut self, layer: usize, new: &New<'_>) {
        let (attention, mlp) = (&mut self.attention, &mut self.mlp);
        let entries = [&mut attention.entry, &mut mlp.entry];
        let exits = [&mut attention.exit, &mut mlp.exit];
        for Entry { norm, linear } in entries {
            new.gain(norm);
            linear.set(layer, new);
        }
        for Exit { linear, norm } in exits {
            linear.set(layer, new);
            norm.iter_mut().for_each(|norm| new.gain(norm));
        }
        attention.qk_norm.iter_mut().flatten().for_each(|norm| new.gain(norm));
    }

    /// The next layer's input.
    pub(super) fn forward(&self, pass: &Pass<'_>, layer: usize, x: Buffer) -> (Buffer, Kept) {
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
        dx: &mut Buffer,
        grads: &mut [Sums<'_>],
    ) {
        self.mlp.backward(pass, layer, (&kept.mid, &mut kept.mlp), dx, grads);
        if pass.reaches(layer, &attention::MODULES) {
            self.attention.backward(pass, layer, (&kept.x, &kept.attention), dx, grads);
        }
        kept.give(pass.machine);
    }
}
