//! An adapter for llama.cpp to put beside a model (`--lora FILE`).
//!
//! There the update of every tensor is `alpha / rank · B A`, with one alpha for all. Ours may be alpha / √rank, and may differ from
//! module to module; so the file says `alpha' = scale · rank` of the first module, and where another's scale is not
//! `alpha' / rank` the difference goes into its B. A scale by rank alone changes no number.

use std::path::Path;

use lorikeet_plan::{ModelConfig, inspect_base};

use crate::TrainError;
use crate::lora::{self, LoraEntry, LoraLayout, Site};
use crate::merged::transposed;

use super::Written;
use super::file::{Fact, Tensor, Type, write};
use super::name::{architecture, module, turn_rows, turned_heads};

/// Writes the adapter in `adapter` to `out`. Of the base only its config is read.
pub fn write_adapter(base: &Path, adapter: &Path, out: &Path, stored: Type) -> Result<Written, TrainError> {
    let found = inspect_base(base);
    let Some(config) = found.config else {
        let reason = found.faults.first().map_or_else(|| "no config".to_owned(), |fault| fault.message.clone());
        return Err(TrainError::Base { path: base.join("config.json"), reason });
    };
    let (layout, params) = lora::open(adapter, &config)?;
    if layout.config().dora {
        let reason = "DoRA's lengths have no place in an adapter of llama.cpp; export the merged model";
        return Err(TrainError::Adapter { path: adapter.to_owned(), reason: reason.into() });
    }
    let alpha = alpha(&layout);
    let facts = [
        ("general.architecture", architecture(config.family).into()),
        ("general.type", "adapter".into()),
        ("general.file_type", Fact::U32(stored.file_type())),
        ("general.quantization_version", Fact::U32(2)),
        ("adapter.type", "lora".into()),
        ("adapter.lora.alpha", Fact::F32(alpha)),
    ];
    let facts = facts.map(|(name, fact)| (name.to_owned(), fact));
    let tensors: Vec<Tensor> = layout.entries().iter().flat_map(|entry| pair(entry, stored)).collect();
    write(out, &facts, &tensors, &mut |index| {
        let entry = &layout.entries()[index / 2];
        Ok(if index % 2 == 0 { a(entry, &params) } else { b(&config, entry, &params, alpha) })
    })
}

fn alpha(layout: &LoraLayout) -> f32 {
    let first = &layout.entries()[0];
    first.scale * first.rank as f32
}

fn pair(entry: &LoraEntry, stored: Type) -> [Tensor; 2] {
    let name = match entry.site {
        Site::Embedding => "token_embd".to_owned(),
        Site::Block(layer, projection) => format!("blk.{layer}.{}", module(projection)),
        Site::Head => "output".to_owned(),
    };
    let a = match entry.site {
        Site::Embedding => [entry.in_features, entry.rank],
        Site::Block(..) | Site::Head => [entry.rank, entry.in_features],
    };
    let tensor = |part: &str, shape: [usize; 2]| Tensor {
        name: format!("{name}.weight.lora_{part}"),
        shape: shape.to_vec(),
        stored,
    };
    [tensor("a", a), tensor("b", [entry.out_features, entry.rank])]
}

/// Looked up by rows, the A of an embedding lies there the other way round.
fn a(entry: &LoraEntry, params: &[f32]) -> Vec<f32> {
    let a = &params[entry.a.clone()];
    match entry.site {
        Site::Embedding => transposed(a, entry.in_features),
        Site::Block(..) | Site::Head => a.to_vec(),
    }
}

fn b(config: &ModelConfig, entry: &LoraEntry, params: &[f32], alpha: f32) -> Vec<f32> {
    let factor = entry.scale * entry.rank as f32 / alpha;
    let mut b = params[entry.b.clone()].to_vec();
    if factor != 1.0 {
        b.iter_mut().for_each(|x| *x *= factor);
    }
    match entry.site {
        Site::Block(_, module) => match turned_heads(config, module) {
            Some(heads) => turn_rows(&b, entry.out_features, heads),
            None => b,
        },
        Site::Embedding | Site::Head => b,
    }
}
