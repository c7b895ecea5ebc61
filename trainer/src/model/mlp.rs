//! The MLP half of a block: `x' = mid + down_proj(silu(gate) · up)` with gate and up from `norm(mid)`.

use lorikeet_plan::Module;

use crate::ops::buffer::Buffers;
use crate::ops::linear::{self, Weight};
use crate::ops::lora::Columns;
use crate::ops::profile::Op;
use crate::ops::{norm, swiglu};

use super::attention::whole;
use super::pass::{Pass, Products};

const GATE_UP: [Module; 2] = [Module::GateProj, Module::UpProj];

/// Frozen weights of the half.
#[derive(Debug)]
pub(super) struct Mlp {
    /// Gain of the norm before it.
    pub(super) norm: Vec<f32>,
    /// The rows of gate and up, one below the other: one product makes both.
    pub(super) gate_up: Weight,
    /// down_proj.
    pub(super) down: Weight,
}

/// What its backward needs beside mid.
#[derive(Debug)]
pub(super) struct MlpKept {
    gate_up: Vec<f32>,
    u_gate_up: [Products; 2],
    u_down: Products,
}

impl MlpKept {
    pub(super) fn give(self, buffers: &Buffers) {
        buffers.give(self.gate_up);
        self.u_gate_up.into_iter().chain([self.u_down]).for_each(|products| products.give(buffers));
    }
}

impl Mlp {
    pub(super) fn forward(&self, pass: &Pass<'_>, layer: usize, mid: &[f32]) -> (Vec<f32>, MlpKept) {
        let (rows, width, buffers) = (pass.rows(), pass.config.intermediate_size, pass.buffers);
        let mut h = buffers.take(mid.len());
        pass.time(Op::Norm, || norm::forward(mid, &self.norm, pass.config.rms_norm_eps, &mut h));
        let mut gate_up = buffers.take(rows * 2 * width);
        pass.time(Op::Linear, || linear::forward(&h, &self.gate_up, &mut gate_up));
        let u_gate_up = GATE_UP.map(|module| {
            pass.time(Op::Lora, || pass.lora_forward((layer, module), &h, &mut gate_up, columns(width, module)))
        });

        let mut act = buffers.take(rows * width);
        pass.time(Op::Swiglu, || swiglu::forward(&gate_up, width, &mut act));
        // the norm's buffer becomes the residual
        let mut next = h;
        next.copy_from_slice(mid);
        pass.time(Op::Linear, || linear::forward_add(&act, &self.down, &mut next));
        let u_down = pass.time(Op::Lora, || pass.lora_forward((layer, Module::DownProj), &act, &mut next, whole(pass)));
        buffers.give(act);
        (next, MlpKept { gate_up, u_gate_up, u_down })
    }

    /// Turns the gradient of x' into that of mid, as far down as one is wanted. What was kept is used up.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        (mid, kept): (&[f32], &mut MlpKept),
        dx: &mut [f32],
        grads: &mut [&mut [f32]],
    ) {
        let (rows, width, buffers) = (pass.rows(), pass.config.intermediate_size, pass.buffers);
        let below = pass.reaches(
            layer,
            &[Module::QProj, Module::KProj, Module::VProj, Module::OProj, Module::GateProj, Module::UpProj],
        );
        let mut act = buffers.take(rows * width);
        pass.time(Op::Swiglu, || swiglu::forward(&kept.gate_up, width, &mut act));
        let mut dact = buffers.take(rows * width);
        if below {
            pass.time(Op::Linear, || linear::backward(dx, &self.down, &mut dact));
        }
        let wanted = below.then_some(&mut dact[..]);
        pass.time(Op::Lora, || {
            pass.lora_backward((layer, Module::DownProj), (&act, &kept.u_down), (dx, whole(pass)), wanted, grads)
        });
        buffers.give(act);
        if below {
            pass.time(Op::Swiglu, || swiglu::backward(&mut kept.gate_up, width, &dact));
            self.project_back(pass, layer, (mid, kept), dx, grads);
        }
        buffers.give(dact);
    }

    /// From the gradient of gate and up (which stands where they stood) to that of mid.
    fn project_back(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        (mid, kept): (&[f32], &MlpKept),
        dx: &mut [f32],
        grads: &mut [&mut [f32]],
    ) {
        let (width, buffers, eps) = (pass.config.intermediate_size, pass.buffers, pass.config.rms_norm_eps);
        let below = pass.reaches(layer, &[Module::QProj, Module::KProj, Module::VProj, Module::OProj]);
        let mut h = buffers.take(mid.len());
        pass.time(Op::Norm, || norm::forward(mid, &self.norm, eps, &mut h));
        let mut dh = buffers.take(mid.len());
        if below {
            pass.time(Op::Linear, || linear::backward(&kept.gate_up, &self.gate_up, &mut dh));
        }
        for (module, u) in GATE_UP.into_iter().zip(&kept.u_gate_up) {
            let wanted = below.then_some(&mut dh[..]);
            pass.time(Op::Lora, || {
                pass.lora_backward((layer, module), (&h, u), (&kept.gate_up, columns(width, module)), wanted, grads)
            });
        }
        if below {
            pass.time(Op::Norm, || norm::backward(mid, &self.norm, eps, &dh, dx));
        }
        buffers.give(h);
        buffers.give(dh);
    }
}

/// Where a projection's columns lie in a row of gate and up.
fn columns(width: usize, module: Module) -> Columns {
    let first = if module == Module::UpProj { width } else { 0 };
    Columns { first, count: width, stride: 2 * width }
}
