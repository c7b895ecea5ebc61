//! The CUDA form of every operation, one per file: bf16 numbers in memory, `f32` arithmetic, `f32` adapters and moments.
//!
//! [`Gpu`] is one device as one run uses it: one context, one stream, cuBLASLt and cuBLAS on that stream, and the kernels of
//! `trainer/kernels`, compiled for this very device when it is opened (`compile.rs`; docs/design/0011 says why then). Work is put
//! on the stream and nobody waits for it; the host waits where it reads a result, which inside a step nobody does.
//!
//! Traps that this file keeps out of everybody's way: cudarc makes two events per buffer unless event tracking is off, and it
//! is off, since with one stream there is no order to keep; the driver's pool gives memory back at every synchronisation
//! unless its threshold is raised, and then may refuse what it has, but in pieces ([`Gpu::take`]).
//!
//! Several threads may share a `Gpu`: each one's work is on the stream in the order in which it came, and a buffer that goes from one to
//! another has the order of its borrows.
//!
//! Views are checked against shapes with assertions before a kernel starts: a wrong length is our own bug, never a user's.

pub mod adamw;
pub mod attention;
pub mod bench;
mod compile;
pub mod decode;
pub mod dora;
pub mod dropout;
pub mod glu;
pub mod head;
pub mod linear;
pub mod lookup;
pub mod lora;
pub mod matmul;
pub mod nccl;
pub mod norm;
pub mod quant;
pub mod rope;
pub mod rows;
mod staging;
mod sums;
pub mod survey;
pub mod timeline;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use cudarc::cublas::CudaBlas;
use cudarc::cublas::result::CublasError;
use cudarc::cublas::sys::{cublasMath_t, cublasSetMathMode, cublasStatus_t};
use cudarc::cublaslt;
use cudarc::driver::sys::{CUdevice_attribute, CUmemPool_attribute, CUmemoryPool, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr,
    DriverError, LaunchConfig, ValidAsZeroBits, result,
};

pub use self::compile::every_kernel;
use self::timeline::{Timeline, Work};

/// The oldest card that the kernels are written for: bf16 arithmetic came with compute capability 8.0 (Ampere).
pub const OLDEST: (i32, i32) = (8, 0);

/// Without so much, in bytes, there is no use in opening a GPU: cuBLAS, cuBLASLt with its room, and the kernels have to go there.
const LEAST_FREE: u64 = 256 << 20;

/// Of the pool: the most that was in use at once.
const MOST_USED: CUmemPool_attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;

/// What can go wrong between us and a GPU.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// NVIDIA's libraries are not there, or its driver is too old for them.
    #[error("open CUDA: {0}")]
    Missing(String),
    /// No such device.
    #[error("open GPU {ordinal}: there are {count}")]
    NoDevice {
        /// Which was wanted.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// It has no bf16 arithmetic.
    #[error("use {name}: its compute capability is {}.{}, the kernels need {}.{}", compute.0, compute.1, OLDEST.0, OLDEST.1)]
    TooOld {
        /// The card.
        name: String,
        /// What it is.
        compute: (i32, i32),
    },
    /// The device has no memory for a buffer.
    #[error("take {bytes} bytes of GPU memory: there are {free} free")]
    OutOfMemory {
        /// Wanted.
        bytes: u64,
        /// What the driver says is free.
        free: u64,
    },
    /// A kernel does not compile.
    #[error("compile {file} for {architecture}:\n{log}")]
    Compile {
        /// Its file in `trainer/kernels`.
        file: &'static str,
        /// For which processor.
        architecture: String,
        /// What the compiler says.
        log: String,
    },
    /// The driver refused.
    #[error("{doing}: the CUDA driver says {code:?}")]
    Driver {
        /// What was tried.
        doing: &'static str,
        /// Its answer.
        code: CUresult,
    },
    /// cuBLAS refused.
    #[error("{doing}: cuBLAS says {source:?}")]
    Blas {
        /// What was tried.
        doing: &'static str,
        /// Its answer.
        source: CublasError,
    },
    /// cuBLASLt refused.
    #[error("{doing}: cuBLASLt says {source:?}")]
    BlasLt {
        /// What was tried.
        doing: &'static str,
        /// Its answer.
        source: cublaslt::result::CublasError,
    },
    /// NVIDIA's library for several GPUs is not there.
    #[error("NCCL is missing ({0})")]
    NoNccl(String),
    /// NCCL refused.
    #[error("{doing}: NCCL says {said}")]
    Nccl {
        /// What was tried.
        doing: &'static str,
        /// Its answer.
        said: String,
    },
}

impl GpuError {
    /// Whether all that is wrong is too little memory, whoever of the driver and NVIDIA's libraries says so.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            GpuError::OutOfMemory { .. } => true,
            GpuError::Driver { code, .. } => *code == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            GpuError::Blas { source, .. } => source.0 == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED,
            GpuError::BlasLt { source, .. } => source.0 == cublaslt::sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED,
            GpuError::Missing(_)
            | GpuError::NoDevice { .. }
            | GpuError::TooOld { .. }
            | GpuError::Compile { .. }
            | GpuError::NoNccl(_)
            | GpuError::Nccl { .. } => false,
        }
    }

    /// How much was wanted; 0 where nobody says.
    pub fn wanted_bytes(&self) -> u64 {
        if let GpuError::OutOfMemory { bytes, .. } = self { *bytes } else { 0 }
    }

    fn driver(doing: &'static str) -> impl FnOnce(DriverError) -> GpuError {
        move |DriverError(code)| GpuError::Driver { doing, code }
    }
}

/// What every operation answers.
pub type Done = Result<(), GpuError>;

/// One device as one run uses it.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    blas_lt: matmul::BlasLt,
    compute: (i32, i32),
    functions: BTreeMap<&'static str, CudaFunction>,
    /// Attention is compiled once for every width of a head.
    attention: Mutex<BTreeMap<usize, Arc<attention::Kernels>>>,
    /// Tables of rotations that the last passes turned by.
    turns: Mutex<Vec<Arc<rope::OnDevice>>>,
    /// By which numbers of the host leave.
    staging: staging::Staging,
    /// Where steps' ends arrive, at rest: page-locked memory is slow to have, and no more of it is ever made than is used at once.
    places: Mutex<Vec<adamw::Place>>,
    timeline: timeline::Timeline,
}

/// What has passed between this process and its GPUs, for whoever shows that little does.
#[derive(Debug)]
pub struct Traffic {
    there: AtomicU64,
    back: AtomicU64,
    waits: AtomicU64,
}

/// Since the process began.
pub static TRAFFIC: Traffic = Traffic { there: AtomicU64::new(0), back: AtomicU64::new(0), waits: AtomicU64::new(0) };

impl Traffic {
    // sums for people and tests: no other memory depends on them
    fn went(&self, bytes: usize) {
        self.there.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn came(&self, bytes: usize) {
        self.back.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that went to the device.
    pub fn there(&self) -> u64 {
        self.there.load(Ordering::Relaxed)
    }

    /// Bytes that came back.
    pub fn back(&self) -> u64 {
        self.back.load(Ordering::Relaxed)
    }

    /// How often the host waited until the stream was empty.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }
}

impl Gpu {
    /// Opens a device and compiles every kernel for it, which takes a second or two.
    pub fn open(ordinal: usize) -> Result<Gpu, GpuError> {
        if let Some(words) = survey::missing() {
            return Err(GpuError::Missing(words));
        }
        let count = CudaContext::device_count().map_err(GpuError::driver("count GPUs"))?.max(0) as usize;
        if ordinal >= count {
            return Err(GpuError::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(GpuError::driver("open a GPU"))?;
        let compute = context.compute_capability().map_err(GpuError::driver("ask for the compute capability"))?;
        if compute < OLDEST {
            return Err(GpuError::TooOld { name: context.name().unwrap_or_default(), compute });
        }
        let (free, _) = context.mem_get_info().map_err(GpuError::driver("ask for free memory"))?;
        if (free as u64) < LEAST_FREE {
            // NVIDIA's libraries would say that they cannot be initialised, which sounds like a broken GPU
            return Err(GpuError::OutOfMemory { bytes: LEAST_FREE, free: free as u64 });
        }
        // SAFETY: there is one stream, so nothing needs the events that order several.
        unsafe { context.disable_event_tracking() };
        keep_memory(&context)?;
        let stream = context.new_stream().map_err(GpuError::driver("make a stream"))?;
        let blas = start_cublas(&stream).map_err(|source| GpuError::Blas { doing: "start cuBLAS", source })?;
        // SAFETY: nobody reads it but who wrote it.
        let workspace = unsafe { stream.alloc::<u8>(matmul::WORKSPACE_BYTES) };
        let blas_lt = matmul::BlasLt::new(workspace.map_err(GpuError::driver("take memory for cuBLASLt"))?)
            .map_err(|source| GpuError::BlasLt { doing: "start cuBLASLt", source })?;
        let functions = compile::all(&context, compute)?;
        let (attention, turns, places) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (staging, timeline) = (staging::Staging::default(), Timeline::default());
        Ok(Gpu { context, stream, blas, blas_lt, compute, functions, attention, turns, staging, places, timeline })
    }

    /// As the driver calls it.
    pub fn name(&self) -> String {
        self.context.name().unwrap_or_else(|_| "a GPU".into())
    }

    /// Its compute capability.
    pub fn compute(&self) -> (i32, i32) {
        self.compute
    }

    /// Free and total memory, in bytes.
    pub fn memory(&self) -> Result<(u64, u64), GpuError> {
        let (free, total) = self.context.mem_get_info().map_err(GpuError::driver("ask for free memory"))?;
        Ok((free as u64, total as u64))
    }

    /// The most bytes that were taken at once.
    pub fn most_in_use(&self) -> Result<u64, GpuError> {
        self.of_pool(MOST_USED)
    }

    /// Bytes that a run on this device may hold: those it has taken, and those that nobody has.
    pub fn available(&self) -> Result<u64, GpuError> {
        let reserved = CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
        // a driver without pools has nothing at rest
        Ok(self.memory()?.0 + self.of_pool(reserved).unwrap_or_default())
    }

    fn of_pool(&self, attribute: CUmemPool_attribute) -> Result<u64, GpuError> {
        let mut bytes = 0u64;
        // SAFETY: the pool is the device's own; each attribute that is asked for is a 64-bit number that is written during the call.
        unsafe { result::mem_pool::get_attribute(self.pool()?, attribute, (&raw mut bytes).cast()) }
            .map_err(GpuError::driver("ask for used memory"))?;
        Ok(bytes)
    }

    /// Begins to count that anew.
    pub fn forget_use(&self) -> Done {
        let mut none = 0u64;
        // SAFETY: as above; the number is read during the call.
        unsafe { result::mem_pool::set_attribute(self.pool()?, MOST_USED, (&raw mut none).cast()) }
            .map_err(GpuError::driver("count used memory anew"))
    }

    fn pool(&self) -> Result<CUmemoryPool, GpuError> {
        // SAFETY: the device is that of an open context.
        unsafe { result::device::get_default_mem_pool(self.context.cu_device()) }
            .map_err(GpuError::driver("find the memory pool"))
    }

    /// The one stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Waits until everything so far is done.
    pub fn wait(&self) -> Done {
        TRAFFIC.waits.fetch_add(1, Ordering::Relaxed);
        self.stream.synchronize().map_err(GpuError::driver("wait for the GPU"))
    }

    /// A buffer with unspecified contents.
    pub fn take<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>, GpuError> {
        // a buffer of nothing has no address
        let len = len.max(1);
        // SAFETY: what is in it is written before it is read; the parity cases fill it with NaN to see that.
        let alloc = || unsafe { self.stream.alloc(len) };
        match alloc() {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) if self.gathers_memory()? => alloc(),
            taken => taken,
        }
        .map_err(|error| self.no_memory(len * size_of::<T>(), error))
    }

    /// Whether there may be more memory than was said: what was given back may lie in the pool in pieces that are too small, or be in use until
    /// the stream has come so far. It is given to the system, out of which memory of any size is made; a driver without pools has none.
    fn gathers_memory(&self) -> Result<bool, GpuError> {
        self.wait()?;
        // SAFETY: the pool is the device's own.
        Ok(self.pool().is_ok_and(|pool| unsafe { result::mem_pool::trim_to(pool, 0) }.is_ok()))
    }

    /// A buffer of zeros.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>, GpuError> {
        let mut buffer = self.take(len)?;
        self.clear(&mut buffer.as_view_mut())?;
        Ok(buffer)
    }

    /// Fills a buffer with zeros.
    pub fn clear<T: DeviceRepr + ValidAsZeroBits>(&self, view: &mut CudaViewMut<'_, T>) -> Done {
        self.timed(Work::Named("fill with zeros"), || {
            self.stream.memset_zeros(view).map_err(GpuError::driver("fill a buffer"))
        })
    }

    /// A buffer every bit of which is set: NaN in every format. For tests, so that what was not written shows.
    pub fn poisoned<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>, GpuError> {
        let mut buffer = self.take(len)?;
        let bytes = buffer.num_bytes();
        let (address, _order) = buffer.device_ptr_mut(&self.stream);
        // SAFETY: the buffer is ours and as long as that.
        unsafe { result::memset_d8_async(address, 0xff, bytes, self.stream.cu_stream()) }
            .map_err(GpuError::driver("poison a buffer"))?;
        drop(_order);
        Ok(buffer)
    }

    /// The numbers, on the device.
    pub fn upload<T: DeviceRepr>(&self, numbers: &[T]) -> Result<CudaSlice<T>, GpuError> {
        let mut buffer = self.take(numbers.len())?;
        if !numbers.is_empty() {
            self.replace(&mut buffer.as_view_mut(), numbers)?;
        }
        Ok(buffer)
    }

    /// Puts numbers of the host in the place of those that are there.
    pub fn replace<T: DeviceRepr>(&self, view: &mut CudaViewMut<'_, T>, numbers: &[T]) -> Done {
        assert_eq!(view.len(), numbers.len(), "one number for each");
        TRAFFIC.went(size_of_val(numbers));
        self.timed(Work::Named("copy to the GPU"), || self.send(numbers, view))
    }

    /// The numbers, on the host; waits for them.
    pub fn download<T: DeviceRepr + Default + Clone>(&self, view: &CudaView<'_, T>) -> Result<Vec<T>, GpuError> {
        let mut numbers = vec![T::default(); view.len()];
        TRAFFIC.came(size_of_val(&numbers[..]));
        self.timed(Work::Named("copy from the GPU"), || {
            self.stream.memcpy_dtoh(view, &mut numbers).map_err(GpuError::driver("copy from the GPU"))
        })?;
        self.wait()?;
        Ok(numbers)
    }

    /// Copies on the device.
    pub fn copy<T>(&self, from: &CudaView<'_, T>, to: &mut CudaViewMut<'_, T>) -> Done {
        assert_eq!(from.len(), to.len(), "a copy has the length of what is copied");
        self.timed(Work::Named("copy on the GPU"), || {
            self.stream.memcpy_dtod(from, to).map_err(GpuError::driver("copy on the GPU"))
        })
    }

    /// Memory of the host that a copy may reach while nobody waits for it.
    fn place(&self) -> Result<adamw::Place, GpuError> {
        if let Some(place) = self.lock_places().pop() {
            return Ok(place);
        }
        // SAFETY: what is in it is written by the copy that it is taken for, and read after that.
        unsafe { self.context.alloc_pinned_with_flags(1, 0) }.map_err(GpuError::driver("lock a page of memory"))
    }

    fn keep_place(&self, place: adamw::Place) {
        self.lock_places().push(place);
    }

    fn lock_places(&self) -> MutexGuard<'_, Vec<adamw::Place>> {
        self.places.lock().expect("no code that holds the lock can panic")
    }

    fn no_memory(&self, bytes: usize, DriverError(code): DriverError) -> GpuError {
        if code != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return GpuError::Driver { doing: "take GPU memory", code };
        }
        let free = self.memory().map_or(0, |(free, _)| free);
        GpuError::OutOfMemory { bytes: bytes as u64, free }
    }

    fn function(&self, name: &str) -> &CudaFunction {
        self.functions.get(name).unwrap_or_else(|| panic!("{name} stands in the list of kernels"))
    }

    /// Where a view lies, or null for none: kernels take both.
    fn address<T>(&self, view: Option<&CudaView<'_, T>>) -> u64 {
        view.map_or(0, |view| view.device_ptr(&self.stream).0)
    }
}

/// With sums in `f32` to the end.
fn start_cublas(stream: &Arc<CudaStream>) -> Result<CudaBlas, CublasError> {
    let blas = CudaBlas::new(Arc::clone(stream))?;
    let mode = cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // SAFETY: the handle is open.
    unsafe { cublasSetMathMode(*blas.handle(), mode) }.result()?;
    Ok(blas)
}

/// What is given back stays with us: the default gives it to the system whenever the host waits.
fn keep_memory(context: &CudaContext) -> Done {
    let pools = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
    if context.attribute(pools).map_err(GpuError::driver("ask for memory pools"))? == 0 {
        return Ok(());
    }
    let mut all = u64::MAX;
    // SAFETY: the pool is the device's own; the attribute is a 64-bit number that is read during the call.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())
            .map_err(GpuError::driver("find the memory pool"))?;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut all).cast())
            .map_err(GpuError::driver("keep the memory pool"))
    }
}

/// Threads of a block in kernels that give a block to a row, or a thread to a number.
const THREADS: u32 = 256;

/// Rows are read and written so many numbers at a time; a width is a multiple of it (`model/gpu.rs`).
const EIGHT: usize = 8;

/// One block for every row, with a thread for each eight of a short one.
fn per_row(rows: usize, width: usize) -> LaunchConfig {
    assert_eq!(width % EIGHT, 0, "whole eights a row");
    shape(rows, number((width / EIGHT).next_multiple_of(32)).min(THREADS))
}

/// So many eights, as kernels count them.
fn eights(count: usize) -> u32 {
    assert_eq!(count % EIGHT, 0, "whole eights");
    number(count / EIGHT)
}

/// Several times what the largest card has at work at once.
const MOST_BLOCKS: usize = 1 << 14;

/// Every number, or eight of them, is some thread's, which takes several where there are very many.
fn per_number(count: usize) -> LaunchConfig {
    shape(count.div_ceil(THREADS as usize).min(MOST_BLOCKS), THREADS)
}

/// One warp for each of `count`.
fn per_warp(count: usize) -> LaunchConfig {
    shape(count.div_ceil(THREADS as usize / 32), THREADS)
}

fn shape(blocks: usize, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (number(blocks), 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// As kernels count.
fn number(n: usize) -> u32 {
    u32::try_from(n).expect("shapes of a pass stay below 2^32")
}

/// Starts a kernel by name. An empty grid is no work, and for the driver an error, so it is not started.
macro_rules! launch {
    ($gpu:expr, $name:literal, $shape:expr, $($argument:expr),+ $(,)?) => {
        $crate::ops::cuda::launch!($gpu, $gpu.function($name), $name, $shape, $($argument),+)
    };
    ($gpu:expr, $function:expr, $name:literal, $shape:expr, $($argument:expr),+ $(,)?) => {{
        use cudarc::driver::PushKernelArg as _;
        let shape: cudarc::driver::LaunchConfig = $shape;
        if shape.grid_dim.0 == 0 || shape.grid_dim.1 == 0 {
            Ok(())
        } else {
            $gpu.timed($crate::ops::cuda::timeline::Work::Named($name), || {
                // SAFETY: the caller has checked the length of every view against the shape; types and order of the
                // arguments are those of the kernel, which the parity cases run.
                unsafe { $gpu.stream.launch_builder($function)$(.arg($argument))+.launch(shape) }
                    .map(drop)
                    .map_err($crate::ops::cuda::GpuError::driver(concat!("start ", $name)))
            })
        }
    }};
}
use launch;
