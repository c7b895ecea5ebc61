//! What a run trains: an adapter, or the model itself. Both are one flat buffer with a map, and files that hold it.

use std::ops::Range;
use std::path::Path;

use lorikeet_plan::{AdapterShape, ModelConfig};

use crate::TrainError;
use crate::config::{Method, Settings};
use crate::full::{self, WeightLayout};
use crate::lora::{self, AdapterMeta, LoraEntry, LoraLayout, Matched};
use crate::optim::Part;

/// What a run trains.
#[derive(Debug, Clone, PartialEq)]
pub enum Trained {
    /// An adapter beside frozen weights.
    Adapter(LoraLayout),
    /// Every weight. The run's numbers are put into the model after each step.
    Model(WeightLayout),
}

impl From<LoraLayout> for Trained {
    fn from(layout: LoraLayout) -> Trained {
        Trained::Adapter(layout)
    }
}

impl Trained {
    /// What the settings ask for.
    pub fn new(model: &ModelConfig, settings: &Settings) -> Result<Trained, TrainError> {
        Ok(match settings.method {
            Method::Lora => Trained::Adapter(LoraLayout::new(model, &settings.lora)?),
            Method::Full => Trained::Model(WeightLayout::new(model)),
        })
    }

    /// How many numbers the buffer has.
    #[expect(clippy::len_without_is_empty, reason = "nothing cannot be trained")]
    pub fn len(&self) -> usize {
        match self {
            Trained::Adapter(layout) => layout.len(),
            Trained::Model(layout) => layout.len(),
        }
    }

    /// How many of them are trained; they come first.
    pub fn trained(&self) -> usize {
        match self {
            Trained::Adapter(layout) => layout.trained(),
            Trained::Model(layout) => layout.len(),
        }
    }

    /// What it adds to the memory of frozen weights.
    pub fn shape(&self) -> AdapterShape {
        match self {
            Trained::Adapter(layout) => layout.shape(),
            Trained::Model(layout) => {
                AdapterShape { parameters: layout.len() as u64, whole: true, ..AdapterShape::default() }
            }
        }
    }

    /// Every tensor that is trained, and its place.
    pub(crate) fn tensors(&self) -> Vec<(String, Range<usize>)> {
        match self {
            Trained::Adapter(layout) => {
                let of = |entry: &LoraEntry| {
                    let places = [entry.a.clone(), entry.b.clone(), entry.magnitude.clone()];
                    entry.keys().into_iter().zip(places).collect::<Vec<_>>()
                };
                layout.entries().iter().flat_map(of).collect()
            }
            Trained::Model(layout) => layout.tensors().map(|(tensor, place)| (tensor.name.clone(), place)).collect(),
        }
    }

    /// The same by the module that they belong to, whatever the layer: `q_proj`, `input_layernorm`, `embed_tokens`.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (String, Range<usize>)> {
        const PARTS: [&str; 7] = [
            ".weight",
            ".bias",
            ".lora_A",
            ".lora_B",
            ".lora_embedding_A",
            ".lora_embedding_B",
            ".lora_magnitude_vector",
        ];
        self.tensors().into_iter().map(|(name, place)| {
            let mut module = name.as_str();
            while let Some(shorter) = PARTS.iter().find_map(|part| module.strip_suffix(part)) {
                module = shorter;
            }
            (module.rsplit('.').next().unwrap_or(module).to_owned(), place)
        })
    }

    /// The modules that carry an adapter; none where the model itself is trained.
    pub fn matched(&self) -> Vec<Matched> {
        match self {
            Trained::Adapter(layout) => layout.matched(),
            Trained::Model(_) => Vec::new(),
        }
    }

    /// Parts of the buffer by rate and decay. Of a model's own weights only matrices decay: gains and biases are not pulled to
    /// zero, as transformers' Trainer spares them.
    pub(crate) fn parts(&self, settings: &Settings) -> Vec<Part> {
        match self {
            Trained::Adapter(layout) => {
                layout.rates(settings.plus_ratio, settings.learning_rate).into_iter().map(Part::from).collect()
            }
            Trained::Model(layout) => {
                let mut parts: Vec<Part> = Vec::new();
                for (tensor, place) in layout.tensors() {
                    let decay = if tensor.shape.len() > 1 { 1.0 } else { 0.0 };
                    match parts.last_mut().filter(|part| part.decay == decay && part.place.end == place.start) {
                        Some(part) => part.place.end = place.end,
                        None => parts.push(Part { place, rate: 1.0, decay }),
                    }
                }
                parts
            }
        }
    }

    /// Writes the files that hold the numbers.
    pub(crate) fn save(&self, dir: &Path, params: &[f32], meta: &AdapterMeta) -> Result<(), TrainError> {
        match self {
            Trained::Adapter(layout) => Ok(lora::save(dir, layout, params, meta)?),
            Trained::Model(layout) => full::save(dir, layout, params),
        }
    }

    /// Reads them back.
    pub(crate) fn load(&self, dir: &Path) -> Result<Vec<f32>, TrainError> {
        match self {
            Trained::Adapter(layout) => Ok(lora::load(dir, layout)?),
            Trained::Model(layout) => full::load(dir, layout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::machine::{Exact, LossSums, Machine};
    use crate::optim::Optimizer;

    #[test]
    fn gains_and_biases_of_a_model_do_not_decay() {
        let text = r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 8, "intermediate_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false}"#;
        let layout = WeightLayout::new(&ModelConfig::parse(text).expect("a supported model"));
        let settings = Settings { weight_decay: 0.5, learning_rate: 0.1, ..Settings::default() };
        let trained = Trained::Model(layout.clone());
        let mut optimizer = Optimizer::new(trained.trained(), settings.adamw()).with_parts(trained.parts(&settings));
        let (machine, len) = (Machine::default(), layout.len());
        let (mut params, grads, mut clip) =
            (Exact::Host(vec![1.0; len]), Exact::Host(vec![0.0; len]), machine.clip(len));
        machine.judge(&mut clip, &grads, (&LossSums::Host(vec![1.0]), 0, 1), None);
        optimizer.update(&machine, &mut params, (&grads, &clip), 1, settings.learning_rate);
        let mut spared = 0;
        for (tensor, place) in layout.tensors() {
            let flat = tensor.name.ends_with(".bias") || tensor.name.contains("norm");
            let expected = if flat { 1.0 } else { 0.95 };
            assert!(params.host()[place].iter().all(|x| *x == expected), "{}", tensor.name);
            spared += usize::from(flat);
        }
        assert_eq!(spared, 2 * (2 + 3) + 1, "two norms and three biases a block, and the last norm");
    }
}
