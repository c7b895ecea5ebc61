//! Qwen2 and Qwen2.5 (q, k and v have a bias), Qwen3 (queries and keys are normed). Both may have a window in the upper
//! layers, which counts only where `use_sliding_window` is set.

use super::{Defaults, activation, one_rope, plain, windows};
use crate::config::keys::Keys;
use crate::{Activation, Biases, Family, ModelConfig, PlanError};

pub(super) fn read_2(keys: &Keys<'_>) -> Result<ModelConfig, PlanError> {
    let defaults = Defaults { head_dim: None, rms_norm_eps: 1e-6, tie_word_embeddings: false, pad_token_id: None };
    let mut model = read(keys, Family::Qwen2, &defaults)?;
    model.biases = Biases { qkv: true, out: false, mlp: false };
    Ok(model)
}

pub(super) fn read_3(keys: &Keys<'_>) -> Result<ModelConfig, PlanError> {
    let defaults = Defaults { head_dim: Some(128), rms_norm_eps: 1e-6, tie_word_embeddings: false, pad_token_id: None };
    let mut model = read(keys, Family::Qwen3, &defaults)?;
    let attention = keys.flag("attention_bias")?;
    model.biases = Biases { qkv: attention, out: attention, mlp: false };
    model.qk_norm = true;
    Ok(model)
}

fn read(keys: &Keys<'_>, family: Family, defaults: &Defaults) -> Result<ModelConfig, PlanError> {
    let mut model = plain(keys, family, defaults)?;
    let used = keys.flag("use_sliding_window")?;
    let window = if used { keys.size_or_null("sliding_window", Some(4096))? } else { None };
    // zero is a sound answer here: every layer has the window
    let first = keys.number("max_window_layers")?.map_or(28, |layers| layers as usize);
    windows(keys, &mut model, window, |layer| window.is_some() && layer >= first)?;
    model.activation = activation(keys, "hidden_act", Activation::Silu)?;
    one_rope(keys, &mut model)?;
    Ok(model)
}
