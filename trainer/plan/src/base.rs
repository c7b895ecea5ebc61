//! Judges a base model's directory from its texts and headers: nothing is loaded, no weight is read, every fault is named.
//!
//! Order: `config.json`, the weight files (one or a shard index), each header, then every tensor the config calls for.
//! The tokenizer is judged by `lorikeet-dataset`, which knows how to read one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::file::{MAX_CONFIG_BYTES, open_regular, read_text};
use crate::quantised::{self, is_quantised};
use crate::{Header, MAX_HEADER_BYTES, ModelConfig, WeightDtype, parameters, parse_header, tensors};

/// Faults listed; the rest is only counted.
const LISTED_FAULTS: usize = 100;
/// A shard index names every tensor once; the largest known are a few megabytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Everything beside the weights that belongs to a base model, where present.
const SIDE_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What a directory holds. Usable when `faults` is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Base {
    /// The model's shape, when `config.json` could be read.
    pub config: Option<ModelConfig>,
    /// `config.json` as it stands there.
    #[serde(skip)]
    pub config_text: String,
    /// The class name of its architecture.
    pub architecture: Option<String>,
    /// Numbers in all its tensors.
    pub parameters: u64,
    /// The dtype that most of them are stored in.
    pub dtype: Option<WeightDtype>,
    /// Every file that belongs to the model, weights included.
    pub files: Vec<BaseFile>,
    /// Where each tensor of the model lies.
    #[serde(skip)]
    pub places: BTreeMap<String, TensorPlace>,
    /// Tensors that the files hold and the model does not use.
    pub unused: Vec<String>,
    /// The first faults.
    pub faults: Vec<BaseFault>,
    /// All faults, listed or not.
    pub fault_count: u64,
}

/// One file of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFile {
    /// Its name in the directory.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// Where a tensor's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    /// The file's name in the directory.
    pub file: String,
    /// Number format.
    pub dtype: WeightDtype,
    /// Shape, rows first.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// Something that keeps a directory from being used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFault {
    /// The file it was found in, or that is missing.
    pub file: String,
    /// What is wrong.
    pub message: String,
    /// What to do, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Judges the directory. Reading only texts and headers, it takes milliseconds whatever the model's size.
pub fn inspect_base(dir: &Path) -> Base {
    let mut base = Base::default();
    for name in SIDE_FILES {
        base.note_file(dir, name);
    }
    match read_config(dir) {
        Ok((config, text)) => base.accept_config(config, text),
        Err(message) => base.fault("config.json", message),
    }
    let weights = match weight_files(dir) {
        Ok(weights) => weights,
        Err(fault) => {
            base.push(fault);
            return base;
        }
    };
    base.read_weights(dir, &weights);
    base.check_tensors(&weights);
    base
}

impl Base {
    /// Usable for training as far as config and weights go.
    pub const fn is_sound(&self) -> bool {
        self.fault_count == 0
    }

    fn fault(&mut self, file: &str, message: String) {
        self.push(BaseFault { file: file.into(), message, hint: None });
    }

    fn push(&mut self, fault: BaseFault) {
        self.fault_count += 1;
        if self.faults.len() < LISTED_FAULTS {
            self.faults.push(fault);
        }
    }

    fn note_file(&mut self, dir: &Path, name: &str) {
        if let Ok(meta) = fs::metadata(dir.join(name))
            && meta.is_file()
        {
            self.files.push(BaseFile { name: name.into(), bytes: meta.len() });
        }
    }

    fn accept_config(&mut self, config: ModelConfig, text: String) {
        self.config_text = text;
        self.architecture = Some(config.family.architecture().into());
        self.parameters = parameters(&config);
        self.config = Some(config);
    }

    fn read_weights(&mut self, dir: &Path, weights: &Weights) {
        if weights.index.is_some() {
            self.note_file(dir, INDEX);
        }
        for name in &weights.files {
            self.note_file(dir, name);
            match read_header(&dir.join(name)) {
                Ok((header, data_start)) => self.add_places(name, header, data_start),
                Err(message) => self.fault(name, message),
            }
        }
        self.dtype = self.main_dtype();
    }

    fn add_places(&mut self, file: &str, header: Header, data_start: u64) {
        for (name, tensor) in header.tensors {
            if let Some(other) = self.places.get(&name) {
                let message = format!("tensor {name:?} stands here and in {} too", other.file);
                self.fault(file, message);
                continue;
            }
            let place = TensorPlace {
                file: file.into(),
                dtype: tensor.dtype,
                shape: tensor.shape,
                offset: data_start + tensor.data.start,
                bytes: tensor.data.end - tensor.data.start,
            };
            self.places.insert(name, place);
        }
    }

    fn main_dtype(&self) -> Option<WeightDtype> {
        let mut bytes: BTreeMap<WeightDtype, u64> = BTreeMap::new();
        for place in self.places.values() {
            *bytes.entry(place.dtype).or_default() += place.bytes;
        }
        bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(dtype, _)| dtype)
    }

    /// Faults already found in a file explain its missing tensors, so those are not listed one by one.
    fn check_tensors(&mut self, weights: &Weights) {
        let Some(config) = self.config.clone() else { return };
        let unread = weights.files.iter().any(|file| self.faults.iter().any(|fault| &fault.file == file));
        let mut wanted = BTreeSet::new();
        for spec in tensors(&config) {
            match self.places.get(&spec.name) {
                Some(place) if is_quantised(&config, &spec.name, place) => {
                    let (others, faults) = quantised::check(&spec, &self.places);
                    faults.into_iter().for_each(|(file, message)| self.fault(&file, message));
                    wanted.extend(others);
                }
                Some(place) => self.check_place(&spec.name, &spec.shape, place.clone()),
                None if unread => {}
                None => self.fault(weights.holder(&spec.name), format!("tensor {:?} is missing", spec.name)),
            }
            wanted.insert(spec.name);
        }
        self.check_unused(&wanted);
    }

    fn check_place(&mut self, name: &str, shape: &[usize], place: TensorPlace) {
        if place.shape != shape {
            let message = format!("tensor {name:?} has shape {:?}, config.json calls for {shape:?}", place.shape);
            self.fault(&place.file, message);
        }
        if !place.dtype.is_trainable_base() {
            let message = format!("tensor {name:?} is stored as {}, expected F32, BF16 or F16", place.dtype.name());
            self.fault(&place.file, message);
        }
    }

    /// A bias that nobody adds would change every result; other strangers (old rotary buffers, a tied head) change none.
    fn check_unused(&mut self, wanted: &BTreeSet<String>) {
        let strangers = self.places.keys().filter(|name| !wanted.contains(*name));
        self.unused = strangers.take(LISTED_FAULTS).cloned().collect();
        let biases: Vec<_> = self
            .places
            .iter()
            .filter(|(name, _)| name.ends_with(".bias") && !wanted.contains(*name))
            .map(|(name, place)| (name.clone(), place.file.clone()))
            .collect();
        for (name, file) in biases {
            self.fault(&file, format!("tensor {name:?} is a bias, config.json calls for none"));
        }
        let keep = |name: &String, _: &mut TensorPlace| wanted.contains(name);
        self.places.retain(keep);
    }
}

fn read_config(dir: &Path) -> Result<(ModelConfig, String), String> {
    let text = read_text(&dir.join("config.json"), MAX_CONFIG_BYTES).map_err(in_words)?;
    ModelConfig::parse(&text).map(|config| (config, text)).map_err(|error| error.to_string())
}

/// The weight files of a model.
struct Weights {
    files: Vec<String>,
    /// Tensor to file, when the model is sharded.
    index: Option<BTreeMap<String, String>>,
}

impl Weights {
    fn holder(&self, tensor: &str) -> &str {
        match &self.index {
            None => SINGLE,
            Some(map) => map.get(tensor).map_or(INDEX, String::as_str),
        }
    }
}

fn weight_files(dir: &Path) -> Result<Weights, BaseFault> {
    if dir.join(SINGLE).is_file() {
        return Ok(Weights { files: vec![SINGLE.into()], index: None });
    }
    if dir.join(INDEX).is_file() {
        let map = read_index(dir).map_err(|message| BaseFault { file: INDEX.into(), message, hint: None })?;
        let files: BTreeSet<String> = map.values().cloned().collect();
        return Ok(Weights { files: files.into_iter().collect(), index: Some(map) });
    }
    Err(no_file(dir).unwrap_or_else(|| no_weights(dir)))
}

/// The name is there, and what has it is no file.
fn no_file(dir: &Path) -> Option<BaseFault> {
    let kind = |name: &&str| match fs::metadata(dir.join(name)).map(|meta| meta.file_type()) {
        Ok(kind) if kind.is_dir() => Some("a directory"),
        Ok(kind) if kind.is_fifo() => Some("a pipe"),
        Ok(_) => Some("a device or a socket"),
        Err(_) => dir.join(name).is_symlink().then_some("a link to nothing that can be opened"),
    };
    let (name, kind) = [SINGLE, INDEX].into_iter().find_map(|name| Some((name, kind(&name)?)))?;
    Some(BaseFault { file: name.into(), message: format!("is {kind}, expected a file"), hint: None })
}

/// Says why there are no weights: a pickle is the usual reason and would run its author's code when opened.
fn no_weights(dir: &Path) -> BaseFault {
    const PICKLES: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];
    let mut names: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| Path::new(name).extension().is_some_and(|ext| PICKLES.iter().any(|pickle| ext == *pickle)))
        .collect();
    names.sort();
    match names.into_iter().next() {
        Some(name) => BaseFault {
            file: name,
            message: "the weights are a Python pickle, which can run code when it is opened, and are never read".into(),
            hint: Some("save the model again as safetensors (save_pretrained with safe_serialization=True)".into()),
        },
        None => BaseFault {
            file: SINGLE.into(),
            message: format!("no weights found, expected {SINGLE} or {INDEX}"),
            hint: None,
        },
    }
}

fn read_index(dir: &Path) -> Result<BTreeMap<String, String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = read_text(&dir.join(INDEX), MAX_INDEX_BYTES).map_err(in_words)?;
    let index: Index = serde_json::from_str(&text).map_err(|error| format!("not a shard index: {error}"))?;
    match index.weight_map.values().find(|name| !is_plain_name(name)) {
        Some(name) => Err(format!("names the file {name:?}, expected a safetensors file in the same directory")),
        None => Ok(index.weight_map),
    }
}

/// A shard index comes from outside and must not lead out of the directory.
fn is_plain_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

/// Header and the offset where data begins.
fn read_header(path: &Path) -> Result<(Header, u64), String> {
    let mut file = open_regular(path).map_err(in_words)?;
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    let mut length = [0u8; 8];
    file.read_exact(&mut length).map_err(|_| format!("holds {size} bytes, too few for a safetensors file"))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > size - 8 {
        return Err(format!("claims a header of {length} bytes in a file of {size}"));
    }
    let mut json = vec![0u8; length as usize];
    file.read_exact(&mut json).map_err(|error| format!("the header cannot be read: {error}"))?;
    let header = parse_header(&json, size - 8 - length)?;
    Ok((header, 8 + length))
}

/// Why a file of the base cannot be used.
fn in_words(error: io::Error) -> String {
    let is_ours = matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData);
    if is_ours { error.to_string() } else { format!("cannot be opened: {error}") }
}
