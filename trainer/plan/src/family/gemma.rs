//! Gemma 2 and the text model of Gemma 3: gains stored less one, four norms a block, embeddings times √hidden_size, GeGLU,
//! windows in most layers. Gemma 2 bends scores and logits; Gemma 3 norms queries and keys instead and turns the layers with
//! a window by a rope of their own.
//!
//! The embedding's factor is √hidden_size in the arithmetic's own precision, as the reference has it in f32.

use super::{Defaults, activation, bounds, one_rope, plain, windows};
use crate::config::keys::{Keys, unsupported};
use crate::rope::{RopeBounds, read_nested};
use crate::{Activation, Biases, Family, ModelConfig, PlanError, Rope};

const DEFAULTS: Defaults =
    Defaults { head_dim: Some(256), rms_norm_eps: 1e-6, tie_word_embeddings: true, pad_token_id: Some(0) };

pub(super) fn read_2(keys: &Keys<'_>) -> Result<ModelConfig, PlanError> {
    let mut model = read(keys, Family::Gemma2)?;
    model.attention_softcap = keys.positive_or_null("attn_logit_softcapping", Some(50.0))?;
    model.logit_softcap = keys.positive_or_null("final_logit_softcapping", Some(30.0))?;
    let window = keys.size_or_null("sliding_window", Some(4096))?;
    windows(keys, &mut model, window, |layer| layer % 2 == 0)?;
    one_rope(keys, &mut model)?;
    Ok(model)
}

pub(super) fn read_3(keys: &Keys<'_>) -> Result<ModelConfig, PlanError> {
    let mut model = read(keys, Family::Gemma3)?;
    model.qk_norm = true;
    model.logit_softcap = keys.positive_or_null("final_logit_softcapping", None)?;
    if let Some(cap) = keys.positive("attn_logit_softcapping")? {
        return Err(unsupported("attn_logit_softcapping", &cap.to_string(), "null: Gemma 3's attention has no cap"));
    }
    let window = keys.size_or_null("sliding_window", Some(4096))?;
    let period = keys.optional_size("sliding_window_pattern", 1 << 12)?.unwrap_or(6);
    windows(keys, &mut model, window, |layer| (layer + 1) % period != 0)?;
    let bounds = bounds(&model, keys.optional_size("original_max_position_embeddings", 1 << 30)?);
    model.ropes = two_ropes(keys, bounds)?.to_vec();
    model.layers.iter_mut().for_each(|layer| layer.rope = usize::from(layer.window.is_some()));
    Ok(model)
}

fn read(keys: &Keys<'_>, family: Family) -> Result<ModelConfig, PlanError> {
    let mut model = plain(keys, family, &DEFAULTS)?;
    model.norm_offset = true;
    model.post_norms = true;
    model.activation = activation(keys, "hidden_activation", Activation::GeluTanh)?;
    model.embedding_scale = (model.hidden_size as f64).sqrt();
    model.query_scale = 1.0 / keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt();
    let attention = keys.flag("attention_bias")?;
    model.biases = Biases { qkv: attention, out: attention, mlp: false };
    Ok(model)
}

/// The rope of layers that see everything, then that of layers with a window. Older files have `rope_theta` and
/// `rope_local_base_freq`, and a `rope_scaling` that is the first one's only.
fn two_ropes(keys: &Keys<'_>, bounds: RopeBounds) -> Result<[Rope; 2], PlanError> {
    let (global, local) = (keys.positive("rope_theta")?, keys.positive("rope_local_base_freq")?);
    let thetas = [global.unwrap_or(1e6), local.unwrap_or(1e4)];
    let [mut full, mut sliding] = thetas.map(|theta| Rope { theta, scaling: None });
    if let Some(parameters) = keys.object("rope_parameters")? {
        for (rope, key) in [(&mut full, "full_attention"), (&mut sliding, "sliding_attention")] {
            if let Some(nested) = parameters.object(key)? {
                *rope = read_nested(&nested, rope.theta, bounds)?;
            }
        }
    }
    if let Some(scaling) = keys.object("rope_scaling")? {
        full = read_nested(&scaling, full.theta, bounds)?;
    }
    Ok([full, sliding])
}
