//! One pass over one micro-batch: which rows belong to which example and adapter, and the adapters' products on those rows.

use std::ops::Range;

use lorikeet_plan::{ModelConfig, Module, Rope};

use crate::TrainError;
use crate::data::{MicroBatch, Segment};
use crate::full::WeightLayout;
use crate::lora::{AdapterView, LoraEntry, Site};
use crate::ops::buffer::reserve;
use crate::ops::lora::Columns;
use crate::ops::machine::{
    Buffer, Dora, Input, Lengths, Machine, Mask, Pair, Part, PartMut, RowMasks, Segments, Sums, SumsAt, Turns, Weight,
};
use crate::ops::profile::{Op, Profile};
use crate::ops::random::Masks;
use crate::ops::rope::{Known, Rotations};

use super::operands::Operands;
use super::{EMBEDDING, Model, gpu};

/// What every layer needs to know about the batch.
pub(super) struct Pass<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) machine: &'a Machine,
    profile: &'a Profile,
    /// One for every rope of the model.
    turns: Vec<Turns>,
    pub(super) segments: Segments,
    batch: &'a MicroBatch,
    adapters: &'a [AdapterView<'a>],
    /// What products take of every adapter.
    operands: &'a [Operands<'a>],
    /// The model itself is trained, no adapter: every gradient is wanted, and the one flat gradient is that of all weights.
    pub(super) weights: Option<&'a WeightLayout>,
    /// All rows.
    pub(super) all: Rows,
}

/// Rows of the batch that lie one below the other in a buffer.
#[derive(Debug)]
pub(super) struct Rows {
    len: usize,
    runs: Vec<Run>,
}

/// Neighbouring rows of one adapter: one product serves them all.
#[derive(Debug)]
struct Run {
    adapter: usize,
    rows: Range<usize>,
    /// Dropout of its rows; none without.
    masks: Option<RowMasks>,
}

/// What one module's adapters keep of every row for the backward. Empty where no adapter has the module.
#[derive(Debug, Default)]
pub(super) struct Products {
    u: Option<Buffer>,
    /// DoRA's products with the whole weight.
    v: Option<Buffer>,
    /// Dropout of every run; none without.
    masks: Vec<Option<Mask>>,
}

impl Products {
    pub(super) fn give(self, machine: &Machine) {
        [self.u, self.v].into_iter().flatten().for_each(|buffer| machine.give(buffer));
    }
}

const KEPT: &str = "a module with adapters keeps their products";

/// A module that may be adapted, as a pass meets it: its place, its weight, and its columns of a row of output.
#[derive(Clone, Copy)]
pub(super) struct Adapted<'w> {
    pub(super) site: Site,
    pub(super) weight: &'w Weight,
    pub(super) columns: Columns,
}

impl<'w> Adapted<'w> {
    fn dora(self, lengths: &'w Lengths) -> Dora<'w> {
        Dora { weight: self.weight, lengths }
    }

    /// The module's numbers of some rows.
    fn own(self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.columns.count..rows.end * self.columns.count
    }
}

impl<'a> Pass<'a> {
    /// Checks the tokens against the vocabulary, and what is trained against the machine; segments must cover the rows in order.
    pub(super) fn new(
        model: &'a Model,
        batch: &'a MicroBatch,
        adapters: (&'a [AdapterView<'a>], &'a [Operands<'a>]),
    ) -> Result<Pass<'a>, TrainError> {
        let width = model.config.rotary_dim;
        let lengths: Vec<usize> = batch.segments.iter().map(|segment| segment.len).collect();
        Pass::turned(model, batch, adapters, |rope, known| Rotations::new(rope, width, &lengths, known))
    }

    /// The same over the last rows of one sequence of `len` tokens.
    pub(super) fn of_last_rows(
        model: &'a Model,
        batch: &'a MicroBatch,
        adapters: (&'a [AdapterView<'a>], &'a [Operands<'a>]),
        len: usize,
    ) -> Result<Pass<'a>, TrainError> {
        let (width, positions) = (model.config.rotary_dim, len - batch.tokens.len()..len);
        Pass::turned(model, batch, adapters, |rope, known| Rotations::of(rope, width, positions.clone(), len, known))
    }

    fn turned(
        model: &'a Model,
        batch: &'a MicroBatch,
        (adapters, operands): (&'a [AdapterView<'a>], &'a [Operands<'a>]),
        rotations: impl Fn(&Rope, &Known) -> Rotations,
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
        let machine = &model.machine;
        if machine.is_gpu() {
            gpu::takes_model(config)?;
        }
        let all = Rows { len: end, runs: runs(machine, batch, adapters, 0..end) };
        let ropes = config.ropes.iter().zip(&model.turns);
        Ok(Pass {
            config,
            machine,
            profile: &model.profile,
            turns: ropes.map(|(rope, known)| machine.turns(rotations(rope, known))).collect(),
            segments: machine
                .segments(batch.segments.iter().map(|segment| segment.start..segment.start + segment.len).collect()),
            batch,
            operands,
            adapters,
            weights: None,
            all,
        })
    }

    /// The same, that trains the model itself, where there is a layout of its weights.
    pub(super) fn of_weights(self, weights: Option<&'a WeightLayout>) -> Pass<'a> {
        Pass { weights, ..self }
    }

    /// The gradient of one of the model's tensors, where the model itself is trained.
    pub(super) fn own<'s>(&self, tensor: &str, grads: &'s mut [Sums<'_>]) -> Option<SumsAt<'s>> {
        Some(grads[0].at(self.weights?.place(tensor)))
    }

    /// Some rows of the batch, gathered.
    pub(super) fn some(&self, of_batch: &[usize]) -> Rows {
        let runs = runs(self.machine, self.batch, self.adapters, of_batch.iter().copied());
        Rows { len: of_batch.len(), runs }
    }

    /// Runs `f` and counts its time; on a GPU that of putting it on the stream.
    pub(super) fn time<T>(&self, op: Op, f: impl FnOnce() -> T) -> T {
        self.profile.time(op, f)
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.batch.tokens
    }

    /// How the rows of a layer turn.
    pub(super) fn turns(&self, layer: usize) -> &Turns {
        &self.turns[self.config.layers[layer].rope]
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
        segment_of(self.batch, row)
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
    pub(super) fn has(&self, site: Site) -> bool {
        self.adapters.iter().any(|view| view.layout.entry(site).is_some())
    }

    /// Adds every adapter's product of one module to its columns of `y`, which hold the layer's own output.
    pub(super) fn lora_forward(&self, adapted: Adapted<'_>, rows: &Rows, x: &Part<'_>, mut y: PartMut<'_>) -> Products {
        let Adapted { site, columns, .. } = adapted;
        if !self.has(site) {
            return Products::default();
        }
        let (machine, most) = (self.machine, self.most_rank(site));
        let (mut u, mut v) = (machine.take(rows.len * most), self.room_for_dora(site, rows, columns));
        let mut masks = Vec::with_capacity(rows.runs.len());
        for (run, entry) in self.adapted(rows, site) {
            let mask = run.masks.as_ref().map(|masks| machine.mask(masks, site.key(), entry.in_features));
            let input = Input { x: input_of(run, entry, x), mask: mask.as_ref() };
            let pair = self.pair(run, entry);
            let of_u = run.rows.start * most..run.rows.start * most + run.rows.len() * entry.rank;
            let mut y = y.slice(run.rows.start * columns.stride..run.rows.end * columns.stride);
            let mut u = u.all_mut();
            match (self.operands[run.adapter].lengths(site), &mut v) {
                (Some(lengths), Some(v)) => {
                    let mut v = v.all_mut();
                    let kept = (u.slice(of_u), v.slice(adapted.own(&run.rows)));
                    machine.dora(adapted.dora(lengths), &pair, &input, kept, (y.again(), columns));
                }
                _ => machine.lora(&pair, &input, u.slice(of_u), y.again(), columns),
            }
            if let Some(start) = self.operands[run.adapter].started(entry) {
                let mut u = machine.take(run.rows.len() * entry.rank);
                machine.lora(&start, &Input { mask: None, ..input }, u.all_mut(), y, columns);
                machine.give(u);
            }
            masks.push(mask);
        }
        Products { u: Some(u), v, masks }
    }

    /// Room for what DoRA keeps, where an adapter of the module has it.
    fn room_for_dora(&self, site: Site, rows: &Rows, columns: Columns) -> Option<Buffer> {
        let any = self.entries(site).any(|entry| !entry.magnitude.is_empty());
        any.then(|| self.machine.take(rows.len * columns.count))
    }

    /// Adds the gradients of one module to every adapter's, and to `dx` where that is wanted.
    pub(super) fn lora_backward(
        &self,
        adapted: Adapted<'_>,
        rows: &Rows,
        (x, products): (&Part<'_>, &Products),
        dy: &Part<'_>,
        mut dx: Option<PartMut<'_>>,
        grads: &mut [Sums<'_>],
    ) {
        let Adapted { site, columns, .. } = adapted;
        let (machine, most) = (self.machine, self.most_rank(site));
        for ((run, entry), mask) in self.adapted(rows, site).zip(&products.masks) {
            let input = Input { x: input_of(run, entry, x), mask: mask.as_ref() };
            let pair = self.pair(run, entry);
            let of_u = run.rows.start * most..run.rows.start * most + run.rows.len() * entry.rank;
            let u = products.u.as_ref().expect(KEPT).all().slice(of_u);
            let dy = dy.slice(run.rows.start * columns.stride..run.rows.end * columns.stride);
            let inputs = run.rows.start * entry.in_features..run.rows.end * entry.in_features;
            let mut dx = dx.as_mut().map(|dx| dx.slice(inputs));
            if let (Some(start), Some(dx)) = (self.operands[run.adapter].started(entry), &mut dx) {
                machine.lora_backward_constant(&start, (&dy, columns), dx.again());
            }
            let sums = &mut grads[run.adapter];
            match (self.operands[run.adapter].lengths(site), &products.v) {
                (Some(lengths), Some(v)) => {
                    let kept = (&input, u, v.all().slice(adapted.own(&run.rows)));
                    let places = [entry.a.clone(), entry.b.clone(), entry.magnitude.clone()];
                    machine.dora_backward(adapted.dora(lengths), &pair, kept, (&dy, columns), (sums, places), dx);
                }
                _ => {
                    let places = [entry.a.clone(), entry.b.clone()];
                    machine.lora_backward(&pair, &input, (u, &dy, columns), (sums, places), dx);
                }
            }
        }
    }

    /// Adds the products of adapters on the embedding to the first layer's input.
    pub(super) fn lookup_forward(&self, x: &mut Buffer) {
        let width = self.config.hidden_size;
        for (run, entry) in self.adapted(&self.all, Site::Embedding) {
            let (rows, pair, mut x) = (run.rows.clone(), self.lookup_pair(run, entry), x.all_mut());
            let y = x.slice(rows.start * width..rows.end * width);
            self.time(Op::Lora, || self.machine.lookup(&pair, &self.batch.tokens[rows], y));
        }
    }

    /// Adds the gradients of adapters on the embedding, or of its table, from that of the first layer's input.
    pub(super) fn lookup_backward(&self, dx: &Buffer, grads: &mut [Sums<'_>]) {
        let width = self.config.hidden_size;
        if let Some(table) = self.own(EMBEDDING, grads) {
            let tokens = (&self.batch.tokens[..], self.config.pad_token_id);
            let scale = self.config.embedding_scale as f32;
            self.time(Op::Linear, || self.machine.table_backward(tokens, dx, scale, table));
        }
        for (run, entry) in self.adapted(&self.all, Site::Embedding) {
            let (rows, pair) = (run.rows.clone(), self.lookup_pair(run, entry));
            let dy = dx.all().slice(rows.start * width..rows.end * width);
            let tokens = (&self.batch.tokens[rows], self.config.pad_token_id);
            let sums = (&mut grads[run.adapter], [entry.a.clone(), entry.b.clone()]);
            self.time(Op::Lora, || self.machine.lookup_backward(&pair, tokens, &dy, sums));
        }
    }

    /// The embedding's factor is the adapter's too.
    fn lookup_pair(&self, run: &Run, entry: &LoraEntry) -> Pair<'_> {
        let pair = self.pair(run, entry);
        Pair { scale: pair.scale * self.config.embedding_scale as f32, ..pair }
    }

    fn pair(&self, run: &Run, entry: &LoraEntry) -> Pair<'_> {
        self.operands[run.adapter].pair(entry)
    }

    /// A module's entry in every adapter that has it.
    fn entries(&self, site: Site) -> impl Iterator<Item = &LoraEntry> {
        self.adapters.iter().filter_map(move |view| view.layout.entry(site))
    }

    fn most_rank(&self, site: Site) -> usize {
        self.entries(site).map(|entry| entry.rank).max().unwrap_or(0)
    }

    /// Every run whose adapter has the module.
    fn adapted<'r>(&'r self, rows: &'r Rows, site: Site) -> impl Iterator<Item = (&'r Run, &'r LoraEntry)> {
        rows.runs.iter().filter_map(move |run| Some((run, self.adapters[run.adapter].layout.entry(site)?)))
    }
}

/// The rows of a run.
fn input_of<'x>(run: &Run, entry: &LoraEntry, x: &Part<'x>) -> Part<'x> {
    x.slice(run.rows.start * entry.in_features..run.rows.end * entry.in_features)
}

fn segment_of(batch: &MicroBatch, row: usize) -> &Segment {
    let after = batch.segments.partition_point(|segment| segment.start <= row);
    &batch.segments[after - 1]
}

/// Neighbours of one adapter together, of rows of the batch; nobody's without adapters.
fn runs(
    machine: &Machine,
    batch: &MicroBatch,
    adapters: &[AdapterView<'_>],
    rows: impl ExactSizeIterator<Item = usize> + Clone,
) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    if adapters.is_empty() {
        return runs;
    }
    for (at, row) in rows.clone().enumerate() {
        let adapter = segment_of(batch, row).adapter;
        match runs.last_mut().filter(|run| run.adapter == adapter) {
            Some(run) => run.rows.end = at + 1,
            None => runs.push(Run { adapter, rows: at..at + 1, masks: None }),
        }
    }
    for run in &mut runs {
        let of_run = rows.clone().skip(run.rows.start).take(run.rows.len());
        run.masks = row_masks(machine, batch, &adapters[run.adapter], of_run);
    }
    runs
}

/// Dropout of some rows of the batch, which are one adapter's; none without.
fn row_masks(
    machine: &Machine,
    batch: &MicroBatch,
    adapter: &AdapterView<'_>,
    rows: impl ExactSizeIterator<Item = usize>,
) -> Option<RowMasks> {
    let dropout = adapter.dropout.filter(|dropout| dropout.p > 0.0)?;
    let mut masks = Vec::new();
    reserve(&mut masks, rows.len());
    // neighbours are mostly of one segment
    let mut known: Option<(usize, Masks)> = None;
    masks.extend(rows.map(|row| {
        let segment = segment_of(batch, row);
        let same = known.filter(|(start, _)| *start == segment.start);
        let (_, masks) =
            *known.insert(same.unwrap_or_else(|| (segment.start, Masks::new(dropout, segment.epoch, segment.example))));
        (masks, (row - segment.start) as u32)
    }));
    Some(machine.row_masks(masks))
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
