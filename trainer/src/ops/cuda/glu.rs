//! [`crate::ops::glu`] on the device.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;
use lorikeet_plan::Activation;

use super::{Done, Gpu, launch, number, per_number};

/// `y` of every row of `gate_up`.
pub fn forward(
    gpu: &Gpu,
    activation: Activation,
    gate_up: &CudaView<'_, bf16>,
    width: usize,
    y: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let count = y.len();
    assert_eq!(gate_up.len(), 2 * count, "gate and up side by side");
    launch!(gpu, "glu_forward", per_number(count), gate_up, y, &number(width), &(count as u64), &kind(activation))
}

/// Overwrites `gate_up` with its gradient.
pub fn backward(
    gpu: &Gpu,
    activation: Activation,
    gate_up: &mut CudaViewMut<'_, bf16>,
    width: usize,
    dy: &CudaView<'_, bf16>,
) -> Done {
    let count = dy.len();
    assert_eq!(gate_up.len(), 2 * count, "gate and up side by side");
    launch!(gpu, "glu_backward", per_number(count), gate_up, dy, &number(width), &(count as u64), &kind(activation))
}

/// As the kernels count them.
fn kind(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}
