//! Whether `adapter_config.json` is that of the adapter which is asked for, and of a kind that is known here.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{number, numbers, read};
use crate::lora::{LoraError, LoraLayout};

pub(super) fn check_config(path: &Path, layout: &LoraLayout) -> Result<(), LoraError> {
    let bytes = read(path, 1 << 20)?;
    let malformed = |reason: String| LoraError::Malformed { path: path.into(), reason };
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| malformed(format!("not JSON: {error}")))?;
    let Value::Object(map) = value else { return Err(malformed("not a JSON object".into())) };
    let config = layout.config().as_saved();
    let expected = [
        ("peft_type", json!("LORA")),
        ("r", json!(config.rank)),
        ("lora_alpha", number(config.alpha)),
        ("use_rslora", json!(config.rslora)),
        ("use_dora", json!(config.dora)),
        ("bias", json!("none")),
        ("lora_bias", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("rank_pattern", json!(config.rank_pattern)),
        ("alpha_pattern", numbers(&config.alpha_pattern)),
        ("modules_to_save", Value::Null),
        ("layer_replication", Value::Null),
    ];
    refuse_other_base(&map, path)?;
    refuse_other_kind(&map, path)?;
    for (key, want) in expected {
        let found = map.get(key).cloned().unwrap_or(default_of(key, &want));
        if !same(&found, &want) {
            let (found, expected) = (found.to_string(), want.to_string());
            return Err(LoraError::Setting { path: path.into(), key, found, expected });
        }
    }
    Ok(())
}

/// These starts change the base, and what PEFT saves then fits the changed one only, unless it was converted.
fn refuse_other_base(map: &Map<String, Value>, path: &Path) -> Result<(), LoraError> {
    const CHANGING: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    let key = "init_lora_weights";
    let start = map.get(key).and_then(Value::as_str).unwrap_or_default().to_lowercase();
    if CHANGING.iter().any(|word| start.starts_with(word)) {
        let expected = "true: an adapter that was converted to plain LoRA".to_owned();
        return Err(LoraError::Setting { path: path.into(), key, found: start, expected });
    }
    Ok(())
}

/// Each of these makes another product of the same tensors, or of others beside them. Unset is null, false or empty.
fn refuse_other_kind(map: &Map<String, Value>, path: &Path) -> Result<(), LoraError> {
    const KINDS: [&str; 9] = [
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "layers_pattern",
        "monteclora_config",
        "target_parameters",
        "use_bdlora",
        "use_qalora",
        "velora_config",
    ];
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    };
    match KINDS.into_iter().find_map(|key| Some((key, map.get(key).filter(|value| is_set(value))?))) {
        Some((key, found)) => {
            let expected = "nothing: adapters of this kind are not supported".to_owned();
            Err(LoraError::Setting { path: path.into(), key, found: found.to_string(), expected })
        }
        None => Ok(()),
    }
}

/// Old files lack the newer keys, whose absence means "off"; rank, scale and kind must be said.
fn default_of(key: &str, want: &Value) -> Value {
    match key {
        "peft_type" | "r" | "lora_alpha" => Value::Null,
        "use_rslora" | "use_dora" => json!(false),
        "rank_pattern" | "alpha_pattern" => json!({}),
        _ => want.clone(),
    }
}

fn same(found: &Value, want: &Value) -> bool {
    match (found.as_f64(), want.as_f64()) {
        (Some(found), Some(want)) => found == want,
        _ => found == want || (found.is_null() && want.as_object().is_some_and(Map::is_empty)),
    }
}
