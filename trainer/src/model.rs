//! The decoder: `Model`, and the three passes over it.
//!
//! ```text
//! x₀ = embedding[tokens]
//! mid = x + o_proj(attention(rope(q, k), v))      q, k, v = projections of norm(x)          model/attention.rs
//! x'  = mid + down_proj(silu(gate) · up)          gate, up = projections of norm(mid)       model/mlp.rs
//! loss = −ln softmax(norm(x_L) headᵀ)[target]     over supervised rows                      ops/head.rs
//! ```
//!
//! There is one decoder. What a family does otherwise (a window, a cap, norms over heads or behind a half, another activation,
//! a factor on the embedding, a bias) is a field of [`ModelConfig`] that one of these lines reads; no line asks for a family.
//!
//! The tape is written by hand. Forward keeps, per layer: x, q, k, v, the attention's output and log-sum-exp, mid, gate, up and
//! the adapters' `u` (and what goes into norms over heads or behind a half); other norms and `silu(gate) · up` are made again. Where memory is short, the lowest blocks keep x alone and are computed twice. Backward goes from the head down to the lowest adapted layer
//! and no further; frozen weights get no gradient. Where the model itself is trained, the same backward is told so by its
//! pass and takes the gradients of all weights on its way down; new numbers come from the run's own (`model/new.rs`). Sequences lie one after another without padding
//! (`model/pass.rs`).

mod attention;
mod block;
mod decode;
mod ends;
mod gain;
pub(crate) mod gpu;
mod linear;
mod loss;
mod mlp;
mod new;
mod operands;
mod pass;
mod weights;

use std::ops::Range;

use lorikeet_plan::{ModelConfig, Module};

use crate::TrainError;
use crate::data::{MicroBatch, Segment};
use crate::full::WeightLayout;
use crate::lora::{self, AdapterView, Init, LoraLayout, Site};
use crate::ops::buffer::Refused;
use crate::ops::machine::{Broken, Buffer, LossSums, Machine, Sums, Weight, caught};
use crate::ops::profile::Profile;
use crate::ops::rope::Known;

pub(crate) use weights::Files;

use block::{Block, Kept};
pub use decode::Cache;
use gain::Gain;
use loss::{BesideHead, Gradient, Pending};
pub use new::read_weights;
use operands::Operands;
use pass::Pass;
pub(crate) use weights::stored;

/// The embedding's table in a model's files.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// The head's weight there, unless it is the embedding.
const HEAD: &str = "lm_head.weight";

/// A model in memory. A pass never changes it; [`Model::set_weights`] does.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    embedding: Weight,
    blocks: Vec<Block>,
    norm: Gain,
    /// None when the head is the embedding.
    head: Option<Weight>,
    machine: Machine,
    /// Of every rope.
    turns: Vec<Known>,
    profile: Profile,
    recompute: usize,
}

/// What the forward pass keeps of one block.
#[derive(Debug)]
enum Tape {
    /// All that its backward needs.
    Whole(Box<Kept>),
    /// Its input, from which the rest is computed again.
    Input(Buffer),
}

/// The loss of one adapter's targets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSum {
    /// Σ −ln p.
    pub sum: f64,
    /// Over how many targets.
    pub count: u64,
}

impl Model {
    /// Its shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it computes.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// So many blocks, from the lowest trained one up, keep only their input from now on and are computed again in the backward
    /// pass: less memory, more time, the same bits.
    pub fn set_recompute(&mut self, blocks: usize) {
        self.recompute = blocks;
    }

    /// The most bytes that buffers of its passes had at once.
    pub fn most_in_use(&self) -> u64 {
        self.machine.most_in_use()
    }

    /// Begins to count that anew.
    pub fn forget_use(&self) {
        self.machine.forget_use();
    }

    /// The weight of one projection, `[outputs, inputs]`, as products see it.
    pub fn weight(&self, layer: usize, module: Module) -> Vec<f32> {
        let (weight, rows) = self.blocks[layer].weight_of(module);
        self.machine.rows_of(weight, rows).into_owned()
    }

    /// A fresh adapter for this model: what follows from the seed, and what follows from the weights under it.
    pub fn start(&self, layout: &LoraLayout, seed: u64) -> Vec<f32> {
        let mut params = lora::init(layout, seed);
        let config = layout.config();
        if config.init == Init::Default && !config.dora {
            // nothing follows from the weights: none is taken apart for it
            return params;
        }
        for entry in layout.entries() {
            let Some((weight, rows)) = self.weight_under(entry.site) else { continue };
            lora::complete(layout, entry, &self.machine.rows_of(weight, rows), seed, &mut params);
        }
        params
    }

    /// The weight of a place, and which of its rows are that place's; an embedding has columns.
    fn weight_under(&self, site: Site) -> Option<(&Weight, Range<usize>)> {
        match site {
            Site::Embedding => None,
            Site::Block(layer, module) => Some(self.blocks[layer].weight_of(module)),
            Site::Head => Some((self.head().weight, 0..self.config.vocab_size)),
        }
    }

    /// Where the time of its passes went.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Loss of every adapter's targets; adds the gradient of `scale[i] · sumᵢ` to `grads[i]`. `stop` is asked between layers:
    /// once it says true the pass ends with [`TrainError::Stopped`] and `grads` are half done. Uses the rayon pool it runs in.
    pub fn forward_backward(
        &self,
        batch: &MicroBatch,
        adapters: &[AdapterView<'_>],
        scale: &[f32],
        grads: &mut [&mut [f32]],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<LossSum>, TrainError> {
        assert_eq!(grads.len(), adapters.len(), "one gradient per adapter");
        assert_eq!(scale.len(), adapters.len(), "one scale per adapter");
        refusable(batch.tokens.len(), || {
            let operands = self.operands(adapters);
            let pass = Pass::new(self, batch, (adapters, &operands))?;
            self.added(&pass, batch, scale, grads, stop)
        })
    }

    /// Loss of the model itself; adds the gradient of `scale · sum` for every weight to `grads`, which `layout` maps.
    pub fn forward_backward_weights(
        &self,
        batch: &MicroBatch,
        layout: &WeightLayout,
        scale: f32,
        grads: &mut [f32],
        stop: &dyn Fn() -> bool,
    ) -> Result<LossSum, TrainError> {
        refusable(batch.tokens.len(), || {
            let pass = Pass::new(self, batch, (&[], &[]))?.of_weights(Some(layout));
            Ok(self.added(&pass, batch, &[scale], &mut [grads], stop)?[0])
        })
    }

    /// One pass, with what it adds brought to gradients of the host.
    fn added(
        &self,
        pass: &Pass<'_>,
        batch: &MicroBatch,
        scale: &[f32],
        grads: &mut [&mut [f32]],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<LossSum>, TrainError> {
        self.machine.adding(grads, |sums| {
            let losses = self.there_and_back(pass, batch, scale, sums, stop)?;
            Ok(Pending::sums(losses, pass))
        })
    }

    /// Begins to add losses and gradients up over several passes, gradients to `sums`.
    pub fn work<'a>(&'a self, adapters: &'a [AdapterView<'a>], sums: Vec<Sums<'a>>) -> Result<Work<'a>, TrainError> {
        assert_eq!(sums.len(), adapters.len(), "one gradient per adapter");
        self.work_on(adapters, None, sums)
    }

    /// The same where the model itself is trained: one loss, and the one gradient that `layout` maps.
    pub fn work_on_weights<'a>(&'a self, layout: &'a WeightLayout, sums: Sums<'a>) -> Result<Work<'a>, TrainError> {
        self.work_on(&[], Some(layout), vec![sums])
    }

    fn work_on<'a>(
        &'a self,
        adapters: &'a [AdapterView<'a>],
        weights: Option<&'a WeightLayout>,
        sums: Vec<Sums<'a>>,
    ) -> Result<Work<'a>, TrainError> {
        refusable_for(
            || "what is trained".into(),
            || {
                let (operands, losses) = (self.operands(adapters), self.machine.loss_sums(sums.len()));
                Ok(Work { model: self, adapters, operands, weights, sums, losses })
            },
        )
    }

    fn there_and_back(
        &self,
        pass: &Pass<'_>,
        batch: &MicroBatch,
        scale: &[f32],
        grads: &mut [Sums<'_>],
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Pending>, TrainError> {
        self.machine.begin();
        let mut tape = Vec::with_capacity(self.blocks.len());
        let last = self.forward(pass, stop, |layer, kept| self.record(pass, layer, kept, &mut tape))?;
        let mut dx = self.machine.zeros(last.len());
        let gradient = Gradient { scale, dx: &mut dx, grads: &mut *grads };
        let losses = self.head_loss(pass, batch, &last, Some(gradient));
        self.machine.give(last);
        self.backward(pass, tape, dx, grads, stop)?;
        Ok(losses)
    }

    /// Loss of every adapter's targets, without dropout and without gradients.
    pub fn loss(
        &self,
        batch: &MicroBatch,
        adapters: &[AdapterView<'_>],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<LossSum>, TrainError> {
        let adapters: Vec<_> = adapters.iter().map(|view| AdapterView { dropout: None, ..*view }).collect();
        refusable(batch.tokens.len(), || {
            let operands = self.operands(&adapters);
            let pass = Pass::new(self, batch, (&adapters, &operands))?;
            let last = self.forward(&pass, stop, |_, kept| kept.give(&self.machine))?;
            let losses = self.head_loss(&pass, batch, &last, None);
            self.machine.give(last);
            Ok(Pending::sums(losses, &pass))
        })
    }

    /// Logits of every position of one sequence, `[tokens, vocabulary]`, without dropout.
    pub fn logits(&self, tokens: &[u32], adapter: Option<&AdapterView<'_>>) -> Result<Vec<f32>, TrainError> {
        self.logits_of(tokens, 0, adapter, &|| false)
    }

    /// Logits of what follows the last token.
    pub fn next_logits(&self, tokens: &[u32], adapter: Option<&AdapterView<'_>>) -> Result<Vec<f32>, TrainError> {
        self.logits_of(tokens, tokens.len() - 1, adapter, &|| false)
    }

    /// Logits of the positions from `first` on.
    fn logits_of(
        &self,
        tokens: &[u32],
        first: usize,
        adapter: Option<&AdapterView<'_>>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<f32>, TrainError> {
        let adapters: Vec<_> = adapter.iter().map(|view| AdapterView { dropout: None, ..**view }).collect();
        let segment = Segment { start: 0, len: tokens.len(), adapter: 0, example: 0, epoch: 0 };
        let batch = MicroBatch { tokens: tokens.to_vec(), segments: vec![segment], targets: Vec::new() };
        refusable(tokens.len(), || {
            let operands = self.operands(&adapters);
            let pass = Pass::new(self, &batch, (&adapters, &operands))?;
            let last = self.forward(&pass, stop, |_, kept| kept.give(&self.machine))?;
            let logits = self.logits_from(&pass, first, &last);
            self.machine.give(last);
            Ok(logits)
        })
    }

    /// Logits of the rows from `first` on, by the last layer's output of all.
    fn logits_from(&self, pass: &Pass<'_>, first: usize, last: &Buffer) -> Vec<f32> {
        let rows: Vec<usize> = (first..pass.rows()).collect();
        let seen = self.machine.gather(last, self.config.hidden_size, &rows);
        let mut hidden = self.machine.take(seen.len());
        self.norm.forward(pass, &seen, &mut hidden);
        let mut beside = BesideHead { model: self, pass, rows, kept: None, grads: None };
        let logits = self.machine.logits(0..pass.rows() - first, &hidden, self.head(), &mut beside);
        [seen, hidden].into_iter().for_each(|buffer| self.machine.give(buffer));
        logits
    }

    /// The last layer's output. What each layer's backward will need is handed to `keep`.
    fn forward(
        &self,
        pass: &Pass<'_>,
        stop: &dyn Fn() -> bool,
        mut keep: impl FnMut(usize, Kept),
    ) -> Result<Buffer, TrainError> {
        let mut x = self.embed(pass);
        for (layer, block) in self.blocks.iter().enumerate() {
            go_on(stop)?;
            let kept;
            (x, kept) = block.forward(pass, layer, x);
            keep(layer, kept);
        }
        Ok(x)
    }

    /// Keeps of a block what its backward needs: nothing below the lowest that has one.
    fn record(&self, pass: &Pass<'_>, layer: usize, kept: Kept, tape: &mut Vec<Tape>) {
        let lowest = pass.lowest_layer();
        match layer.checked_sub(lowest) {
            None => kept.give(&self.machine),
            Some(above) if above < self.recompute => tape.push(Tape::Input(kept.into_input(&self.machine))),
            Some(_) => tape.push(Tape::Whole(Box::new(kept))),
        }
    }

    fn embed(&self, pass: &Pass<'_>) -> Buffer {
        let scale = self.config.embedding_scale as f32;
        let mut x = self.machine.embed(&self.embedding, pass.tokens(), scale);
        pass.lookup_forward(&mut x);
        x
    }

    /// Goes down to the lowest adapted layer.
    fn backward(
        &self,
        pass: &Pass<'_>,
        mut tape: Vec<Tape>,
        mut dx: Buffer,
        grads: &mut [Sums<'_>],
        stop: &dyn Fn() -> bool,
    ) -> Result<(), TrainError> {
        let lowest = pass.lowest_layer();
        for (layer, block) in self.blocks.iter().enumerate().skip(lowest).rev() {
            go_on(stop)?;
            let kept = match tape.pop().expect("the forward pass kept something of every block with a backward") {
                Tape::Whole(kept) => *kept,
                Tape::Input(x) => {
                    let (next, kept) = block.forward(pass, layer, x);
                    self.machine.give(next);
                    kept
                }
            };
            block.backward(pass, layer, kept, &mut dx, grads);
        }
        pass.lookup_backward(&dx, grads);
        self.machine.give(dx);
        Ok(())
    }
}

/// Passes whose losses and gradients are added up. What products take of the adapters is made once for all of them. Nothing in it waits for a
/// GPU.
#[derive(Debug)]
pub struct Work<'a> {
    model: &'a Model,
    adapters: &'a [AdapterView<'a>],
    operands: Vec<Operands<'a>>,
    weights: Option<&'a WeightLayout>,
    sums: Vec<Sums<'a>>,
    losses: LossSums,
}

impl Work<'_> {
    /// Adds the loss of every adapter's targets, or all, and the gradient of `scale[i] · lossᵢ`. `stop` is asked between layers: once it says true the
    /// pass ends with [`TrainError::Stopped`] and the gradients are half done.
    pub fn pass(&mut self, batch: &MicroBatch, scale: &[f32], stop: &dyn Fn() -> bool) -> Result<(), TrainError> {
        assert_eq!(scale.len(), self.sums.len(), "one scale per gradient");
        refusable(batch.tokens.len(), || {
            let pass = Pass::new(self.model, batch, (self.adapters, &self.operands))?.of_weights(self.weights);
            let losses = self.model.there_and_back(&pass, batch, scale, &mut self.sums, stop)?;
            Pending::add(losses, &self.model.machine, &mut self.losses);
            Ok(())
        })
    }

    /// Every loss over all targets that there were; the gradients are where they were added to.
    pub fn finish(self) -> LossSums {
        self.losses
    }
}

fn go_on(stop: &dyn Fn() -> bool) -> Result<(), TrainError> {
    if stop() { Err(TrainError::Stopped) } else { Ok(()) }
}

/// Does a pass over so many tokens. What the machine refuses unwinds out of it and ends here, as an error.
fn refusable<T>(tokens: usize, pass: impl FnOnce() -> Result<T, TrainError>) -> Result<T, TrainError> {
    refusable_for(|| format!("{tokens} tokens at a time"), pass)
}

/// Does what a machine may refuse memory for, and says what it was for.
pub(crate) fn refusable_for<T>(
    what: impl FnOnce() -> String,
    work: impl FnOnce() -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    caught(work).unwrap_or_else(|broken| match broken {
        Broken::Refused(Refused { bytes }) => Err(TrainError::Refused { what: what(), bytes }),
        #[cfg(feature = "cuda")]
        Broken::Gpu(error) => Err(error.into()),
    })
}
