//! Llama 2 and 3, SmolLM, and everything else of class `LlamaForCausalLM`: the plain decoder.

use super::{Defaults, activation, one_rope, plain};
use crate::config::keys::Keys;
use crate::{Activation, Biases, Family, ModelConfig, PlanError};

pub(super) fn read(keys: &Keys<'_>) -> Result<ModelConfig, PlanError> {
    let defaults = Defaults { head_dim: None, rms_norm_eps: 1e-6, tie_word_embeddings: false, pad_token_id: None };
    let mut model = plain(keys, Family::Llama, &defaults)?;
    let attention = keys.flag("attention_bias")?;
    model.biases = Biases { qkv: attention, out: attention, mlp: keys.flag("mlp_bias")? };
    model.activation = activation(keys, "hidden_act", Activation::Silu)?;
    one_rope(keys, &mut model)?;
    Ok(model)
}
