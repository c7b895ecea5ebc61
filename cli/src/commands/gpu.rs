//! Whether this program can train on GPUs: the agent, which knows nothing of CUDA, is told by whoever starts it.

use crate::failure::Failure;

/// Said before anything is started that would wait for a GPU or fail for lack of one.
pub(super) fn there() -> Result<(), Failure> {
    let why = unusable().or_else(unfit);
    why.map_or(Ok(()), |why| Err(Failure::mistake(why).hint("`lorikeet doctor` names what is missing")))
}

/// Why the first GPU, which is the one that is taken, will not do.
#[cfg(feature = "cuda")]
fn unfit() -> Option<String> {
    match lorikeet_trainer::ops::cuda::survey::gpu(0) {
        Ok(gpu) => gpu.unusable.map(|why| format!("{} cannot be trained on: {why}", gpu.name)),
        Err(error) => Some(format!("the first GPU of this machine cannot be used: could not {error}")),
    }
}

/// Without CUDA there is none to look at.
#[cfg(not(feature = "cuda"))]
fn unfit() -> Option<String> {
    None
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
