//! A Hugging Face `config.json`, read strictly: what is not understood is refused by name, never ignored into wrong numbers.
//!
//! The result names what the network does (which norms, which activation, a window per layer, …), not which family it is
//! from: forward and backward read these fields and nothing else. How a family's keys become them is a page in `family/`.

pub(crate) mod keys;
mod quantisation;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Family, PlanError, Rope};
use keys::{Keys, out_of_range, unsupported, wrong_type};
pub use quantisation::Quantisation;

/// The shape of a decoder and everything that decides its arithmetic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Whose `config.json` it was; for people, and for the class named in files.
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
    /// Files hold a norm's gain less one.
    pub norm_offset: bool,
    /// A norm behind each half of a block too, before it joins the residual stream.
    pub post_norms: bool,
    /// A norm over every query and key head before the rotation.
    pub qk_norm: bool,
    /// Which linear layers add a bias.
    pub biases: Biases,
    /// q, k and v are one linear layer, and so are gate and up.
    pub fused: bool,
    /// What the gate of the MLP goes through.
    pub activation: Activation,
    /// Embeddings are multiplied by it.
    pub embedding_scale: f64,
    /// Scores are multiplied by it: 1 / √head_dim in most families.
    pub query_scale: f64,
    /// Scores are bent to stay within ± this.
    pub attention_softcap: Option<f64>,
    /// Logits are bent to stay within ± this.
    pub logit_softcap: Option<f64>,
    /// The leading part of a head that is rotated; even.
    pub rotary_dim: usize,
    /// The ropes that layers choose from.
    pub ropes: Vec<Rope>,
    /// What differs from block to block.
    pub layers: Vec<Layer>,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// First token of a text, where the config names one.
    pub bos_token_id: Option<u32>,
    /// Its place in the embedding gets no gradient where it is looked up, as with PyTorch's `padding_idx`.
    pub pad_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// How the files hold projections, where not as plain numbers.
    pub quantisation: Option<Quantisation>,
}

/// Which linear layers add a bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// o.
    pub out: bool,
    /// gate, up and down.
    pub mlp: bool,
}

/// What the gate of the MLP goes through before it meets the other half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x σ(x).
    Silu,
    /// GELU by its tanh formula.
    GeluTanh,
}

/// What is special about one block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// A query sees itself and the keys before it, this many in all; without one, every key before it.
    pub window: Option<usize>,
    /// Index into [`ModelConfig::ropes`].
    pub rope: usize,
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
        let keys = Keys::of_file(&map);
        let family = Family::of(&keys)?;
        refuse_unsupported(&keys)?;
        let mut config = family.read(&keys)?;
        config.quantisation = quantisation::read(&keys)?;
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

/// Every switch, of whatever family, that would change the arithmetic without changing the shapes this crate knows.
fn refuse_unsupported(keys: &Keys<'_>) -> Result<(), PlanError> {
    if keys.flag("use_bidirectional_attention")? {
        return Err(unsupported("use_bidirectional_attention", "true", "causal attention"));
    }
    for key in ["attention_dropout", "resid_pdrop", "embd_pdrop"] {
        match keys.number(key)? {
            Some(p) if p != 0.0 => return Err(unsupported(key, &p.to_string(), "0: only adapters have dropout")),
            Some(_) | None => {}
        }
    }
    Ok(())
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
    if !config.rotary_dim.is_multiple_of(2) || config.rotary_dim == 0 {
        let expected = format!("a share of head_dim = {} that is even", config.head_dim);
        return Err(out_of_range("partial_rotary_factor", config.rotary_dim, expected));
    }
    Ok(())
}

/// serde_json ends its messages with the place, which the error already names.
fn plain_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}
