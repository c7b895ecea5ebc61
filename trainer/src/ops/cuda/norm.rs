//! [`crate::ops::norm`] on the device.

use cudarc::driver::{CudaView, CudaViewMut};
use half::bf16;

use super::{Done, Gpu, launch, number, per_row, sums};
use crate::ops::lora::Columns;

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
    let width = gain.len();
    launch!(gpu, "norm_forward", per_row(rows, width), x, gain, y, &number(width), &(eps as f32), &add)
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
    let width = gain.len();
    launch!(gpu, "norm_backward", per_row(rows, width), x, gain, dy, dx, &number(width), &(eps as f32))
}

/// Adds to the gradient of the gain.
pub fn gain_backward(
    gpu: &Gpu,
    x: &CudaView<'_, bf16>,
    eps: f64,
    dy: &CudaView<'_, bf16>,
    dgain: &mut CudaViewMut<'_, f32>,
) -> Done {
    let width = dgain.len();
    let rows = rows(x.len(), width);
    assert_eq!(dy.len(), x.len(), "a norm keeps its shape");
    let mut rho = gpu.take::<f32>(rows)?;
    launch!(gpu, "norm_rho", per_row(rows, width), x, &mut rho, &number(width), &(eps as f32))?;
    sums::add_rows(gpu, (dy, Columns::all(width)), Some((x, &rho)), dgain)
}

fn rows(len: usize, width: usize) -> usize {
    assert_eq!(len % width, 0, "whole rows of {width}");
    len / width
}
