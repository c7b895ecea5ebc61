//! How rotary positions are stretched past the length a model was first trained on: what `config.json` says of it, read as
//! transformers reads it, every default filled in. The frequencies themselves are computed where they are used.

use serde::{Deserialize, Serialize};

use crate::PlanError;
use crate::config::keys::{Keys, out_of_range, unsupported};

/// One set of rotary positions; a model may have several and use another in some layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched, if at all.
    pub scaling: Option<RopeScaling>,
}

/// A way of stretching.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RopeScaling {
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// The base grows with the sequence, once it is longer than the model was made for.
    Dynamic {
        /// How fast.
        factor: f64,
        /// Up to this length nothing changes.
        max_position_embeddings: usize,
    },
    /// YaRN: low frequencies divided, high ones kept, a ramp between over the index of the pair.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Pairs that turn more often than this over the first training length are kept.
        beta_fast: f64,
        /// Pairs that turn less often than this are divided.
        beta_slow: f64,
        /// The first training length.
        original_max_position_embeddings: usize,
        /// Whether the ramp begins and ends at whole indices.
        truncate: bool,
        /// Cosines and sines are multiplied by it.
        attention_factor: f64,
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
    /// LongRoPE: a divisor for every pair, one set for short sequences and one for long ones.
    Longrope {
        /// Divisors of sequences up to the first training length.
        short_factor: Vec<f64>,
        /// Divisors of longer ones.
        long_factor: Vec<f64>,
        /// The first training length.
        original_max_position_embeddings: usize,
        /// Cosines and sines are multiplied by it.
        attention_factor: f64,
    },
}

/// What the defaults of a scaling depend on.
#[derive(Clone, Copy)]
pub(crate) struct RopeBounds {
    pub(crate) max_position_embeddings: usize,
    /// Said beside the scaling instead of in it; then it wins.
    pub(crate) original: Option<usize>,
    pub(crate) rotary_dim: usize,
}

/// The one rope of a model. transformers 5 keeps everything in `rope_parameters`; before it, `rope_theta` stood alone beside
/// `rope_scaling`.
pub(crate) fn read_rope(keys: &Keys<'_>, bounds: RopeBounds) -> Result<Rope, PlanError> {
    let own = keys.positive("rope_theta")?;
    let nested = match keys.object("rope_parameters")? {
        Some(nested) => Some(nested),
        None => keys.object("rope_scaling")?,
    };
    match nested {
        None => Ok(Rope { theta: own.unwrap_or(10_000.0), scaling: None }),
        Some(nested) => read_nested(&nested, own.unwrap_or(10_000.0), bounds),
    }
}

/// A rope as one object says it; `theta` where it names none itself.
pub(crate) fn read_nested(keys: &Keys<'_>, theta: f64, bounds: RopeBounds) -> Result<Rope, PlanError> {
    if let Some(key) = keys.nested() {
        return Err(unsupported(&key, "an object", "one rope for every layer"));
    }
    let theta = keys.positive("rope_theta")?.unwrap_or(theta);
    Ok(Rope { theta, scaling: scaling(keys, bounds)? })
}

/// The word for the kind of scaling.
pub(crate) fn kind<'a>(keys: &Keys<'a>) -> Result<&'a str, PlanError> {
    Ok(keys.text("rope_type")?.or(keys.text("type")?).unwrap_or("default"))
}

fn scaling(keys: &Keys<'_>, bounds: RopeBounds) -> Result<Option<RopeScaling>, PlanError> {
    let max_position_embeddings = bounds.max_position_embeddings;
    match kind(keys)? {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: keys.required_positive("factor")? })),
        "dynamic" => {
            Ok(Some(RopeScaling::Dynamic { factor: keys.required_positive("factor")?, max_position_embeddings }))
        }
        "llama3" => llama3(keys, bounds).map(Some),
        "yarn" => yarn(keys, bounds).map(Some),
        "longrope" | "su" => longrope(keys, bounds).map(Some),
        other => {
            let supported = "default, linear, dynamic, yarn, llama3, longrope";
            Err(unsupported(&keys.full("rope_type"), other, supported))
        }
    }
}

fn original(keys: &Keys<'_>, bounds: RopeBounds) -> Result<usize, PlanError> {
    let nested = keys.optional_size("original_max_position_embeddings", 1 << 30)?;
    Ok(bounds.original.or(nested).unwrap_or(bounds.max_position_embeddings))
}

fn llama3(keys: &Keys<'_>, bounds: RopeBounds) -> Result<RopeScaling, PlanError> {
    let low_freq_factor = keys.required_positive("low_freq_factor")?;
    let high_freq_factor = keys.required_positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        let expected = format!("more than low_freq_factor = {low_freq_factor}");
        return Err(out_of_range(&keys.full("high_freq_factor"), high_freq_factor, expected));
    }
    Ok(RopeScaling::Llama3 {
        factor: keys.required_positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: original(keys, bounds)?,
    })
}

fn yarn(keys: &Keys<'_>, bounds: RopeBounds) -> Result<RopeScaling, PlanError> {
    let original = original(keys, bounds)?;
    let factor = keys.positive("factor")?.unwrap_or(bounds.max_position_embeddings as f64 / original as f64);
    let grown = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let attention_factor =
        match (keys.positive("attention_factor")?, keys.number("mscale")?, keys.number("mscale_all_dim")?) {
            (Some(given), ..) => given,
            // zero counts as absent, as in Python
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => grown(one) / grown(all),
            (None, ..) => grown(1.0),
        };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: keys.positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.positive("beta_slow")?.unwrap_or(1.0),
        original_max_position_embeddings: original,
        truncate: keys.flag_or("truncate", true)?,
        attention_factor,
    })
}

fn longrope(keys: &Keys<'_>, bounds: RopeBounds) -> Result<RopeScaling, PlanError> {
    let original = original(keys, bounds)?;
    let factor = keys.positive("factor")?.unwrap_or(bounds.max_position_embeddings as f64 / original as f64);
    let grown = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    Ok(RopeScaling::Longrope {
        short_factor: keys.positives("short_factor", bounds.rotary_dim / 2)?,
        long_factor: keys.positives("long_factor", bounds.rotary_dim / 2)?,
        original_max_position_embeddings: original,
        attention_factor: keys.positive("attention_factor")?.unwrap_or(grown),
    })
}
