//! The tensors that bitsandbytes puts in the place of one weight, as their headers describe them.
//!
//! ```text
//! nf4   X.weight        U8  [numbers / 2, 1]     X.weight.quant_map                            F32 [16]
//!       X.weight.absmax U8  [blocks], with       X.weight.nested_absmax, .nested_quant_map     F32 [blocks / 256], [256]
//!                    or F32 [blocks]             X.weight.quant_state.bitsandbytes__nf4        U8  JSON: block sizes, shape, mean
//! int8  X.weight        I8  [rows, cols]         X.SCB                                         F32 [rows]
//!                                                X.weight_format                               U8  [], 0: by rows
//! ```
//! How many blocks there are is told by numbers in the JSON, so whoever reads those checks the sizes that follow from it.

use std::collections::BTreeMap;

use crate::{ModelConfig, Quantisation, TensorPlace, TensorSpec, WeightDtype};

/// The suffix of the tensor that holds what is no tensor.
pub const QUANT_STATE: &str = ".quant_state.bitsandbytes__nf4";

/// Whether a tensor of the model lies there in fewer bits; modules may be left out, those lie there plainly.
pub(crate) fn is_quantised(config: &ModelConfig, name: &str, place: &TensorPlace) -> bool {
    let narrow = match config.quantisation {
        None => return false,
        Some(Quantisation::Nf4) => WeightDtype::U8,
        Some(Quantisation::Int8) => WeightDtype::I8,
    };
    name.ends_with("_proj.weight") && place.dtype == narrow
}

/// The tensors that belong to a quantised weight, and what is wrong with them, by file.
pub(crate) fn check(spec: &TensorSpec, places: &BTreeMap<String, TensorPlace>) -> (Vec<String>, Vec<(String, String)>) {
    let weight = &places[&spec.name];
    let mut faults = Vec::new();
    let mut others = Vec::new();
    let mut wanted: Vec<(String, WeightDtype, Option<Vec<usize>>)> = Vec::new();
    let numbers: usize = spec.shape.iter().product();
    if weight.dtype == WeightDtype::I8 {
        let module = spec.name.trim_end_matches("weight");
        wanted.push((spec.name.clone(), WeightDtype::I8, Some(spec.shape.clone())));
        wanted.push((format!("{module}SCB"), WeightDtype::F32, Some(vec![spec.shape[0]])));
        others.extend(Some(format!("{module}weight_format")).filter(|name| places.contains_key(name)));
    } else {
        let of = |part: &str| format!("{}.{part}", spec.name);
        wanted.push((spec.name.clone(), WeightDtype::U8, Some(vec![numbers.div_ceil(2), 1])));
        wanted.push((of("quant_map"), WeightDtype::F32, Some(vec![16])));
        wanted.push((format!("{}{QUANT_STATE}", spec.name), WeightDtype::U8, None));
        let nested = places.get(&of("absmax")).is_some_and(|absmax| absmax.dtype == WeightDtype::U8);
        wanted.push((of("absmax"), if nested { WeightDtype::U8 } else { WeightDtype::F32 }, None));
        if nested {
            wanted.push((of("nested_absmax"), WeightDtype::F32, None));
            wanted.push((of("nested_quant_map"), WeightDtype::F32, Some(vec![256])));
        }
    }
    for (name, dtype, shape) in wanted {
        match places.get(&name) {
            None => {
                faults.push((weight.file.clone(), format!("tensor {name:?} is missing beside the quantised weight")))
            }
            Some(place) if place.dtype != dtype || shape.as_ref().is_some_and(|shape| *shape != place.shape) => {
                let shape = shape.map(|shape| format!(" of shape {shape:?}")).unwrap_or_default();
                let found = format!("{} of shape {:?}", place.dtype.name(), place.shape);
                faults.push((
                    place.file.clone(),
                    format!("tensor {name:?} is {found}, expected {}{shape}", dtype.name()),
                ));
            }
            Some(_) => {}
        }
        others.push(name);
    }
    (others, faults)
}
