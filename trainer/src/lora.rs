//! The adapter: which linear layers carry one, where its numbers lie, how it begins.
//!
//! A layer `y = W x` with an adapter computes
//!
//! ```text
//! y = W x + s · B (A · dropout(x))      A: [rank, in], B: [out, rank], s = alpha / rank  (rsLoRA: alpha / √rank)
//! ```
//!
//! and only A and B are trained. All of them lie in one flat `f32` buffer, in PEFT's order (layers, then modules in forward
//! order, A before B), which optimizer, checkpoint and gradient share: [`LoraLayout`] is the map. Which modules are meant is
//! decided in `lora/target.rs` by PEFT's rules; the files are read and written in `lora/file.rs`.

mod error;
mod file;
mod target;

use std::ops::Range;

use lorikeet_plan::{ModelConfig, Module};
use serde::{Deserialize, Serialize};

use crate::ops::random;

pub use error::LoraError;
pub use file::{AdapterMeta, CONFIG_FILE, WEIGHTS_FILE, load, save};
pub use target::Targets;

/// What an adapter is, as PEFT's `LoraConfig` says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Scale times rank.
    pub alpha: f64,
    /// Probability with which an input of A is zeroed in training.
    pub dropout: f64,
    /// Which modules carry one.
    pub target_modules: Targets,
    /// Scale by alpha / √rank.
    pub rslora: bool,
}

impl LoraConfig {
    /// The factor in front of `B A x`.
    pub fn scale(&self) -> f64 {
        self.alpha / if self.rslora { (self.rank as f64).sqrt() } else { self.rank as f64 }
    }
}

/// One adapted module and the places of its two matrices in the flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraEntry {
    /// The block.
    pub layer: usize,
    /// The projection in it.
    pub module: Module,
    /// Rows of A, columns of B.
    pub rank: usize,
    /// The factor in front of `B A x`.
    pub scale: f32,
    /// Columns of A.
    pub in_features: usize,
    /// Rows of B.
    pub out_features: usize,
    /// A, row by row.
    pub a: Range<usize>,
    /// B, row by row.
    pub b: Range<usize>,
}

/// The map from modules to places in one flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraLayout {
    config: LoraConfig,
    entries: Vec<LoraEntry>,
    /// `[layer * 7 + module]`: the entry, if that module is adapted.
    index: Vec<Option<usize>>,
    len: usize,
}

impl LoraLayout {
    /// Places an adapter of `config` on a model. Refuses targets that match nothing, or something that cannot carry one.
    pub fn new(model: &ModelConfig, config: &LoraConfig) -> Result<LoraLayout, LoraError> {
        assert!(config.rank > 0, "the rank is checked where settings are read");
        let mut layout = LoraLayout {
            config: config.clone(),
            entries: Vec::new(),
            index: vec![None; model.num_hidden_layers * Module::ALL.len()],
            len: 0,
        };
        for (layer, module) in target::matched(model, &config.target_modules)? {
            layout.push(model, layer, module);
        }
        Ok(layout)
    }

    /// How many numbers the adapter has.
    #[expect(clippy::len_without_is_empty, reason = "a layout of nothing cannot be made")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The adapted modules, in buffer order.
    pub fn entries(&self) -> &[LoraEntry] {
        &self.entries
    }

    /// The settings it was made from.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The entry of one module, if it is adapted.
    pub fn entry(&self, layer: usize, module: Module) -> Option<&LoraEntry> {
        self.index[layer * Module::ALL.len() + module as usize].map(|at| &self.entries[at])
    }

    /// The lowest adapted block: nothing below it needs a gradient.
    pub fn lowest_layer(&self) -> usize {
        self.entries[0].layer
    }

    fn push(&mut self, model: &ModelConfig, layer: usize, module: Module) {
        let (rank, inputs, outputs) = (self.config.rank, module.in_features(model), module.out_features(model));
        let a = self.len..self.len + rank * inputs;
        let b = a.end..a.end + outputs * rank;
        self.len = b.end;
        self.index[layer * Module::ALL.len() + module as usize] = Some(self.entries.len());
        let scale = self.config.scale() as f32;
        self.entries.push(LoraEntry { layer, module, rank, scale, in_features: inputs, out_features: outputs, a, b });
    }
}

/// One adapter as a pass over the model sees it.
#[derive(Debug, Clone, Copy)]
pub struct AdapterView<'a> {
    /// Where its matrices lie.
    pub layout: &'a LoraLayout,
    /// The flat buffer.
    pub params: &'a [f32],
    /// Dropout in this pass; none outside training.
    pub dropout: Option<Dropout>,
}

/// Dropout of one adapter. Which inputs fall out depends on the seed, epoch, example, token within the example, layer,
/// module and channel, and on nothing else: the same whatever shares the micro-batch and however many threads work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of falling out, below 1.
    pub p: f64,
    /// The job's seed.
    pub seed: u64,
}

/// A fresh adapter: every A uniform in ±1/√in as PEFT draws it (ours is counter-based per seed, module and element, so that
/// the other targets of a job do not matter), every B zero, so that training begins at the base model exactly.
pub fn init(layout: &LoraLayout, seed: u64) -> Vec<f32> {
    let mut params = vec![0.0; layout.len()];
    for entry in layout.entries() {
        let bound = 1.0 / (entry.in_features as f64).sqrt();
        let tensor = (entry.layer * Module::ALL.len() + entry.module as usize) as u32;
        random::fill_uniform(&mut params[entry.a.clone()], seed, tensor, bound);
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_starts_the_same_whatever_else_is_adapted() {
        let model = tiny();
        let all = layout(&model, Targets::AllLinear);
        let few = layout(&model, Targets::Names(vec!["v_proj".into()]));
        let (all_params, few_params) = (init(&all, 7), init(&few, 7));
        for entry in few.entries() {
            let same = all.entry(entry.layer, entry.module).expect("all-linear holds every module");
            assert_eq!(few_params[entry.a.clone()], all_params[same.a.clone()]);
            assert!(few_params[entry.b.clone()].iter().all(|b| *b == 0.0));
        }
        assert_ne!(init(&all, 8), all_params);
    }

    #[test]
    fn fresh_numbers_fill_their_range_evenly() {
        let model = tiny();
        let layout = layout(&model, Targets::AllLinear);
        let params = init(&layout, 1);
        let entry = layout.entry(1, Module::DownProj).expect("adapted");
        let a = &params[entry.a.clone()];
        let bound = 1.0 / (entry.in_features as f32).sqrt();
        assert!(a.iter().all(|x| x.abs() <= bound));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        let variance = a.iter().map(|x| x * x).sum::<f32>() / a.len() as f32;
        assert!(mean.abs() < 0.1 * bound && (variance / (bound * bound / 3.0) - 1.0).abs() < 0.2);
    }

    #[test]
    fn rslora_divides_by_the_root_of_the_rank() {
        let mut config = config(Targets::AllLinear);
        assert_eq!(config.scale(), 4.0);
        config.rslora = true;
        assert_eq!(config.scale(), 8.0);
    }

    fn layout(model: &ModelConfig, targets: Targets) -> LoraLayout {
        LoraLayout::new(model, &config(targets)).expect("targets match")
    }

    fn config(target_modules: Targets) -> LoraConfig {
        LoraConfig { rank: 4, alpha: 16.0, dropout: 0.0, target_modules, rslora: false }
    }

    fn tiny() -> ModelConfig {
        let text = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":32,"intermediate_size":48,"vocab_size":96,
            "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":64}"#;
        ModelConfig::parse(text).expect("a sound config")
    }
}
