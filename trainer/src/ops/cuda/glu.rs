//! [`crate::ops::glu`] on the device.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;
use lorikeet_plan::Activation;

use super::{Done, Gpu, eights, launch, per_number};

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
    let [of_row, all] = [width, count].map(eights);
    launch!(gpu, "glu_forward", per_number(all as usize), gate_up, y, &of_row, &all, &kind(activation))
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
    let [of_row, all] = [width, count].map(eights);
    launch!(gpu, "glu_backward", per_number(all as usize), gate_up, dy, &of_row, &all, &kind(activation))
}

/// As the kernels count them.
fn kind(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}
