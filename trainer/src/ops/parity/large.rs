//! The operations at the sizes of a real model, on a GPU: several chunks of logits, more numbers than a grid has threads, sums over thousands of
//! tokens that are made in parts, attention in many waves of tiles. What small cases cannot show, wrong strides and places that only large
//! buffers have among it.
//!
//! The plain form of all of it would take minutes: a few hundred numbers of every output are made in `f64` on the host, from the same inputs. All
//! numbers are looked at all the same: outputs are NaN before, and two runs must have the same bits.

mod attention;
mod decode;
mod dora;
mod lookup;
mod lora;
mod products;
mod trained;

use std::ops::Range;

use cudarc::driver::CudaSlice;
use half::bf16;
use lorikeet_plan::{Activation, Rope};
use rayon::prelude::*;

use super::case::{output, wide};
use super::{Answer, Fresh, Output, Verdict, verdict};
use crate::ops::adamw::{self as plain_adamw, AdamW};
use crate::ops::attention::Heads;
use crate::ops::cuda::rope::Turns;
use crate::ops::cuda::{Gpu, GpuError, adamw, glu, norm, quant, rope, rows};
use crate::ops::rope::{Known, Rotations, Turn, turn_plain};
use crate::ops::{glu as plain_glu, norm as plain_norm};
use crate::quant::LEVELS;

/// The sizes.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Of a micro-batch.
    pub tokens: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub queries: usize,
    /// Key heads.
    pub keys: usize,
    /// Width of a head.
    pub width: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Rows that have a loss: more than one chunk of logits.
    pub judged: usize,
    /// Of an adapter.
    pub rank: usize,
    /// Adapter parameters.
    pub params: usize,
}

/// Llama-3.1-8B.
pub const LLAMA_8B: Shape = Shape {
    tokens: 8192,
    hidden: 4096,
    intermediate: 14_336,
    queries: 32,
    keys: 8,
    width: 128,
    vocabulary: 128_256,
    judged: 5000,
    rank: 16,
    params: 42_000_000,
};

/// Small enough for an emulator: shows that the check itself is right.
pub const TINY: Shape = Shape {
    tokens: 150,
    hidden: 64,
    intermediate: 96,
    queries: 4,
    keys: 2,
    width: 32,
    vocabulary: 300,
    judged: 20,
    rank: 8,
    params: 3000,
};

/// One operation's check.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Which.
    pub name: &'static str,
    run: fn(&mut Large<'_>) -> Answer<Vec<Output>>,
}

/// Every case.
pub const CASES: [Case; 19] = [
    Case { name: "narrow, widen", run: |large| large.narrow() },
    Case { name: "gather", run: |large| large.gather() },
    Case { name: "rms norm, both ways", run: |large| large.norm() },
    Case { name: "rope, both ways", run: |large| large.rope() },
    Case { name: "swiglu, both ways", run: |large| large.glu() },
    Case { name: "nf4, int8", run: |large| large.quantised() },
    Case { name: "adamw", run: |large| large.adamw() },
    Case { name: "gate and up, both ways", run: |large| large.linear() },
    Case { name: "adapter on embedding", run: |large| large.lookup() },
    Case { name: "lora", run: |large| large.lora(large.shape.hidden, 0.0) },
    Case { name: "lora + dropout", run: |large| large.lora(large.shape.hidden, 0.1) },
    Case { name: "lora + dropout, down", run: |large| large.lora(large.shape.intermediate, 0.1) },
    Case { name: "dora + dropout", run: |large| large.dora() },
    Case { name: "attention, both ways", run: |large| large.attention() },
    Case { name: "attention over a cache", run: |large| large.decode() },
    Case { name: "head, several chunks", run: |large| large.head() },
    Case { name: "weight, of a fused one", run: |large| large.weight() },
    Case { name: "gains and biases", run: |large| large.sums_over_rows() },
    Case { name: "embedding", run: |large| large.table() },
];

/// Runs a case on inputs that follow from `seed`.
pub fn judge(gpu: &Gpu, shape: Shape, case: &Case, seed: u64) -> Answer<Verdict> {
    let mut large = Large { gpu, shape, fresh: Fresh::new(seed), identical: true };
    let outputs = (case.run)(&mut large)?;
    Ok(verdict(&outputs, large.identical))
}

/// One rounding to bf16; two; a gradient through several.
const ONCE: f64 = 0.004;
const TWICE: f64 = 0.008;
const SEVERAL: f64 = 0.012;
/// `f32` results.
const EXACT: f64 = 2e-5;
/// The same of thousands of products on tensor cores, which cut off where they add.
const CUT: f64 = 2e-4;
/// Sums over all tokens of numbers that were rounded to bf16: errors add up as the numbers do, in no one direction.
const SUMMED: f64 = 6e-3;

const EPS: f64 = 1e-5;

/// Numbers of an output that are made plainly, where a number takes no time.
const SAMPLES: usize = 400;
/// Rows of one, where all of it is made.
const ROWS: usize = 12;
/// Random numbers are drawn once and repeated: a prime, so that no wrong stride meets the same ones.
const PERIOD: usize = 1_000_003;
/// Where a grid of 16,384 blocks of 256 begins anew; one whose threads move eight numbers does so at every eighth of these.
const GRID: usize = 1 << 22;

/// What a case works with.
struct Large<'a> {
    gpu: &'a Gpu,
    shape: Shape,
    fresh: Fresh,
    /// So far.
    identical: bool,
}

impl Large<'_> {
    fn numbers(&mut self, n: usize, bound: f32) -> Vec<bf16> {
        let block: Vec<bf16> = self.fresh.numbers(n.min(PERIOD), bound).iter().map(|x| bf16::from_f32(*x)).collect();
        repeated(&block, n)
    }

    /// Places among `n`: the ends, those around every turn of a grid, and any.
    fn places(&mut self, n: usize) -> Vec<usize> {
        let turns = (GRID..n).step_by(GRID).flat_map(|turn| [turn - 1, turn]);
        let mut places: Vec<usize> = [0, n - 1].into_iter().chain(turns).collect();
        places.extend(self.any(n, SAMPLES));
        places
    }

    fn any(&mut self, n: usize, count: usize) -> Vec<usize> {
        let bound = u32::try_from(n).expect("buffers have fewer numbers");
        self.fresh.below(count, bound).into_iter().map(|place| place as usize).collect()
    }

    /// Runs it twice. What was not written is NaN, which equals nothing.
    fn twice<T: PartialEq>(&mut self, run: impl Fn(&Gpu) -> Result<T, GpuError>) -> Result<T, GpuError> {
        let (first, second) = (run(self.gpu)?, run(self.gpu)?);
        self.identical &= first == second;
        Ok(first)
    }

    fn narrow(&mut self) -> Answer<Vec<Output>> {
        let n = self.shape.params;
        // no brain floats, most of them
        let x: Vec<f32> = self.numbers(n, 3.0).iter().map(|x| x.to_f32() * 1.234_567).collect();
        let on_gpu = self.gpu.upload(&x)?;
        let y = self.twice(|gpu| {
            let mut y = gpu.poisoned::<bf16>(n)?;
            rows::narrow(gpu, &on_gpu.as_view(), &mut y.as_view_mut())?;
            gpu.download(&y.as_view())
        })?;
        let places = self.places(n);
        let plain = places.iter().map(|i| bf16::from_f32(x[*i]).to_f64()).collect();
        Ok(vec![output("y", at(&y, &places), plain, 0.0)])
    }

    fn gather(&mut self) -> Answer<Vec<Output>> {
        let Shape { tokens, hidden, vocabulary, .. } = self.shape;
        let table = self.numbers(vocabulary / 8 * hidden, 1.0);
        let of_rows = self.fresh.below(tokens, (vocabulary / 8) as u32);
        let (on_gpu, rows) = (self.gpu.upload(&table)?, self.gpu.upload(&of_rows)?);
        let y = self.twice(|gpu| {
            let mut y = gpu.poisoned::<bf16>(tokens * hidden)?;
            rows::gather(gpu, &on_gpu.as_view(), &rows.as_view(), hidden, 1.0, &mut y.as_view_mut())?;
            gpu.download(&y.as_view())
        })?;
        let places = self.places(y.len());
        let plain = |place: &usize| table[of_rows[place / hidden] as usize * hidden + place % hidden].to_f64();
        Ok(vec![output("rows", at(&y, &places), places.iter().map(plain).collect(), 0.0)])
    }

    fn norm(&mut self) -> Answer<Vec<Output>> {
        let Shape { tokens, hidden: width, .. } = self.shape;
        let [x, dy, dx] = [2.0, 1.0, 1.0].map(|bound| self.numbers(tokens * width, bound));
        let gain: Vec<f32> = self.fresh.numbers(width, 1.5);
        let (on_x, on_dy, on_gain) = (self.gpu.upload(&x)?, self.gpu.upload(&dy)?, self.gpu.upload(&gain)?);
        let [y, back] = self.twice(|gpu| {
            let (x, gain) = (on_x.as_view(), on_gain.as_view());
            let (mut y, mut back) = (gpu.poisoned::<bf16>(tokens * width)?, gpu.upload(&dx)?);
            norm::forward(gpu, &x, &gain, EPS, &mut y.as_view_mut())?;
            norm::backward(gpu, &x, &gain, EPS, &on_dy.as_view(), &mut back.as_view_mut())?;
            all(gpu, [&y, &back])
        })?;
        let rows = self.any(tokens, ROWS);
        let [x, dy, mut dx] = [&x, &dy, &dx].map(|all| wide(&of_rows(all, &rows, width)));
        let (gain, mut y_plain) = (wide(&gain), vec![0.0; x.len()]);
        plain_norm::forward_plain(&x, &gain, EPS, &mut y_plain);
        plain_norm::backward_plain(&x, &gain, EPS, &dy, &mut dx);
        let [y, back] = [&y, &back].map(|all| of_rows(all, &rows, width));
        Ok(vec![output("y", y, y_plain, ONCE), output("dx", back, dx, TWICE)])
    }

    fn heads(&self) -> Heads {
        let Shape { queries, keys, width, .. } = self.shape;
        Heads { queries, keys, width, scale: 1.0 / (width as f64).sqrt(), softcap: None, window: None }
    }

    /// One long, one shorter, and one of a single token.
    fn segments(&self) -> [Range<usize>; 3] {
        let tokens = self.shape.tokens;
        let (first, second) = (tokens * 5 / 8, tokens - 1);
        [0..first, first..second, second..tokens]
    }

    fn rope(&mut self) -> Answer<Vec<Output>> {
        let (heads, tokens) = (self.heads(), self.shape.tokens);
        let lengths = self.segments().map(|segment| segment.len());
        let rotations =
            Rotations::new(&Rope { theta: 500_000.0, scaling: None }, heads.width, &lengths, &Known::default());
        let turns = Turns::upload(self.gpu, &rotations)?;
        let qkv = self.numbers(tokens * heads.stride(), 2.0);
        let [forth, back] = self.twice(|gpu| {
            let (mut forth, mut back) = (gpu.upload(&qkv)?, gpu.upload(&qkv)?);
            rope::forward(gpu, heads, None, &turns, &mut forth.as_view_mut(), None)?;
            rope::backward(gpu, heads, None, &turns, None, &mut back.as_view_mut())?;
            all(gpu, [&forth, &back])
        })?;
        let rows = self.any(tokens, ROWS);
        let (tables, places) = rotations.tables();
        let (pairs, [cos, sin]) = (tables.pairs(), tables.numbers());
        let plain = |turn: fn() -> Turn| -> Vec<f64> {
            let row = |row: &usize| {
                let mut numbers = wide(&of_rows(&qkv, &[*row], heads.stride()));
                let of = |table: &[f32]| wide(&table[places[*row] as usize * pairs..][..pairs]);
                let turned = numbers[..heads.turned()].chunks_mut(heads.width);
                turned.for_each(|head| turn_plain(head, &of(cos), &of(sin), turn()));
                numbers
            };
            rows.iter().flat_map(row).collect()
        };
        let [forth, back] = [&forth, &back].map(|all| of_rows(all, &rows, heads.stride()));
        Ok(vec![output("y", forth, plain(|| Turn::Forth), ONCE), output("dx", back, plain(|| Turn::Back), ONCE)])
    }

    fn glu(&mut self) -> Answer<Vec<Output>> {
        let Shape { tokens, intermediate: width, .. } = self.shape;
        let (gate_up, dy) = (self.numbers(tokens * 2 * width, 6.0), self.numbers(tokens * width, 1.0));
        let silu = Activation::Silu;
        let on_dy = self.gpu.upload(&dy)?;
        let [y, gradient] = self.twice(|gpu| {
            let (mut both, mut y) = (gpu.upload(&gate_up)?, gpu.poisoned::<bf16>(tokens * width)?);
            glu::forward(gpu, silu, &both.as_view(), width, &mut y.as_view_mut())?;
            glu::backward(gpu, silu, &mut both.as_view_mut(), width, &on_dy.as_view())?;
            all(gpu, [&y, &both])
        })?;
        let places = self.places(y.len());
        let (mut ours, mut plain) = ([vec![], vec![], vec![]], [vec![], vec![], vec![]]);
        for (row, column) in places.into_iter().map(|place| (place / width, place % width)) {
            let [gate, up] = [column, width + column].map(|column| row * 2 * width + column);
            let mut pair = [gate_up[gate].to_f64(), gate_up[up].to_f64()];
            let mut made = [0.0];
            plain_glu::forward_plain(silu, &pair, 1, &mut made);
            plain_glu::backward_plain(silu, &mut pair, 1, &[dy[row * width + column].to_f64()]);
            let numbers = [y[row * width + column], gradient[gate], gradient[up]];
            for (i, (ours_is, plain_is)) in numbers.into_iter().zip([made[0], pair[0], pair[1]]).enumerate() {
                ours[i].push(ours_is.to_f32());
                plain[i].push(plain_is);
            }
        }
        let named = ["y", "gradient of the gate", "gradient of up"].into_iter().zip(ours.into_iter().zip(plain));
        Ok(named.map(|(name, (ours, plain))| output(name, ours, plain, ONCE)).collect())
    }

    fn quantised(&mut self) -> Answer<Vec<Output>> {
        let Shape { hidden: width, intermediate, .. } = self.shape;
        let count = 2 * intermediate * width;
        let codes: Vec<u8> = self.fresh.below(PERIOD.min(count), 256).iter().map(|code| *code as u8).collect();
        let codes = repeated(&codes, count);
        let signed: Vec<i8> = codes.iter().map(|code| *code as i8).collect();
        let [of_blocks, of_rows] = [count / 64, count / width].map(|n| self.fresh.numbers(n, 2.0));
        let (on_codes, on_signed) = (self.gpu.upload(&codes[..count / 2])?, self.gpu.upload(&signed)?);
        let (on_blocks, on_rows) = (self.gpu.upload(&of_blocks)?, self.gpu.upload(&of_rows)?);
        let [four, eight] = self.twice(|gpu| {
            let [mut four, mut eight] = poisoned(gpu, count)?;
            quant::nf4(gpu, &on_codes.as_view(), &on_blocks.as_view(), 64, &mut four.as_view_mut())?;
            quant::int8(gpu, &on_signed.as_view(), &on_rows.as_view(), width, &mut eight.as_view_mut())?;
            all(gpu, [&four, &eight])
        })?;
        let places = self.places(count);
        let level = |i: usize| usize::from(if i.is_multiple_of(2) { codes[i / 2] >> 4 } else { codes[i / 2] & 15 });
        let of_four = |i: &usize| f64::from(LEVELS[level(*i)]) * f64::from(of_blocks[i / 64]);
        let of_eight = |i: &usize| f64::from(signed[*i]) * f64::from(of_rows[i / width]);
        Ok(vec![
            output("nf4", at(&four, &places), places.iter().map(of_four).collect(), ONCE),
            output("int8", at(&eight, &places), places.iter().map(of_eight).collect(), ONCE),
        ])
    }

    fn adamw(&mut self) -> Answer<Vec<Output>> {
        const SETTINGS: AdamW = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
        const MOST: Option<f64> = Some(3.0);
        let n = self.shape.params;
        let [p, m, v, grads] =
            [1.0, 0.1, 1.0, 1.0].map(|bound| self.numbers(n, bound).iter().map(|x| x.to_f32()).collect::<Vec<f32>>());
        let v: Vec<f32> = v.iter().map(|v| v * v).collect();
        let on_grads = self.gpu.upload(&grads)?;
        let (clip, state) = self.twice(|gpu| {
            let (mut on_p, mut on_m, mut on_v) = (gpu.upload(&p)?, gpu.upload(&m)?, gpu.upload(&v)?);
            let mut judge = adamw::Judge::new(gpu, n)?;
            judge.judge(gpu, &on_grads.as_view(), None, MOST)?;
            let to = [&mut on_p.as_view_mut(), &mut on_m.as_view_mut(), &mut on_v.as_view_mut()];
            adamw::adamw(gpu, to, &on_grads.as_view(), &judge, SETTINGS, 3)?;
            Ok((judge.read(gpu)?, all(gpu, [&on_p, &on_m, &on_v])?))
        })?;
        let norm = grads.par_iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let places = self.places(n);
        let of = |all: &[f32]| places.iter().map(|i| all[*i]).collect::<Vec<f32>>();
        let [mut p, mut m, mut v, grads] = [&p, &m, &v, &grads].map(|all| wide(&of(all)));
        plain_adamw::adamw_plain(&mut p, &mut m, &mut v, &grads, SETTINGS, 3, plain_adamw::clip_factor(norm, MOST));
        let [ours_p, ours_m, ours_v] = state.each_ref().map(|all| of(all));
        Ok(vec![
            output("p", ours_p, p, EXACT),
            output("m", ours_m, m, EXACT),
            output("v", ours_v, v, EXACT),
            output("norm", vec![clip.norm as f32], vec![norm], 1e-6),
        ])
    }
}

fn repeated<T: Copy>(block: &[T], n: usize) -> Vec<T> {
    let mut all = Vec::with_capacity(n);
    while all.len() < n {
        all.extend_from_slice(&block[..block.len().min(n - all.len())]);
    }
    all
}

fn at(all: &[bf16], places: &[usize]) -> Vec<f32> {
    places.iter().map(|place| all[*place].to_f32()).collect()
}

fn of_rows(all: &[bf16], rows: &[usize], width: usize) -> Vec<f32> {
    rows.iter().flat_map(|row| all[row * width..][..width].iter().map(|x| x.to_f32())).collect()
}

fn product(a: &[bf16], b: &[bf16]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum()
}

fn dot<'a>(n: usize, factors: impl Fn(usize) -> (&'a bf16, &'a bf16)) -> f64 {
    (0..n).map(factors).map(|(a, b)| a.to_f64() * b.to_f64()).sum()
}

fn poisoned<const N: usize>(gpu: &Gpu, n: usize) -> Result<[CudaSlice<bf16>; N], GpuError> {
    let buffers = (0..N).map(|_| gpu.poisoned(n)).collect::<Result<Vec<_>, _>>()?;
    Ok(buffers.try_into().expect("as many as there are"))
}

fn all<T: cudarc::driver::DeviceRepr + Default + Clone + std::fmt::Debug, const N: usize>(
    gpu: &Gpu,
    buffers: [&CudaSlice<T>; N],
) -> Result<[Vec<T>; N], GpuError> {
    let numbers = buffers.into_iter().map(|buffer| gpu.download(&buffer.as_view())).collect::<Result<Vec<_>, _>>()?;
    Ok(numbers.try_into().expect("as many as there are"))
}
