//! `quantization_config`: which of bitsandbytes' two formats the files hold. Everything else is refused by name.

use serde::{Deserialize, Serialize};

use super::keys::{Keys, unsupported};
use crate::{BaseDtype, PlanError};

/// How bitsandbytes stored the projections of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantisation {
    /// 4-bit normal floats, the scales of the blocks in 8 bits or plain.
    Nf4,
    /// 8-bit integers with a scale a row.
    Int8,
}

impl Quantisation {
    /// As which weights they lie in memory.
    pub const fn dtype(self) -> BaseDtype {
        match self {
            Quantisation::Nf4 => BaseDtype::Nf4,
            Quantisation::Int8 => BaseDtype::Int8,
        }
    }
}

const SUPPORTED: &str =
    "bitsandbytes' load_in_4bit with nf4, its load_in_8bit, or unquantised f32, bf16 or f16 weights";

/// What `quantization_config` says.
pub(super) fn read(keys: &Keys<'_>) -> Result<Option<Quantisation>, PlanError> {
    let Some(keys) = keys.object("quantization_config")? else { return Ok(None) };
    let method = keys.text("quant_method")?.unwrap_or("bitsandbytes");
    if method != "bitsandbytes" {
        return Err(unsupported(&keys.full("quant_method"), method, SUPPORTED));
    }
    if keys.flag("load_in_8bit")? {
        return Ok(Some(Quantisation::Int8));
    }
    if !keys.flag("load_in_4bit")? {
        return Err(unsupported(&keys.full("load_in_4bit"), "false, load_in_8bit too", SUPPORTED));
    }
    for (key, wanted, absent) in [("bnb_4bit_quant_type", "nf4", "fp4"), ("bnb_4bit_quant_storage", "uint8", "uint8")] {
        let found = keys.text(key)?.unwrap_or(absent);
        if found != wanted {
            return Err(unsupported(&keys.full(key), found, if wanted == "nf4" { "nf4" } else { "uint8" }));
        }
    }
    Ok(Some(Quantisation::Nf4))
}
