//! What CUDA there is on this machine, for a person who asks: the driver, its libraries, the GPUs, and what is missing.
//!
//! Nothing here starts a kernel or holds a device longer than the question takes.

use cudarc::driver::sys::cuDriverGetVersion;
use cudarc::driver::{CudaContext, result};

use super::{GpuError, OLDEST};

/// What the libraries that we open need of a driver: CUDA 13.0, which drivers from 580 on speak.
const OLDEST_DRIVER: i32 = 13_000;

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// The CUDA version that the driver speaks, `13.0`; none without a driver.
    pub driver: Option<String>,
    /// Libraries that are not there.
    pub missing: Vec<&'static str>,
    /// What brings them, and a driver that is new enough; empty where nothing is wanted.
    pub remedy: String,
    /// What brings NCCL, where it is missing: jobs on several GPUs alone have use for it.
    pub nccl_missing: Option<String>,
    /// Every GPU that the driver opens.
    pub gpus: Vec<Found>,
    /// Why others cannot be opened: by their number.
    pub faults: Vec<(usize, String)>,
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

/// Which libraries are not there, or too old, and what brings them, in words; none where all are as they should be. Opens no device.
pub fn missing() -> Option<String> {
    let missing = cuda_lazy::missing();
    if missing.is_empty() { version().and_then(outdated) } else { Some(cuda_lazy::in_words(&missing)) }
}

/// Looks.
pub fn survey() -> Survey {
    let (remedy, missing) = (missing().unwrap_or_default(), cuda_lazy::missing());
    let missing = missing.iter().map(|missing| missing.library).collect();
    let driver = version().map(in_words);
    let (mut gpus, mut faults) = (Vec::new(), Vec::new());
    let fault = match count() {
        Ok(count) => {
            for ordinal in 0..count {
                match found(ordinal) {
                    Ok(gpu) => gpus.push(gpu),
                    Err(error) => faults.push((ordinal, error.to_string())),
                }
            }
            None
        }
        Err(error) => Some(error.to_string()),
    };
    let nccl_missing = cuda_lazy::nccl_missing().map(|missing| cuda_lazy::in_words(&[missing]));
    Survey { driver, missing, remedy, nccl_missing, gpus, faults, fault }
}

/// One GPU, and no other is opened for it.
pub fn gpu(ordinal: usize) -> Result<Found, GpuError> {
    let count = count()?;
    if ordinal >= count { Err(GpuError::NoDevice { ordinal, count }) } else { found(ordinal) }
}

/// The CUDA version that the driver speaks: 13000 is 13.0.
fn version() -> Option<i32> {
    let mut version = 0;
    // SAFETY: the number is written during the call, or an error comes back.
    let answer = unsafe { cuDriverGetVersion(&mut version) };
    (answer.result().is_ok() && version > 0).then_some(version)
}

fn in_words(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// What to do about a driver of this version, if it is too old: its GPUs are as healthy as any.
fn outdated(version: i32) -> Option<String> {
    let (found, expected) = (in_words(version), in_words(OLDEST_DRIVER));
    let words = || {
        format!(
            "NVIDIA's driver speaks CUDA {found}, expected {expected} or newer: install NVIDIA's driver, version 580 or newer"
        )
    };
    (version < OLDEST_DRIVER).then(words)
}

fn count() -> Result<usize, GpuError> {
    result::init().map_err(GpuError::driver("start CUDA"))?;
    Ok(CudaContext::device_count().map_err(GpuError::driver("count GPUs"))?.max(0) as usize)
}

fn found(ordinal: usize) -> Result<Found, GpuError> {
    let context = CudaContext::new(ordinal).map_err(GpuError::driver("open a GPU"))?;
    let compute = context.compute_capability().map_err(GpuError::driver("ask for the compute capability"))?;
    let (free, total) = context.mem_get_info().map_err(GpuError::driver("ask for free memory"))?;
    let unusable = (compute < OLDEST).then(|| format!("kernels need {}.{} or newer", OLDEST.0, OLDEST.1));
    let name = context.name().map_err(GpuError::driver("ask for a GPU's name"))?;
    Ok(Found { name, compute, free_bytes: free as u64, memory_bytes: total as u64, unusable })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_before_580_is_told_what_it_speaks_and_what_to_install() {
        let words = outdated(12_080).unwrap();
        assert!(words.contains("speaks CUDA 12.8, expected 13.0") && words.contains("580 or newer"), "{words}");
        assert_eq!([outdated(13_000), outdated(13_010)], [None, None]);
    }
}
