//! The attention half of a block: `mid = x + o_proj(attention(rope(q, k), v))` with q, k, v from `norm(x)`; q and k normed
//! head by head before the rotation where the model does so.

use std::ops::Range;

use lorikeet_plan::Module;

use crate::ops::attention::Heads;
use crate::ops::machine::{Buffer, Exact, HeadNorm, Machine, Sums};
use crate::ops::profile::Op;

use super::ends::{Entry, Exit, ExitKept};
use super::gain::Gain;
use super::linear::LinearKept;
use super::pass::Pass;

/// Modules of this half.
pub(super) const MODULES: [Module; 5] = [Module::QProj, Module::KProj, Module::VProj, Module::QkvProj, Module::OProj];
const QKV: [Module; 4] = [Module::QProj, Module::KProj, Module::VProj, Module::QkvProj];

/// Weights of the half.
#[derive(Debug)]
pub(super) struct Attention {
    /// q, k and v.
    pub(super) entry: Entry,
    /// The norms over query and key heads.
    pub(super) qk_norm: Option<[Gain; 2]>,
    /// o_proj.
    pub(super) exit: Exit,
}

/// What its backward needs beside x.
#[derive(Debug)]
pub(super) struct AttentionKept {
    /// Projections after the rotation.
    qkv: Buffer,
    /// q and k before their norm.
    unnormed: Option<Buffer>,
    out: Buffer,
    lse: Exact,
    entry: LinearKept,
    exit: ExitKept,
}

impl AttentionKept {
    pub(super) fn give(self, machine: &Machine) {
        [self.qkv, self.out].into_iter().chain(self.unnormed).for_each(|buffer| machine.give(buffer));
        machine.give_exact(self.lse);
        self.entry.give(machine);
        self.exit.give(machine);
    }
}

impl Attention {
    pub(super) fn forward(&self, pass: &Pass<'_>, layer: usize, x: &Buffer) -> (Buffer, AttentionKept) {
        let (heads, rows, machine) = (heads(pass, layer), pass.rows(), pass.machine);
        let (mut qkv, entry) = self.entry.forward(pass, layer, x);
        let unnormed = pass.time(Op::Rope, || machine.rope(heads, self.norm(pass), pass.turns(layer), &mut qkv));
        let (mut out, mut lse) = (machine.take(rows * heads.out_stride()), machine.take_exact(rows * heads.queries));
        pass.time(Op::Attention, || machine.attention(heads, &pass.segments, &qkv, &mut out, &mut lse));
        let (mid, exit) = self.exit.forward(pass, layer, &out, x);
        (mid, AttentionKept { qkv, unnormed, out, lse, entry, exit })
    }

    /// Turns the gradient of mid into that of x, as far down as one is wanted.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        (x, kept): (&Buffer, &AttentionKept),
        dx: &mut Buffer,
        grads: &mut [Sums<'_>],
    ) {
        let machine = pass.machine;
        let below = pass.reaches(layer, &QKV);
        let mut dout = machine.take(kept.out.len());
        self.exit.backward(pass, layer, (&kept.out, &kept.exit), dx, below.then_some(&mut dout), grads);
        if below {
            let dqkv = self.attend_back(pass, layer, kept, &dout, grads);
            let below = pass.reaches(layer, &[]);
            self.entry.backward(pass, layer, (x, &kept.entry), &dqkv, (dx, below), grads);
            machine.give(dqkv);
        }
        machine.give(dout);
    }

    /// From the gradient of the heads' output to that of the projections.
    fn attend_back(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        kept: &AttentionKept,
        dout: &Buffer,
        grads: &mut [Sums<'_>],
    ) -> Buffer {
        let (heads, machine) = (heads(pass, layer), pass.machine);
        let mut dqkv = machine.take(kept.qkv.len());
        pass.time(Op::Attention, || {
            machine.attention_backward(heads, &pass.segments, &kept.qkv, (&kept.out, &kept.lse), dout, &mut dqkv);
        });
        let (norm, gains) = (self.norm(pass).zip(kept.unnormed.as_ref()), self.gains(pass, grads));
        pass.time(Op::Rope, || machine.rope_backward(heads, norm, pass.turns(layer), &mut dqkv, gains));
        dqkv
    }

    pub(super) fn norm(&self, pass: &Pass<'_>) -> Option<HeadNorm<'_>> {
        let [queries, keys] = self.qk_norm.as_ref()?.each_ref().map(|gain| &gain.values);
        Some(HeadNorm { queries, keys, eps: pass.config.rms_norm_eps })
    }

    /// Where the model itself is trained: the gradients of both gains.
    fn gains<'s, 'g>(
        &self,
        pass: &Pass<'_>,
        grads: &'s mut [Sums<'g>],
    ) -> Option<(&'s mut Sums<'g>, [Range<usize>; 2])> {
        let (layout, gains) = (pass.weights?, self.qk_norm.as_ref()?);
        Some((&mut grads[0], gains.each_ref().map(|gain| layout.place(&gain.tensor))))
    }
}

pub(super) fn heads(pass: &Pass<'_>, layer: usize) -> Heads {
    let config = pass.config;
    Heads {
        queries: config.num_attention_heads,
        keys: config.num_key_value_heads,
        width: config.head_dim,
        scale: config.query_scale,
        softcap: config.attention_softcap,
        window: config.layers[layer].window,
    }
}
