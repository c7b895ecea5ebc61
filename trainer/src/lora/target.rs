//! Which modules an adapter sits on, and with what rank: PEFT's matching rules over the module names of the base model.
//!
//! A list matches a module whose path is one of its items or ends in `.` and one; a string is a regular expression that must
//! match a whole path; `all-linear` is every linear layer but the head. `exclude_modules` takes away by the same rules;
//! `layers_to_transform` keeps, of what a list matches by its end, what lies in those layers. A key of `rank_pattern` or
//! `alpha_pattern` is an expression for the end of a path, from a dot on.
//!
//! Stricter than PEFT: what matches nothing is a mistake, down to the single item of a list; so is what matches a module that
//! cannot carry an adapter (a norm, a whole block), and a module for which two patterns say different things: PEFT takes the one
//! that was written first, an order that its own files do not keep.

use std::collections::BTreeMap;

use lorikeet_plan::{ModelConfig, Module};
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use super::{Init, LoraConfig, LoraError, Site};

/// What a pattern may become, in bytes. Names of a model's modules take some thousands; the library's own limit is ten times as much, and on the way
/// there it takes five times that.
const PATTERN_BYTES: usize = 1 << 20;

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

/// One module that will carry an adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Chosen {
    pub(super) site: Site,
    pub(super) rank: usize,
    pub(super) alpha: f64,
}

/// The modules meant by `config`, in buffer order.
pub(super) fn matched(model: &ModelConfig, config: &LoraConfig) -> Result<Vec<Chosen>, LoraError> {
    let sites: Vec<(Site, String)> = sites(model).into_iter().map(|site| (site, site.path())).collect();
    let others = other_modules(model);
    let paths = || sites.iter().map(|(_, path)| path).chain(&others);
    let target = Rule::new("target_modules", &config.target_modules)?;
    target.check_each_name("target_modules", paths())?;
    let excluded = match &config.exclude_modules {
        None => None,
        Some(excluded) => Some(Rule::new("exclude_modules", excluded)?),
    };
    if let Some(rule) = &excluded {
        rule.check_each_name("exclude_modules", paths())?;
    }
    let layers = layers(model, config)?;
    let is_meant = |path: &str, layer: Option<usize>| {
        target.matches(path, layer, layers) && !excluded.as_ref().is_some_and(|rule| rule.is_match(path))
    };
    if let Some(module) = others.iter().find(|path| is_meant(path, layer_of(path))) {
        return Err(LoraError::CannotCarry { targets: shown(&config.target_modules), module: module.clone() });
    }
    let found: Vec<_> = sites.iter().filter(|(_, path)| is_meant(path, layer_of(path))).collect();
    if found.is_empty() {
        return Err(LoraError::NothingMatched { targets: shown(&config.target_modules) });
    }
    found.iter().try_for_each(|(site, path)| check_ends(model, config, *site, path))?;
    let ranks = Patterns::new("rank_pattern", &config.rank_pattern, &found)?;
    let alphas = Patterns::new("alpha_pattern", &config.alpha_pattern, &found)?;
    let chosen = |(site, path): &&(Site, String)| {
        let rank = ranks.of(path)?.copied().unwrap_or(config.rank);
        Ok(Chosen { site: *site, rank, alpha: alphas.of(path)?.copied().unwrap_or(config.alpha) })
    };
    found.iter().map(chosen).collect()
}

/// Embedding and head carry an adapter when they are two matrices; and not every kind.
fn check_ends(model: &ModelConfig, config: &LoraConfig, site: Site, path: &str) -> Result<(), LoraError> {
    let refused = |reason: &str| Err(LoraError::Unfit { module: path.to_owned(), reason: reason.to_owned() });
    match site {
        Site::Block(..) => Ok(()),
        Site::Embedding | Site::Head if model.tie_word_embeddings => refused(
            "embedding and head are one matrix in this model: merging an adapter into one would change the other, which \
             was not trained so",
        ),
        Site::Embedding if config.dora => refused("DoRA is for linear layers, not for an embedding"),
        Site::Embedding if config.init == Init::Pissa => {
            refused("a PiSSA start is for linear layers, not for an embedding")
        }
        Site::Embedding | Site::Head => Ok(()),
    }
}

/// The layers that `layers_to_transform` names; empty: all.
fn layers<'a>(model: &ModelConfig, config: &'a LoraConfig) -> Result<&'a [usize], LoraError> {
    let layers = &config.layers_to_transform;
    let wrong = |reason: String| LoraError::Layers { reason };
    match config.target_modules {
        Targets::Names(_) => {}
        Targets::AllLinear | Targets::Pattern(_) if layers.is_empty() => {}
        Targets::AllLinear | Targets::Pattern(_) => {
            return Err(wrong("needs target_modules to be a list of names, as in PEFT".into()));
        }
    }
    match layers.iter().find(|layer| **layer >= model.num_hidden_layers) {
        Some(layer) => {
            Err(wrong(format!("names layer {layer}, the base model has 0 to {}", model.num_hidden_layers - 1)))
        }
        None => Ok(layers),
    }
}

fn sites(model: &ModelConfig) -> Vec<Site> {
    let modules = Module::of(model);
    let blocks = (0..model.num_hidden_layers).flat_map(|layer| modules.iter().map(move |m| Site::Block(layer, *m)));
    [Site::Embedding].into_iter().chain(blocks).chain([Site::Head]).collect()
}

/// The number behind `layers.` in a path.
fn layer_of(path: &str) -> Option<usize> {
    path.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

enum Rule<'a> {
    Linear,
    Ends(&'a [String]),
    Whole(Regex, &'a str),
}

impl<'a> Rule<'a> {
    fn new(key: &'static str, targets: &'a Targets) -> Result<Rule<'a>, LoraError> {
        Ok(match targets {
            Targets::AllLinear => Rule::Linear,
            Targets::Names(names) => Rule::Ends(names),
            // `\A(?:…)\z` is Python's `re.fullmatch`
            Targets::Pattern(text) => Rule::Whole(expression(key, text, &format!(r"\A(?:{text})\z"))?, text),
        })
    }

    fn is_match(&self, path: &str) -> bool {
        match self {
            Rule::Linear => Module::ALL.iter().any(|module| ends_in(path, module.name())),
            Rule::Ends(names) => names.iter().any(|name| path == name || ends_in(path, name)),
            Rule::Whole(pattern, _) => pattern.is_match(path),
        }
    }

    /// The same within `layers`. A module that a list names in full is meant wherever it lies.
    fn matches(&self, path: &str, layer: Option<usize>, layers: &[usize]) -> bool {
        let in_full = |names: &[String]| names.iter().any(|name| path == name);
        let here = layers.is_empty() || layer.is_some_and(|layer| layers.contains(&layer));
        match self {
            Rule::Ends(names) => in_full(names) || (here && self.is_match(path)),
            Rule::Linear | Rule::Whole(..) => self.is_match(path),
        }
    }

    /// Every name of a list, or the expression, must match something in the model.
    fn check_each_name<'p>(
        &self,
        key: &'static str,
        paths: impl Iterator<Item = &'p String> + Clone,
    ) -> Result<(), LoraError> {
        let idle = match self {
            Rule::Linear => None,
            Rule::Ends(names) => names
                .iter()
                .find(|name| !paths.clone().any(|path| path == *name || ends_in(path, name)))
                .map(String::as_str),
            Rule::Whole(pattern, text) => (!paths.clone().any(|path| pattern.is_match(path))).then_some(*text),
        };
        idle.map_or(Ok(()), |item| Err(LoraError::Unmatched { key, item: item.to_owned() }))
    }
}

/// One of the two tables of expressions.
struct Patterns<'a, T> {
    key: &'static str,
    rules: Vec<(&'a str, Regex, &'a T)>,
}

impl<'a, T: PartialEq> Patterns<'a, T> {
    /// Every expression must match one of the modules that were found.
    fn new(
        key: &'static str,
        table: &'a BTreeMap<String, T>,
        found: &[&(Site, String)],
    ) -> Result<Patterns<'a, T>, LoraError> {
        let mut rules = Vec::new();
        for (text, value) in table {
            let regex = expression(key, text, &format!(r"\A(?:.*\.)?(?:{text})\z"))?;
            if !found.iter().any(|(_, path)| regex.is_match(path)) {
                return Err(LoraError::Unmatched { key, item: text.clone() });
            }
            rules.push((text.as_str(), regex, value));
        }
        Ok(Patterns { key, rules })
    }

    fn of(&self, path: &str) -> Result<Option<&'a T>, LoraError> {
        let mut matching = self.rules.iter().filter(|(_, regex, _)| regex.is_match(path));
        let Some((first, _, value)) = matching.next() else { return Ok(None) };
        match matching.find(|(_, _, other)| other != value) {
            None => Ok(Some(*value)),
            Some((second, ..)) => Err(LoraError::Ambiguous {
                key: self.key,
                module: path.to_owned(),
                patterns: [first, second].map(|text| (*text).to_owned()),
            }),
        }
    }
}

fn expression(key: &'static str, text: &str, whole: &str) -> Result<Regex, LoraError> {
    RegexBuilder::new(whole).size_limit(PATTERN_BYTES).build().map_err(|error| LoraError::Pattern {
        key,
        pattern: text.to_owned(),
        reason: error.to_string().replace('\n', " "),
    })
}

fn ends_in(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// Every module path of the model that cannot carry an adapter.
fn other_modules(model: &ModelConfig) -> Vec<String> {
    let mut paths: Vec<String> = ["model", "model.layers", "model.norm", "model.rotary_emb"].map(String::from).into();
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
        assert_eq!(count(names(&["q_proj", "lm_head", "embed_tokens"])), 4);
        assert!(matches!(run(names(&[])), Err(LoraError::NothingMatched { .. })));
    }

    #[test]
    fn an_item_that_matches_nothing_is_named() {
        for targets in [names(&["proj"]), names(&["q_proj", "proj"]), Targets::Pattern("proj".into())] {
            match run(targets) {
                Err(LoraError::Unmatched { key: "target_modules", item }) => assert_eq!(item, "proj"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_string_is_an_expression_that_must_match_the_whole_path() {
        assert_eq!(count(Targets::Pattern(r".*\.[qv]_proj".into())), 4);
        assert_eq!(count(Targets::Pattern(r"model\.layers\.1\..*_proj".into())), 7);
        assert!(matches!(run(Targets::Pattern("q_proj".into())), Err(LoraError::Unmatched { .. })));
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
            (names(&["norm"]), "model.norm"),
            (names(&["mlp"]), "model.layers.0.mlp"),
            (Targets::Pattern(".*".into()), "model"),
        ] {
            match run(targets) {
                Err(LoraError::CannotCarry { module, .. }) => assert_eq!(module, at),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_tied_embedding_or_head_is_refused_with_the_reason() {
        for name in ["embed_tokens", "lm_head"] {
            let config = of(names(&[name, "q_proj"]));
            let error = matched(&model(true), &config).expect_err("tied").to_string();
            assert!(error.contains(name) && error.contains("one matrix"), "{error}");
        }
    }

    #[test]
    fn what_is_excluded_is_taken_away_by_the_same_rules() {
        let without = |exclude: Targets| {
            matched(&model(false), &LoraConfig { exclude_modules: Some(exclude), ..of(Targets::AllLinear) })
        };
        let count = |exclude| without(exclude).expect("matches").len();
        assert_eq!(count(names(&["q_proj", "1.mlp.up_proj"])), 11);
        assert_eq!(count(Targets::Pattern(r".*layers\.0\..*".into())), 7);
        assert!(matches!(without(Targets::Pattern(".*".into())), Err(LoraError::NothingMatched { .. })));
        match without(names(&["q_proj", "w_proj"])) {
            Err(LoraError::Unmatched { key: "exclude_modules", item }) => assert_eq!(item, "w_proj"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn layers_to_transform_keeps_those_layers_and_what_is_named_in_full() {
        let within = |targets, layers: &[usize]| {
            matched(&model(false), &LoraConfig { layers_to_transform: layers.to_vec(), ..of(targets) })
        };
        let found =
            within(names(&["q_proj", "model.layers.0.mlp.up_proj", "embed_tokens", "lm_head"]), &[1]).expect("found");
        let sites: Vec<Site> = found.into_iter().map(|chosen| chosen.site).collect();
        assert_eq!(sites, [Site::Block(0, Module::UpProj), Site::Block(1, Module::QProj), Site::Head]);
        assert!(matches!(within(names(&["q_proj"]), &[2]), Err(LoraError::Layers { .. })));
        assert!(matches!(within(Targets::AllLinear, &[1]), Err(LoraError::Layers { .. })));
    }

    #[test]
    fn patterns_give_ranks_and_alphas_of_their_own() {
        let config = LoraConfig {
            rank_pattern: [("q_proj".to_owned(), 7), (r"1\.mlp\.(up|down)_proj".to_owned(), 2)].into(),
            alpha_pattern: [(r"layers.0.self_attn.q_proj".to_owned(), 9.0)].into(),
            ..of(Targets::AllLinear)
        };
        let found = matched(&model(false), &config).expect("matches");
        let of = |site| found.iter().find(|chosen| chosen.site == site).map(|chosen| (chosen.rank, chosen.alpha));
        assert_eq!(of(Site::Block(0, Module::QProj)), Some((7, 9.0)));
        assert_eq!(of(Site::Block(1, Module::QProj)), Some((7, 8.0)));
        assert_eq!(of(Site::Block(1, Module::UpProj)), Some((2, 8.0)));
        assert_eq!(of(Site::Block(0, Module::UpProj)), Some((4, 8.0)));
    }

    #[test]
    fn a_pattern_that_is_idle_or_contradicts_another_is_named() {
        let with = |patterns: &[(&str, usize)]| {
            let rank_pattern = patterns.iter().map(|(text, rank)| ((*text).to_owned(), *rank)).collect();
            matched(&model(false), &LoraConfig { rank_pattern, ..of(names(&["q_proj"])) })
        };
        assert!(matches!(with(&[("v_proj", 2)]), Err(LoraError::Unmatched { key: "rank_pattern", .. })));
        for unsound in ["(", "(q_proj|.){99999}"] {
            assert!(matches!(with(&[(unsound, 2)]), Err(LoraError::Pattern { key: "rank_pattern", .. })), "{unsound}");
        }
        with(&[("q_proj", 2), ("self_attn.q_proj", 2)]).expect("both say the same");
        match with(&[("q_proj", 2), (r"1\.self_attn\.q_proj", 3)]) {
            Err(LoraError::Ambiguous { module, .. }) => assert_eq!(module, "model.layers.1.self_attn.q_proj"),
            other => panic!("{other:?}"),
        }
    }

    fn count(targets: Targets) -> usize {
        run(targets).expect("matches").len()
    }

    fn run(targets: Targets) -> Result<Vec<Chosen>, LoraError> {
        matched(&model(false), &of(targets))
    }

    fn of(target_modules: Targets) -> LoraConfig {
        LoraConfig { target_modules, ..LoraConfig::plain(4, 8.0, 0.0) }
    }

    fn model(tied: bool) -> ModelConfig {
        let text = format!(
            r#"{{"architectures":["LlamaForCausalLM"],"hidden_size":32,"intermediate_size":48,"vocab_size":96,
            "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":64,
            "tie_word_embeddings":{tied}}}"#
        );
        ModelConfig::parse(&text).expect("a sound config")
    }

    fn names(names: &[&str]) -> Targets {
        Targets::Names(names.iter().map(ToString::to_string).collect())
    }
}
