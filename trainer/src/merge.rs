//! A base model and its adapter as one model: the files that every loader reads, with the adapter in the weights.
//!
//! ```text
//! config.json, tokenizer …           as in the base
//! model.safetensors                  or, above the shard size:
//! model-00001-of-00003.safetensors … and model.safetensors.index.json
//! ```
//! Arithmetic in f32, each tensor stored in the type it has in the base. Shards are filled in forward order, as transformers
//! fills them; one tensor is in memory at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::View;
use safetensors::tensor::Dtype;
use serde_json::json;

use crate::TrainError;
use crate::event::FileRecord;
use crate::export::{copy_side_files, pretty};
use crate::merged::{FirstError, Merged};
use crate::ops::widen::Stored;
use crate::staged::StagedDir;
use crate::tensor_file;

/// As large as transformers makes a shard.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// Every file.
    pub files: Vec<FileRecord>,
    /// Tensors in them.
    pub tensors: usize,
    /// Of them changed by the adapter.
    pub changed: usize,
}

/// Writes the merged model to `out`, whole or not at all; nothing but an empty directory may stand there. `told` hears of the
/// bytes written so far and in all; `stop` leaves it.
pub fn merge(
    base: &Path,
    adapter: &Path,
    out: &Path,
    shard_bytes: u64,
    told: &(dyn Fn(u64, u64) + Sync),
    stop: &dyn Fn() -> bool,
) -> Result<Whole, TrainError> {
    let merged = Merged::open(base, Some(adapter))?;
    let staged = StagedDir::result(out, stop)?;
    staged.write("config.json", merged.config_text().as_bytes())?;
    copy_side_files(merged.dir(), staged.path())?;
    let shards = shards(&merged, shard_bytes);
    let total: u64 = shards.iter().flatten().map(|part| part.len as u64).sum();
    let told = Told { tell: told, done: 0.into(), total };
    let mut places = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let name = file_name(index, shards.len());
        write(&merged, shard, &staged.path().join(&name), (&told, stop))?;
        places.extend(shard.iter().map(|part| (part.name.as_str(), name.clone())));
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": places});
        staged.write("model.safetensors.index.json", &pretty(&index))?;
    }
    let files = staged.records()?;
    staged.publish()?;
    Ok(Whole { files, tensors: places.len(), changed: merged.changed() })
}

/// One tensor of a file to be written.
struct Part {
    name: String,
    shape: Vec<usize>,
    stored: Stored,
    len: usize,
}

/// In forward order; a tensor that does not fit beside the others begins the next file.
fn shards(merged: &Merged, most: u64) -> Vec<Vec<Part>> {
    let (mut shards, mut room) = (vec![Vec::new()], most);
    for tensor in merged.tensors() {
        let stored = crate::model::stored(merged.dtype(&tensor.name));
        let len = tensor.shape.iter().product::<usize>() * stored.bytes();
        if len as u64 > room && shards.last().is_some_and(|shard: &Vec<Part>| !shard.is_empty()) {
            shards.push(Vec::new());
            room = most;
        }
        room = room.saturating_sub(len as u64);
        let part = Part { name: tensor.name, shape: tensor.shape, stored, len };
        shards.last_mut().expect("there is one from the start").push(part);
    }
    shards
}

fn file_name(index: usize, count: usize) -> String {
    match count {
        1 => "model.safetensors".into(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    }
}

/// How far it is.
struct Told<'a> {
    tell: &'a (dyn Fn(u64, u64) + Sync),
    done: std::sync::atomic::AtomicU64,
    total: u64,
}

fn write(
    merged: &Merged,
    shard: &[Part],
    path: &Path,
    (told, stop): (&Told<'_>, &dyn Fn() -> bool),
) -> Result<(), TrainError> {
    let first = FirstError::default();
    let tensors = shard.iter().map(|part| (part.name.as_str(), Lazy { merged, part, first: &first, told, stop }));
    let written = tensor_file::write(path, tensors, true);
    first.or(path, written)
}

/// A tensor that is made when the library asks for its bytes.
struct Lazy<'a> {
    merged: &'a Merged,
    part: &'a Part,
    first: &'a FirstError,
    told: &'a Told<'a>,
    stop: &'a dyn Fn() -> bool,
}

impl View for Lazy<'_> {
    fn dtype(&self) -> Dtype {
        match self.part.stored {
            Stored::F32 => Dtype::F32,
            Stored::F16 => Dtype::F16,
            Stored::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.part.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = if (self.stop)() { Err(TrainError::Stopped) } else { self.merged.bytes(&self.part.name) };
        let bytes = self.first.keep(bytes, || vec![0; self.part.len]);
        let before = self.told.done.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
        (self.told.tell)(before + bytes.len() as u64, self.told.total);
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.part.len
    }
}
