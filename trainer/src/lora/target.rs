//! Which modules an adapter sits on: PEFT's matching rules over the module names of the base model.
//!
//! A list matches a module whose path is one of its items or ends in `.` and one; a string is a regular expression that must
//! match a whole path; `all-linear` is every linear layer but the head. What matches nothing is a mistake, and so is what
//! matches a module that cannot carry an adapter here (the head, the embedding, a norm, a whole block).

use lorikeet_plan::{ModelConfig, Module};
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::LoraError;

/// The setting `target_modules`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum Targets {
    /// Every linear layer of every block.
    AllLinear,
    /// Module names, or the ends of their paths.
    Names(Vec<String>),
    /// A regular expression for whole paths.
    Pattern(String),
}

/// As it stands in a job file and in `adapter_config.json`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    One(String),
    Many(Vec<String>),
}

impl From<Written> for Targets {
    fn from(written: Written) -> Targets {
        match written {
            Written::One(text) if text.eq_ignore_ascii_case("all-linear") => Targets::AllLinear,
            Written::One(text) => Targets::Pattern(text),
            Written::Many(names) => Targets::Names(names),
        }
    }
}

impl From<Targets> for Written {
    fn from(targets: Targets) -> Written {
        match targets {
            Targets::AllLinear => Written::One("all-linear".into()),
            Targets::Pattern(text) => Written::One(text),
            Targets::Names(names) => Written::Many(names),
        }
    }
}

/// The modules meant by `targets`, in buffer order.
pub(super) fn matched(model: &ModelConfig, targets: &Targets) -> Result<Vec<(usize, Module)>, LoraError> {
    let rule = Rule::new(targets)?;
    if let Some(module) = other_modules(model).into_iter().find(|path| rule.matches(path)) {
        return Err(LoraError::CannotCarry { targets: shown(targets), module });
    }
    let modules = Module::of(model);
    let linear = (0..model.num_hidden_layers).flat_map(|layer| modules.iter().map(move |module| (layer, *module)));
    let found: Vec<_> = linear.filter(|(layer, module)| rule.matches(&module.path(*layer))).collect();
    if found.is_empty() {
        return Err(LoraError::NothingMatched { targets: shown(targets) });
    }
    Ok(found)
}

enum Rule<'a> {
    Linear,
    Ends(&'a [String]),
    Whole(Regex),
}

impl<'a> Rule<'a> {
    fn new(targets: &'a Targets) -> Result<Rule<'a>, LoraError> {
        Ok(match targets {
            Targets::AllLinear => Rule::Linear,
            Targets::Names(names) => Rule::Ends(names),
            // `\A(?:…)\z` is Python's `re.fullmatch`
            Targets::Pattern(text) => Rule::Whole(Regex::new(&format!(r"\A(?:{text})\z")).map_err(|error| {
                LoraError::Pattern { pattern: text.clone(), reason: error.to_string().replace('\n', " ") }
            })?),
        })
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Rule::Linear => Module::ALL.iter().any(|module| ends_in(path, module.name())),
            Rule::Ends(names) => names.iter().any(|name| path == name || ends_in(path, name)),
            Rule::Whole(pattern) => pattern.is_match(path),
        }
    }
}

fn ends_in(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// Every module path of the model that is not one of the projections.
fn other_modules(model: &ModelConfig) -> Vec<String> {
    let mut paths: Vec<String> =
        ["model", "model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"]
            .map(String::from)
            .into();
    let mut parts = vec!["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"];
    parts.extend(if model.fused {
        &["mlp.activation_fn", "resid_attn_dropout", "resid_mlp_dropout"][..]
    } else {
        &["mlp.act_fn"]
    });
    parts.extend(["self_attn.q_norm", "self_attn.k_norm"].iter().filter(|_| model.qk_norm));
    parts.extend(["pre_feedforward_layernorm", "post_feedforward_layernorm"].iter().filter(|_| model.post_norms));
    for layer in 0..model.num_hidden_layers {
        paths.push(format!("model.layers.{layer}"));
        paths.extend(parts.iter().map(|part| format!("model.layers.{layer}.{part}")));
    }
    paths
}

fn shown(targets: &Targets) -> String {
    serde_json::to_string(targets).expect("strings are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_matches_whole_names_and_ends_of_paths_but_not_of_words() {
        assert_eq!(count(names(&["q_proj", "v_proj"])), 4);
        assert_eq!(count(names(&["self_attn.q_proj"])), 2);
        assert_eq!(count(names(&["1.mlp.up_proj", "model.layers.0.mlp.down_proj"])), 2);
        assert!(matches!(run(names(&["proj"])), Err(LoraError::NothingMatched { .. })));
        assert!(matches!(run(names(&[])), Err(LoraError::NothingMatched { .. })));
    }

    #[test]
    fn a_string_is_an_expression_that_must_match_the_whole_path() {
        assert_eq!(count(Targets::Pattern(r".*\.[qv]_proj".into())), 4);
        assert_eq!(count(Targets::Pattern(r"model\.layers\.1\..*_proj".into())), 7);
        assert!(matches!(run(Targets::Pattern("q_proj".into())), Err(LoraError::NothingMatched { .. })));
        assert!(matches!(run(Targets::Pattern("q_proj|(".into())), Err(LoraError::Pattern { .. })));
    }

    #[test]
    fn all_linear_is_everything_but_the_head() {
        assert_eq!(count(Targets::AllLinear), 14);
        let read: Targets = serde_json::from_str("\"All-Linear\"").expect("a string");
        assert_eq!(read, Targets::AllLinear);
    }

    #[test]
    fn a_module_that_cannot_carry_an_adapter_is_named() {
        for (targets, at) in [
            (names(&["q_proj", "lm_head"]), "lm_head"),
            (names(&["embed_tokens"]), "model.embed_tokens"),
            (names(&["mlp"]), "model.layers.0.mlp"),
            (Targets::Pattern(".*".into()), "model"),
        ] {
            match run(targets) {
                Err(LoraError::CannotCarry { module, .. }) => assert_eq!(module, at),
                other => panic!("{other:?}"),
            }
        }
    }

    fn count(targets: Targets) -> usize {
        run(targets).expect("matches").len()
    }

    fn run(targets: Targets) -> Result<Vec<(usize, Module)>, LoraError> {
        let text = r#"{"architectures":["LlamaForCausalLM"],"hidden_size":32,"intermediate_size":48,"vocab_size":96,
            "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":64}"#;
        matched(&ModelConfig::parse(text).expect("a sound config"), &targets)
    }

    fn names(names: &[&str]) -> Targets {
        Targets::Names(names.iter().map(ToString::to_string).collect())
    }
}
