//! One block of the decoder, forward, composed of a machine's operations as `model/block.rs` composes the host's: norms over heads, two
//! segments, an adapter on the queries.

use std::ops::Range;

use lorikeet_plan::{Activation, Rope};

use super::case::{output, turn_plainly, wide};
use super::{Answer, Forms, Fresh, Output};
use crate::ops::attention::Heads;
use crate::ops::lora::Columns;
use crate::ops::machine::{Buffer, Exact, HeadNorm, Machine, Pair, Refusal, Rows, Weight};
use crate::ops::rope::{Rotations, Turn};
use crate::ops::{attention, glu, linear, lora, norm, qk_norm};

const HEADS: Heads = Heads { queries: 2, keys: 1, width: 16, scale: 0.25, softcap: None, window: None };
const HIDDEN: usize = 32;
const INNER: usize = 48;
const RANK: usize = 4;
const SCALE: f32 = 0.5;
const EPS: f64 = 1e-5;
const QUERIES: Columns = Columns { first: 0, count: 32, stride: 64 };
/// Seven roundings to bf16, one behind the other.
const DEEP: f64 = 0.03;

/// Every weight, on the host.
struct Numbers {
    qkv: Vec<f32>,
    out: Vec<f32>,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    before: [Vec<f32>; 2],
    heads: [Vec<f32>; 2],
    a: Vec<f32>,
    b: Vec<f32>,
}

/// Every weight, on a machine.
struct Block {
    qkv: Weight,
    out: Weight,
    gate_up: Weight,
    down: Weight,
    before: [Exact; 2],
    heads: HeadNorm,
    queries: Pair,
}

impl Numbers {
    fn new(fresh: &mut Fresh) -> Numbers {
        Numbers {
            qkv: fresh.numbers(HEADS.stride() * HIDDEN, 0.3),
            out: fresh.numbers(HIDDEN * HEADS.out_stride(), 0.3),
            gate_up: fresh.numbers(2 * INNER * HIDDEN, 0.3),
            down: fresh.numbers(HIDDEN * INNER, 0.3),
            before: [fresh.numbers(HIDDEN, 1.5), fresh.numbers(HIDDEN, 1.5)],
            heads: [fresh.numbers(HEADS.width, 1.5), fresh.numbers(HEADS.width, 1.5)],
            a: fresh.numbers(RANK * HIDDEN, 0.3),
            b: fresh.numbers(QUERIES.count * RANK, 0.3),
        }
    }

    fn on(&self, machine: Machine<'_>) -> Result<Block, Refusal> {
        let [before, between] = &self.before;
        let [queries, keys] = &self.heads;
        Ok(Block {
            qkv: machine.put_weight(&self.qkv, &[], HEADS.stride())?,
            out: machine.put_weight(&self.out, &[], HIDDEN)?,
            gate_up: machine.put_weight(&self.gate_up, &[], 2 * INNER)?,
            down: machine.put_weight(&self.down, &[], HIDDEN)?,
            before: [machine.put_exact(before)?, machine.put_exact(between)?],
            heads: HeadNorm { queries: machine.put_exact(queries)?, keys: machine.put_exact(keys)?, eps: EPS },
            queries: Pair { a: machine.put(&self.a)?, b: machine.put(&self.b)?, rank: RANK, scale: SCALE },
        })
    }
}

impl Block {
    fn forward(&self, machine: Machine<'_>, rows: &Rows, tokens: usize, x: &Buffer) -> Result<Buffer, Refusal> {
        let mut h = machine.take(tokens * HIDDEN)?;
        machine.norm(x, &self.before[0], EPS, &mut h)?;
        let (mut qkv, mut u) = (machine.take(tokens * HEADS.stride())?, machine.take(tokens * RANK)?);
        machine.linear(&h, &self.qkv, &mut qkv)?;
        machine.lora(&self.queries, &h, &mut u, &mut qkv, QUERIES)?;
        machine.rope(HEADS, Some(&self.heads), rows, &mut qkv)?;
        let mut out = machine.take(tokens * HEADS.out_stride())?;
        let mut lse = machine.take_exact(tokens * HEADS.queries)?;
        machine.attention(HEADS, rows, &qkv, &mut out, &mut lse)?;
        let mut mid = machine.copy(x)?;
        machine.linear_add(&out, &self.out, &mut mid)?;
        machine.norm(&mid, &self.before[1], EPS, &mut h)?;
        let (mut gate_up, mut act) = (machine.take(tokens * 2 * INNER)?, machine.take(tokens * INNER)?);
        machine.linear(&h, &self.gate_up, &mut gate_up)?;
        machine.glu(Activation::Silu, &gate_up, INNER, &mut act)?;
        let mut next = machine.copy(&mid)?;
        machine.linear_add(&act, &self.down, &mut next)?;
        Ok(next)
    }
}

pub(super) fn forward(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    let (segments, tokens) = (vec![0..5, 5..40], 40);
    let rotations = Rotations::new(&Rope { theta: 10_000.0, scaling: None }, HEADS.width, &[5, 35]);
    let (numbers, x) = (Numbers::new(fresh), fresh.numbers(tokens * HIDDEN, 1.0));
    let plain = plainly(&numbers, &segments, &rotations, &x);
    let machine = forms.machine();
    let block = numbers.on(machine)?;
    let rows = machine.put_rows(segments, rotations)?;
    let next = block.forward(machine, &rows, tokens, &machine.put(&x)?)?;
    Ok(vec![output("next", machine.get(&next)?, plain, DEEP)])
}

fn plainly(numbers: &Numbers, segments: &[Range<usize>], rotations: &Rotations, x: &[f32]) -> Vec<f64> {
    let x = wide(x);
    let tokens = x.len() / HIDDEN;
    let mut h = vec![0.0; x.len()];
    norm::forward_plain(&x, &wide(&numbers.before[0]), EPS, &mut h);
    let mut qkv = vec![0.0; tokens * HEADS.stride()];
    linear::forward_plain(&h, &wide(&numbers.qkv), HIDDEN, &mut qkv);
    let (a, b) = (wide(&numbers.a), wide(&numbers.b));
    let pair = lora::Pair { a: &a, b: &b, rank: RANK, scale: f64::from(SCALE) };
    let (mut u, mut added) = (vec![0.0; tokens * RANK], vec![0.0; tokens * QUERIES.count]);
    lora::forward_plain(pair, &h, &vec![1.0; h.len()], &mut u, &mut added);
    for (row, added) in qkv.chunks_mut(QUERIES.stride).zip(added.chunks(QUERIES.count)) {
        row.iter_mut().zip(added).for_each(|(q, added)| *q += added);
    }
    let gains = numbers.heads.each_ref().map(|gain| wide(gain));
    qk_norm::forward_plain(HEADS, qk_norm::Gains { queries: &gains[0], keys: &gains[1] }, EPS, &mut qkv);
    turn_plainly(HEADS, rotations, &mut qkv, Turn::Forth);
    let (mut out, mut lse) = (vec![0.0; tokens * HEADS.out_stride()], vec![0.0; tokens * HEADS.queries]);
    for segment in segments {
        let of = |stride: usize| segment.start * stride..segment.end * stride;
        let (out, lse) = (&mut out[of(HEADS.out_stride())], &mut lse[of(HEADS.queries)]);
        attention::forward_plain(HEADS, &qkv[of(HEADS.stride())], out, lse);
    }
    let mut mid = x;
    linear::forward_plain(&out, &wide(&numbers.out), HEADS.out_stride(), &mut mid);
    norm::forward_plain(&mid, &wide(&numbers.before[1]), EPS, &mut h);
    let (mut gate_up, mut act) = (vec![0.0; tokens * 2 * INNER], vec![0.0; tokens * INNER]);
    linear::forward_plain(&h, &wide(&numbers.gate_up), HIDDEN, &mut gate_up);
    glu::forward_plain(Activation::Silu, &gate_up, INNER, &mut act);
    linear::forward_plain(&act, &wide(&numbers.down), INNER, &mut mid);
    mid
}
