//! How fast each operation is on this very card, beside the two ceilings that nothing gets past: a device copy and a large bf16
//! product, measured in the same run.

use std::ops::Range;

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::CUevent_flags;
use half::bf16;
use lorikeet_plan::{Activation, Rope};

use super::attention::Tiles;
use super::dora::{Dora, Lengths};
use super::head::Targets;
use super::linear::Weight;
use super::lora::{Input, Pair};
use super::rope::Turns;
use super::{
    Done, Gpu, GpuError, adamw, attention, decode, dora, dropout, glu, head, linear, lora, matmul, norm, quant, rope,
    rows,
};
use crate::lora::Dropout;
use crate::ops::adamw::AdamW;
use crate::ops::attention::Heads;
use crate::ops::head::Wanted;
use crate::ops::lora::Columns;
use crate::ops::parity::Fresh;
use crate::ops::random::Masks;
use crate::ops::rope::{Known, Rotations};

/// The sizes that are measured.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Sequences packed one after another.
    pub sequences: usize,
    /// Tokens of each.
    pub length: usize,
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
    /// Of an adapter.
    pub rank: usize,
    /// Adapter parameters.
    pub params: usize,
    /// Side of the large product, and numbers of the device copy are its square times 16.
    pub side: usize,
    /// Times that an operation is run.
    pub runs: usize,
}

/// Llama-3.1-8B, two sequences of 4096.
pub const LLAMA_8B: Shape = Shape {
    sequences: 2,
    length: 4096,
    hidden: 4096,
    intermediate: 14_336,
    queries: 32,
    keys: 8,
    width: 128,
    vocabulary: 128_256,
    rank: 16,
    params: 42_000_000,
    side: 8192,
    runs: 20,
};

/// Small enough for an emulator: shows that everything runs, and nothing about speed.
pub const TINY: Shape = Shape {
    sequences: 2,
    length: 24,
    hidden: 64,
    intermediate: 96,
    queries: 2,
    keys: 1,
    width: 32,
    vocabulary: 300,
    rank: 4,
    params: 3000,
    side: 32,
    runs: 1,
};

/// What one operation took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Which.
    pub name: &'static str,
    /// Of one run.
    pub milliseconds: f64,
    /// What it must at least read and write, in bytes; 0 where arithmetic is what counts.
    pub bytes: f64,
    /// What it must at least compute; 0 where memory is what counts.
    pub flops: f64,
}

impl Rate {
    /// GB/s or TFLOP/s.
    pub fn value(&self) -> f64 {
        if self.bytes > 0.0 { self.bytes / self.milliseconds / 1e6 } else { self.flops / self.milliseconds / 1e9 }
    }
}

/// The ceilings first, then every operation, told as they come; one that fails leaves the others.
pub fn measure(gpu: &Gpu, shape: Shape, mut tell: impl FnMut(Result<Vec<Rate>, GpuError>)) {
    let mut bench = Bench { gpu, shape, fresh: Fresh::new(1) };
    let parts = [
        Bench::ceilings,
        Bench::streams,
        Bench::heads,
        Bench::adapters,
        Bench::lengths,
        Bench::products,
        Bench::loss,
        Bench::optimizer,
    ];
    for part in parts {
        tell(part(&mut bench));
    }
}

/// What nothing on this card gets past.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes read and written by a device copy.
    pub gigabytes: f64,
    /// Of a large bf16 product.
    pub teraflops: f64,
}

/// Measures them alone.
pub fn ceilings(gpu: &Gpu, shape: Shape) -> Result<Ceilings, GpuError> {
    let rates = Bench { gpu, shape, fresh: Fresh::new(1) }.ceilings()?;
    let most = |by_bytes: bool| {
        rates.iter().filter(|rate| (rate.bytes > 0.0) == by_bytes).map(Rate::value).fold(0.0, f64::max)
    };
    Ok(Ceilings { gigabytes: most(true), teraflops: most(false) })
}

/// An adapter's products where there is dropout.
const MASKED: [&str; 2] = ["lora + dropout", "lora + dropout, backward"];

/// Whose keys and values a new token attends over: more than stays in a card's cache from one run to the next.
const LAYERS: usize = 8;

struct Bench<'a> {
    gpu: &'a Gpu,
    shape: Shape,
    fresh: Fresh,
}

impl Bench<'_> {
    fn tokens(&self) -> usize {
        self.shape.sequences * self.shape.length
    }

    /// Random numbers, the same block again and again: what they are does not matter to a kernel, that they are finite does.
    fn numbers(&mut self, n: usize) -> Result<CudaSlice<bf16>, GpuError> {
        self.gpu.upload(&self.on_host(n))
    }

    fn on_host(&mut self, n: usize) -> Vec<bf16> {
        let block: Vec<bf16> = self.fresh.numbers(4096.min(n), 0.5).into_iter().map(bf16::from_f32).collect();
        block.iter().copied().cycle().take(n).collect()
    }

    /// A weight of random numbers: a product of many equal ones costs less power, and so less time, than any real one.
    fn weight(&mut self, rows: usize, cols: usize) -> Result<Weight, GpuError> {
        Weight::upload(self.gpu, &self.on_host(rows * cols), &[], rows, cols)
    }

    fn gain(&self, n: usize) -> Result<CudaSlice<f32>, GpuError> {
        self.gpu.upload(&vec![1.0f32; n])
    }

    /// One run's time: some to warm up, then all in one stretch between two events.
    fn time(
        &self,
        name: &'static str,
        (bytes, flops): (f64, f64),
        mut run: impl FnMut() -> Done,
    ) -> Result<Rate, GpuError> {
        let event = || {
            let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
            self.gpu.stream().record_event(flags).map_err(GpuError::driver("measure time"))
        };
        (0..self.shape.runs.min(3)).try_for_each(|_| run())?;
        let before = event()?;
        (0..self.shape.runs).try_for_each(|_| run())?;
        let after = event()?;
        self.gpu.wait()?;
        let all = before.elapsed_ms(&after).map_err(GpuError::driver("measure time"))?;
        Ok(Rate { name, milliseconds: f64::from(all).max(1e-6) / self.shape.runs as f64, bytes, flops })
    }

    fn ceilings(&mut self) -> Result<Vec<Rate>, GpuError> {
        let (gpu, side) = (self.gpu, self.shape.side);
        let n = 16 * side * side;
        let (mut from, mut to) = (gpu.take::<bf16>(n)?, gpu.take::<bf16>(n)?);
        let block = self.numbers(side * side)?;
        for i in 0..n / block.len() {
            gpu.copy(&block.as_view(), &mut from.slice_mut(i * block.len()..(i + 1) * block.len()))?;
        }
        let copy =
            self.time("device copy", (4.0 * n as f64, 0.0), || gpu.copy(&from.as_view(), &mut to.as_view_mut()))?;
        let (a, b, mut c) = (self.numbers(side * side)?, self.numbers(side * side)?, gpu.take::<bf16>(side * side)?);
        let [a, b] = [&a, &b].map(|x| matmul::Matrix::new(gpu, &x.as_view(), side, side));
        let flops = 2.0 * (side as f64).powi(3);
        let gemm = self.time("bf16 product", (0.0, flops), || matmul::set(gpu, a, b.t(), &mut c.as_view_mut()))?;
        let into = matmul::Into { stride: side, scale: 1.0, keep: 0.0 };
        let other = self.time("bf16 product, cuBLAS", (0.0, flops), || {
            matmul::by_cublas(gpu, a, b.t(), into, &mut c.as_view_mut())
        })?;
        Ok(vec![copy, gemm, other])
    }

    fn streams(&mut self) -> Result<Vec<Rate>, GpuError> {
        let (gpu, width, eps) = (self.gpu, self.shape.hidden, 1e-5);
        let n = self.tokens() * width;
        let (x, dy, mut dx, mut y) = (self.numbers(n)?, self.numbers(n)?, self.numbers(n)?, gpu.take::<bf16>(n)?);
        let gain = self.gain(width)?;
        let (x, dy, gain) = (x.as_view(), dy.as_view(), gain.as_view());
        let pass = |times: usize| (2.0 * (times * n) as f64, 0.0);
        let mut rates = vec![
            self.time("rms norm", pass(2), || norm::forward(gpu, &x, &gain, eps, &mut y.as_view_mut()))?,
            self.time("rms norm backward", pass(4), || {
                norm::backward(gpu, &x, &gain, eps, &dy, &mut dx.as_view_mut())
            })?,
        ];
        let rows: Vec<u32> = (0..self.tokens() as u32).rev().collect();
        let rows = gpu.upload(&rows)?;
        rates.push(self.time("gather rows", pass(2), || {
            rows::gather(gpu, &x, &rows.as_view(), width, 1.0, &mut y.as_view_mut())
        })?);
        let width = self.shape.intermediate;
        let n = self.tokens() * width;
        let (mut gate_up, mut act) = (self.numbers(2 * n)?, gpu.take::<bf16>(n)?);
        let silu = Activation::Silu;
        rates.push(self.time("swiglu", (6.0 * n as f64, 0.0), || {
            glu::forward(gpu, silu, &gate_up.as_view(), width, &mut act.as_view_mut())
        })?);
        rates.push(self.time("swiglu backward", (10.0 * n as f64, 0.0), || {
            glu::backward(gpu, silu, &mut gate_up.as_view_mut(), width, &act.as_view())
        })?);
        Ok(rates)
    }

    fn heads(&mut self) -> Result<Vec<Rate>, GpuError> {
        let (gpu, tokens, shape) = (self.gpu, self.tokens(), self.shape);
        let scale = 1.0 / (shape.width as f64).sqrt();
        let heads =
            Heads { queries: shape.queries, keys: shape.keys, width: shape.width, scale, softcap: None, window: None };
        let rope = Rope { theta: 500_000.0, scaling: None };
        let turns = Turns::upload(
            gpu,
            &Rotations::new(&rope, shape.width, &vec![shape.length; shape.sequences], &Known::default()),
        )?;
        let segments: Vec<Range<usize>> =
            (0..shape.sequences).map(|i| i * shape.length..(i + 1) * shape.length).collect();
        let tiles = Tiles::upload(gpu, &segments)?;
        let (qkv, mut dqkv) = (self.numbers(tokens * heads.stride())?, self.numbers(tokens * heads.stride())?);
        let (mut out, dout) = (self.numbers(tokens * heads.out_stride())?, self.numbers(tokens * heads.out_stride())?);
        let mut lse = gpu.zeros::<f32>(tokens * heads.queries)?;
        let turned = self.time("rope", (4.0 * (tokens * heads.turned()) as f64, 0.0), || {
            rope::forward(gpu, heads, None, &turns, &mut dqkv.as_view_mut(), None)
        })?;
        // two products over half of length², for every sequence and head; five of them backward
        let pairs = (shape.sequences * shape.queries) as f64 * (shape.length as f64).powi(2) / 2.0;
        let product = 2.0 * pairs * shape.width as f64;
        let forward = self.time("attention", (0.0, 2.0 * product), || {
            let (out, lse) = (&mut out.as_view_mut(), &mut lse.as_view_mut());
            attention::forward(gpu, heads, &tiles, &qkv.as_view(), out, lse)
        })?;
        let backward = self.time("attention backward", (0.0, 5.0 * product), || {
            let kept = (&out.as_view(), &lse.as_view());
            attention::backward(gpu, heads, &tiles, &qkv.as_view(), kept, &dout.as_view(), &mut dqkv.as_view_mut())
        })?;
        let mut layers: Vec<decode::Kept> = (0..LAYERS).map(|_| decode::Kept::default()).collect();
        layers.iter_mut().try_for_each(|kept| kept.push(gpu, heads, &qkv.slice(..shape.length * heads.stride())))?;
        let row = qkv.slice(..heads.stride());
        let bytes = 4.0 * (LAYERS * shape.length * heads.keys * heads.width) as f64;
        let decoded = self.time("a token over 8 caches", (bytes, 0.0), || {
            let to = &mut out.slice_mut(..heads.out_stride());
            layers.iter().try_for_each(|kept| decode::forward(gpu, heads, &row, kept, to))
        })?;
        Ok(vec![turned, forward, backward, decoded])
    }

    fn adapters(&mut self) -> Result<Vec<Rate>, GpuError> {
        let (gpu, tokens, width, rank) = (self.gpu, self.tokens(), self.shape.hidden, self.shape.rank);
        let (x, mut y, dy) =
            (self.numbers(tokens * width)?, self.numbers(tokens * width)?, self.numbers(tokens * width)?);
        let (a, b, mut u) = (self.numbers(rank * width)?, self.numbers(width * rank)?, self.numbers(tokens * rank)?);
        let (mut da, mut db) = (gpu.zeros::<f32>(rank * width)?, gpu.zeros::<f32>(width * rank)?);
        let (a, b, x) = (a.as_view(), b.as_view(), x.as_view());
        let pair = Pair { a: &a, b: &b, rank, scale: 0.01 };
        let columns = Columns::all(width);
        let bytes = 2.0 * (tokens * width) as f64;
        let masks = Masks::new(Dropout { p: 0.1, seed: 1 }, 0, 0);
        let masks: Vec<(Masks, u32)> = (0..tokens as u32).map(|token| (masks, token)).collect();
        let masks = dropout::RowMasks::upload(gpu, &masks)?;
        let kept = masks.draw(gpu, 0, width)?;
        let mut rates = vec![self.time("dropout", (bytes / 16.0, 0.0), || masks.draw(gpu, 0, width).map(drop))?];
        for (kept, [forth, back]) in [(None, ["lora", "lora backward"]), (Some(&kept), MASKED)] {
            let input = Input { x: &x, kept };
            rates.push(self.time(forth, (3.0 * bytes, 0.0), || {
                lora::forward(gpu, pair, input, &mut u.as_view_mut(), &mut y.as_view_mut(), columns)
            })?);
            rates.push(self.time(back, (5.0 * bytes, 0.0), || {
                let kept = (&u.as_view(), &dy.as_view(), columns);
                let gradients = [&mut da.as_view_mut(), &mut db.as_view_mut()];
                lora::backward(gpu, pair, input, kept, gradients, Some(&mut y.as_view_mut()))
            })?);
        }
        Ok(rates)
    }

    fn lengths(&mut self) -> Result<Vec<Rate>, GpuError> {
        let (gpu, tokens, width, rank) = (self.gpu, self.tokens(), self.shape.hidden, self.shape.rank);
        let (weight, magnitude) = (self.weight(width, width)?, self.gain(width)?);
        let (x, dy) = (self.numbers(tokens * width)?, self.numbers(tokens * width)?);
        let (mut v, mut y) = (self.numbers(tokens * width)?, self.numbers(tokens * width)?);
        let (a, b, mut u) = (self.numbers(rank * width)?, self.numbers(width * rank)?, self.numbers(tokens * rank)?);
        let (mut da, mut db, mut dm) = (gpu.zeros(rank * width)?, gpu.zeros(width * rank)?, gpu.zeros(width)?);
        let (a, b, x, magnitude) = (a.as_view(), b.as_view(), x.as_view(), magnitude.as_view());
        let (pair, input) = (Pair { a: &a, b: &b, rank, scale: 0.01 }, Input { x: &x, kept: None });
        let columns = Columns::all(width);
        let measure = || Lengths::measure(gpu, &weight, columns, pair, &magnitude);
        let lengths = measure()?;
        let dora = Dora { weight: &weight, lengths: &lengths };
        let product = (0.0, 2.0 * (tokens * width) as f64 * width as f64);
        let measured = self.time("dora, row lengths", (2.0 * (width * width) as f64, 0.0), || measure().map(drop))?;
        let forward = self.time("dora", product, || {
            let kept = (&mut u.as_view_mut(), &mut v.as_view_mut());
            dora::forward(gpu, dora, pair, input, kept, (&mut y.as_view_mut(), columns))
        })?;
        let backward = self.time("dora backward", product, || {
            let (kept, dy) = ((input, &u.as_view(), &v.as_view()), (&dy.as_view(), columns));
            let gradients = [&mut da.as_view_mut(), &mut db.as_view_mut(), &mut dm.as_view_mut()];
            dora::backward(gpu, dora, pair, kept, dy, gradients, Some(&mut y.as_view_mut()))
        })?;
        Ok(vec![measured, forward, backward])
    }

    fn products(&mut self) -> Result<Vec<Rate>, GpuError> {
        let (gpu, tokens, shape) = (self.gpu, self.tokens(), self.shape);
        let outputs = 2 * shape.intermediate;
        let weight = self.weight(outputs, shape.hidden)?;
        let (mut x, mut y) = (self.numbers(tokens * shape.hidden)?, self.numbers(tokens * outputs)?);
        let flops = 2.0 * (tokens * shape.hidden) as f64 * outputs as f64;
        let forward = self
            .time("gate and up", (0.0, flops), || linear::forward(gpu, &x.as_view(), &weight, &mut y.as_view_mut()))?;
        let backward = self.time("gate and up, backward", (0.0, flops), || {
            linear::backward(gpu, &y.as_view(), &weight, &mut x.as_view_mut())
        })?;
        let count = outputs * shape.hidden / 64 * 64;
        let (codes, factors) = (gpu.zeros::<u8>(count / 2)?, self.gain(count / 64)?);
        let mut wide = gpu.take::<bf16>(count)?;
        let nf4 = self.time("nf4 to bf16", (2.5 * count as f64, 0.0), || {
            quant::nf4(gpu, &codes.as_view(), &factors.as_view(), 64, &mut wide.as_view_mut())
        })?;
        Ok(vec![forward, backward, nf4])
    }

    fn loss(&mut self) -> Result<Vec<Rate>, GpuError> {
        let (gpu, shape, rows) = (self.gpu, self.shape, self.tokens() / 2);
        let weight = self.weight(shape.vocabulary, shape.hidden)?;
        let wanted: Vec<Wanted> = (0..rows).map(|row| Wanted { target: row as u32 % 7, weight: 1e-3 }).collect();
        let targets = Targets::upload(gpu, &wanted)?;
        let (x, mut dx) = (self.numbers(rows * shape.hidden)?, gpu.take::<bf16>(rows * shape.hidden)?);
        let mut losses = gpu.take::<f32>(rows)?;
        let flops = 4.0 * (rows * shape.hidden) as f64 * shape.vocabulary as f64;
        let both = self.time("head, loss and gradient", (0.0, flops), || {
            let (losses, to) = (&mut losses.as_view_mut(), Some(&mut dx.as_view_mut()));
            head::loss(gpu, &x.as_view(), (&weight, None), &targets, &mut (), losses, to)
        })?;
        Ok(vec![both])
    }

    fn optimizer(&mut self) -> Result<Vec<Rate>, GpuError> {
        let (gpu, n) = (self.gpu, self.shape.params);
        let settings = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        let (mut p, mut m, mut v) = (gpu.zeros::<f32>(n)?, gpu.zeros::<f32>(n)?, gpu.zeros::<f32>(n)?);
        let grads = gpu.upload(&vec![1e-3f32; n])?;
        let mut judge = adamw::Judge::new(gpu, n)?;
        let step = self.time("norm, clip and adamw", (32.0 * n as f64, 0.0), || {
            judge.judge(gpu, &grads.as_view(), None, Some(1.0))?;
            let state = [&mut p.as_view_mut(), &mut m.as_view_mut(), &mut v.as_view_mut()];
            adamw::adamw(gpu, state, &grads.as_view(), &judge, settings, 1)
        })?;
        Ok(vec![step])
    }
}
