//! Token by token: keys and values of everything before are kept, so that a new token costs one row and not all of them again.
//!
//! ```text
//! qkv = projections of the new rows, turned by the positions they have in the whole
//! cache ← cache ∥ k, v          out = attention(q, cache)          the rest as in every pass
//! ```
//! Where the rope's frequencies depend on the length of the sequence (dynamic, longrope), a length that changes them makes every
//! key that was kept another one: the cache forgets and the whole is passed again.

use lorikeet_plan::ModelConfig;

use crate::TrainError;
use crate::data::{MicroBatch, Segment};
use crate::lora::AdapterView;
use crate::ops::attention::{self as full, Heads};
use crate::ops::decode;
use crate::ops::profile::Op;
use crate::ops::qk_norm;
use crate::ops::rope::{self, Rotations, Turn, length_class};

use super::attention::{Attention, heads};
use super::pass::Pass;
use super::{Model, go_on, refusable};

/// What is kept of one sequence between passes. It belongs to one model and one adapter; the caller keeps them together.
#[derive(Debug, Default)]
pub struct Cache {
    tokens: Vec<u32>,
    layers: Vec<Layer>,
}

/// Keys and values of one layer, `[positions, keys · width]` each.
#[derive(Debug, Default, Clone)]
struct Layer {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    /// The tokens that it holds.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Begins anew, or goes on where the same frequencies turn the longer sequence; the tokens still to be passed.
    fn extend(&mut self, config: &ModelConfig, tokens: &[u32]) -> Vec<u32> {
        let (before, after) = (self.tokens.len(), self.tokens.len() + tokens.len());
        self.tokens.extend_from_slice(tokens);
        let same = |len: usize| config.ropes.iter().map(move |rope| length_class(rope, len));
        if before > 0 && same(before).eq(same(after)) {
            return tokens.to_vec();
        }
        self.layers = vec![Layer::default(); config.num_hidden_layers];
        self.tokens.clone()
    }
}

/// The new rows' place in the sequence.
struct Place<'a> {
    cache: &'a mut Vec<Layer>,
    /// By rope.
    rotations: Vec<Rotations>,
    /// Whether nothing comes before them.
    first: bool,
}

impl Model {
    /// Logits of what follows `cache` and then `tokens`, which join it. Equal to [`Model::next_logits`] of the whole up to the order
    /// of sums. On an error the cache is of no use any more.
    pub fn extend(
        &self,
        cache: &mut Cache,
        tokens: &[u32],
        adapter: Option<&AdapterView<'_>>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<f32>, TrainError> {
        assert!(!tokens.is_empty(), "there is no token to go on from");
        let config = &self.config;
        let new = cache.extend(config, tokens);
        let (rows, len) = (new.len(), cache.tokens.len());
        let adapters: Vec<_> = adapter.iter().map(|view| AdapterView { dropout: None, ..**view }).collect();
        let segment = Segment { start: 0, len: rows, adapter: 0, example: 0, epoch: 0 };
        let batch = MicroBatch { tokens: new, segments: vec![segment], targets: Vec::new() };
        refusable(rows, || {
            let pass = Pass::new(self, &batch, &adapters)?;
            let turned = |rope| Rotations::of(rope, config.rotary_dim, len - rows..len, len);
            let rotations = config.ropes.iter().map(turned).collect();
            let mut place = Place { cache: &mut cache.layers, rotations, first: len == rows };
            let mut x = self.embed(&pass);
            for (layer, block) in self.blocks.iter().enumerate() {
                go_on(stop)?;
                let mid = block.attention.decode(&pass, layer, &x, &mut place);
                let (next, kept) = block.mlp.forward(&pass, layer, &mid);
                kept.give(&self.buffers);
                [x, mid].into_iter().for_each(|buffer| self.buffers.give(buffer));
                x = next;
            }
            let logits = self.logits_from(&pass, rows - 1, &x);
            self.buffers.give(x);
            Ok(logits)
        })
    }
}

impl Attention {
    /// As `forward`, with keys and values of the rows before from the cache, which gets those of these rows.
    fn decode(&self, pass: &Pass<'_>, layer: usize, x: &[f32], place: &mut Place<'_>) -> Vec<f32> {
        let (heads, rows, buffers) = (heads(pass, layer), pass.rows(), pass.buffers);
        let (mut qkv, entry) = self.entry.forward(pass, layer, x);
        entry.give(buffers);
        if let Some(gains) = self.gains() {
            let mut raw = buffers.take(rows * heads.turned());
            pass.time(Op::Norm, || qk_norm::forward(heads, gains, pass.config.rms_norm_eps, &mut qkv, &mut raw));
            buffers.give(raw);
        }
        let rotations = &place.rotations[pass.config.layers[layer].rope];
        pass.time(Op::Rope, || rope::turn(heads, rotations, &mut qkv, Turn::Forth));
        let kept = &mut place.cache[layer];
        kept.push(heads, &qkv);
        let mut out = buffers.take(rows * heads.out_stride());
        pass.time(Op::Attention, || match place.first {
            true => {
                let mut lse = buffers.take(rows * heads.queries);
                full::forward(heads, &pass.ranges, &qkv, &mut out, &mut lse);
                buffers.give(lse);
            }
            false => decode::forward(heads, &qkv, kept.view(), &mut out),
        });
        buffers.give(qkv);
        let (mid, exit) = self.exit.forward(pass, layer, &out, x);
        exit.give(buffers);
        buffers.give(out);
        mid
    }
}

impl Layer {
    fn push(&mut self, heads: Heads, qkv: &[f32]) {
        for row in qkv.chunks(heads.stride()) {
            self.keys.extend_from_slice(&row[heads.out_stride()..heads.turned()]);
            self.values.extend_from_slice(&row[heads.turned()..]);
        }
    }

    fn view(&self) -> decode::Kept<'_> {
        decode::Kept { keys: &self.keys, values: &self.values }
    }
}
