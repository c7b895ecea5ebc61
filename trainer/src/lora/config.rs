//! What an adapter is, as PEFT's `LoraConfig` says it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Targets;

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
    /// Which of them do not, by the same rules.
    pub exclude_modules: Option<Targets>,
    /// Of modules that a list names by their endings, those in these layers only; all where the list is empty.
    pub layers_to_transform: Vec<usize>,
    /// Other ranks, by expressions that the end of a module's path must match, from a dot on.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Scale by alpha / √rank.
    pub rslora: bool,
    /// Rows of the adapted weight keep a trained length of their own.
    pub dora: bool,
    /// What A and B begin with.
    pub init: Init,
}

/// What A and B begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// A random, B zero.
    Default,
    /// PiSSA: the principal singular vectors of the weight, which are taken out of it. Ours leaves the weight alone and takes the
    /// vectors' constant product out of the adapter's: the same sum, and what is saved is a plain adapter of twice the rank.
    Pissa,
}

impl LoraConfig {
    /// On every linear layer, the same on each, with nothing else switched on.
    pub fn plain(rank: usize, alpha: f64, dropout: f64) -> LoraConfig {
        LoraConfig {
            rank,
            alpha,
            dropout,
            target_modules: Targets::AllLinear,
            exclude_modules: None,
            layers_to_transform: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            rslora: false,
            dora: false,
            init: Init::Default,
        }
    }

    /// The factor in front of `B A x` for a module of that rank and alpha.
    pub fn scale(&self, rank: usize, alpha: f64) -> f64 {
        alpha / if self.rslora { (rank as f64).sqrt() } else { rank as f64 }
    }

    /// The adapter that its files describe: of a PiSSA start the plain one of twice the rank and the same scale.
    pub(super) fn as_saved(&self) -> LoraConfig {
        if self.init == Init::Default {
            return self.clone();
        }
        let growth = if self.rslora { 2f64.sqrt() } else { 2.0 };
        let twice = |(name, rank): (&String, &usize)| (name.clone(), 2 * rank);
        let grown = |(name, alpha): (&String, &f64)| (name.clone(), growth * alpha);
        LoraConfig {
            rank: 2 * self.rank,
            alpha: growth * self.alpha,
            rank_pattern: self.rank_pattern.iter().map(twice).collect(),
            alpha_pattern: self.alpha_pattern.iter().map(grown).collect(),
            init: Init::Default,
            ..self.clone()
        }
    }
}
