//! The families of decoders, each a page of its own below: which keys of its `config.json` decide what, and its defaults.
//!
//! [`plain`] reads what all share and gives the plainest decoder, a Llama; a page then says what its family does otherwise.
//! A key that is absent means what it means to transformers' class of that family. `docs/families.md` says how to add one.

mod gemma;
mod llama;
mod mistral;
mod phi;
mod qwen;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::keys::{Keys, out_of_range, shown, unsupported, wrong_type};
use crate::rope::{RopeBounds, read_rope};
use crate::{Activation, Biases, Layer, ModelConfig, PlanError};

/// Which kind of decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 2/3, SmolLM and everything else that says `LlamaForCausalLM`.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: q, k and v have a bias.
    Qwen2,
    /// Queries and keys are normed.
    Qwen3,
    /// Soft caps, windows in every other layer, norms on both sides of each half.
    Gemma2,
    /// The text model of Gemma 3: normed queries and keys, a rope of its own for layers with a window.
    Gemma3,
    /// Phi-3 and Phi-4: fused projections.
    Phi3,
}

const SUPPORTED: &str = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Gemma2ForCausalLM, \
                         Gemma3ForCausalLM, Phi3ForCausalLM";

impl Family {
    /// Every family.
    pub const ALL: [Family; 7] =
        [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3, Family::Gemma2, Family::Gemma3, Family::Phi3];

    /// The class name in `architectures`.
    pub const fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
            Family::Gemma2 => "Gemma2ForCausalLM",
            Family::Gemma3 => "Gemma3ForCausalLM",
            Family::Phi3 => "Phi3ForCausalLM",
        }
    }

    /// The word in `model_type`.
    pub const fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3_text",
            Family::Phi3 => "phi3",
        }
    }

    /// The family that a config names: by its class, else by its type.
    pub(crate) fn of(keys: &Keys<'_>) -> Result<Family, PlanError> {
        if let Some(list) = keys.get("architectures") {
            let name = list.as_array().and_then(|names| names.first()).and_then(Value::as_str);
            let name = name.ok_or_else(|| wrong_type("architectures", "a list with one class name", list))?;
            let known = Family::ALL.into_iter().find(|family| family.architecture() == name);
            return known.ok_or_else(|| unsupported("architectures", name, SUPPORTED));
        }
        let name = keys.text("model_type")?;
        let name = name.ok_or(PlanError::Missing { key: "architectures", expected: "a list with one class name" })?;
        let known = Family::ALL.into_iter().find(|family| family.model_type() == name);
        known.ok_or_else(|| unsupported("model_type", name, SUPPORTED))
    }

    pub(crate) fn read(self, keys: &Keys<'_>) -> Result<ModelConfig, PlanError> {
        match self {
            Family::Llama => llama::read(keys),
            Family::Mistral => mistral::read(keys),
            Family::Qwen2 => qwen::read_2(keys),
            Family::Qwen3 => qwen::read_3(keys),
            Family::Gemma2 => gemma::read_2(keys),
            Family::Gemma3 => gemma::read_3(keys),
            Family::Phi3 => phi::read(keys),
        }
    }
}

/// What the absence of a key means in one family.
struct Defaults {
    /// `None`: hidden_size / num_attention_heads.
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    pad_token_id: Option<u32>,
}

/// A Llama of these sizes: the start of every page.
fn plain(keys: &Keys<'_>, family: Family, defaults: &Defaults) -> Result<ModelConfig, PlanError> {
    let heads = keys.size("num_attention_heads", 1 << 12)?;
    let hidden_size = keys.size("hidden_size", 1 << 20)?;
    let head_dim = match keys.optional_size("head_dim", 1 << 14)?.or(defaults.head_dim) {
        Some(dim) => dim,
        None => default_head_dim(hidden_size, heads)?,
    };
    let num_hidden_layers = keys.size("num_hidden_layers", 1 << 12)?;
    let vocab_size = keys.size("vocab_size", 1 << 24)?;
    Ok(ModelConfig {
        family,
        hidden_size,
        intermediate_size: keys.size("intermediate_size", 1 << 22)?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: keys.optional_size("num_key_value_heads", 1 << 12)?.unwrap_or(heads),
        head_dim,
        vocab_size,
        max_position_embeddings: keys.size("max_position_embeddings", 1 << 30)?,
        rms_norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
        norm_offset: false,
        post_norms: false,
        qk_norm: false,
        biases: Biases::default(),
        fused: false,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        query_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_softcap: None,
        logit_softcap: None,
        rotary_dim: head_dim,
        ropes: Vec::new(),
        layers: vec![Layer::default(); num_hidden_layers],
        tie_word_embeddings: keys.flag_or("tie_word_embeddings", defaults.tie_word_embeddings)?,
        bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
        pad_token_id: keys.token("pad_token_id", defaults.pad_token_id, vocab_size)?,
        eos_token_ids: keys.token_ids("eos_token_id")?,
        quantisation: None,
    })
}

fn default_head_dim(hidden: usize, heads: usize) -> Result<usize, PlanError> {
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    Err(out_of_range("hidden_size", hidden, format!("a multiple of num_attention_heads = {heads}")))
}

/// The rope that every layer uses and that turns whole heads.
fn one_rope(keys: &Keys<'_>, model: &mut ModelConfig) -> Result<(), PlanError> {
    match keys.number("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => return Err(unsupported("partial_rotary_factor", &factor.to_string(), "1")),
        Some(_) | None => {}
    }
    let original = keys.optional_size("original_max_position_embeddings", 1 << 30)?;
    model.ropes = vec![read_rope(keys, bounds(model, original))?];
    Ok(())
}

fn bounds(model: &ModelConfig, original: Option<usize>) -> RopeBounds {
    let (max_position_embeddings, rotary_dim) = (model.max_position_embeddings, model.rotary_dim);
    RopeBounds { max_position_embeddings, original, rotary_dim }
}

fn activation(keys: &Keys<'_>, key: &str, default: Activation) -> Result<Activation, PlanError> {
    let Some(value) = keys.get(key) else { return Ok(default) };
    match (value.as_str(), default) {
        (Some("silu"), Activation::Silu) | (Some("gelu_pytorch_tanh"), Activation::GeluTanh) => Ok(default),
        (_, Activation::Silu) => Err(unsupported(key, &shown(value), "silu")),
        (_, Activation::GeluTanh) => Err(unsupported(key, &shown(value), "gelu_pytorch_tanh")),
    }
}

/// A window in the layers that `layer_types` calls sliding, or that `by_default` does where there is no such list.
fn windows(
    keys: &Keys<'_>,
    model: &mut ModelConfig,
    window: Option<usize>,
    by_default: impl Fn(usize) -> bool,
) -> Result<(), PlanError> {
    let listed = sliding_layers(keys, model.num_hidden_layers)?;
    for (i, layer) in model.layers.iter_mut().enumerate() {
        if listed.as_ref().map_or_else(|| by_default(i), |listed| listed[i]) {
            let missing = PlanError::Missing { key: "sliding_window", expected: "a whole number" };
            layer.window = Some(window.ok_or(missing)?);
        }
    }
    Ok(())
}

fn sliding_layers(keys: &Keys<'_>, layers: usize) -> Result<Option<Vec<bool>>, PlanError> {
    let Some(types) = keys.texts("layer_types")? else { return Ok(None) };
    if types.len() != layers {
        let expected = format!("one word for each of {layers} layers");
        return Err(out_of_range("layer_types", format!("{} words", types.len()), expected));
    }
    let is_sliding = |word: &&str| match *word {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(unsupported("layer_types", other, "sliding_attention, full_attention")),
    };
    types.iter().map(is_sliding).collect::<Result<_, _>>().map(Some)
}
