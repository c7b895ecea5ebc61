//! Where an adapter's numbers lie: the map from modules to places in one flat buffer.

use std::collections::BTreeMap;
use std::ops::Range;

use lorikeet_plan::{AdapterShape, ModelConfig, Module};

use super::target::{self, Chosen};
use super::{Init, LoraConfig, LoraError};

/// The largest rank that a job may ask for, doubled as a PiSSA start is saved. Larger ones fit a module that is as large.
const RANK_OF_JOBS: usize = 512;

/// A place in the model that may carry an adapter; ordered as a forward pass meets them, but for modules of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// `embed_tokens`.
    Embedding,
    /// A projection of a block.
    Block(usize, Module),
    /// `lm_head`.
    Head,
}

impl Site {
    /// Its module path.
    pub fn path(self) -> String {
        match self {
            Site::Embedding => "model.embed_tokens".into(),
            Site::Block(layer, module) => module.path(layer),
            Site::Head => "lm_head".into(),
        }
    }

    /// Columns of A.
    fn in_features(self, model: &ModelConfig) -> usize {
        match self {
            Site::Embedding => model.vocab_size,
            Site::Block(_, module) => module.in_features(model),
            Site::Head => model.hidden_size,
        }
    }

    /// Rows of B.
    fn out_features(self, model: &ModelConfig) -> usize {
        match self {
            Site::Embedding => model.hidden_size,
            Site::Block(_, module) => module.out_features(model),
            Site::Head => model.vocab_size,
        }
    }

    /// A number of its own, by which random numbers are told apart.
    pub(crate) fn key(self) -> u32 {
        match self {
            Site::Embedding => u32::MAX - 1,
            Site::Block(layer, module) => (layer * Module::ALL.len() + module as usize) as u32,
            Site::Head => u32::MAX,
        }
    }
}

/// One adapted module and the places of its matrices in the flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraEntry {
    /// Where it sits.
    pub site: Site,
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Scale times rank (or its root).
    pub alpha: f64,
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
    /// DoRA's row lengths; empty without it.
    pub magnitude: Range<usize>,
    /// What A and B began with, where their product is taken out again (PiSSA). Never trained.
    pub start: Option<[Range<usize>; 2]>,
}

impl LoraEntry {
    /// How many numbers of it are trained.
    pub fn parameters(&self) -> usize {
        self.a.len() + self.b.len() + self.magnitude.len()
    }
}

/// The map from modules to places in one flat buffer: all that is trained, in PEFT's order, then what is not.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraLayout {
    config: LoraConfig,
    entries: Vec<LoraEntry>,
    index: BTreeMap<Site, usize>,
    trained: usize,
    len: usize,
}

impl LoraLayout {
    /// Places an adapter of `config` on a model. Refuses targets that match nothing, or something that cannot carry one, and ranks
    /// that no module can use.
    pub fn new(model: &ModelConfig, config: &LoraConfig) -> Result<LoraLayout, LoraError> {
        assert!(config.rank > 0, "the rank is checked where settings are read");
        let mut layout =
            LoraLayout { config: config.clone(), entries: Vec::new(), index: BTreeMap::new(), trained: 0, len: 0 };
        for chosen in target::matched(model, config)? {
            layout.push(model, &chosen)?;
        }
        layout.trained = layout.len;
        if config.init == Init::Pissa {
            layout.place_starts();
        }
        Ok(layout)
    }

    /// How many numbers the buffer has.
    #[expect(clippy::len_without_is_empty, reason = "a layout of nothing cannot be made")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many of them are trained; they come first.
    pub fn trained(&self) -> usize {
        self.trained
    }

    /// The adapted modules, in buffer order.
    pub fn entries(&self) -> &[LoraEntry] {
        &self.entries
    }

    /// The settings it was made from.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The entry of one place, if it is adapted.
    pub fn entry(&self, site: Site) -> Option<&LoraEntry> {
        self.index.get(&site).map(|at| &self.entries[*at])
    }

    /// The lowest place that is adapted: nothing below it needs a gradient.
    pub fn lowest(&self) -> Site {
        self.entries[0].site
    }

    /// What it costs in memory and operations.
    pub fn shape(&self) -> AdapterShape {
        let doubled = if self.config.init == Init::Pissa { 2 } else { 1 };
        let in_block = |entry: &&LoraEntry| matches!(entry.site, Site::Block(..));
        let kept = |entry: &LoraEntry| entry.rank + entry.magnitude.len();
        let masked = self.config.dropout > 0.0;
        let masks = |entry: &LoraEntry| if masked { entry.in_features.div_ceil(64) * size_of::<u64>() } else { 0 };
        let head = self.entry(Site::Head);
        AdapterShape {
            parameters: self.trained as u64,
            constants: (self.len - self.trained) as u64,
            products: self.entries.iter().filter(in_block).map(kept).sum(),
            rank: self.entries.iter().map(|entry| entry.rank).max().unwrap_or(0),
            lowest: match self.lowest() {
                Site::Embedding => 0,
                Site::Block(layer, _) => layer,
                Site::Head => usize::MAX,
            },
            masks: self.entries.iter().filter(in_block).map(masks).sum(),
            head_rank: head.map_or(0, |entry| entry.rank),
            head_masks: head.map_or(0, masks),
            head_lengths: head.map_or(0, |entry| entry.magnitude.len()),
            lengths: self.entries.iter().filter(in_block).map(|entry| entry.magnitude.len()).sum(),
            whole: false,
            operations: doubled * self.entries.iter().map(|entry| (entry.a.len() + entry.b.len()) as u64).sum::<u64>(),
        }
    }

    /// Ranges of the trained numbers and what their learning rate is multiplied by: LoRA+ gives B and row lengths `ratio` times
    /// A's rate, and both matrices of an embedding a rate of their own, 1e-6, whatever `peak` is.
    pub fn rates(&self, ratio: Option<f64>, peak: f64) -> Vec<(Range<usize>, f64)> {
        const EMBEDDING_RATE: f64 = 1e-6;
        let Some(ratio) = ratio.filter(|_| peak > 0.0) else { return vec![(0..self.trained, 1.0)] };
        let of = |entry: &LoraEntry| {
            let [a, b] = match entry.site {
                Site::Embedding => [EMBEDDING_RATE / peak; 2],
                Site::Block(..) | Site::Head => [1.0, ratio],
            };
            [(entry.a.clone(), a), (entry.b.start..entry.b.end.max(entry.magnitude.end), b)]
        };
        self.entries.iter().flat_map(of).collect()
    }

    fn push(&mut self, model: &ModelConfig, chosen: &Chosen) -> Result<(), LoraError> {
        let Chosen { site, rank, alpha } = *chosen;
        let (inputs, outputs) = (site.in_features(model), site.out_features(model));
        let most = inputs.min(outputs).max(RANK_OF_JOBS);
        if !(1..=most).contains(&rank) {
            return Err(LoraError::Rank { module: site.path(), rank, most });
        }
        let a = self.len..self.len + rank * inputs;
        let b = a.end..a.end + outputs * rank;
        let magnitude = b.end..b.end + if self.config.dora { outputs } else { 0 };
        self.len = magnitude.end;
        self.index.insert(site, self.entries.len());
        let scale = self.config.scale(rank, alpha) as f32;
        let (in_features, out_features) = (inputs, outputs);
        self.entries.push(LoraEntry {
            site,
            rank,
            alpha,
            scale,
            in_features,
            out_features,
            a,
            b,
            magnitude,
            start: None,
        });
        Ok(())
    }

    fn place_starts(&mut self) {
        for entry in &mut self.entries {
            let a = self.len..self.len + entry.a.len();
            let b = a.end..a.end + entry.b.len();
            self.len = b.end;
            entry.start = Some([a, b]);
        }
    }
}
