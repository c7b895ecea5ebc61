//! The attention half of a block: `mid = x + o_proj(attention(rope(q, k), v))` with q, k, v from `norm(x)`; q and k normed
//! head by head before the rotation where the model does so.

use lorikeet_plan::Module;

use crate::ops::attention::{self, Heads};
use crate::ops::buffer::Buffers;
use crate::ops::profile::Op;
use crate::ops::qk_norm::{self, Gains};
use crate::ops::rope::{self, Turn};

use super::ends::{Entry, Exit, ExitKept};
use super::gain::Gain;
use super::linear::LinearKept;
use super::pass::Pass;

/// Modules of this half.
pub(super) const MODULES: [Module; 5] = [Module::QProj, Module::KProj, Module::VProj, Module::QkvProj, Module::OProj];
const QKV: [Module; 4] = [Module::QProj, Module::KProj, Module::VProj, Module::QkvProj];

/// Frozen weights of the half.
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
    qkv: Vec<f32>,
    /// q and k before their norm.
    unnormed: Option<Vec<f32>>,
    out: Vec<f32>,
    lse: Vec<f32>,
    entry: LinearKept,
    exit: ExitKept,
}

impl AttentionKept {
    pub(super) fn give(self, buffers: &Buffers) {
        [self.qkv, self.out, self.lse].into_iter().chain(self.unnormed).for_each(|buffer| buffers.give(buffer));
        self.entry.give(buffers);
        self.exit.give(buffers);
    }
}

impl Attention {
    pub(super) fn forward(&self, pass: &Pass<'_>, layer: usize, x: &[f32]) -> (Vec<f32>, AttentionKept) {
        let (heads, rows, buffers) = (heads(pass, layer), pass.rows(), pass.buffers);
        let (mut qkv, entry) = self.entry.forward(pass, layer, x);
        let unnormed = self.gains().map(|gains| {
            let mut raw = buffers.take(rows * heads.turned());
            pass.time(Op::Norm, || qk_norm::forward(heads, gains, pass.config.rms_norm_eps, &mut qkv, &mut raw));
            raw
        });
        pass.time(Op::Rope, || rope::turn(heads, pass.rotations(layer), &mut qkv, Turn::Forth));
        let (mut out, mut lse) = (buffers.take(rows * heads.out_stride()), buffers.take(rows * heads.queries));
        pass.time(Op::Attention, || attention::forward(heads, &pass.ranges, &qkv, &mut out, &mut lse));
        let (mid, exit) = self.exit.forward(pass, layer, &out, x);
        (mid, AttentionKept { qkv, unnormed, out, lse, entry, exit })
    }

    /// Turns the gradient of mid into that of x, as far down as one is wanted.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        (x, kept): (&[f32], &AttentionKept),
        dx: &mut [f32],
        grads: &mut [&mut [f32]],
    ) {
        let buffers = pass.buffers;
        let below = pass.reaches(layer, &QKV);
        let mut dout = buffers.take(kept.out.len());
        self.exit.backward(pass, layer, (&kept.out, &kept.exit), dx, below.then_some(&mut dout[..]), grads);
        if below {
            let dqkv = self.attend_back(pass, layer, kept, &dout, grads);
            let below = pass.reaches(layer, &[]);
            self.entry.backward(pass, layer, (x, &kept.entry), &dqkv, (dx, below), grads);
            buffers.give(dqkv);
        }
        buffers.give(dout);
    }

    /// From the gradient of the heads' output to that of the projections.
    fn attend_back(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        kept: &AttentionKept,
        dout: &[f32],
        grads: &mut [&mut [f32]],
    ) -> Vec<f32> {
        let heads = heads(pass, layer);
        let mut dqkv = pass.buffers.take(kept.qkv.len());
        pass.time(Op::Attention, || {
            attention::backward(heads, &pass.ranges, &kept.qkv, (&kept.out, &kept.lse), dout, &mut dqkv)
        });
        pass.time(Op::Rope, || rope::turn(heads, pass.rotations(layer), &mut dqkv, Turn::Back));
        if let (Some(gains), Some(raw)) = (self.gains(), &kept.unnormed) {
            self.gains_backward(pass, heads, raw, &dqkv, grads);
            pass.time(Op::Norm, || qk_norm::backward(heads, gains, pass.config.rms_norm_eps, raw, &mut dqkv));
        }
        dqkv
    }

    pub(super) fn gains(&self) -> Option<Gains<'_, f32>> {
        self.qk_norm.as_ref().map(|[queries, keys]| Gains { queries: &queries.values, keys: &keys.values })
    }

    /// Where the model itself is trained: the gradients of both gains.
    fn gains_backward(&self, pass: &Pass<'_>, heads: Heads, raw: &[f32], dqkv: &[f32], grads: &mut [&mut [f32]]) {
        let (Some(layout), Some([queries, keys])) = (pass.weights, &self.qk_norm) else { return };
        let [queries, keys] = [queries, keys].map(|gain| layout.place(&gain.tensor));
        let [dq, dk] = grads[0].get_disjoint_mut([queries, keys]).expect("two tensors have two places");
        qk_norm::gains_backward(heads, pass.config.rms_norm_eps, raw, dqkv, [dq, dk]);
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
