//! Sums of numbers that lie on several GPUs, one for each rank, by NCCL: one rank's end of that.
//!
//! ```text
//! open ─► opening ─► proving: ones are summed ─► open ─┬─► sum ─► under way ─┐
//!                                                      └───────── done ◄─────┘
//! ```
//! Nobody waits in here, for who waits in a driver hears neither that it shall stop nor that another rank is gone: NCCL is opened as one
//! that answers at once, and [`Communicator::look`] moves on and says whether all is done. Dropped, whatever it was at is broken off: then
//! what was to be summed is no number any more, and everything else on the device is as it was.
//!
//! Sums of as many ranks have the same bits only where NCCL takes the same way each time. It reads that from the environment, which whoever
//! starts the process sets (the agent's `supervisor/spawn.rs`).

use std::ffi::{CStr, c_int};
use std::mem::{self, MaybeUninit, offset_of};
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaSlice, CudaViewMut, DevicePtrMut};
use cudarc::nccl::sys::{
    self, ncclComm_t, ncclCommAbort, ncclCommGetAsyncError, ncclCommInitRankConfig, ncclConfig_t, ncclDataType_t,
    ncclGetErrorString, ncclGetLastError, ncclGetUniqueId, ncclGroupEnd, ncclGroupStart, ncclRedOp_t, ncclResult_t,
    ncclUniqueId,
};

use super::{Done, Gpu, GpuError};
use crate::ops::parity::{Fresh, Verdict};

/// Where the ranks of a run find each other.
pub type Id = [u8; 128];

/// A setting that NCCL shall choose itself.
const UNDEFINED: c_int = c_int::MIN;

/// How long one rank alone may take for anything.
const LONGEST: Duration = Duration::from_secs(60);

/// One rank's end.
#[derive(Debug)]
pub struct Communicator {
    gpu: Arc<Gpu>,
    comm: ncclComm_t,
    ranks: usize,
    stage: Stage,
    /// Behind what it was asked for last, once that is on the stream.
    end: Option<CudaEvent>,
}

#[derive(Debug)]
enum Stage {
    /// Ranks look for each other.
    Opening,
    /// A one of every rank is summed.
    Proving(CudaSlice<f64>),
    /// Sums can be made.
    Open,
}

// SAFETY: NCCL takes calls on one communicator from any thread, one at a time; all of them want `&mut self`.
unsafe impl Send for Communicator {}

/// Whether NCCL is there; else what brings it.
pub fn there() -> Done {
    match cuda_lazy::nccl_missing() {
        Some(missing) => Err(GpuError::NoNccl(format!("{} comes {}", missing.library, missing.remedy))),
        None => Ok(()),
    }
}

/// A new place to meet at; this process listens there.
pub fn meeting() -> Result<Id, GpuError> {
    there()?;
    let mut id = MaybeUninit::<ncclUniqueId>::uninit();
    // SAFETY: it is written during the call, or an error comes back.
    let id = unsafe {
        answered("make a place for ranks to meet", ptr::null_mut(), ncclGetUniqueId(id.as_mut_ptr()))?;
        id.assume_init()
    };
    Ok(id.internal.map(i8::cast_unsigned))
}

impl Communicator {
    /// Begins to open it.
    pub fn open(gpu: &Arc<Gpu>, (rank, ranks): (usize, usize), id: Id) -> Result<Communicator, GpuError> {
        there()?;
        bind(gpu)?;
        let id = ncclUniqueId { internal: id.map(u8::cast_signed) };
        let (mut config, mut comm) = (config(), ptr::null_mut());
        // SAFETY: what is written, the handle, is written during the call, and the config read.
        let answer = unsafe { ncclCommInitRankConfig(&mut comm, count(ranks), id, count(rank), &mut config) };
        // made before the answer is looked at: a handle that there is has to be given back in any case
        let opening = Communicator { gpu: Arc::clone(gpu), comm, ranks, stage: Stage::Opening, end: None };
        answered("open NCCL", comm, answer)?;
        Ok(opening)
    }

    /// Whether all that it was asked for is done. It goes on only when somebody looks.
    pub fn look(&mut self) -> Result<bool, GpuError> {
        bind(&self.gpu)?;
        if !self.is_over()? {
            return Ok(false);
        }
        match mem::replace(&mut self.stage, Stage::Open) {
            Stage::Open => return Ok(true),
            // Connections are made, and memory for them is taken, with the first sum. A machine whose GPUs cannot reach each other
            // shows it there as well, so that nobody finds out in a step.
            Stage::Opening => {
                let mut ones = self.gpu.upload(&[1.0])?;
                self.put_on_stream(&mut [], &mut ones.as_view_mut())?;
                self.stage = Stage::Proving(ones);
            }
            Stage::Proving(ones) => {
                let sum = self.gpu.download(&ones.as_view())?[0];
                if sum != self.ranks as f64 {
                    return Err(refused("sum a one of every rank", format!("{sum}, and they are {}", self.ranks)));
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Begins to put the sums of all ranks in the place of these numbers, of which every rank has as many. They stay borrowed in truth
    /// until it is done or broken off.
    ///
    /// One call for each buffer, however long: NCCL cuts them itself, into pieces that are on their way while others are added, and pieces of
    /// ours would only be shorter than it likes them.
    pub fn sum(&mut self, grads: &mut [CudaViewMut<'_, f32>], losses: &mut CudaViewMut<'_, f64>) -> Done {
        assert!(matches!(self.stage, Stage::Open), "sums come when it is open");
        bind(&self.gpu)?;
        self.put_on_stream(grads, losses)
    }

    /// Looks until all is done; for whoever has nothing else to look at.
    fn finish(&mut self) -> Done {
        let since = Instant::now();
        while !self.look()? {
            if since.elapsed() > LONGEST {
                return Err(refused("wait for it", format!("nothing for {} seconds", LONGEST.as_secs())));
            }
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// All in one group: between two calls one would have to look.
    fn put_on_stream(&mut self, grads: &mut [CudaViewMut<'_, f32>], losses: &mut CudaViewMut<'_, f64>) -> Done {
        const SUMMING: &str = "sum over ranks";
        self.end = None;
        let stream = self.gpu.stream();
        let mut parts: Vec<_> = grads
            .iter_mut()
            .map(|grads| (grads.len(), grads.device_ptr_mut(stream).0, ncclDataType_t::ncclFloat32))
            .collect();
        parts.push((losses.len(), losses.device_ptr_mut(stream).0, ncclDataType_t::ncclFloat64));
        // SAFETY: the addresses are those of buffers of that many numbers on this device, which live until it is over (`sum`).
        unsafe {
            answered(SUMMING, self.comm, ncclGroupStart())?;
            let summed = parts.into_iter().try_for_each(|(len, at, kind)| {
                let (at, stream) = (at as *mut _, stream.cu_stream().cast());
                let answer = sys::ncclAllReduce(at, at, len, kind, ncclRedOp_t::ncclSum, self.comm, stream);
                answered(SUMMING, self.comm, answer)
            });
            // a group that was begun is ended, whatever became of it
            let ended = answered(SUMMING, self.comm, ncclGroupEnd());
            summed.and(ended)
        }
    }

    /// Whether what was asked for is off the stream. Until NCCL is done with asking it is not even on it, and an event would come
    /// before it.
    fn is_over(&mut self) -> Result<bool, GpuError> {
        let mut state = ncclResult_t::ncclSuccess;
        // SAFETY: the handle is open; the number is written during the call.
        let answer = unsafe { ncclCommGetAsyncError(self.comm, &mut state) };
        answered("ask NCCL how it is", self.comm, answer)?;
        answered("sum over ranks", self.comm, state)?;
        if state == ncclResult_t::ncclInProgress {
            return Ok(false);
        }
        if self.end.is_none() {
            let end = self.gpu.stream().record_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING));
            self.end = Some(end.map_err(GpuError::driver("mark the end of a sum"))?);
        }
        let end = self.end.as_ref().expect("set above");
        end.try_is_complete().map_err(GpuError::driver("ask whether a sum is done"))
    }
}

impl Drop for Communicator {
    /// Also where all went well: an orderly end waits for the other ranks, and nobody has any use for it.
    fn drop(&mut self) {
        if !self.comm.is_null() && bind(&self.gpu).is_ok() {
            // SAFETY: the handle is open, and nobody uses it behind this. That it does not close is nobody's concern either.
            let _ = unsafe { ncclCommAbort(self.comm) };
        }
    }
}

/// How NCCL does with nobody but this rank, where sums are what they are of: all that a machine with one GPU can show of it.
pub fn alone(gpu: &Arc<Gpu>, seed: u64) -> Result<Verdict, GpuError> {
    let mut communicator = Communicator::open(gpu, (0, 1), meeting()?)?;
    communicator.finish()?;
    let mut fresh = Fresh::new(seed);
    // more than NCCL takes in one piece, and a rest
    let (grads, losses) = (fresh.numbers((1 << 20) + 77, 3.0), fresh.numbers(3, 100.0));
    let losses: Vec<f64> = losses.into_iter().map(f64::from).collect();
    let (mut there, mut losses_there) = (gpu.upload(&grads)?, gpu.upload(&losses)?);
    let mut sum = || -> Result<(Vec<f32>, Vec<f64>), GpuError> {
        communicator.sum(&mut [there.as_view_mut()], &mut losses_there.as_view_mut())?;
        communicator.finish()?;
        Ok((gpu.download(&there.as_view())?, gpu.download(&losses_there.as_view())?))
    };
    let (first, second) = (sum()?, sum()?);
    let is_same = first.0 == grads && first.1 == losses;
    let error = if is_same { 0.0 } else { f64::INFINITY };
    Ok(Verdict { output: "sums", error, tolerance: 0.0, identical: first == second })
}

/// NCCL works on the device that its thread looks at.
fn bind(gpu: &Gpu) -> Done {
    gpu.context.bind_to_thread().map_err(GpuError::driver("choose a GPU"))
}

/// As NCCL 2.18 knew it, and whatever is newer takes: the length says where its knowledge ends.
fn config() -> ncclConfig_t {
    ncclConfig_t {
        size: offset_of!(ncclConfig_t, trafficClass),
        magic: 0xcafe_beef,
        version: 21800,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
        graphUsageMode: UNDEFINED,
        numRmaCtx: UNDEFINED,
        maxP2pPeers: UNDEFINED,
    }
}

/// An answer that is no error; it may be one that more is to come.
fn answered(doing: &'static str, comm: ncclComm_t, answer: ncclResult_t) -> Done {
    if matches!(answer, ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress) {
        return Ok(());
    }
    // SAFETY: both are texts of NCCL's own that stay, the second may be none.
    let words = unsafe { [ncclGetErrorString(answer), ncclGetLastError(comm)] }.map(|text| {
        if text.is_null() {
            return String::new();
        }
        // SAFETY: as above.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
    });
    let said: Vec<String> = words.into_iter().filter(|words| !words.is_empty()).collect();
    Err(refused(doing, said.join(", ")))
}

fn refused(doing: &'static str, said: String) -> GpuError {
    GpuError::Nccl { doing, said }
}

fn count(n: usize) -> c_int {
    c_int::try_from(n).expect("far fewer ranks")
}
