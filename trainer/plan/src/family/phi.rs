//! Phi-3 and Phi-4: q, k and v in one linear layer, gate and up in another; a part of each head may stay unturned; LongRoPE
//! under several names.

use super::{Defaults, activation, bounds, plain};
use crate::config::keys::{Keys, out_of_range, unsupported};
use crate::rope::{kind, read_rope};
use crate::{Activation, Family, ModelConfig, PlanError};

pub(super) fn read(keys: &Keys<'_>) -> Result<ModelConfig, PlanError> {
    let defaults =
        Defaults { head_dim: None, rms_norm_eps: 1e-5, tie_word_embeddings: false, pad_token_id: Some(32_000) };
    let mut model = plain(keys, Family::Phi3, &defaults)?;
    model.fused = true;
    model.activation = activation(keys, "hidden_act", Activation::Silu)?;
    let window = keys.size_or_null("sliding_window", None)?;
    model.layers.iter_mut().for_each(|layer| layer.window = window);
    let share = rotary_share(keys)?;
    if share > 1.0 {
        return Err(out_of_range("partial_rotary_factor", share, "at most 1".into()));
    }
    model.rotary_dim = (model.head_dim as f64 * share) as usize;
    let original = keys.optional_size("original_max_position_embeddings", 1 << 30)?.unwrap_or(4096);
    refuse_other_ropes(keys)?;
    let rope = read_rope(keys, bounds(&model, Some(original)))?;
    model.ropes = vec![rope];
    Ok(model)
}

/// Newer files say it in `rope_parameters`.
fn rotary_share(keys: &Keys<'_>) -> Result<f64, PlanError> {
    let nested = match keys.object("rope_parameters")? {
        Some(nested) => nested.positive("partial_rotary_factor")?,
        None => None,
    };
    Ok(nested.or(keys.positive("partial_rotary_factor")?).unwrap_or(1.0))
}

/// The reference knows LongRoPE only for this family.
fn refuse_other_ropes(keys: &Keys<'_>) -> Result<(), PlanError> {
    for name in ["rope_parameters", "rope_scaling"] {
        if let Some(nested) = keys.object(name)? {
            match kind(&nested)? {
                "default" | "longrope" | "su" => {}
                other => return Err(unsupported(&nested.full("rope_type"), other, "default, longrope, su")),
            }
        }
    }
    Ok(())
}
