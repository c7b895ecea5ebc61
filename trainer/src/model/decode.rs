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
use crate::ops::attention::Heads;
use crate::ops::decode;
use crate::ops::machine::{Buffer, Turns};
use crate::ops::profile::Op;
use crate::ops::rope::{Rotations, length_class};

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
    turns: Vec<Turns>,
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
        if self.machine.is_gpu() {
            // nothing is kept there: the whole is passed again
            cache.tokens.extend_from_slice(tokens);
            return self.logits_of(&cache.tokens, cache.tokens.len() - 1, adapter, stop);
        }
        let config = &self.config;
        let new = cache.extend(config, tokens);
        let (rows, len) = (new.len(), cache.tokens.len());
        let adapters: Vec<_> = adapter.iter().map(|view| AdapterView { dropout: None, ..**view }).collect();
        let segment = Segment { start: 0, len: rows, adapter: 0, example: 0, epoch: 0 };
        let batch = MicroBatch { tokens: new, segments: vec![segment], targets: Vec::new() };
        refusable(rows, || {
            let operands = self.operands(&adapters);
            let pass = Pass::new(self, &batch, (&adapters, &operands))?;
            let turned = |rope| self.machine.turns(Rotations::of(rope, config.rotary_dim, len - rows..len, len));
            let turns = config.ropes.iter().map(turned).collect();
            let mut place = Place { cache: &mut cache.layers, turns, first: len == rows };
            let mut x = self.embed(&pass);
            for (layer, block) in self.blocks.iter().enumerate() {
                go_on(stop)?;
                let mid = block.attention.decode(&pass, layer, &x, &mut place);
                let (next, kept) = block.mlp.forward(&pass, layer, &mid);
                kept.give(&self.machine);
                [x, mid].into_iter().for_each(|buffer| self.machine.give(buffer));
                x = next;
            }
            let logits = self.logits_from(&pass, rows - 1, &x);
            self.machine.give(x);
            Ok(logits)
        })
    }
}

impl Attention {
    /// As `forward`, with keys and values of the rows before from the cache, which gets those of these rows.
    fn decode(&self, pass: &Pass<'_>, layer: usize, x: &Buffer, place: &mut Place<'_>) -> Buffer {
        let (heads, rows, machine) = (heads(pass, layer), pass.rows(), pass.machine);
        let (mut qkv, entry) = self.entry.forward(pass, layer, x);
        entry.give(machine);
        let turns = &place.turns[pass.config.layers[layer].rope];
        let unnormed = pass.time(Op::Rope, || machine.rope(heads, self.norm(pass), turns, &mut qkv));
        unnormed.into_iter().for_each(|raw| machine.give(raw));
        let kept = &mut place.cache[layer];
        kept.push(heads, qkv.host());
        let mut out = machine.take(rows * heads.out_stride());
        pass.time(Op::Attention, || match place.first {
            true => {
                let mut lse = machine.take_exact(rows * heads.queries);
                machine.attention(heads, &pass.segments, &qkv, &mut out, &mut lse);
                machine.give_exact(lse);
            }
            false => decode::forward(heads, qkv.host(), kept.view(), out.host_mut()),
        });
        machine.give(qkv);
        let (mid, exit) = self.exit.forward(pass, layer, &out, x);
        exit.give(machine);
        machine.give(out);
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
