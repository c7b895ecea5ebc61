//! Adapter files as PEFT writes and reads them: `adapter_model.safetensors` and `adapter_config.json`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value, json};

use super::{LoraEntry, LoraError, LoraLayout, Targets};
use crate::ops::widen::{Stored, widen};

/// The adapter's numbers.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The adapter's settings.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The version of PEFT whose keys [`save`] writes.
const PEFT_VERSION: &str = "0.21.2";
/// The longest header safetensors accepts.
const HEADER_BYTES: u64 = 100_000_000;

/// What an adapter's files say beside its numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdapterMeta {
    /// Name or directory of the base model.
    pub base_model: Option<String>,
}

impl LoraEntry {
    /// PEFT's names of A and B.
    pub fn keys(&self) -> [String; 2] {
        let path = self.module.path(self.layer);
        ["A", "B"].map(|matrix| format!("base_model.model.{path}.lora_{matrix}.weight"))
    }

    fn shapes(&self) -> [[usize; 2]; 2] {
        [[self.rank, self.in_features], [self.out_features, self.rank]]
    }
}

/// Writes both files into `dir`. What is durable when, and what stands there half-written, is the caller's affair.
pub fn save(dir: &Path, layout: &LoraLayout, params: &[f32], meta: &AdapterMeta) -> Result<(), LoraError> {
    assert_eq!(params.len(), layout.len(), "one number per place of the layout");
    let bytes: Vec<u8> = params.iter().flat_map(|x| x.to_le_bytes()).collect();
    let tensors = layout.entries().iter().flat_map(|entry| {
        let places = [entry.a.clone(), entry.b.clone()].map(|range| range.start * 4..range.end * 4);
        let named = entry.keys().into_iter().zip(entry.shapes()).zip(places);
        named.map(|((key, shape), place)| {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes[place]);
            (key, view.expect("the layout gives every tensor as many numbers as its shape"))
        })
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let file = safetensors::serialize(tensors, Some(metadata)).expect("views that were checked serialise");
    write(&dir.join(WEIGHTS_FILE), &file)?;
    let mut text = serde_json::to_string_pretty(&config_json(layout, meta)).expect("plain values serialise");
    text.push('\n');
    write(&dir.join(CONFIG_FILE), text.as_bytes())
}

/// The keys PEFT writes, in its order (sorted).
fn config_json(layout: &LoraLayout, meta: &AdapterMeta) -> Value {
    let config = layout.config();
    let fields = [
        ("alora_invocation_tokens", Value::Null),
        ("alpha_pattern", json!({})),
        ("arrow_config", Value::Null),
        ("auto_mapping", Value::Null),
        ("base_model_name_or_path", json!(meta.base_model)),
        ("bias", json!("none")),
        ("corda_config", Value::Null),
        ("ensure_weight_tying", json!(false)),
        ("eva_config", Value::Null),
        ("exclude_modules", Value::Null),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("kasa_config", Value::Null),
        ("layer_replication", Value::Null),
        ("layers_pattern", Value::Null),
        ("layers_to_transform", Value::Null),
        ("loftq_config", json!({})),
        ("lora_alpha", number(config.alpha)),
        ("lora_bias", json!(false)),
        ("lora_dropout", json!(config.dropout)),
        ("lora_ga_config", Value::Null),
        ("megatron_config", Value::Null),
        ("megatron_core", json!("megatron.core")),
        ("modules_to_save", Value::Null),
        ("monteclora_config", Value::Null),
        ("peft_type", json!("LORA")),
        ("peft_version", json!(PEFT_VERSION)),
        ("qalora_group_size", json!(16)),
        ("r", json!(config.rank)),
        ("rank_pattern", json!({})),
        ("revision", Value::Null),
        ("target_modules", target_modules(layout)),
        ("target_parameters", Value::Null),
        ("task_type", json!("CAUSAL_LM")),
        ("trainable_token_indices", Value::Null),
        ("use_bdlora", Value::Null),
        ("use_dora", json!(false)),
        ("use_qalora", json!(false)),
        ("use_rslora", json!(config.rslora)),
        ("velora_config", Value::Null),
    ];
    Value::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

/// Readers other than PEFT know no `all-linear`: it is spelled out.
fn target_modules(layout: &LoraLayout) -> Value {
    match &layout.config().target_modules {
        Targets::AllLinear => {
            let (mut seen, first) = (Vec::new(), layout.entries()[0].layer);
            seen.extend(
                layout.entries().iter().take_while(|entry| entry.layer == first).map(|entry| entry.module.name()),
            );
            json!(seen)
        }
        Targets::Names(names) => json!(names),
        Targets::Pattern(text) => json!(text),
    }
}

/// Whole numbers without a point, as PEFT has them.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// Reads an adapter that fits `layout`: the same rank, scale and modules, every tensor there, no other.
pub fn load(dir: &Path, layout: &LoraLayout) -> Result<Vec<f32>, LoraError> {
    check_config(&dir.join(CONFIG_FILE), layout)?;
    let path = dir.join(WEIGHTS_FILE);
    refuse_pickle(dir, &path)?;
    let bytes = read(&path, HEADER_BYTES + 4 * layout.len() as u64)?;
    let malformed = |error: safetensors::SafeTensorError| LoraError::Malformed {
        path: path.clone(),
        reason: format!("not a sound safetensors file: {error}"),
    };
    let tensors = SafeTensors::deserialize(&bytes).map_err(malformed)?;
    let mut params = vec![0.0; layout.len()];
    for entry in layout.entries() {
        let places = [entry.a.clone(), entry.b.clone()];
        for ((key, shape), place) in entry.keys().iter().zip(entry.shapes()).zip(places) {
            fill(&mut params[place], &tensors, key, shape, &path)?;
        }
    }
    refuse_others(&tensors, layout, &path)?;
    Ok(params)
}

fn refuse_pickle(dir: &Path, weights: &Path) -> Result<(), LoraError> {
    let pickle = dir.join("adapter_model.bin");
    if !weights.exists() && pickle.exists() {
        return Err(LoraError::Pickle { path: pickle });
    }
    Ok(())
}

fn fill(out: &mut [f32], file: &SafeTensors<'_>, name: &str, shape: [usize; 2], path: &Path) -> Result<(), LoraError> {
    let missing = |_| LoraError::Tensor { path: path.into(), name: name.into(), state: "missing" };
    let tensor = file.tensor(name).map_err(missing)?;
    match stored(tensor.dtype()).filter(|_| tensor.shape() == shape) {
        Some(stored) => {
            widen(stored, tensor.data(), out);
            Ok(())
        }
        None => Err(LoraError::Shape {
            path: path.into(),
            name: name.into(),
            found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
            expected: format!("F32, F16 or BF16 {shape:?}"),
        }),
    }
}

/// The formats an adapter may be stored in.
fn stored(dtype: Dtype) -> Option<Stored> {
    [(Dtype::F32, Stored::F32), (Dtype::F16, Stored::F16), (Dtype::BF16, Stored::Bf16)]
        .into_iter()
        .find_map(|(known, stored)| (known == dtype).then_some(stored))
}

fn refuse_others(file: &SafeTensors<'_>, layout: &LoraLayout, path: &Path) -> Result<(), LoraError> {
    let ours: std::collections::BTreeSet<String> = layout.entries().iter().flat_map(LoraEntry::keys).collect();
    match file.names().into_iter().find(|name| !ours.contains(*name)) {
        Some(name) => {
            Err(LoraError::Tensor { path: path.into(), name: name.into(), state: "not part of this adapter" })
        }
        None => Ok(()),
    }
}

fn check_config(path: &Path, layout: &LoraLayout) -> Result<(), LoraError> {
    let bytes = read(path, 1 << 20)?;
    let malformed = |reason: String| LoraError::Malformed { path: path.into(), reason };
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| malformed(format!("not JSON: {error}")))?;
    let Value::Object(map) = value else { return Err(malformed("not a JSON object".into())) };
    let config = layout.config();
    let expected = [
        ("peft_type", json!("LORA")),
        ("r", json!(config.rank)),
        ("lora_alpha", number(config.alpha)),
        ("use_rslora", json!(config.rslora)),
        ("use_dora", json!(false)),
        ("bias", json!("none")),
        ("lora_bias", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
        ("modules_to_save", Value::Null),
        ("layer_replication", Value::Null),
    ];
    for (key, want) in expected {
        let found = map.get(key).cloned().unwrap_or(default_of(key, &want));
        if !same(&found, &want) {
            let (found, expected) = (found.to_string(), want.to_string());
            return Err(LoraError::Setting { path: path.into(), key, found, expected });
        }
    }
    Ok(())
}

/// Old files lack the newer keys, whose absence means "off"; rank, scale and kind must be said.
fn default_of(key: &str, want: &Value) -> Value {
    match key {
        "peft_type" | "r" | "lora_alpha" => Value::Null,
        "use_rslora" => json!(false),
        _ => want.clone(),
    }
}

fn same(found: &Value, want: &Value) -> bool {
    match (found.as_f64(), want.as_f64()) {
        (Some(found), Some(want)) => found == want,
        _ => found == want || (found.is_null() && want.as_object().is_some_and(Map::is_empty)),
    }
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, LoraError> {
    let failed = |source| LoraError::Io { verb: "read", path: path.into(), source };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > most {
        let reason = format!("{size} bytes long, at most {most} were expected");
        return Err(failed(std::io::Error::new(ErrorKind::InvalidData, reason)));
    }
    fs::read(path).map_err(failed)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), LoraError> {
    fs::write(path, bytes).map_err(|source| LoraError::Io { verb: "write", path: path.into(), source })
}
