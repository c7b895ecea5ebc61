//! [`crate::ops::adamw`] on the device: the norm, what follows from it, and the update, without a word to the host. Where norm or loss
//! is not finite nothing changes; the host hears of it in a [`Clip`] that is sent and may be received any time later.

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaSlice, CudaView, CudaViewMut, DeviceRepr, PinnedHostSlice, ValidAsZeroBits};

use super::timeline::Work;
use super::{Done, Gpu, GpuError, TRAFFIC, launch, number, per_number, shape};
use crate::ops::adamw::{AdamW, Factors};

/// Parts of the sum of squares, at most; pieces follow from the length alone.
const PARTS: usize = 1024;

/// What one step knows about its loss and its gradient.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Clip {
    /// ‖g‖.
    pub norm: f64,
    /// Mean over the targets; 0 where there is none.
    pub loss: f64,
    /// What the gradient was multiplied with.
    pub factor: f32,
    /// 1 where norm and loss are finite and the update took place, else 0.
    pub finite: u32,
}

// SAFETY: plain numbers in C's order, as `struct Clip` in adamw.cu.
unsafe impl DeviceRepr for Clip {}

// SAFETY: all of it are numbers, and for them zero bits are zero.
unsafe impl ValidAsZeroBits for Clip {}

// SAFETY: eight floats in C's order, as `struct Factors` in adamw.cu; the assertion below counts them.
unsafe impl DeviceRepr for Passed {}

/// `Factors` but for the clip factor, as the kernel reads them.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Passed([f32; 8]);

/// Where a step is judged, made once: one step after the other uses it, in the order of the stream.
#[derive(Debug)]
pub struct Judge {
    parts: CudaSlice<f64>,
    clip: CudaSlice<Clip>,
    piece: usize,
}

impl Judge {
    /// Of gradients of `count` numbers.
    pub fn new(gpu: &Gpu, count: usize) -> Result<Judge, GpuError> {
        let piece = count.div_ceil(PARTS).max(1);
        Ok(Judge { parts: gpu.take(count.div_ceil(piece))?, clip: gpu.take(1)?, piece })
    }

    /// ‖g‖ and the factor that brings it under `max_norm`, and the mean of a sum of losses over so many targets.
    pub fn judge(
        &mut self,
        gpu: &Gpu,
        grads: &CudaView<'_, f32>,
        loss: Option<(&CudaView<'_, f64>, f64)>,
        max_norm: Option<f64>,
    ) -> Done {
        let count = grads.len();
        let blocks = count.div_ceil(self.piece);
        assert!(blocks <= self.parts.len(), "it was made for gradients of that length");
        let (parts, piece) = (&mut self.parts, self.piece as u64);
        launch!(gpu, "square_sums", shape(blocks, 256), grads, parts, &(count as u64), &piece)?;
        let most = max_norm.unwrap_or(0.0);
        let (sum, targets) = (gpu.address(loss.map(|(sum, _)| sum)), loss.map_or(1.0, |(_, targets)| targets));
        let (parts, clip) = (&self.parts, &mut self.clip);
        launch!(gpu, "clip_from_squares", shape(1, 256), parts, &number(blocks), &most, &sum, &targets, clip)
    }

    /// What it came to, put on its way to the host behind everything that is on the stream.
    pub fn send(&self, gpu: &Gpu) -> Result<Sent, GpuError> {
        let mut place = gpu.place()?;
        gpu.timed(Work::Named("copy from the GPU"), || {
            gpu.stream.memcpy_dtoh(&self.clip, &mut place).map_err(GpuError::driver("send a step's norm"))
        })?;
        // cudarc marks no event of its own where it does not track them
        let arrived = gpu.stream.record_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING));
        let arrived = arrived.map_err(GpuError::driver("mark a step's end"))?;
        TRAFFIC.came(size_of::<Clip>());
        Ok(Sent { place: Some(place), arrived })
    }

    /// What it came to; waits for it.
    pub fn read(&self, gpu: &Gpu) -> Result<Clip, GpuError> {
        self.send(gpu)?.receive(gpu)
    }
}

/// A [`Clip`] on its way into memory of the host that the device may write at any time.
#[derive(Debug)]
pub struct Sent {
    place: Option<Place>,
    arrived: CudaEvent,
}

/// Room for one.
pub(super) type Place = PinnedHostSlice<Clip>;

impl Sent {
    /// Waits until it is there, and for nothing that came onto the stream behind it.
    pub fn receive(mut self, gpu: &Gpu) -> Result<Clip, GpuError> {
        const WAITING: &str = "wait for a step's norm";
        self.arrived.synchronize().map_err(GpuError::driver(WAITING))?;
        let place = self.place.take().expect("received once");
        let clip = place.as_slice().map_err(GpuError::driver(WAITING))?[0];
        gpu.keep_place(place);
        Ok(clip)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if self.place.is_some() {
            // nobody wants it any more, but the device may still write it; where that fails nothing writes at all
            let _ = self.arrived.synchronize();
        }
    }
}

/// One update, unless the judge found something that is not finite. `step` counts from 1.
pub fn adamw(
    gpu: &Gpu,
    [params, m, v]: [&mut CudaViewMut<'_, f32>; 3],
    grads: &CudaView<'_, f32>,
    judge: &Judge,
    settings: AdamW,
    step: u64,
) -> Done {
    assert!(step > 0, "steps count from 1");
    let count = params.len();
    assert!(m.len() == count && v.len() == count && grads.len() == count, "flat buffers of one length");
    let passed = Passed(Factors::<f32>::new(settings, step, 1.0).without_clip());
    launch!(gpu, "adamw", per_number(count), params, m, v, grads, &judge.clip, &passed, &(count as u64))
}
