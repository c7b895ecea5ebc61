//! Adapter files as PEFT writes and reads them: `adapter_model.safetensors` and `adapter_config.json`.

mod check;

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use lorikeet_plan::{ModelConfig, read_file};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use check::check_config;

use super::{LoraConfig, LoraEntry, LoraError, LoraLayout, Site, Targets};
use crate::ops::widen::{Stored, widen};
use crate::tensor_file::{self, Numbers};

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

/// One tensor of the files and its place in the flat buffer.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    place: Range<usize>,
}

impl LoraEntry {
    /// PEFT's names of A, B and, with DoRA, the row lengths.
    pub fn keys(&self) -> Vec<String> {
        self.tensors().into_iter().map(|tensor| tensor.name).collect()
    }

    fn tensors(&self) -> Vec<Tensor> {
        let (path, rank) = (self.site.path(), self.rank);
        let tensor = |part: &str, shape: &[usize], place: &Range<usize>| Tensor {
            name: format!("base_model.model.{path}.{part}"),
            shape: shape.to_vec(),
            place: place.clone(),
        };
        let [a, b] = match self.site {
            Site::Embedding => ["lora_embedding_A", "lora_embedding_B"],
            Site::Block(..) | Site::Head => ["lora_A.weight", "lora_B.weight"],
        };
        let mut tensors =
            vec![tensor(a, &[rank, self.in_features], &self.a), tensor(b, &[self.out_features, rank], &self.b)];
        if !self.magnitude.is_empty() {
            tensors.push(tensor("lora_magnitude_vector", &[self.out_features], &self.magnitude));
        }
        tensors
    }

    /// The shapes of A and B in the files, where a start that is taken out again lies beside what was trained.
    fn saved_shape(&self, tensor: &Tensor) -> Vec<usize> {
        match &self.start {
            None => tensor.shape.clone(),
            Some(_) if tensor.place == self.a => vec![2 * self.rank, self.in_features],
            Some(_) => vec![self.out_features, 2 * self.rank],
        }
    }

    /// The numbers of one tensor as the files hold them. `A` lies above its start; `B` beside the negative of its start, so that
    /// the product of the wide matrices is the difference of both products.
    fn widened(&self, tensor: &Tensor, params: &[f32]) -> Vec<f32> {
        let trained = &params[tensor.place.clone()];
        match &self.start {
            None => trained.to_vec(),
            Some([a, _]) if tensor.place == self.a => [trained, &params[a.clone()]].concat(),
            Some([_, b]) => {
                let pairs = trained.chunks(self.rank).zip(params[b.clone()].chunks(self.rank));
                pairs.flat_map(|(row, start)| row.iter().copied().chain(start.iter().map(|b| -b))).collect()
            }
        }
    }

    /// The other way.
    fn narrow(&self, tensor: &Tensor, numbers: &[f32], params: &mut [f32]) {
        match &self.start {
            None => params[tensor.place.clone()].copy_from_slice(numbers),
            Some([a, _]) if tensor.place == self.a => {
                let (trained, start) = numbers.split_at(self.a.len());
                params[self.a.clone()].copy_from_slice(trained);
                params[a.clone()].copy_from_slice(start);
            }
            Some([_, b]) => {
                for (o, row) in numbers.chunks(2 * self.rank).enumerate() {
                    let (trained, start) = row.split_at(self.rank);
                    params[self.b.start + o * self.rank..][..self.rank].copy_from_slice(trained);
                    let place = &mut params[b.start + o * self.rank..][..self.rank];
                    place.iter_mut().zip(start).for_each(|(to, from)| *to = -from);
                }
            }
        }
    }
}

/// Writes both files into `dir`. What is durable when, and what stands there half-written, is the caller's affair.
pub fn save(dir: &Path, layout: &LoraLayout, params: &[f32], meta: &AdapterMeta) -> Result<(), LoraError> {
    assert_eq!(params.len(), layout.len(), "one number per place of the layout");
    let of = |entry| LoraEntry::tensors(entry).into_iter().map(move |tensor| (entry, tensor));
    let tensors = layout.entries().iter().flat_map(of).map(|(entry, tensor)| {
        let (name, shape) = (tensor.name.clone(), entry.saved_shape(&tensor));
        (name, Numbers { shape, numbers: Box::new(move || entry.widened(&tensor, params).into()) })
    });
    let path = dir.join(WEIGHTS_FILE);
    tensor_file::write(&path, tensors, true).map_err(|source| LoraError::Io { verb: "write", path, source })?;
    let mut text = serde_json::to_string_pretty(&config_json(layout, meta)).expect("plain values serialise");
    text.push('\n');
    write(&dir.join(CONFIG_FILE), text.as_bytes())
}

/// The keys PEFT writes, in its order (sorted).
fn config_json(layout: &LoraLayout, meta: &AdapterMeta) -> Value {
    let config = layout.config().as_saved();
    let fields = [
        ("alora_invocation_tokens", Value::Null),
        ("alpha_pattern", numbers(&config.alpha_pattern)),
        ("arrow_config", Value::Null),
        ("auto_mapping", Value::Null),
        ("base_model_name_or_path", json!(meta.base_model)),
        ("bias", json!("none")),
        ("corda_config", Value::Null),
        ("ensure_weight_tying", json!(false)),
        ("eva_config", Value::Null),
        ("exclude_modules", json!(config.exclude_modules)),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("kasa_config", Value::Null),
        ("layer_replication", Value::Null),
        ("layers_pattern", Value::Null),
        ("layers_to_transform", layers(&config.layers_to_transform)),
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
        ("rank_pattern", json!(config.rank_pattern)),
        ("revision", Value::Null),
        ("target_modules", target_modules(layout)),
        ("target_parameters", Value::Null),
        ("task_type", json!("CAUSAL_LM")),
        ("trainable_token_indices", Value::Null),
        ("use_bdlora", Value::Null),
        ("use_dora", json!(config.dora)),
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
            let mut names: Vec<&str> = Vec::new();
            for entry in layout.entries() {
                if let Site::Block(_, module) = entry.site
                    && !names.contains(&module.name())
                {
                    names.push(module.name());
                }
            }
            json!(names)
        }
        Targets::Names(names) => json!(names),
        Targets::Pattern(text) => json!(text),
    }
}

fn numbers(table: &BTreeMap<String, f64>) -> Value {
    Value::Object(table.iter().map(|(name, x)| (name.clone(), number(*x))).collect())
}

fn layers(layers: &[usize]) -> Value {
    if layers.is_empty() { Value::Null } else { json!(layers) }
}

/// Whole numbers without a point, as PEFT has them.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// Reads an adapter for `model` with the settings that its files name.
pub fn open(dir: &Path, model: &ModelConfig) -> Result<(LoraLayout, Vec<f32>), LoraError> {
    let config = read_config(dir)?;
    let layout = LoraLayout::new(model, &config).map_err(|error| of_file(error, &config, dir))?;
    let params = load(dir, &layout)?;
    Ok((layout, params))
}

/// A rank that a file asks for is named by its place there.
fn of_file(error: LoraError, config: &LoraConfig, dir: &Path) -> LoraError {
    let LoraError::Rank { module, rank, most } = error else { return error };
    let key = if rank == config.rank { "r" } else { "rank_pattern" };
    let expected = format!("1 to {most} (of {module})");
    LoraError::Setting { path: dir.join(CONFIG_FILE), key, found: rank.to_string(), expected }
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
    let of = |entry| LoraEntry::tensors(entry).into_iter().map(move |tensor| (entry, tensor));
    let ours: Vec<(&LoraEntry, Tensor)> = layout.entries().iter().flat_map(of).collect();
    let find = |(entry, tensor): &(&LoraEntry, Tensor)| find(&tensors, &tensor.name, &entry.saved_shape(tensor), &path);
    // all of them before any number has a place: what takes memory here is no larger than what the file holds
    let found: Vec<_> = ours.iter().map(find).collect::<Result<_, _>>()?;
    refuse_others(&tensors, layout, &path)?;
    let mut params = vec![0.0; layout.len()];
    for ((entry, tensor), (stored, view)) in ours.iter().zip(found) {
        let mut numbers = vec![0.0; view.shape().iter().product()];
        widen(stored, view.data(), &mut numbers);
        refuse_non_finite(&numbers, &tensor.name, &path)?;
        entry.narrow(tensor, &numbers, &mut params);
    }
    Ok(params)
}

fn refuse_pickle(dir: &Path, weights: &Path) -> Result<(), LoraError> {
    let pickle = dir.join("adapter_model.bin");
    if !weights.exists() && pickle.exists() {
        return Err(LoraError::Pickle { path: pickle });
    }
    Ok(())
}

/// A tensor of that name and shape.
fn find<'a>(
    file: &SafeTensors<'a>,
    name: &str,
    shape: &[usize],
    path: &Path,
) -> Result<(Stored, TensorView<'a>), LoraError> {
    let missing = |_| LoraError::Tensor { path: path.into(), name: name.into(), state: "missing" };
    let tensor = file.tensor(name).map_err(missing)?;
    match stored(tensor.dtype()).filter(|_| tensor.shape() == shape) {
        Some(stored) => Ok((stored, tensor)),
        None => Err(LoraError::Shape {
            path: path.into(),
            name: name.into(),
            found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
            expected: format!("F32, F16 or BF16 {shape:?}"),
        }),
    }
}

/// Whatever made it, nothing can be learnt from it.
fn refuse_non_finite(numbers: &[f32], name: &str, path: &Path) -> Result<(), LoraError> {
    match numbers.iter().find(|x| !x.is_finite()) {
        Some(x) => {
            let reason = format!("tensor {name} holds {x}, which is not a finite number");
            Err(LoraError::Malformed { path: path.into(), reason })
        }
        None => Ok(()),
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

/// The settings of an adapter from its files; what they say of dropout is for training and left out.
pub fn read_config(dir: &Path) -> Result<LoraConfig, LoraError> {
    #[derive(Deserialize)]
    struct Peft {
        r: usize,
        lora_alpha: f64,
        target_modules: Targets,
        exclude_modules: Option<Targets>,
        layers_to_transform: Option<Layers>,
        rank_pattern: Option<BTreeMap<String, usize>>,
        alpha_pattern: Option<BTreeMap<String, f64>>,
        #[serde(default)]
        use_rslora: bool,
        #[serde(default)]
        use_dora: bool,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Layers {
        One(usize),
        Many(Vec<usize>),
    }
    let path = dir.join(CONFIG_FILE);
    let malformed = |reason: String| LoraError::Malformed { path: path.clone(), reason };
    let peft: Peft = serde_json::from_slice(&read(&path, 1 << 20)?)
        .map_err(|error| malformed(format!("not an adapter's settings: {error}")))?;
    if peft.r == 0 {
        return Err(malformed("r is 0, expected at least 1".into()));
    }
    Ok(LoraConfig {
        target_modules: peft.target_modules,
        exclude_modules: peft.exclude_modules,
        layers_to_transform: match peft.layers_to_transform {
            None => Vec::new(),
            Some(Layers::One(layer)) => vec![layer],
            Some(Layers::Many(layers)) => layers,
        },
        rank_pattern: peft.rank_pattern.unwrap_or_default(),
        alpha_pattern: peft.alpha_pattern.unwrap_or_default(),
        rslora: peft.use_rslora,
        dora: peft.use_dora,
        ..LoraConfig::plain(peft.r, peft.lora_alpha, 0.0)
    })
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, LoraError> {
    read_file(path, most).map_err(|source| LoraError::Io { verb: "read", path: path.into(), source })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), LoraError> {
    fs::write(path, bytes).map_err(|source| LoraError::Io { verb: "write", path: path.into(), source })
}
