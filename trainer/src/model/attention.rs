//! The attention half of a block: `mid = x + o_proj(attention(rope(q, k), v))` with q, k, v from `norm(x)`.

use lorikeet_plan::Module;

use crate::ops::attention::{self, Heads};
use crate::ops::buffer::Buffers;
use crate::ops::linear::{self, Weight};
use crate::ops::lora::Columns;
use crate::ops::norm;
use crate::ops::profile::Op;
use crate::ops::rope::{self, Turn};

use super::pass::{Pass, Products};

const QKV: [Module; 3] = [Module::QProj, Module::KProj, Module::VProj];

/// Frozen weights of the half.
#[derive(Debug)]
pub(super) struct Attention {
    /// Gain of the norm before it.
    pub(super) norm: Vec<f32>,
    /// The rows of q, k and v, one below the other: one product makes all three.
    pub(super) qkv: Weight,
    /// o_proj.
    pub(super) out: Weight,
}

/// What its backward needs beside x.
#[derive(Debug)]
pub(super) struct AttentionKept {
    /// Projections after the rotation.
    qkv: Vec<f32>,
    out: Vec<f32>,
    lse: Vec<f32>,
    u_qkv: [Products; 3],
    u_out: Products,
}

impl AttentionKept {
    pub(super) fn give(self, buffers: &Buffers) {
        [self.qkv, self.out, self.lse].into_iter().for_each(|buffer| buffers.give(buffer));
        self.u_qkv.into_iter().chain([self.u_out]).for_each(|products| products.give(buffers));
    }
}

impl Attention {
    pub(super) fn forward(&self, pass: &Pass<'_>, layer: usize, x: &[f32]) -> (Vec<f32>, AttentionKept) {
        let (heads, rows, buffers) = (heads(pass), pass.rows(), pass.buffers);
        let mut h = buffers.take(x.len());
        pass.time(Op::Norm, || norm::forward(x, &self.norm, pass.config.rms_norm_eps, &mut h));
        let mut qkv = buffers.take(rows * heads.stride());
        pass.time(Op::Linear, || linear::forward(&h, &self.qkv, &mut qkv));
        let u_qkv = QKV.map(|module| {
            pass.time(Op::Lora, || pass.lora_forward((layer, module), &h, &mut qkv, columns(heads, module)))
        });
        pass.time(Op::Rope, || {
            rope::turn(&mut qkv, heads.stride(), turned(heads), &pass.rope, &pass.positions, Turn::Forth)
        });

        let (mut out, mut lse) = (buffers.take(rows * heads.out_stride()), buffers.take(rows * heads.queries));
        pass.time(Op::Attention, || attention::forward(heads, &pass.ranges, &qkv, &mut out, &mut lse));
        // the norm's buffer becomes the residual
        let mut mid = h;
        mid.copy_from_slice(x);
        pass.time(Op::Linear, || linear::forward_add(&out, &self.out, &mut mid));
        let u_out = pass.time(Op::Lora, || pass.lora_forward((layer, Module::OProj), &out, &mut mid, whole(pass)));
        (mid, AttentionKept { qkv, out, lse, u_qkv, u_out })
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
        let (heads, buffers) = (heads(pass), pass.buffers);
        let below = pass.reaches(layer, &QKV);
        let mut dout = buffers.take(kept.out.len());
        if below {
            pass.time(Op::Linear, || linear::backward(dx, &self.out, &mut dout));
        }
        let wanted = below.then_some(&mut dout[..]);
        pass.time(Op::Lora, || {
            pass.lora_backward((layer, Module::OProj), (&kept.out, &kept.u_out), (dx, whole(pass)), wanted, grads)
        });
        if below {
            let mut dqkv = buffers.take(kept.qkv.len());
            pass.time(Op::Attention, || {
                attention::backward(heads, &pass.ranges, &kept.qkv, (&kept.out, &kept.lse), &dout, &mut dqkv)
            });
            pass.time(Op::Rope, || {
                rope::turn(&mut dqkv, heads.stride(), turned(heads), &pass.rope, &pass.positions, Turn::Back)
            });
            self.project_back(pass, layer, (x, kept), &dqkv, dx, grads);
            buffers.give(dqkv);
        }
        buffers.give(dout);
    }

    /// From the gradient of q, k and v to that of x; in the lowest layer only the adapters take theirs.
    fn project_back(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        (x, kept): (&[f32], &AttentionKept),
        dqkv: &[f32],
        dx: &mut [f32],
        grads: &mut [&mut [f32]],
    ) {
        let (heads, buffers, eps) = (heads(pass), pass.buffers, pass.config.rms_norm_eps);
        let below = pass.reaches(layer, &[]);
        let mut h = buffers.take(x.len());
        pass.time(Op::Norm, || norm::forward(x, &self.norm, eps, &mut h));
        let mut dh = buffers.take(x.len());
        if below {
            pass.time(Op::Linear, || linear::backward(dqkv, &self.qkv, &mut dh));
        }
        for (module, u) in QKV.into_iter().zip(&kept.u_qkv) {
            let wanted = below.then_some(&mut dh[..]);
            pass.time(Op::Lora, || {
                pass.lora_backward((layer, module), (&h, u), (dqkv, columns(heads, module)), wanted, grads)
            });
        }
        if below {
            pass.time(Op::Norm, || norm::backward(x, &self.norm, eps, &dh, dx));
        }
        buffers.give(h);
        buffers.give(dh);
    }
}

fn heads(pass: &Pass<'_>) -> Heads {
    let config = pass.config;
    Heads { queries: config.num_attention_heads, keys: config.num_key_value_heads, width: config.head_dim }
}

/// Queries and keys turn, values do not.
fn turned(heads: Heads) -> usize {
    heads.queries + heads.keys
}

/// Where a projection's columns lie in a row of q, k and v.
fn columns(heads: Heads, module: Module) -> Columns {
    let (queries, keys) = (heads.queries * heads.width, heads.keys * heads.width);
    let (first, count) = match module {
        Module::KProj => (queries, keys),
        Module::VProj => (queries + keys, keys),
        Module::QProj | Module::OProj | Module::GateProj | Module::UpProj | Module::DownProj => (0, queries),
    };
    Columns { first, count, stride: heads.stride() }
}

/// All columns of a row of the residual stream.
pub(super) fn whole(pass: &Pass<'_>) -> Columns {
    Columns { first: 0, count: pass.config.hidden_size, stride: pass.config.hidden_size }
}
