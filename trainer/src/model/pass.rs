//! One pass over one micro-batch: which rows belong to which example and adapter, and the adapters' products on those rows.

use std::ops::Range;

use lorikeet_plan::{ModelConfig, Module};

use crate::TrainError;
use crate::data::{MicroBatch, Segment};
use crate::lora::{AdapterView, LoraEntry};
use crate::ops::buffer::Buffers;
use crate::ops::lora::{self, Columns, Input, Pair, PairGradient};
use crate::ops::profile::{Op, Profile};
use crate::ops::random::Masks;
use crate::ops::rope::Rotations;

use super::Model;

/// What every layer needs to know about the batch.
pub(super) struct Pass<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) buffers: &'a Buffers,
    profile: &'a Profile,
    /// One for every rope of the model.
    rotations: Vec<Rotations>,
    /// Rows of every segment.
    pub(super) ranges: Vec<Range<usize>>,
    batch: &'a MicroBatch,
    adapters: &'a [AdapterView<'a>],
    runs: Vec<Run>,
}

/// Neighbouring segments of one adapter: one product serves them all.
struct Run {
    adapter: usize,
    segments: Range<usize>,
    rows: Range<usize>,
}

/// `u` of one module for every row of a pass, kept for the backward. Empty where no adapter has the module.
#[derive(Debug, Default)]
pub(super) struct Products(Vec<f32>);

impl Products {
    pub(super) fn give(self, buffers: &Buffers) {
        if self.0.capacity() > 0 {
            buffers.give(self.0);
        }
    }
}

impl<'a> Pass<'a> {
    /// Checks the tokens against the vocabulary; segments must cover the rows in order.
    pub(super) fn new(
        model: &'a Model,
        batch: &'a MicroBatch,
        adapters: &'a [AdapterView<'a>],
    ) -> Result<Pass<'a>, TrainError> {
        let mut end = 0;
        for segment in &batch.segments {
            assert!(segment.start == end && segment.len > 0, "segments cover the rows in order");
            assert!(adapters.is_empty() || segment.adapter < adapters.len(), "a segment names an adapter of the pass");
            end += segment.len;
        }
        assert_eq!(end, batch.tokens.len(), "segments cover every row");
        assert!(adapters.iter().all(|view| view.params.len() == view.layout.len()), "an adapter fits its layout");
        let config = &model.config;
        check_tokens(batch, config.vocab_size)?;
        let lengths: Vec<usize> = batch.segments.iter().map(|segment| segment.len).collect();
        Ok(Pass {
            config,
            buffers: &model.buffers,
            profile: &model.profile,
            rotations: config.ropes.iter().map(|rope| Rotations::new(rope, config.rotary_dim, &lengths)).collect(),
            ranges: batch.segments.iter().map(|segment| segment.start..segment.start + segment.len).collect(),
            batch,
            adapters,
            runs: if adapters.is_empty() { Vec::new() } else { runs(&batch.segments) },
        })
    }

    /// Runs `f` and counts its time.
    pub(super) fn time<T>(&self, op: Op, f: impl FnOnce() -> T) -> T {
        self.profile.time(op, f)
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.batch.tokens
    }

    /// How the rows of a layer turn.
    pub(super) fn rotations(&self, layer: usize) -> &Rotations {
        &self.rotations[self.config.layers[layer].rope]
    }

    pub(super) fn rows(&self) -> usize {
        self.batch.tokens.len()
    }

    /// How many sums a loss has: one per adapter, one without any.
    pub(super) fn adapters(&self) -> usize {
        self.adapters.len().max(1)
    }

    /// The segment that holds a row.
    pub(super) fn segment_of(&self, row: usize) -> &Segment {
        let after = self.batch.segments.partition_point(|segment| segment.start <= row);
        &self.batch.segments[after - 1]
    }

    /// The lowest layer that any adapter sits on.
    pub(super) fn lowest_layer(&self) -> usize {
        self.adapters.iter().map(|view| view.layout.lowest_layer()).min().unwrap_or(usize::MAX)
    }

    /// Whether any adapter sits on one of `modules` of `layer`, or on a layer below: a gradient has to reach them.
    pub(super) fn reaches(&self, layer: usize, modules: &[Module]) -> bool {
        layer > self.lowest_layer() || modules.iter().any(|module| self.has(layer, *module))
    }

    /// Whether any adapter has this module.
    fn has(&self, layer: usize, module: Module) -> bool {
        self.adapters.iter().any(|view| view.layout.entry(layer, module).is_some())
    }

    /// Adds every adapter's product of one module to its columns of `y`.
    pub(super) fn lora_forward(
        &self,
        (layer, module): (usize, Module),
        x: &[f32],
        y: &mut [f32],
        columns: Columns,
    ) -> Products {
        if !self.has(layer, module) {
            return Products::default();
        }
        let most = self.most_rank();
        let mut products = self.buffers.take(self.rows() * most);
        for (run, view, entry) in self.adapted(layer, module) {
            let input = self.input(run, view, entry, x);
            let u = &mut products[run.rows.start * most..][..run.rows.len() * entry.rank];
            let y = &mut y[run.rows.start * columns.stride..run.rows.end * columns.stride];
            lora::forward(pair(view, entry), input.get(), self.buffers, u, y, columns);
        }
        Products(products)
    }

    /// Adds the gradients of one module to every adapter's, and to `dx` where that is wanted.
    pub(super) fn lora_backward(
        &self,
        (layer, module): (usize, Module),
        (x, products): (&[f32], &Products),
        (dy, columns): (&[f32], Columns),
        mut dx: Option<&mut [f32]>,
        grads: &mut [&mut [f32]],
    ) {
        let most = self.most_rank();
        for (run, view, entry) in self.adapted(layer, module) {
            let input = self.input(run, view, entry, x);
            let u = &products.0[run.rows.start * most..][..run.rows.len() * entry.rank];
            let dy = &dy[run.rows.start * columns.stride..run.rows.end * columns.stride];
            let inputs = run.rows.start * entry.in_features..run.rows.end * entry.in_features;
            let (before, b) = grads[run.adapter][..entry.b.end].split_at_mut(entry.b.start);
            let mut gradient = PairGradient { a: &mut before[entry.a.clone()], b };
            let dx = dx.as_deref_mut().map(|dx| &mut dx[inputs]);
            lora::backward(pair(view, entry), input.get(), self.buffers, (u, dy, columns), &mut gradient, dx);
        }
    }

    fn most_rank(&self) -> usize {
        self.adapters.iter().map(|view| view.layout.config().rank).max().unwrap_or(0)
    }

    /// Every run whose adapter has the module.
    fn adapted(&self, layer: usize, module: Module) -> impl Iterator<Item = (&Run, &AdapterView<'a>, &LoraEntry)> {
        self.runs.iter().filter_map(move |run| {
            let view = &self.adapters[run.adapter];
            Some((run, view, view.layout.entry(layer, module)?))
        })
    }

    fn input<'x>(&self, run: &Run, view: &AdapterView<'_>, entry: &LoraEntry, x: &'x [f32]) -> RunInput<'x> {
        let x = &x[run.rows.start * entry.in_features..run.rows.end * entry.in_features];
        let module = (entry.layer * Module::ALL.len() + entry.module as usize) as u32;
        let dropout = view.dropout.filter(|dropout| dropout.p > 0.0);
        let masks = dropout.map_or_else(Vec::new, |dropout| {
            let of_segment = |segment: &Segment| {
                let masks = Masks::new(dropout, segment.epoch, segment.example, module);
                (0..segment.len as u32).map(move |token| (masks, token))
            };
            self.batch.segments[run.segments.clone()].iter().flat_map(of_segment).collect()
        });
        RunInput { x, masks }
    }
}

/// The input of one run, with its dropout masks.
struct RunInput<'a> {
    x: &'a [f32],
    masks: Vec<(Masks, u32)>,
}

impl RunInput<'_> {
    fn get(&self) -> Input<'_> {
        Input { x: self.x, masks: &self.masks }
    }
}

fn pair<'a>(view: &AdapterView<'a>, entry: &LoraEntry) -> Pair<'a, f32> {
    let (a, b) = (&view.params[entry.a.clone()], &view.params[entry.b.clone()]);
    Pair { a, b, rank: entry.rank, scale: entry.scale }
}

fn runs(segments: &[Segment]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        let end = segment.start + segment.len;
        match runs.last_mut().filter(|run| run.adapter == segment.adapter) {
            Some(run) => (run.rows.end, run.segments.end) = (end, i + 1),
            None => runs.push(Run { adapter: segment.adapter, segments: i..i + 1, rows: segment.start..end }),
        }
    }
    runs
}

fn check_tokens(batch: &MicroBatch, vocabulary: usize) -> Result<(), TrainError> {
    let wanted = batch.targets.iter().map(|target| target.token);
    match batch.tokens.iter().copied().chain(wanted).find(|token| *token as usize >= vocabulary) {
        Some(token) => Err(TrainError::Dataset {
            reason: format!("token {token} is outside the model's vocabulary of {vocabulary}"),
        }),
        None => Ok(()),
    }
}
