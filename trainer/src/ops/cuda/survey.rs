//! What CUDA there is on this machine, for a person who asks: the driver, its libraries, the GPUs, and what is missing.
//!
//! Nothing here starts a kernel or holds a device longer than the question takes.

use cudarc::driver::sys::cuDriverGetVersion;
use cudarc::driver::{CudaContext, result};

use super::{GpuError, OLDEST};

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// The CUDA version that the driver speaks, `13.0`; none without a driver.
    pub driver: Option<String>,
    /// Libraries that are not there.
    pub missing: Vec<&'static str>,
    /// What brings them; empty where nothing is missing.
    pub remedy: String,
    /// What brings NCCL, where it is missing: jobs on several GPUs alone have use for it.
    pub nccl_missing: Option<String>,
    /// Every GPU that the driver shows.
    pub gpus: Vec<Found>,
    /// Why the driver shows none.
    pub fault: Option<String>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// As the driver calls it.
    pub name: String,
    /// Its compute capability.
    pub compute: (i32, i32),
    /// In bytes.
    pub free_bytes: u64,
    /// In bytes.
    pub memory_bytes: u64,
    /// Why it cannot be trained on.
    pub unusable: Option<String>,
}

/// Which libraries are not there and what brings them, in words; none where all are. Opens no device.
pub fn missing() -> Option<String> {
    let missing = cuda_lazy::missing();
    (!missing.is_empty()).then(|| cuda_lazy::in_words(&missing))
}

/// Looks.
pub fn survey() -> Survey {
    let missing = cuda_lazy::missing();
    let remedy = cuda_lazy::in_words(&missing);
    let missing = missing.iter().map(|missing| missing.library).collect();
    let (gpus, fault) = match gpus() {
        Ok(gpus) => (gpus, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let nccl_missing = cuda_lazy::nccl_missing().map(|missing| cuda_lazy::in_words(&[missing]));
    Survey { driver: driver(), missing, remedy, nccl_missing, gpus, fault }
}

fn driver() -> Option<String> {
    let mut version = 0;
    // SAFETY: the number is written during the call, or an error comes back.
    let answer = unsafe { cuDriverGetVersion(&mut version) };
    (answer.result().is_ok() && version > 0).then(|| format!("{}.{}", version / 1000, version % 1000 / 10))
}

fn gpus() -> Result<Vec<Found>, GpuError> {
    result::init().map_err(GpuError::driver("start CUDA"))?;
    let count = CudaContext::device_count().map_err(GpuError::driver("count GPUs"))?.max(0) as usize;
    (0..count).map(found).collect()
}

fn found(ordinal: usize) -> Result<Found, GpuError> {
    let context = CudaContext::new(ordinal).map_err(GpuError::driver("open a GPU"))?;
    let compute = context.compute_capability().map_err(GpuError::driver("ask for the compute capability"))?;
    let (free, total) = context.mem_get_info().map_err(GpuError::driver("ask for free memory"))?;
    let unusable = (compute < OLDEST).then(|| format!("kernels need {}.{} or newer", OLDEST.0, OLDEST.1));
    let name = context.name().map_err(GpuError::driver("ask for a GPU's name"))?;
    Ok(Found { name, compute, free_bytes: free as u64, memory_bytes: total as u64, unusable })
}
