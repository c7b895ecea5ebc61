//! Token by token: keys and values of everything before are kept, so that a new token costs one row and not all of them again.
//!
//! ```text
//! qkv = projections of the new rows, turned by the positions they have in the whole
//! cache ← cache ∥ k, v          out = attention(q, cache)          the rest as in every pass
//! ```
//! Where the rope's frequencies depend on the length of the sequence (dynamic, longrope), a length that changes them makes every
//! key that was kept another one: the cache forgets and the whole is passed again.

use crate::TrainError;
use crate::data::{MicroBatch, Segment};
use crate::lora::AdapterView;
use crate::ops::machine::{Buffer, Past};
use crate::ops::profile::Op;
use crate::ops::rope::length_class;

use super::attention::{Attention, heads};
use super::operands::Operands;
use super::pass::Pass;
use super::{Model, go_on, refusable, refusable_for};

/// A sequence that goes on, with what is kept of it between passes, for one model and one adapter.
#[derive(Debug)]
pub struct Cache<'a> {
    model: &'a Model,
    adapters: Vec<AdapterView<'a>>,
    /// What products take of the adapter is the same for every token.
    operands: Vec<Operands<'a>>,
    tokens: Vec<u32>,
    layers: Vec<Past>,
}

impl<'a> Cache<'a> {
    /// Of no token yet. Dropout is left out.
    pub fn new(model: &'a Model, adapter: Option<&AdapterView<'a>>) -> Result<Cache<'a>, TrainError> {
        let adapters: Vec<_> = adapter.iter().map(|view| AdapterView { dropout: None, ..**view }).collect();
        let operands = refusable_for(|| "the adapter".into(), || Ok(model.operands(&adapters)))?;
        Ok(Cache { model, adapters, operands, tokens: Vec::new(), layers: Vec::new() })
    }

    /// The tokens that it holds.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Logits of what follows its tokens and then `tokens`, which join them. Equal to [`Model::next_logits`] of the whole up to the
    /// order of sums. On an error the cache is of no use any more.
    pub fn extend(&mut self, tokens: &[u32], stop: &dyn Fn() -> bool) -> Result<Vec<f32>, TrainError> {
        assert!(!tokens.is_empty(), "there is no token to go on from");
        let tokens = self.join(tokens);
        let (rows, len) = (tokens.len(), self.tokens.len());
        let segments = vec![Segment { start: 0, len: rows, adapter: 0, example: 0, epoch: 0 }];
        let batch = MicroBatch { tokens, segments, targets: Vec::new() };
        let (model, machine, layers) = (self.model, &self.model.machine, &mut self.layers);
        refusable(rows, || {
            let pass = Pass::of_last_rows(model, &batch, (&self.adapters, &self.operands), len)?;
            let mut x = model.embed(&pass);
            for (layer, (block, past)) in model.blocks.iter().zip(layers).enumerate() {
                go_on(stop)?;
                let mid = block.attention.decode(&pass, layer, &x, past);
                let (next, kept) = block.mlp.forward(&pass, layer, &mid);
                kept.give(machine);
                [x, mid].into_iter().for_each(|buffer| machine.give(buffer));
                x = next;
            }
            let logits = model.logits_from(&pass, rows - 1, &x);
            machine.give(x);
            Ok(logits)
        })
    }

    /// Begins anew, or goes on where the same frequencies turn the longer sequence; the tokens still to be passed.
    fn join(&mut self, tokens: &[u32]) -> Vec<u32> {
        let (before, after) = (self.tokens.len(), self.tokens.len() + tokens.len());
        self.tokens.extend_from_slice(tokens);
        let config = &self.model.config;
        let same = |len: usize| config.ropes.iter().map(move |rope| length_class(rope, len));
        if before > 0 && same(before).eq(same(after)) {
            return tokens.to_vec();
        }
        self.layers = (0..config.num_hidden_layers).map(|_| self.model.machine.past()).collect();
        self.tokens.clone()
    }
}

impl Attention {
    /// As `forward`, with keys and values of the rows before from the past, which gets those of these rows.
    fn decode(&self, pass: &Pass<'_>, layer: usize, x: &Buffer, past: &mut Past) -> Buffer {
        let (heads, rows, machine) = (heads(pass, layer), pass.rows(), pass.machine);
        let (mut qkv, entry) = self.entry.forward(pass, layer, x);
        entry.give(machine);
        let unnormed = pass.time(Op::Rope, || machine.rope(heads, self.norm(pass), pass.turns(layer), &mut qkv));
        unnormed.into_iter().for_each(|raw| machine.give(raw));
        let begins = past.is_empty();
        let mut out = machine.take(rows * heads.out_stride());
        pass.time(Op::Attention, || {
            machine.keep(heads, &qkv, past);
            if begins {
                // the whole at once is what the streaming form is for
                let mut lse = machine.take_exact(rows * heads.queries);
                machine.attention(heads, &pass.segments, &qkv, &mut out, &mut lse);
                machine.give_exact(lse);
            } else {
                machine.attend(heads, &qkv, past, &mut out);
            }
        });
        machine.give(qkv);
        let (mid, exit) = self.exit.forward(pass, layer, &out, x);
        exit.give(machine);
        machine.give(out);
        mid
    }
}
