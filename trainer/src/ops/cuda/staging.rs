//! How numbers of the host go to the device while nobody waits: through page-locked memory, for out of any other the driver copies more
//! than 64 KiB only when the stream has come so far. What a micro-batch brings is copied there at once and is the caller's again.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaViewMut, DevicePtrMut, DeviceRepr, PinnedHostSlice, result};

use super::{Done, Gpu, GpuError};

/// No micro-batch brings more at once, in bytes: twenty for each of 65,536 rows. What is larger is a weight on its way, and its lane would stay.
const MOST_BYTES: usize = 2 << 20;
/// Of one lane at least.
const LEAST_BYTES: usize = 64 << 10;
/// Of two micro-batches, which are on the stream at once: tokens, targets, rows, places and names of each.
const LANES: usize = 32;

/// Lanes in the order in which they were used.
#[derive(Debug, Default)]
pub(super) struct Staging(Mutex<VecDeque<Lane>>);

#[derive(Debug)]
struct Lane {
    memory: PinnedHostSlice<u8>,
    /// What was in it has left.
    left: CudaEvent,
}

impl Staging {
    /// Sends bytes to a device's address; false, and nothing done, where they are too many, or the system locks no more
    /// memory.
    ///
    /// # Safety
    /// So many bytes of a live buffer lie there, and only the stream of `gpu` uses them.
    pub(super) unsafe fn send(&self, gpu: &Gpu, bytes: &[u8], to: u64) -> Result<bool, GpuError> {
        if bytes.len() > MOST_BYTES {
            return Ok(false);
        }
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut lane) = free_lane(gpu, &mut lanes, bytes.len())? else { return Ok(false) };
        // SAFETY: the lane's memory is as long at least, and nothing reads or writes it any more; it lives until its event has come to
        // pass; the rest is the caller's.
        let sent = unsafe {
            let memory = lane.memory.as_mut_ptr().map_err(GpuError::driver("use locked memory"))?;
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len());
            let memory = std::slice::from_raw_parts(memory, bytes.len());
            result::memcpy_htod_async(to, memory, gpu.stream.cu_stream())
        };
        let marked = lane.left.record(&gpu.stream);
        lanes.push_back(lane);
        sent.and(marked).map(|()| true).map_err(GpuError::driver("copy to the GPU"))
    }
}

/// One that nothing is left in: the oldest, or a new one while there are few; in the end the oldest is waited for. None where no more memory can be locked.
fn free_lane(gpu: &Gpu, lanes: &mut VecDeque<Lane>, bytes: usize) -> Result<Option<Lane>, GpuError> {
    const WAITING: &str = "wait for locked memory";
    if let Some(oldest) = lanes.front() {
        let has_left = oldest.left.try_is_complete().map_err(GpuError::driver(WAITING))?;
        if has_left || lanes.len() == LANES {
            let lane = lanes.pop_front().expect("it is there");
            lane.left.synchronize().map_err(GpuError::driver(WAITING))?;
            if lane.memory.len() >= bytes {
                return Ok(Some(lane));
            }
        }
    }
    let bytes = bytes.next_power_of_two().max(LEAST_BYTES);
    // SAFETY: it is written before it is read.
    let Ok(memory) = (unsafe { gpu.context.alloc_pinned_with_flags(bytes, 0) }) else { return Ok(None) };
    let left = gpu.context.new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING));
    Ok(Some(Lane { memory, left: left.map_err(GpuError::driver("make an event"))? }))
}

impl Drop for Lane {
    fn drop(&mut self) {
        // a failure means that nothing will be read any more either
        let _ = self.left.synchronize();
    }
}

impl Gpu {
    /// Sends numbers of the host; `Done` when they are the caller's again.
    pub(super) fn send<T: DeviceRepr>(&self, numbers: &[T], view: &mut CudaViewMut<'_, T>) -> Done {
        self.context.bind_to_thread().map_err(GpuError::driver("use a GPU"))?;
        let to = view.device_ptr_mut(&self.stream).0;
        // SAFETY: the view is as long, which its caller has checked, and of this stream.
        if unsafe { self.staging.send(self, bytes_of(numbers), to) }? {
            return Ok(());
        }
        self.stream.memcpy_htod(numbers, view).map_err(GpuError::driver("copy to the GPU"))
    }
}

/// As they lie in memory.
fn bytes_of<T: DeviceRepr>(numbers: &[T]) -> &[u8] {
    // SAFETY: what goes to a device is plain numbers without gaps that would be read as such: the kernels read it so.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}
