//! Whether this program can train on GPUs: the agent, which knows nothing of CUDA, is told by whoever starts it.

use crate::failure::Failure;

/// Said before anything is started that would wait for a GPU.
pub(super) fn there() -> Result<(), Failure> {
    let driver = lorikeet_agent::gpu_readings().filter(|driver| !driver.gpus.is_empty());
    let why = unusable().or_else(|| driver.is_none().then(|| "no GPU answers on this machine".into()));
    why.map_or(Ok(()), |why| Err(Failure::mistake(why).hint("`lorikeet doctor` names what is missing")))
}

/// Why it cannot; `None`: it can.
#[cfg(feature = "cuda")]
pub(super) fn unusable() -> Option<String> {
    let missing = lorikeet_trainer::ops::cuda::survey::missing();
    missing.map(|words| format!("CUDA does not open: {words}"))
}

/// Why it cannot.
#[cfg(not(feature = "cuda"))]
pub(super) fn unusable() -> Option<String> {
    Some("this build has no CUDA support: install one made with `--features cuda`".into())
}
