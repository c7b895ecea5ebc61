//! The decoder: `Model` over frozen weights, and the three passes over it.
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
//! the adapters' `u` (and what goes into norms over heads or behind a half); other norms and `silu(gate) · up` are made again. Backward goes from the head down to the lowest adapted layer
//! and no further; frozen weights get no gradient. Sequences lie one after another without padding (`model/pass.rs`).

mod attention;
mod block;
mod ends;
mod linear;
mod mlp;
mod pass;
mod weights;

use std::ops::Range;

use lorikeet_plan::ModelConfig;

use crate::TrainError;
use crate::data::{MicroBatch, Segment};
use crate::lora::{self, AdapterView, LoraLayout, Site};
use crate::ops::buffer::Buffers;
use crate::ops::head::{self, Beside, Head, Wanted};
use crate::ops::linear::Weight;
use crate::ops::lora::Columns;
use crate::ops::norm;
use crate::ops::profile::{Op, Profile};

use block::{Block, Kept};
use pass::{Adapted, Pass, Products, Rows};

/// A base model in memory, frozen.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    embedding: Weight,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    /// None when the head is the embedding.
    head: Option<Weight>,
    buffers: Buffers,
    profile: Profile,
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

    /// A fresh adapter for this model: what follows from the seed, and what follows from the weights under it.
    pub fn start(&self, layout: &LoraLayout, seed: u64) -> Vec<f32> {
        let mut params = lora::init(layout, seed);
        for entry in layout.entries() {
            let weight = match entry.site {
                Site::Embedding => continue,
                Site::Block(layer, module) => self.blocks[layer].weight_of(module),
                Site::Head => self.head().weight.rows_of(0..self.config.vocab_size),
            };
            lora::complete(layout, entry, weight, seed, &mut params);
        }
        params
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
        assert!(
            scale.len() == adapters.len() && grads.len() == adapters.len(),
            "one scale and one gradient per adapter"
        );
        let pass = Pass::new(self, batch, adapters)?;
        let mut kept = Vec::with_capacity(self.blocks.len());
        let last = self.forward(&pass, stop, |layer| kept.push(layer))?;
        let mut dx = self.buffers.zeros(last.len());
        let gradient = Gradient { scale, dx: &mut dx, grads };
        let losses = self.profile.time(Op::Head, || self.head_loss(&pass, batch, &last, Some(gradient)));
        self.buffers.give(last);
        self.backward(&pass, kept, dx, grads, stop)?;
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
        let pass = Pass::new(self, batch, &adapters)?;
        let last = self.forward(&pass, stop, |kept| kept.give(&self.buffers))?;
        let losses = self.profile.time(Op::Head, || self.head_loss(&pass, batch, &last, None));
        self.buffers.give(last);
        Ok(losses)
    }

    /// Logits of every position of one sequence, `[tokens, vocabulary]`, without dropout.
    pub fn logits(&self, tokens: &[u32], adapter: Option<&AdapterView<'_>>) -> Result<Vec<f32>, TrainError> {
        self.logits_of(tokens, 0, adapter)
    }

    /// Logits of what follows the last token.
    pub fn next_logits(&self, tokens: &[u32], adapter: Option<&AdapterView<'_>>) -> Result<Vec<f32>, TrainError> {
        self.logits_of(tokens, tokens.len() - 1, adapter)
    }

    /// Logits of the positions from `first` on.
    fn logits_of(
        &self,
        tokens: &[u32],
        first: usize,
        adapter: Option<&AdapterView<'_>>,
    ) -> Result<Vec<f32>, TrainError> {
        let adapters: Vec<_> = adapter.iter().map(|view| AdapterView { dropout: None, ..**view }).collect();
        let segment = Segment { start: 0, len: tokens.len(), adapter: 0, example: 0, epoch: 0 };
        let batch = MicroBatch { tokens: tokens.to_vec(), segments: vec![segment], targets: Vec::new() };
        let pass = Pass::new(self, &batch, &adapters)?;
        let last = self.forward(&pass, &|| false, |kept| kept.give(&self.buffers))?;
        let seen = &last[first * self.config.hidden_size..];
        let mut hidden = vec![0.0; seen.len()];
        norm::forward(seen, &self.norm, self.config.rms_norm_eps, &mut hidden);
        let rows = tokens.len() - first;
        let mut logits = vec![0.0; rows * self.config.vocab_size];
        let mut beside =
            BesideHead { model: self, pass: &pass, rows: (first..tokens.len()).collect(), kept: None, grads: None };
        self.head().logits(0..rows, &hidden, &mut beside, &mut logits);
        self.buffers.give(last);
        Ok(logits)
    }

    fn head(&self) -> Head<'_> {
        let softcap = self.config.logit_softcap.map(|cap| cap as f32);
        Head { weight: self.head.as_ref().unwrap_or(&self.embedding), softcap }
    }

    fn adapted_head(&self) -> Adapted<'_> {
        let count = self.config.vocab_size;
        let columns = Columns { first: 0, count, stride: count };
        Adapted { site: Site::Head, weight: self.head().weight.rows_of(0..count), columns }
    }

    /// The last layer's output. What each layer's backward will need is handed to `keep`.
    fn forward(
        &self,
        pass: &Pass<'_>,
        stop: &dyn Fn() -> bool,
        mut keep: impl FnMut(Kept),
    ) -> Result<Vec<f32>, TrainError> {
        let mut x = self.embed(pass);
        for (layer, block) in self.blocks.iter().enumerate() {
            go_on(stop)?;
            let kept;
            (x, kept) = block.forward(pass, layer, x);
            keep(kept);
        }
        Ok(x)
    }

    fn embed(&self, pass: &Pass<'_>) -> Vec<f32> {
        let (tokens, width) = (pass.tokens(), self.config.hidden_size);
        let mut x = self.buffers.take(tokens.len() * width);
        for (row, token) in x.chunks_mut(width).zip(tokens) {
            row.copy_from_slice(self.embedding.row(*token as usize));
        }
        if self.config.embedding_scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= self.config.embedding_scale as f32);
        }
        pass.lookup_forward(&mut x);
        x
    }

    /// Goes down to the lowest adapted layer.
    fn backward(
        &self,
        pass: &Pass<'_>,
        mut kept: Vec<Kept>,
        mut dx: Vec<f32>,
        grads: &mut [&mut [f32]],
        stop: &dyn Fn() -> bool,
    ) -> Result<(), TrainError> {
        let lowest = pass.lowest_layer();
        for (layer, block) in self.blocks.iter().enumerate().skip(lowest).rev() {
            go_on(stop)?;
            let kept = kept.pop().expect("forward kept one per layer");
            block.backward(pass, layer, kept, &mut dx, grads);
        }
        pass.lookup_backward(&dx, grads);
        kept.into_iter().for_each(|kept| kept.give(&self.buffers));
        self.buffers.give(dx);
        Ok(())
    }

    /// Losses by adapter; where the gradient is wanted, that for `last` goes to the (zeroed) buffer for it.
    fn head_loss(
        &self,
        pass: &Pass<'_>,
        batch: &MicroBatch,
        last: &[f32],
        gradient: Option<Gradient<'_, '_>>,
    ) -> Vec<LossSum> {
        let (width, eps) = (self.config.hidden_size, self.config.rms_norm_eps);
        let rows: Vec<usize> = batch.targets.iter().map(|target| target.row as usize).collect();
        let adapter_of = |row: &usize| pass.segment_of(*row).adapter;
        let mut seen = self.buffers.take(rows.len() * width);
        for (to, row) in seen.chunks_mut(width).zip(&rows) {
            to.copy_from_slice(&last[row * width..][..width]);
        }
        let mut hidden = self.buffers.take(seen.len());
        norm::forward(&seen, &self.norm, eps, &mut hidden);
        let weight = |row: &usize| gradient.as_ref().map_or(0.0, |gradient| gradient.scale[adapter_of(row)]);
        let wanted: Vec<Wanted> = rows
            .iter()
            .zip(&batch.targets)
            .map(|(row, target)| Wanted { target: target.token, weight: weight(row) })
            .collect();
        let mut beside = BesideHead { model: self, pass, rows: rows.clone(), kept: None, grads: None };
        let losses = match gradient {
            None => head::loss(&hidden, self.head(), &wanted, &mut beside, &self.buffers),
            Some(Gradient { dx, grads, .. }) => {
                let mut dhidden = self.buffers.take(seen.len());
                beside.grads = Some(grads);
                let (head, buffers) = (self.head(), &self.buffers);
                let losses = head::loss_and_gradient(&hidden, head, &wanted, &mut beside, buffers, &mut dhidden);
                // `hidden` is done with and receives the gradient of the gathered rows
                hidden.fill(0.0);
                norm::backward(&seen, &self.norm, eps, &dhidden, &mut hidden);
                for (from, row) in hidden.chunks(width).zip(&rows) {
                    dx[row * width..][..width].copy_from_slice(from);
                }
                self.buffers.give(dhidden);
                losses
            }
        };
        self.buffers.give(hidden);
        self.buffers.give(seen);
        let mut sums = vec![LossSum::default(); pass.adapters()];
        for (loss, row) in losses.iter().zip(&rows) {
            let sum = &mut sums[adapter_of(row)];
            sum.sum += loss;
            sum.count += 1;
        }
        sums
    }
}

/// Where the gradients of a pass go.
struct Gradient<'a, 'g> {
    /// What each adapter's loss sum counts.
    scale: &'a [f32],
    /// The last layer's output.
    dx: &'a mut [f32],
    /// Every adapter's flat gradient.
    grads: &'a mut [&'g mut [f32]],
}

/// Adapters on the head, chunk by chunk of the rows that it sees.
struct BesideHead<'a, 'g> {
    model: &'a Model,
    pass: &'a Pass<'a>,
    /// Which rows of the batch they are.
    rows: Vec<usize>,
    /// Of the chunk in progress.
    kept: Option<(Rows, Products)>,
    grads: Option<&'a mut [&'g mut [f32]]>,
}

impl Beside for BesideHead<'_, '_> {
    fn forward(&mut self, rows: Range<usize>, x: &[f32], logits: &mut [f32]) {
        let rows = self.pass.some(self.rows[rows].to_vec());
        let products = self.pass.lora_forward(self.model.adapted_head(), &rows, x, logits);
        match self.grads {
            None => products.give(&self.model.buffers),
            Some(_) => self.kept = Some((rows, products)),
        }
    }

    fn backward(&mut self, _: Range<usize>, x: &[f32], dlogits: &[f32], dx: &mut [f32]) {
        let (rows, products) = self.kept.take().expect("the chunk went forward just before");
        let model = self.model;
        if let Some(grads) = self.grads.as_deref_mut() {
            self.pass.lora_backward(model.adapted_head(), &rows, (x, &products), dlogits, Some(dx), grads);
        }
        products.give(&model.buffers);
    }
}

fn go_on(stop: &dyn Fn() -> bool) -> Result<(), TrainError> {
    if stop() { Err(TrainError::Stopped) } else { Ok(()) }
}
