//! One pass over one micro-batch: which rows belong to which example and adapter, and the adapters' products on those rows.

use std::borrow::Cow;
use std::ops::Range;

use lorikeet_plan::{ModelConfig, Module};

use crate::TrainError;
use crate::data::{MicroBatch, Segment};
use crate::full::WeightLayout;
use crate::lora::{AdapterView, Dropout, LoraEntry, Site};
use crate::ops::buffer::{Buffers, reserve};
use crate::ops::dora::{self, Dora, DoraGradient};
use crate::ops::dropout::Kept;
use crate::ops::linear::Weight;
use crate::ops::lookup;
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
    /// The model itself is trained, no adapter: every gradient is wanted, and the one flat gradient is that of all weights.
    pub(super) weights: Option<&'a WeightLayout>,
    /// All rows.
    pub(super) all: Rows,
}

/// Rows of the batch that lie one below the other in a buffer.
#[derive(Debug)]
pub(super) struct Rows {
    /// Which they are in the batch; `None`: all of them, in order.
    of_batch: Option<Vec<usize>>,
    len: usize,
    runs: Vec<Run>,
}

/// Neighbouring rows of one adapter: one product serves them all.
#[derive(Debug)]
struct Run {
    adapter: usize,
    rows: Range<usize>,
}

/// What one module's adapters keep of every row for the backward. Empty where no adapter has the module.
#[derive(Debug, Default)]
pub(super) struct Products {
    u: Vec<f32>,
    /// DoRA's products with the whole weight.
    v: Vec<f32>,
    /// DoRA's row norms, per adapter.
    norms: Vec<Vec<f32>>,
    /// Dropout of every run; none without.
    kept: Vec<Option<Kept>>,
}

impl Products {
    pub(super) fn give(self, buffers: &Buffers) {
        [self.u, self.v].into_iter().filter(|buffer| buffer.capacity() > 0).for_each(|buffer| buffers.give(buffer));
    }
}

/// A module that may be adapted, as a pass meets it: its place, its frozen weight, and its columns of a row of output.
#[derive(Clone, Copy)]
pub(super) struct Adapted<'w> {
    pub(super) site: Site,
    pub(super) weight: &'w Weight,
    pub(super) columns: Columns,
}

impl<'w> Adapted<'w> {
    /// The frozen weight's part under the module.
    fn frozen(self) -> Cow<'w, [f32]> {
        self.weight.rows_of(self.columns.first..self.columns.first + self.columns.count)
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
        let adapter_of_row =
            batch.segments.iter().flat_map(|segment| std::iter::repeat_n(segment.adapter, segment.len));
        let runs = if adapters.is_empty() { Vec::new() } else { runs(adapter_of_row) };
        Ok(Pass {
            config,
            buffers: &model.buffers,
            profile: &model.profile,
            rotations: config.ropes.iter().map(|rope| Rotations::new(rope, config.rotary_dim, &lengths)).collect(),
            ranges: batch.segments.iter().map(|segment| segment.start..segment.start + segment.len).collect(),
            batch,
            adapters,
            weights: None,
            all: Rows { of_batch: None, len: end, runs },
        })
    }

    /// A pass that trains the model itself.
    pub(super) fn of_weights(
        model: &'a Model,
        batch: &'a MicroBatch,
        layout: &'a WeightLayout,
    ) -> Result<Pass<'a>, TrainError> {
        Ok(Pass { weights: Some(layout), ..Pass::new(model, batch, &[])? })
    }

    /// Some rows of the batch, gathered.
    pub(super) fn some(&self, of_batch: Vec<usize>) -> Rows {
        let runs = if self.adapters.is_empty() {
            Vec::new()
        } else {
            runs(of_batch.iter().map(|row| self.segment_of(*row).adapter))
        };
        Rows { len: of_batch.len(), of_batch: Some(of_batch), runs }
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

    /// The lowest layer whose backward is needed; past the last when none is.
    pub(super) fn lowest_layer(&self) -> usize {
        let layer = |view: &AdapterView<'_>| match view.layout.lowest() {
            Site::Embedding => 0,
            Site::Block(layer, _) => layer,
            Site::Head => usize::MAX,
        };
        let none = if self.weights.is_some() { 0 } else { usize::MAX };
        self.adapters.iter().map(layer).min().unwrap_or(none)
    }

    /// Whether something is trained in one of `modules` of `layer`, or below that layer: a gradient has to reach them.
    pub(super) fn reaches(&self, layer: usize, modules: &[Module]) -> bool {
        let first = Site::Block(layer, Module::QProj);
        self.weights.is_some()
            || self.adapters.iter().any(|view| view.layout.lowest() < first)
            || modules.iter().any(|module| self.has(Site::Block(layer, *module)))
    }

    /// Whether any adapter has this module.
    fn has(&self, site: Site) -> bool {
        self.adapters.iter().any(|view| view.layout.entry(site).is_some())
    }

    /// Adds every adapter's product of one module to its columns of `y`, which hold the frozen layer's output.
    pub(super) fn lora_forward(&self, adapted: Adapted<'_>, rows: &Rows, x: &[f32], y: &mut [f32]) -> Products {
        let Adapted { site, columns, .. } = adapted;
        if !self.has(site) {
            return Products::default();
        }
        let most = self.most_rank(site);
        let mut products = Products { u: self.buffers.take(rows.len * most), ..self.dora_products(adapted, rows) };
        for (run, view, entry) in self.adapted(rows, site) {
            let kept = self.kept(rows, run, view, entry);
            let input = Input { x: input_of(run, entry, x), kept: kept.as_ref() };
            let pair = pair(view, entry);
            let u = &mut products.u[run.rows.start * most..][..run.rows.len() * entry.rank];
            let y = &mut y[run.rows.start * columns.stride..run.rows.end * columns.stride];
            match products.norms.get(run.adapter).filter(|norms| !norms.is_empty()) {
                Some(norms) => {
                    let v = &mut products.v[run.rows.start * columns.count..run.rows.end * columns.count];
                    let frozen = adapted.frozen();
                    let dora = dora_of(view, entry, &frozen, norms);
                    dora::forward(dora, pair, input, self.buffers, (u, v), (y, columns));
                }
                None => lora::forward(pair, input, u, y, columns),
            }
            if let Some(start) = started(view, entry) {
                let mut u = self.buffers.take(u.len());
                lora::forward(start, Input { kept: None, ..input }, &mut u, y, columns);
                self.buffers.give(u);
            }
            products.kept.push(kept);
        }
        products
    }

    /// Room for what DoRA keeps, and the norms, which are the same for every run of an adapter.
    fn dora_products(&self, adapted: Adapted<'_>, rows: &Rows) -> Products {
        let Adapted { site, columns, .. } = adapted;
        let norms: Vec<Vec<f32>> = self
            .adapters
            .iter()
            .map(|view| match view.layout.entry(site).filter(|entry| !entry.magnitude.is_empty()) {
                None => Vec::new(),
                Some(entry) => {
                    let mut norms = vec![0.0; entry.out_features];
                    dora::norms(&adapted.frozen(), pair(view, entry), &mut norms);
                    norms
                }
            })
            .collect();
        let any = norms.iter().any(|norms| !norms.is_empty());
        Products {
            u: Vec::new(),
            v: if any { self.buffers.take(rows.len * columns.count) } else { Vec::new() },
            norms,
            kept: Vec::new(),
        }
    }

    /// Adds the gradients of one module to every adapter's, and to `dx` where that is wanted.
    pub(super) fn lora_backward(
        &self,
        adapted: Adapted<'_>,
        rows: &Rows,
        (x, products): (&[f32], &Products),
        dy: &[f32],
        mut dx: Option<&mut [f32]>,
        grads: &mut [&mut [f32]],
    ) {
        let Adapted { site, columns, .. } = adapted;
        let most = self.most_rank(site);
        for ((run, view, entry), kept) in self.adapted(rows, site).zip(&products.kept) {
            let input = Input { x: input_of(run, entry, x), kept: kept.as_ref() };
            let pair = pair(view, entry);
            let u = &products.u[run.rows.start * most..][..run.rows.len() * entry.rank];
            let dy = &dy[run.rows.start * columns.stride..run.rows.end * columns.stride];
            let inputs = run.rows.start * entry.in_features..run.rows.end * entry.in_features;
            let (mut gradient, magnitude) = gradients(entry, grads[run.adapter]);
            let mut dx = dx.as_deref_mut().map(|dx| &mut dx[inputs]);
            if let (Some(start), Some(dx)) = (started(view, entry), dx.as_deref_mut()) {
                lora::backward_constant(start, self.buffers, (dy, columns), dx);
            }
            match products.norms.get(run.adapter).filter(|norms| !norms.is_empty()) {
                Some(norms) => {
                    let v = &products.v[run.rows.start * columns.count..run.rows.end * columns.count];
                    let mut gradient = DoraGradient { pair: gradient, magnitude };
                    let frozen = adapted.frozen();
                    let dora = dora_of(view, entry, &frozen, norms);
                    dora::backward(dora, pair, (input, u, v), self.buffers, (dy, columns), &mut gradient, dx);
                }
                None => lora::backward(pair, input, self.buffers, (u, dy, columns), &mut gradient, dx),
            }
        }
    }

    /// Adds the products of adapters on the embedding to the first layer's input.
    pub(super) fn lookup_forward(&self, x: &mut [f32]) {
        let width = self.config.hidden_size;
        for (run, view, entry) in self.adapted(&self.all, Site::Embedding) {
            let rows = run.rows.clone();
            let y = &mut x[rows.start * width..rows.end * width];
            self.time(Op::Lora, || lookup::forward(self.lookup_pair(view, entry), &self.batch.tokens[rows], y));
        }
    }

    /// Adds the gradients of adapters on the embedding, or of its table, from that of the first layer's input.
    pub(super) fn lookup_backward(&self, dx: &[f32], grads: &mut [&mut [f32]]) {
        let width = self.config.hidden_size;
        if let Some(layout) = self.weights {
            let table = &mut grads[0][layout.place("model.embed_tokens.weight")];
            lookup::table_backward(
                (&self.batch.tokens, self.config.pad_token_id),
                dx,
                self.config.embedding_scale as f32,
                width,
                table,
            );
        }
        for (run, view, entry) in self.adapted(&self.all, Site::Embedding) {
            let rows = run.rows.clone();
            let dy = &dx[rows.start * width..rows.end * width];
            let (mut gradient, _) = gradients(entry, grads[run.adapter]);
            self.time(Op::Lora, || {
                let tokens = (&self.batch.tokens[rows], self.config.pad_token_id);
                lookup::backward(self.lookup_pair(view, entry), tokens, dy, &mut gradient)
            });
        }
    }

    /// The embedding's factor is the adapter's too.
    fn lookup_pair<'v>(&self, view: &AdapterView<'v>, entry: &LoraEntry) -> Pair<'v, f32> {
        let pair = pair(view, entry);
        Pair { scale: pair.scale * self.config.embedding_scale as f32, ..pair }
    }

    fn most_rank(&self, site: Site) -> usize {
        self.adapters.iter().filter_map(|view| view.layout.entry(site)).map(|entry| entry.rank).max().unwrap_or(0)
    }

    /// Every run whose adapter has the module.
    fn adapted<'r>(
        &'r self,
        rows: &'r Rows,
        site: Site,
    ) -> impl Iterator<Item = (&'r Run, &'r AdapterView<'a>, &'r LoraEntry)> {
        rows.runs.iter().filter_map(move |run| {
            let view = &self.adapters[run.adapter];
            Some((run, view, view.layout.entry(site)?))
        })
    }

    /// What is kept of the input of a run, where there is dropout.
    fn kept(&self, rows: &Rows, run: &Run, view: &AdapterView<'_>, entry: &LoraEntry) -> Option<Kept> {
        let dropout = view.dropout.filter(|dropout| dropout.p > 0.0)?;
        Some(Kept::draw(&self.masks(rows, run, dropout, entry.site), entry.in_features))
    }

    /// The masks of every row of a run, and the row's place in its example.
    fn masks(&self, rows: &Rows, run: &Run, dropout: Dropout, site: Site) -> Vec<(Masks, u32)> {
        let mut here: Option<(&Segment, Masks)> = None;
        let of_row = |row: usize| {
            let row = rows.of_batch.as_ref().map_or(row, |of_batch| of_batch[row]);
            let known = here.filter(|(segment, _)| (segment.start..segment.start + segment.len).contains(&row));
            let (segment, masks) = known.unwrap_or_else(|| {
                let segment = self.segment_of(row);
                (segment, Masks::new(dropout, segment.epoch, segment.example, site.key()))
            });
            here = Some((segment, masks));
            (masks, (row - segment.start) as u32)
        };
        let mut masks = Vec::new();
        reserve(&mut masks, run.rows.len());
        masks.extend(run.rows.clone().map(of_row));
        masks
    }
}

/// The rows of a run.
fn input_of<'x>(run: &Run, entry: &LoraEntry, x: &'x [f32]) -> &'x [f32] {
    &x[run.rows.start * entry.in_features..run.rows.end * entry.in_features]
}

fn pair<'a>(view: &AdapterView<'a>, entry: &LoraEntry) -> Pair<'a, f32> {
    let (a, b) = (&view.params[entry.a.clone()], &view.params[entry.b.clone()]);
    Pair { a, b, rank: entry.rank, scale: entry.scale }
}

/// What a PiSSA adapter takes out again: the product it began with.
fn started<'a>(view: &AdapterView<'a>, entry: &LoraEntry) -> Option<Pair<'a, f32>> {
    let [a, b] = entry.start.clone()?;
    Some(Pair { a: &view.params[a], b: &view.params[b], rank: entry.rank, scale: -entry.scale })
}

fn dora_of<'d>(view: &AdapterView<'d>, entry: &LoraEntry, weight: &'d [f32], norms: &'d [f32]) -> Dora<'d, f32> {
    Dora { weight, magnitude: &view.params[entry.magnitude.clone()], norms }
}

/// The parts of a flat gradient that are one module's: A and B, and the row lengths behind them.
fn gradients<'g>(entry: &LoraEntry, grads: &'g mut [f32]) -> (PairGradient<'g, f32>, &'g mut [f32]) {
    let (before, magnitude) = grads[..entry.magnitude.end].split_at_mut(entry.b.end);
    let (a, b) = before.split_at_mut(entry.b.start);
    (PairGradient { a: &mut a[entry.a.clone()], b }, magnitude)
}

/// Neighbours of one adapter together.
fn runs(adapter_of_row: impl Iterator<Item = usize>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (row, adapter) in adapter_of_row.enumerate() {
        match runs.last_mut().filter(|run| run.adapter == adapter) {
            Some(run) => run.rows.end = row + 1,
            None => runs.push(Run { adapter, rows: row..row + 1 }),
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
