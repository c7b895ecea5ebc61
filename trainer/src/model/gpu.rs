//! What a GPU does not train yet. Whoever asks for it is told before anything is read.

use lorikeet_plan::ModelConfig;

use crate::TrainError;
use crate::config::{BaseDtype, Settings};

/// Attention's tiles, and rows under an adapter, are read so many numbers at a time.
const MULTIPLE: usize = 8;
/// What a block of threads shares holds no wider ones.
const WIDEST_HEAD: usize = 256;

/// Whether that is asked for which it does.
pub(crate) fn takes_settings(settings: &Settings) -> Result<(), TrainError> {
    match settings.base_dtype {
        BaseDtype::F32 => Err(refused("training.base_dtype", "f32")),
        BaseDtype::Bf16 | BaseDtype::Int8 | BaseDtype::Nf4 => Ok(()),
    }
}

/// Whether all operations of that model have a form for the device.
pub(crate) fn takes_model(config: &ModelConfig) -> Result<(), TrainError> {
    let width = config.head_dim;
    let mut rows = [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)].into_iter();
    let reason = if !width.is_multiple_of(MULTIPLE) || width > WIDEST_HEAD {
        format!(
            "its heads are {width} wide and are not trained on a GPU yet, expected a multiple of {MULTIPLE} up to {WIDEST_HEAD}"
        )
    } else if let Some((key, found)) = rows.find(|(_, numbers)| !numbers.is_multiple_of(MULTIPLE)) {
        format!("its {key} is {found}, which is not trained on a GPU yet, expected a multiple of {MULTIPLE}")
    } else {
        return Ok(());
    };
    Err(TrainError::Config { key: "base", reason: format!("{reason}, or a CPU device") })
}

/// A setting that trains on the processor only.
fn refused(key: &'static str, value: &str) -> TrainError {
    TrainError::Config { key, reason: format!("{value} is not trained on a GPU yet, expected a CPU device for it") }
}
