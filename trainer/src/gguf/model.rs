//! A whole model for llama.cpp: the base, with an adapter in its weights if there is one, and its tokenizer.
//!
//! Families that llama.cpp computes as Llama does: Llama, Mistral, SmolLM, Qwen 2/2.5 and Qwen 3. What a config says beyond what
//! its reader there understands is refused, for the file would be another model. A window that all layers share is kept by a
//! context no longer than it. Weights are stored in the asked type, norms and biases in f32.

use std::path::Path;

use lorikeet_dataset::Tokenizer;
use lorikeet_plan::{Family, ModelConfig, Module, Rope, RopeScaling};

use crate::TrainError;
use crate::merged::Merged;
use crate::model::stored;

use super::file::{Fact, Tensor, Type, write};
use super::name::{architecture, tensor, turn_rows, turned_heads};
use super::{Written, vocab};

/// How a whole model is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// The weights' type; the one of the base's embedding when not given.
    pub stored: Option<Type>,
    /// What the model is called.
    pub name: String,
    /// What llama.cpp calls the tokenizer's way of splitting text; found out when not given.
    pub pre_tokenizer: Option<String>,
}

/// Writes base and adapter as one model to `out`; `stop` leaves it.
pub fn write_model(
    base: &Path,
    adapter: Option<&Path>,
    out: &Path,
    options: &ModelOptions,
    stop: &dyn Fn() -> bool,
) -> Result<Written, TrainError> {
    let merged = Merged::open(base, adapter)?;
    let config = merged.config();
    check(config).map_err(|reason| TrainError::Base { path: base.join("config.json"), reason })?;
    let unusable = |reason: String| TrainError::Base { path: base.to_owned(), reason };
    let tokenizer = Tokenizer::load(base).map_err(|error| unusable(error.to_string()))?;
    let stored = options.stored.unwrap_or_else(|| stored(merged.dtype("model.embed_tokens.weight")).into());
    let mut facts = facts(config, stored, &options.name);
    facts
        .extend(vocab::facts(base, &tokenizer, config.vocab_size, options.pre_tokenizer.as_deref()).map_err(unusable)?);
    let specs = merged.tensors();
    let as_tensor = |spec: &lorikeet_plan::TensorSpec| Tensor {
        name: tensor(&spec.name),
        stored: if spec.shape.len() == 1 { Type::F32 } else { stored },
        shape: spec.shape.clone(),
    };
    let mut tensors: Vec<Tensor> = specs.iter().map(as_tensor).collect();
    let divisors = rope_divisors(config);
    tensors.extend(divisors.iter().map(|divisors| Tensor {
        name: "rope_freqs.weight".into(),
        shape: vec![divisors.len()],
        stored: Type::F32,
    }));
    write(out, &facts, &tensors, &mut |index| match specs.get(index) {
        Some(_) if stop() => Err(TrainError::Stopped),
        None => Ok(divisors.clone().expect("the one tensor behind those of the base")),
        Some(spec) => {
            let numbers = merged.numbers(&spec.name)?;
            let heads = projection(&spec.name).and_then(|module| turned_heads(config, module));
            Ok(heads.map_or(numbers.clone(), |heads| turn_rows(&numbers, spec.shape[0], heads)))
        }
    })
}

/// The projection that a tensor belongs to.
fn projection(tensor: &str) -> Option<Module> {
    Module::from_name(tensor.rsplit('.').nth(1)?)
}

/// What llama.cpp would compute otherwise, in words.
fn check(config: &ModelConfig) -> Result<(), String> {
    match config.family {
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => {}
        Family::Gemma2 | Family::Gemma3 | Family::Phi3 => {
            let family = config.family.architecture();
            return Err(format!(
                "a whole {family} is not written as GGUF, only its adapter; merge it, and convert that"
            ));
        }
    }
    if config.layers.iter().any(|layer| layer.window != config.layers[0].window) {
        return Err("only some layers have a window, which llama.cpp cannot be told of this family".into());
    }
    match rope(config).scaling {
        None | Some(RopeScaling::Linear { .. } | RopeScaling::Yarn { .. } | RopeScaling::Llama3 { .. }) => Ok(()),
        Some(RopeScaling::Dynamic { .. } | RopeScaling::Longrope { .. }) => {
            Err("its rope changes with the length of the text, which llama.cpp does not know".into())
        }
    }
}

/// These families have one.
fn rope(config: &ModelConfig) -> &Rope {
    &config.ropes[config.layers[0].rope]
}

fn facts(config: &ModelConfig, stored: Type, name: &str) -> Vec<(String, Fact)> {
    let family = architecture(config.family);
    let context = config.layers[0]
        .window
        .map_or(config.max_position_embeddings, |window| window.min(config.max_position_embeddings));
    let general = [
        ("general.architecture".to_owned(), family.into()),
        ("general.type".to_owned(), "model".into()),
        ("general.name".to_owned(), name.into()),
        ("general.file_type".to_owned(), Fact::U32(stored.file_type())),
        ("general.quantization_version".to_owned(), Fact::U32(2)),
    ];
    let own = [
        ("block_count", config.num_hidden_layers.into()),
        ("context_length", context.into()),
        ("embedding_length", config.hidden_size.into()),
        ("feed_forward_length", config.intermediate_size.into()),
        ("attention.head_count", config.num_attention_heads.into()),
        ("attention.head_count_kv", config.num_key_value_heads.into()),
        ("attention.layer_norm_rms_epsilon", Fact::F32(config.rms_norm_eps as f32)),
        ("attention.key_length", config.head_dim.into()),
        ("attention.value_length", config.head_dim.into()),
        ("rope.dimension_count", config.rotary_dim.into()),
        ("rope.freq_base", Fact::F32(rope(config).theta as f32)),
        ("vocab_size", config.vocab_size.into()),
    ];
    let own = own.into_iter().chain(scaling(rope(config)));
    general.into_iter().chain(own.map(|(key, fact)| (format!("{family}.{key}"), fact))).collect()
}

fn scaling(rope: &Rope) -> Vec<(&'static str, Fact)> {
    match &rope.scaling {
        Some(RopeScaling::Linear { factor }) => {
            vec![("rope.scaling.type", "linear".into()), ("rope.scaling.factor", Fact::F32(*factor as f32))]
        }
        Some(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            attention_factor,
            ..
        }) => {
            // there the factor on cosines is `attn_factor · (1 + 0.1 ln factor)`
            let own = attention_factor / (1.0 + 0.1 * factor.ln());
            vec![
                ("rope.scaling.type", "yarn".into()),
                ("rope.scaling.factor", Fact::F32(*factor as f32)),
                ("rope.scaling.original_context_length", (*original_max_position_embeddings).into()),
                ("rope.scaling.attn_factor", Fact::F32(own as f32)),
                ("rope.scaling.yarn_beta_fast", Fact::F32(*beta_fast as f32)),
                ("rope.scaling.yarn_beta_slow", Fact::F32(*beta_slow as f32)),
            ]
        }
        None | Some(RopeScaling::Dynamic { .. } | RopeScaling::Longrope { .. } | RopeScaling::Llama3 { .. }) => {
            Vec::new()
        }
    }
}

/// Llama 3's stretching is a tensor there: what each frequency is divided by.
fn rope_divisors(config: &ModelConfig) -> Option<Vec<f32>> {
    let rope = rope(config);
    let Some(RopeScaling::Llama3 { .. }) = rope.scaling else { return None };
    let [plain, scaled] = [Rope { scaling: None, ..rope.clone() }, rope.clone()]
        .map(|rope| crate::ops::rope::frequencies(&rope, config.rotary_dim, 1));
    Some(plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect())
}
