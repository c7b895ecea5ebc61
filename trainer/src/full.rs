//! Training the model itself: where its weights lie in one flat buffer.
//!
//! The order is that of the tensors in the model's files, the numbers are those of the files (a gain stored less one stays so).
//! A tied head is the embedding and has no place of its own. Optimizer, gradient and checkpoint share the map, as they share
//! [`LoraLayout`](crate::lora::LoraLayout) for an adapter.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use lorikeet_plan::{ModelConfig, TensorSpec, tensors};
use safetensors::tensor::{Dtype, SafeTensors};

use crate::TrainError;
use crate::tensor_file::{self, Numbers};

/// The model's numbers, in f32.
pub const MODEL_FILE: &str = "model.safetensors";

/// The map from tensors to places in one flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightLayout {
    tensors: Vec<TensorSpec>,
    places: BTreeMap<String, Range<usize>>,
    len: usize,
}

impl WeightLayout {
    /// Places every tensor of a model.
    pub fn new(config: &ModelConfig) -> WeightLayout {
        let (tensors, mut places, mut len) = (tensors(config), BTreeMap::new(), 0);
        for tensor in &tensors {
            let next = len + tensor.shape.iter().product::<usize>();
            places.insert(tensor.name.clone(), len..next);
            len = next;
        }
        WeightLayout { tensors, places, len }
    }

    /// How many numbers there are.
    #[expect(clippy::len_without_is_empty, reason = "no model is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Every tensor, in buffer order.
    pub fn tensors(&self) -> impl Iterator<Item = (&TensorSpec, Range<usize>)> {
        self.tensors.iter().map(|tensor| (tensor, self.place(&tensor.name)))
    }

    /// Where a tensor of the model lies.
    pub fn place(&self, tensor: &str) -> Range<usize> {
        self.places.get(tensor).expect("asked for tensors of the model only").clone()
    }
}

/// Writes every tensor into one file.
pub(crate) fn save(dir: &Path, layout: &WeightLayout, params: &[f32]) -> Result<(), TrainError> {
    assert_eq!(params.len(), layout.len(), "one number per place of the layout");
    let tensors = layout
        .tensors()
        .map(|(tensor, place)| (tensor.name.clone(), Numbers::of(tensor.shape.clone(), &params[place])));
    let path = dir.join(MODEL_FILE);
    tensor_file::write(&path, tensors, true).map_err(TrainError::io("write", &path))
}

/// Reads what [`save`] wrote.
pub(crate) fn load(dir: &Path, layout: &WeightLayout) -> Result<Vec<f32>, TrainError> {
    let path = dir.join(MODEL_FILE);
    let wrong = |reason: String| TrainError::Checkpoint { path: path.clone(), reason };
    let bytes = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
    let mut params = vec![0.0; layout.len()];
    for (tensor, place) in layout.tensors() {
        let found = file.tensor(&tensor.name).map_err(|error| wrong(error.to_string()))?;
        if found.dtype() != Dtype::F32 || found.shape() != tensor.shape {
            let (name, shape) = (&tensor.name, &tensor.shape);
            return Err(wrong(format!("{name} is {:?} {:?}, expected F32 {shape:?}", found.dtype(), found.shape())));
        }
        let numbers = found.data().as_chunks::<4>().0;
        params[place].iter_mut().zip(numbers).for_each(|(x, four)| *x = f32::from_le_bytes(*four));
    }
    Ok(params)
}
