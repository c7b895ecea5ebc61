//! A Hugging Face `config.json`, read strictly: what is not understood is refused by name, never ignored into wrong numbers.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::PlanError;

/// Which kind of decoder; the places of the further families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 2/3, SmolLM and everything else that says `LlamaForCausalLM`.
    Llama,
    /// Mistral without its sliding window: the same network as Llama.
    Mistral,
}

impl Family {
    /// The class name in `architectures`.
    pub const fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
        }
    }
}

/// How rotary frequencies are stretched past the length the model was first trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RopeScaling {
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wave lengths longer than `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wave lengths shorter than `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The first training length.
        original_max_position_embeddings: usize,
    },
}

/// The shape of a decoder. Holds only what is supported: no bias, SiLU, full attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Which kind of decoder.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// The longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// First token of a text, where the config names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads the text of a `config.json`.
    pub fn parse(config_json: &str) -> Result<ModelConfig, PlanError> {
        let value: Value = serde_json::from_str(config_json).map_err(|error| PlanError::Json {
            line: error.line(),
            column: error.column(),
            message: plain_message(&error),
        })?;
        let Value::Object(map) = value else {
            return Err(wrong_type("(whole file)", "an object", &value));
        };
        let config = read(&Keys { map: &map, prefix: "" })?;
        check(&config)?;
        Ok(config)
    }

    /// Width of all query heads together.
    pub const fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together (values have the same).
    pub const fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Query heads that share one key head.
    pub const fn queries_per_key(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }
}

fn read(keys: &Keys<'_>) -> Result<ModelConfig, PlanError> {
    let family = family(keys)?;
    refuse_unsupported(keys)?;
    let heads = keys.size("num_attention_heads", 1 << 12)?;
    let hidden_size = keys.size("hidden_size", 1 << 20)?;
    let max_position_embeddings = keys.size("max_position_embeddings", 1 << 30)?;
    refuse_sliding_window(keys, family, max_position_embeddings)?;
    let (rope_theta, rope_scaling) = rope(keys)?;
    Ok(ModelConfig {
        family,
        hidden_size,
        intermediate_size: keys.size("intermediate_size", 1 << 22)?,
        num_hidden_layers: keys.size("num_hidden_layers", 1 << 12)?,
        num_attention_heads: heads,
        num_key_value_heads: keys.optional_size("num_key_value_heads", 1 << 12)?.unwrap_or(heads),
        head_dim: match keys.optional_size("head_dim", 1 << 14)? {
            Some(dim) => dim,
            None => default_head_dim(hidden_size, heads)?,
        },
        vocab_size: keys.size("vocab_size", 1 << 24)?,
        max_position_embeddings,
        rms_norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?,
        bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: keys.token_ids("eos_token_id")?,
    })
}

fn family(keys: &Keys<'_>) -> Result<Family, PlanError> {
    const SUPPORTED: &str = "LlamaForCausalLM, MistralForCausalLM";
    let unsupported =
        |key: &str, name: &str| PlanError::Unsupported { key: key.into(), value: name.into(), supported: SUPPORTED };
    if let Some(list) = keys.get("architectures") {
        let name = list.as_array().and_then(|names| names.first()).and_then(Value::as_str);
        let name = name.ok_or_else(|| wrong_type("architectures", "a list with one class name", list))?;
        return [Family::Llama, Family::Mistral]
            .into_iter()
            .find(|family| family.architecture() == name)
            .ok_or_else(|| unsupported("architectures", name));
    }
    match keys.get("model_type").and_then(Value::as_str) {
        Some("llama") => Ok(Family::Llama),
        Some("mistral") => Ok(Family::Mistral),
        Some(other) => Err(unsupported("model_type", other)),
        None => Err(PlanError::Missing { key: "architectures", expected: "a list with one class name" }),
    }
}

/// Every switch that would change the network's arithmetic without changing the shapes this crate knows.
fn refuse_unsupported(keys: &Keys<'_>) -> Result<(), PlanError> {
    for key in ["attention_bias", "mlp_bias"] {
        if keys.flag(key)? {
            return Err(unsupported(key, "true", "linear layers without bias"));
        }
    }
    if let Some(act) = keys.get("hidden_act")
        && act.as_str() != Some("silu")
    {
        return Err(unsupported("hidden_act", &shown(act), "silu"));
    }
    if let Some(quantization) = keys.get("quantization_config") {
        return Err(unsupported("quantization_config", &shown(quantization), "unquantised f32, bf16 or f16 weights"));
    }
    match keys.number("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(unsupported("partial_rotary_factor", &factor.to_string(), "1")),
        Some(_) | None => Ok(()),
    }
}

/// A window as long as the longest sequence hides nothing and is accepted.
fn refuse_sliding_window(keys: &Keys<'_>, family: Family, longest: usize) -> Result<(), PlanError> {
    match (family, keys.optional_size("sliding_window", 1 << 30)?) {
        (Family::Mistral, Some(window)) if window < longest => {
            Err(unsupported("sliding_window", &window.to_string(), "full attention: null"))
        }
        (Family::Llama | Family::Mistral, _) => Ok(()),
    }
}

fn default_head_dim(hidden: usize, heads: usize) -> Result<usize, PlanError> {
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    Err(out_of_range("hidden_size", hidden, format!("a multiple of num_attention_heads = {heads}")))
}

/// transformers 5 keeps everything in `rope_parameters`; before it, `rope_theta` stood alone beside `rope_scaling`.
fn rope(keys: &Keys<'_>) -> Result<(f64, Option<RopeScaling>), PlanError> {
    let own = keys.positive("rope_theta")?;
    let Some((nested, name)) =
        ["rope_parameters", "rope_scaling"].into_iter().find_map(|name| keys.get(name).map(|value| (value, name)))
    else {
        return Ok((own.unwrap_or(10_000.0), None));
    };
    let Value::Object(map) = nested else { return Err(wrong_type(name, "an object or null", nested)) };
    let nested = Keys { map, prefix: name };
    let theta = nested.positive("rope_theta")?.or(own).unwrap_or(10_000.0);
    Ok((theta, rope_scaling(&nested)?))
}

fn rope_scaling(keys: &Keys<'_>) -> Result<Option<RopeScaling>, PlanError> {
    let kind = keys.get("rope_type").or_else(|| keys.get("type")).and_then(Value::as_str).unwrap_or("default");
    match kind {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: keys.required_positive("factor")? })),
        "llama3" => Ok(Some(RopeScaling::Llama3 {
            factor: keys.required_positive("factor")?,
            low_freq_factor: keys.required_positive("low_freq_factor")?,
            high_freq_factor: keys.required_positive("high_freq_factor")?,
            original_max_position_embeddings: keys.size("original_max_position_embeddings", 1 << 30)?,
        })),
        other => Err(unsupported(&keys.full("rope_type"), other, "default, linear, llama3")),
    }
}

/// What holds between keys.
fn check(config: &ModelConfig) -> Result<(), PlanError> {
    if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
        let expected = format!("a divisor of num_attention_heads = {}", config.num_attention_heads);
        return Err(out_of_range("num_key_value_heads", config.num_key_value_heads, expected));
    }
    if !config.head_dim.is_multiple_of(2) {
        return Err(out_of_range("head_dim", config.head_dim, "an even number".into()));
    }
    if let Some(RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. }) = config.rope_scaling
        && high_freq_factor <= low_freq_factor
    {
        let expected = format!("more than low_freq_factor = {low_freq_factor}");
        return Err(out_of_range("high_freq_factor", high_freq_factor, expected));
    }
    Ok(())
}

/// One JSON object and where it lies, for messages.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Keys<'a> {
    /// `null` counts as absent, as in transformers.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn full(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.into() } else { format!("{}.{key}", self.prefix) }
    }

    fn size(&self, key: &'static str, most: usize) -> Result<usize, PlanError> {
        self.optional_size(key, most)?.ok_or(PlanError::Missing { key, expected: "a whole number" })
    }

    /// `most` only keeps later products from overflowing; no real model comes near.
    fn optional_size(&self, key: &str, most: usize) -> Result<Option<usize>, PlanError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().ok_or_else(|| wrong_type(&self.full(key), "a whole number", value))?;
        match usize::try_from(number) {
            Ok(size) if (1..=most).contains(&size) => Ok(Some(size)),
            Ok(_) | Err(_) => Err(out_of_range(&self.full(key), number, format!("1 to {most}"))),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, PlanError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| wrong_type(&self.full(key), "a number", value))
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, PlanError> {
        match self.number(key)? {
            Some(number) if number <= 0.0 || !number.is_finite() => {
                Err(out_of_range(&self.full(key), number, "more than 0".into()))
            }
            number => Ok(number),
        }
    }

    fn required_positive(&self, key: &'static str) -> Result<f64, PlanError> {
        self.positive(key)?.ok_or(PlanError::Missing { key, expected: "a number" })
    }

    fn flag(&self, key: &str) -> Result<bool, PlanError> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| wrong_type(&self.full(key), "true or false", value))
    }

    /// One id or a list of ids.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>, PlanError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value.as_array() {
            Some(list) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            None => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| wrong_type(&self.full(key), "a token id or a list of them", value))
    }
}

fn unsupported(key: &str, value: &str, supported: &'static str) -> PlanError {
    PlanError::Unsupported { key: key.into(), value: value.into(), supported }
}

fn out_of_range(key: &str, found: impl ToString, expected: String) -> PlanError {
    PlanError::OutOfRange { key: key.into(), expected, found: found.to_string() }
}

fn wrong_type(key: &str, expected: &'static str, found: &Value) -> PlanError {
    PlanError::WrongType { key: key.into(), expected, found: shown(found) }
}

/// A value short enough for one line of text.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}

/// serde_json ends its messages with the place, which the error already names.
fn plain_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}
