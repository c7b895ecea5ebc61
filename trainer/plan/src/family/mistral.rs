//! Mistral: a Llama whose every layer has a sliding window, 4,096 where the key is absent and none where it is null.

use super::{Defaults, activation, one_rope, plain};
use crate::config::keys::Keys;
use crate::{Activation, Family, ModelConfig, PlanError};

pub(super) fn read(keys: &Keys<'_>) -> Result<ModelConfig, PlanError> {
    let defaults = Defaults { head_dim: None, rms_norm_eps: 1e-6, tie_word_embeddings: false, pad_token_id: None };
    let mut model = plain(keys, Family::Mistral, &defaults)?;
    let window = keys.size_or_null("sliding_window", Some(4096))?;
    model.layers.iter_mut().for_each(|layer| layer.window = window);
    model.activation = activation(keys, "hidden_act", Activation::Silu)?;
    one_rope(keys, &mut model)?;
    Ok(model)
}
