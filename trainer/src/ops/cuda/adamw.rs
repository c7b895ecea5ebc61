//! [`crate::ops::adamw`] on the device: the norm, what follows from it, and the update, without a word to the host. Where the norm
//! is not finite nothing changes; the host reads [`Clip`] when the step is over.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DeviceRepr};

use super::{Done, Gpu, GpuError, launch, number, per_number, shape};
use crate::ops::adamw::{AdamW, Factors};

/// Parts of the sum of squares, at most; pieces follow from the length alone.
const PARTS: usize = 1024;

/// What one step knows about its gradient.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Clip {
    /// ‖g‖.
    pub norm: f64,
    /// What the gradient was multiplied with.
    pub factor: f32,
    /// 1 where the norm is finite and the update took place, else 0.
    pub finite: u32,
}

// SAFETY: plain numbers in C's order, as `struct Clip` in adamw.cu.
unsafe impl DeviceRepr for Clip {}

// SAFETY: eight floats in C's order, as `struct Factors` in adamw.cu; the assertion below counts them.
unsafe impl DeviceRepr for Passed {}

/// `Factors` but for the clip factor, as the kernel reads them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Passed([f32; 8]);

/// ‖g‖ and the factor that brings it under `max_norm`, on the device.
pub fn clip(gpu: &Gpu, grads: &CudaView<'_, f32>, max_norm: Option<f64>) -> Result<CudaSlice<Clip>, GpuError> {
    let count = grads.len();
    let piece = count.div_ceil(PARTS).max(1);
    let blocks = count.div_ceil(piece);
    let mut parts = gpu.take::<f64>(blocks)?;
    let mut clip = gpu.take::<Clip>(1)?;
    launch!(gpu, "square_sums", shape(blocks, 256), grads, &mut parts, &(count as u64), &(piece as u64))?;
    let most = max_norm.unwrap_or(0.0);
    launch!(gpu, "clip_from_squares", shape(1, 256), &parts, &number(blocks), &most, &mut clip)?;
    Ok(clip)
}

/// One update. `step` counts from 1.
pub fn adamw(
    gpu: &Gpu,
    [params, m, v]: [&mut CudaViewMut<'_, f32>; 3],
    grads: &CudaView<'_, f32>,
    clip: &CudaSlice<Clip>,
    settings: AdamW,
    step: u64,
) -> Done {
    assert!(step > 0, "steps count from 1");
    let count = params.len();
    assert!(m.len() == count && v.len() == count && grads.len() == count, "flat buffers of one length");
    let passed = Passed(Factors::<f32>::new(settings, step, 1.0).without_clip());
    launch!(gpu, "adamw", per_number(count), params, m, v, grads, clip, &passed, &(count as u64))
}
