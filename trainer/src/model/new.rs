//! Where the model itself is trained: from the one flat buffer of its numbers into what passes take, and from its files into that buffer.

use std::ops::Range;
use std::path::Path;

use lorikeet_plan::{BaseDtype, ModelConfig, inspect_base};

use super::gain::Gain;
use super::{EMBEDDING, Files, HEAD, Model};
use crate::TrainError;
use crate::full::WeightLayout;
use crate::ops::machine::{Machine, Params, ParamsAt, Weight};

/// New numbers for all tensors of a model.
pub(super) struct New<'a> {
    pub(super) config: &'a ModelConfig,
    machine: &'a Machine,
    layout: &'a WeightLayout,
    params: Params<'a>,
}

impl New<'_> {
    fn of(&self, tensor: &str) -> ParamsAt<'_> {
        self.params.at(self.layout.place(tensor))
    }

    /// Rows of a weight.
    pub(super) fn rows(&self, tensor: &str, weight: &mut Weight, rows: Range<usize>) {
        self.machine.set_rows(weight, rows, &self.of(tensor));
    }

    /// Their bias.
    pub(super) fn bias(&self, tensor: &str, weight: &mut Weight, rows: Range<usize>) {
        self.machine.set_bias(weight, rows, &self.of(tensor));
    }

    /// A gain, which multiplies by one more than it is in the files of some families.
    pub(super) fn gain(&self, gain: &mut Gain) {
        let offset = if self.config.norm_offset { 1.0 } else { 0.0 };
        self.machine.set_gain(&mut gain.values, &self.of(&gain.tensor), offset);
    }
}

impl Model {
    /// Puts those numbers, which lie where it computes, in the place of its own; a GPU has done so before any pass that comes onto its stream
    /// behind this.
    pub fn set_weights(&mut self, layout: &WeightLayout, params: Params<'_>) {
        let new = New { config: &self.config, machine: &self.machine, layout, params };
        let rows = 0..self.config.vocab_size;
        new.rows(EMBEDDING, &mut self.embedding, rows.clone());
        self.blocks.iter_mut().enumerate().for_each(|(layer, block)| block.set(layer, &new));
        new.gain(&mut self.norm);
        if let Some(head) = &mut self.head {
            new.rows(HEAD, head, rows);
        }
    }
}

/// Every number of the base in `dir` as its files hold it, in the order of `layout`: what a model was loaded as may be less. `stop` is asked
/// before every piece of a tensor and ends it with [`TrainError::Stopped`].
pub fn read_weights(
    dir: &Path,
    layout: &WeightLayout,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<f32>, TrainError> {
    let files = Files::judged(dir, &inspect_base(dir), BaseDtype::F32, stop)?;
    let mut params = vec![0.0; layout.len()];
    for (tensor, place) in layout.tensors() {
        files.read_into(&tensor.name, &mut params[place])?;
    }
    Ok(params)
}
