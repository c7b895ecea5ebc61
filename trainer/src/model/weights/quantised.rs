//! Weights in fewer bits: read as bitsandbytes wrote them, or made of the numbers in the files.

use lorikeet_plan::{BaseDtype, QUANT_STATE, TensorPlace, WeightDtype};
use serde::Deserialize;

use super::{Files, stored};
use crate::TrainError;
use crate::ops::widen::Stored;
use crate::quant::{Int8, Nested, Nf4, Quantised, Scales};

/// What `quant_state` says beside the tensors.
#[derive(Debug, Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

impl Files<'_> {
    /// One weight of `[rows, cols]` in the bits that `dtype` says, or those that its files hold.
    pub(crate) fn quantised(&self, weight: &str, shape: [usize; 2], dtype: BaseDtype) -> Result<Quantised, TrainError> {
        let place = self.place(weight);
        if place.dtype == WeightDtype::U8 {
            return self.nf4(weight, shape, place).map(Quantised::Nf4);
        }
        if place.dtype == WeightDtype::I8 {
            return self.int8(weight, place).map(Quantised::Int8);
        }
        let numbers = self.numbers(&[place], |x| x)?;
        Ok(match dtype {
            BaseDtype::Int8 => Quantised::Int8(Int8::new(&numbers, place.shape[1])),
            BaseDtype::Nf4 | BaseDtype::F32 | BaseDtype::Bf16 => {
                Quantised::Nf4(Nf4::new(&numbers, stored(place.dtype)))
            }
        })
    }

    fn int8(&self, weight: &str, place: &TensorPlace) -> Result<Int8, TrainError> {
        let module = weight.trim_end_matches("weight");
        let format = format!("{module}weight_format");
        if self.has(&format) && self.bytes(&format)? != [0] {
            return Err(self.fault(weight, "is not stored by rows"));
        }
        let codes = self.bytes_at(place)?.into_iter().map(u8::cast_signed).collect();
        Ok(Int8 { codes, scales: self.floats(&format!("{module}SCB"))? })
    }

    fn nf4(&self, weight: &str, shape: [usize; 2], place: &TensorPlace) -> Result<Nf4, TrainError> {
        let of = |part: &str| format!("{weight}.{part}");
        let text = self.bytes(&format!("{weight}{QUANT_STATE}"))?;
        let state: State = serde_json::from_slice(&text)
            .map_err(|error| self.fault(weight, &format!("has a quant_state that cannot be read: {error}")))?;
        let numbers: usize = state.shape.iter().product();
        let sound =
            state.quant_type == "nf4" && state.blocksize.is_power_of_two() && (32..=4096).contains(&state.blocksize);
        if !sound || state.shape != shape {
            let found = format!("{} in blocks of {} with shape {:?}", state.quant_type, state.blocksize, state.shape);
            return Err(
                self.fault(weight, &format!("is {found}, expected nf4 in blocks of 32 to 4096 with shape {shape:?}"))
            );
        }
        let absmax = self.place(&of("absmax"));
        let nested = absmax.dtype == WeightDtype::U8;
        let scales = if nested { self.nested(weight, &state)? } else { Scales::Plain(self.floats(&of("absmax"))?) };
        let blocks = numbers.div_ceil(state.blocksize);
        if scales.len() != blocks {
            return Err(self.fault(weight, &format!("has {} scales, expected {blocks}", scales.len())));
        }
        let levels = self.floats(&of("quant_map"))?.try_into().expect("a base without faults has sixteen levels");
        let stored = self.stored_before(weight, &state.dtype)?;
        Ok(Nf4 { codes: self.bytes_at(place)?, scales, block: state.blocksize, levels, stored })
    }

    fn nested(&self, weight: &str, state: &State) -> Result<Scales, TrainError> {
        let of = |part: &str| format!("{weight}.{part}");
        let (Some(block), Some(mean)) = (state.nested_blocksize.filter(|block| *block > 0), state.nested_offset) else {
            return Err(
                self.fault(weight, "has nested scales and a quant_state without nested_blocksize and nested_offset")
            );
        };
        let (codes, scales) = (self.bytes(&of("absmax"))?, self.floats(&of("nested_absmax"))?);
        if scales.len() != codes.len().div_ceil(block) {
            let found = format!("has {} scales of scales, expected {}", scales.len(), codes.len().div_ceil(block));
            return Err(self.fault(weight, &found));
        }
        let map: [f32; 256] =
            self.floats(&of("nested_quant_map"))?.try_into().expect("a base without faults has 256 entries");
        Ok(Scales::Nested(Nested { codes, scales, block, map: Box::new(map), mean: mean as f32 }))
    }

    fn stored_before(&self, weight: &str, dtype: &str) -> Result<Stored, TrainError> {
        match dtype {
            "float32" => Ok(Stored::F32),
            "float16" => Ok(Stored::F16),
            "bfloat16" => Ok(Stored::Bf16),
            other => Err(self.fault(weight, &format!("was {other}, expected float32, float16 or bfloat16"))),
        }
    }

    fn floats(&self, tensor: &str) -> Result<Vec<f32>, TrainError> {
        self.numbers(&[self.place(tensor)], |x| x)
    }

    fn bytes(&self, tensor: &str) -> Result<Vec<u8>, TrainError> {
        self.bytes_at(self.place(tensor))
    }

    fn has(&self, tensor: &str) -> bool {
        self.places.contains_key(tensor)
    }

    fn fault(&self, weight: &str, what: &str) -> TrainError {
        let (path, _) = &self.open[&self.place(weight).file];
        TrainError::Base { path: path.clone(), reason: format!("tensor {weight:?} {what}") }
    }
}
