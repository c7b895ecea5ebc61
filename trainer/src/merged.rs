//! A base model with an adapter in its weights, tensor by tensor: what `merge` and the GGUF of a whole model are made of.
//!
//! ```text
//! W' = W + s · B A               DoRA: W' = m / ‖W + s · B A‖ ∘ (W + s · B A), by rows        in f32, whatever the files hold
//! ```
//! Nothing is held but the adapter and the tensor in hand. A tensor without an adapter stays what it is, to the last bit.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lorikeet_plan::{
    Base, MAX_CONFIG_BYTES, ModelConfig, TensorPlace, TensorSpec, WeightDtype, inspect_base, read_text, tensors,
};
use rayon::prelude::*;

use crate::TrainError;
use crate::lora::{self, LoraEntry, LoraLayout, Site};
use crate::model::stored;
use crate::ops::dora;
use crate::ops::lora::Pair;
use crate::ops::matmul::{View, ViewMut};
use crate::ops::widen::{Stored, widen};

/// Rows of one product on one thread.
const ROWS: usize = 32;

/// A base model's files and the adapter that goes into them.
pub(crate) struct Merged {
    config: ModelConfig,
    config_text: String,
    dir: PathBuf,
    places: BTreeMap<String, TensorPlace>,
    adapter: Option<(LoraLayout, Vec<f32>)>,
}

impl Merged {
    /// Judges both directories; reads the adapter, and of the base no weight.
    pub(crate) fn open(base: &Path, adapter: Option<&Path>) -> Result<Merged, TrainError> {
        refuse_quantised(base)?;
        let found = inspect_base(base);
        if let Some(fault) = found.faults.first() {
            return Err(TrainError::Base { path: base.join(&fault.file), reason: fault.message.clone() });
        }
        let Base { config: Some(config), config_text, places, .. } = found else {
            return Err(TrainError::Internal("a base without faults has a config".into()));
        };
        let adapter = adapter.map(|dir| lora::open(dir, &config)).transpose()?;
        Ok(Merged { config, config_text, dir: base.to_owned(), places, adapter })
    }

    /// The model's shape.
    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// `config.json` as it stands there.
    pub(crate) fn config_text(&self) -> &str {
        &self.config_text
    }

    /// The base's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every tensor, in forward order.
    pub(crate) fn tensors(&self) -> Vec<TensorSpec> {
        tensors(&self.config)
    }

    /// How a tensor is stored.
    pub(crate) fn dtype(&self, tensor: &str) -> WeightDtype {
        self.place(tensor).dtype
    }

    /// How many tensors the adapter changes.
    pub(crate) fn changed(&self) -> usize {
        self.adapter.as_ref().map_or(0, |(layout, _)| layout.entries().len())
    }

    /// A tensor's numbers, merged.
    pub(crate) fn numbers(&self, tensor: &str) -> Result<Vec<f32>, TrainError> {
        let mut numbers = self.stored_numbers(tensor)?;
        if let Some((entry, params)) = self.entry(tensor) {
            merge(entry, params, &mut numbers);
            if numbers.par_iter().any(|x| !x.is_finite()) {
                return Err(self.not_finite(tensor));
            }
        }
        Ok(numbers)
    }

    /// A tensor's bytes in the type that its file holds it in.
    pub(crate) fn bytes(&self, tensor: &str) -> Result<Vec<u8>, TrainError> {
        if self.entry(tensor).is_none() {
            return self.stored_bytes(tensor);
        }
        narrowed(&self.numbers(tensor)?, stored(self.dtype(tensor))).ok_or_else(|| self.not_finite(tensor))
    }

    fn entry(&self, tensor: &str) -> Option<(&LoraEntry, &[f32])> {
        let (layout, params) = self.adapter.as_ref()?;
        let path = tensor.strip_suffix(".weight")?;
        let entry = layout.entries().iter().find(|entry| entry.site.path() == path)?;
        Some((entry, params))
    }

    fn stored_numbers(&self, tensor: &str) -> Result<Vec<f32>, TrainError> {
        let bytes = self.stored_bytes(tensor)?;
        let mut numbers = vec![0.0; self.place(tensor).shape.iter().product()];
        widen(stored(self.dtype(tensor)), &bytes, &mut numbers);
        Ok(numbers)
    }

    fn stored_bytes(&self, tensor: &str) -> Result<Vec<u8>, TrainError> {
        let place = self.place(tensor);
        let path = self.dir.join(&place.file);
        let mut bytes = vec![0; place.bytes as usize];
        let read = File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, place.offset));
        read.map_err(TrainError::io("read", &path))?;
        Ok(bytes)
    }

    fn place(&self, tensor: &str) -> &TensorPlace {
        self.places.get(tensor).expect("a base without faults has every tensor of its config")
    }

    fn not_finite(&self, tensor: &str) -> TrainError {
        let dtype = self.dtype(tensor).name();
        TrainError::Adapter { path: self.dir.clone(), reason: format!("merged, {tensor} has numbers beyond {dtype}") }
    }
}

/// A quantised weight was rounded to a few levels; what an adapter adds is smaller than their distance and would be rounded away.
fn refuse_quantised(base: &Path) -> Result<(), TrainError> {
    let path = base.join("config.json");
    let text = read_text(&path, MAX_CONFIG_BYTES).map_err(TrainError::io("read", &path))?;
    let config: serde_json::Value = serde_json::from_str(&text)
        .map_err(|error| TrainError::Base { path: path.clone(), reason: format!("not JSON: {error}") })?;
    match config.get("quantization_config").filter(|value| !value.is_null()) {
        None => Ok(()),
        Some(found) => {
            let how = found.get("quant_method").and_then(|method| method.as_str()).unwrap_or("quantised");
            let reason = format!(
                "its weights are quantised ({how}), and what an adapter adds to them would be rounded away; merge into the model it \
                 was quantised from"
            );
            Err(TrainError::Base { path, reason })
        }
    }
}

fn merge(entry: &LoraEntry, params: &[f32], weight: &mut [f32]) {
    let (a, b) = (&params[entry.a.clone()], &params[entry.b.clone()]);
    let (a, b, inputs) = match entry.site {
        // an embedding is looked up by rows: its weight is the transpose of what B A makes
        Site::Embedding => (transposed(b, entry.rank), transposed(a, entry.in_features), entry.out_features),
        Site::Block(..) | Site::Head => (a.to_vec(), b.to_vec(), entry.in_features),
    };
    let norms = (!entry.magnitude.is_empty()).then(|| {
        let mut norms = vec![0.0; entry.out_features];
        dora::norms(weight, Pair { a: &a, b: &b, rank: entry.rank, scale: entry.scale }, &mut norms);
        norms
    });
    let whole = View::new(&a, entry.rank, inputs);
    weight.par_chunks_mut(ROWS * inputs).zip(b.par_chunks(ROWS * entry.rank)).for_each(|(rows, b)| {
        let count = b.len() / entry.rank;
        let mut rows = ViewMut::new(rows, count, inputs);
        rows += View::new(b, count, entry.rank).times(whole).scaled(entry.scale).here();
    });
    if let Some(norms) = norms {
        let factors = params[entry.magnitude.clone()].par_iter().zip(norms);
        weight.par_chunks_mut(inputs).zip(factors).for_each(|(row, (m, n))| row.iter_mut().for_each(|w| *w *= m / n));
    }
}

/// The transpose of a matrix with rows of `width`.
pub(crate) fn transposed(matrix: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| matrix.iter().skip(column).step_by(width).copied()).collect()
}

/// Rounded to the nearest that the type has; none when a number is beyond it.
pub(crate) fn narrowed(numbers: &[f32], stored: Stored) -> Option<Vec<u8>> {
    let fits = |x: f32| x.is_finite();
    match stored {
        Stored::F32 => Some(numbers.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Stored::F16 => {
            let narrow: Vec<half::f16> = numbers.par_iter().map(|x| half::f16::from_f32(*x)).collect();
            let fit = narrow.iter().all(|x| fits(x.to_f32()));
            fit.then(|| narrow.iter().flat_map(|x| x.to_le_bytes()).collect())
        }
        Stored::Bf16 => {
            let narrow: Vec<half::bf16> = numbers.par_iter().map(|x| half::bf16::from_f32(*x)).collect();
            let fit = narrow.iter().all(|x| fits(x.to_f32()));
            fit.then(|| narrow.iter().flat_map(|x| x.to_le_bytes()).collect())
        }
    }
}

/// The first error of something that cannot say so where it happens.
#[derive(Default)]
pub(crate) struct FirstError(std::sync::Mutex<Option<TrainError>>);

impl FirstError {
    /// The value, or what stands for it while the error waits.
    pub(crate) fn keep<T>(&self, result: Result<T, TrainError>, instead: impl FnOnce() -> T) -> T {
        result.unwrap_or_else(|error| {
            self.0.lock().expect("no code that holds the lock can panic").get_or_insert(error);
            instead()
        })
    }

    /// The error, if there was one; else what the library said.
    pub(crate) fn or(self, path: &Path, written: io::Result<()>) -> Result<(), TrainError> {
        match self.0.into_inner().expect("no code that holds the lock can panic") {
            Some(error) => Err(error),
            None => written.map_err(TrainError::io("write", path)),
        }
    }
}
