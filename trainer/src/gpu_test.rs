//! The test of a GPU before anything is trained on it: every kernel beside its plain form.

/// Whether the GPU at that place among those that this process sees computes as it should, and what differs if it does not. `None`: this
/// build has no kernels.
#[cfg(not(feature = "cuda"))]
pub fn test_gpu(_: usize) -> Option<Result<(), String>> {
    None
}

/// Whether the GPU at that place among those that this process sees computes as it should, and what differs if it does not.
#[cfg(feature = "cuda")]
pub fn test_gpu(ordinal: usize) -> Option<Result<(), String>> {
    use std::sync::Arc;

    use crate::ops::cuda::Gpu;
    use crate::ops::parity::{self, gpu::OnGpu};

    /// Any will do; the same inputs let a fault be looked at twice.
    const SEED: u64 = 7;
    let test = || {
        let gpu = Arc::new(Gpu::open(ordinal).map_err(|error| error.to_string())?);
        for case in parity::cases() {
            let verdict = parity::judge(&case, &OnGpu(&gpu), SEED).map_err(|error| error.to_string())?;
            if !verdict.holds() {
                let (error, tolerance) = (verdict.error, verdict.tolerance);
                let bits = if verdict.identical { "" } else { ", and a second run gives other bits" };
                return Err(format!(
                    "{}: {} is {error:.1e} off, {tolerance:.1e} is allowed{bits}",
                    case.name, verdict.output
                ));
            }
        }
        Ok(())
    };
    Some(test())
}
