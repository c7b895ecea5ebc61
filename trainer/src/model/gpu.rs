//! What a GPU does not train yet. Whoever asks for it is told before anything is read.

use lorikeet_plan::ModelConfig;

use crate::TrainError;
use crate::lora::{LoraLayout, Site};

/// Attention's tiles are read so many numbers at a time.
const HEAD_MULTIPLE: usize = 8;

/// Whether all operations of an adapter of that model have a form for the device.
pub(crate) fn takes(config: &ModelConfig, layout: &LoraLayout) -> Result<(), TrainError> {
    if !config.head_dim.is_multiple_of(HEAD_MULTIPLE) {
        let reason = format!(
            "its heads are {} wide and are not trained on a GPU yet, expected a multiple of {HEAD_MULTIPLE} or a CPU device",
            config.head_dim
        );
        return Err(TrainError::Config { key: "base", reason });
    }
    if layout.config().dora {
        return Err(refused("lora.dora", "true"));
    }
    let elsewhere = |site: Site| match site {
        Site::Embedding => Some("embed_tokens"),
        Site::Head => Some("lm_head"),
        Site::Block(..) => None,
    };
    match layout.entries().iter().find_map(|entry| elsewhere(entry.site)) {
        Some(module) => Err(refused("lora.target_modules", module)),
        None => Ok(()),
    }
}

/// A setting that trains on the processor only.
pub(crate) fn refused(key: &'static str, value: &str) -> TrainError {
    TrainError::Config { key, reason: format!("{value} is not trained on a GPU yet, expected a CPU device for it") }
}
