//! [`crate::ops::norm`] on the device.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::{Done, Gpu, launch, number, per_row};

/// `y = norm(x)`.
pub fn forward(
    gpu: &Gpu,
    x: &CudaView<'_, bf16>,
    gain: &CudaView<'_, f32>,
    eps: f64,
    y: &mut CudaViewMut<'_, bf16>,
) -> Done {
    norm(gpu, x, gain, eps, y, 0)
}

/// `y += norm(x)`: a residual branch ends in it.
pub fn forward_add(
    gpu: &Gpu,
    x: &CudaView<'_, bf16>,
    gain: &CudaView<'_, f32>,
    eps: f64,
    y: &mut CudaViewMut<'_, bf16>,
) -> Done {
    norm(gpu, x, gain, eps, y, 1)
}

fn norm(
    gpu: &Gpu,
    x: &CudaView<'_, bf16>,
    gain: &CudaView<'_, f32>,
    eps: f64,
    y: &mut CudaViewMut<'_, bf16>,
    add: u32,
) -> Done {
    let rows = rows(x.len(), gain.len());
    assert_eq!(x.len(), y.len(), "a norm keeps its shape");
    launch!(gpu, "norm_forward", per_row(rows), x, gain, y, &number(gain.len()), &(eps as f32), &add)
}

/// `sum = x + branch`, `y = norm(sum)`: the end of one half of a block and the beginning of the next.
pub fn residual_forward(
    gpu: &Gpu,
    [x, branch]: [&CudaView<'_, bf16>; 2],
    gain: &CudaView<'_, f32>,
    eps: f64,
    [sum, y]: [&mut CudaViewMut<'_, bf16>; 2],
) -> Done {
    let rows = rows(x.len(), gain.len());
    assert!([branch.len(), sum.len(), y.len()].iter().all(|len| *len == x.len()), "a norm keeps its shape");
    let width = number(gain.len());
    launch!(gpu, "norm_residual_forward", per_row(rows), x, branch, gain, sum, y, &width, &(eps as f32))
}

/// Adds the gradient for `x` to `dx`.
pub fn backward(
    gpu: &Gpu,
    x: &CudaView<'_, bf16>,
    gain: &CudaView<'_, f32>,
    eps: f64,
    dy: &CudaView<'_, bf16>,
    dx: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let rows = rows(x.len(), gain.len());
    assert!(dy.len() == x.len() && dx.len() == x.len(), "a norm keeps its shape");
    launch!(gpu, "norm_backward", per_row(rows), x, gain, dy, dx, &number(gain.len()), &(eps as f32))
}

fn rows(len: usize, width: usize) -> usize {
    assert_eq!(len % width, 0, "whole rows of {width}");
    len / width
}
