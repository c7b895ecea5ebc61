//! One body of checks for every machine's form of the operations: fresh random inputs, the plain form in `f64` beside it.
//!
//! A machine answers [`Forms`] over slices of the host: the CPU at once (`parity/cpu.rs`, in the tests), a GPU by copying there
//! and back, into buffers that were filled with NaN (`parity/gpu.rs`). Inputs are rounded to bf16 first, so that every
//! machine computes from the same numbers; what is left is the machine's own rounding, and each output says how much of that it
//! may have, as a part of the largest number expected. [`judge`] asks everything twice and compares bits.

mod beside;
mod case;
#[cfg(test)]
mod cpu;
#[cfg(feature = "cuda")]
pub mod gpu;
#[cfg(feature = "cuda")]
pub mod large;

use std::error::Error;
use std::ops::Range;

use half::bf16;
use lorikeet_plan::Activation;

use super::adamw::AdamW;
use super::attention::Heads;
use super::head::Wanted;
use super::lora::{Columns, Pair};
use super::machine::caught;
use super::random::{Masks, philox};
use super::rope::Rotations;

/// A machine's answer.
pub type Answer<T> = Result<T, Box<dyn Error>>;

/// Every row of `x` times a gain; the rest as in `norm.rs`.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[rows, width]`.
    pub x: &'a [f32],
    /// `[width]`.
    pub gain: &'a [f32],
    /// As in the configuration.
    pub eps: f64,
}

/// Heads that are turned, and normed first where there are gains.
#[derive(Debug, Clone, Copy)]
pub struct Turned<'a> {
    /// Layout of a row.
    pub heads: Heads,
    /// Gains of query and key heads, and ε.
    pub norm: Option<([&'a [f32]; 2], f64)>,
    /// Of every row.
    pub rotations: &'a Rotations,
}

/// An adapter's product on one run of tokens.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// `[rank, inputs]`.
    pub a: &'a [f32],
    /// `[outputs, rank]`.
    pub b: &'a [f32],
    /// Rows of A.
    pub rank: usize,
    /// The factor s.
    pub scale: f32,
    /// `[tokens, inputs]`.
    pub x: &'a [f32],
    /// Per row, or empty.
    pub masks: &'a [(Masks, u32)],
    /// Whose they are.
    pub module: u32,
    /// The module's columns in a row of output.
    pub columns: Columns,
}

/// What an adapter with DoRA has beside.
#[derive(Debug, Clone, Copy)]
pub struct Lengthened<'a> {
    /// Its product.
    pub product: Product<'a>,
    /// `[columns.stride, inputs]`: the module's rows and those of its neighbours.
    pub weight: &'a [f32],
    /// m, one for each of the module's rows.
    pub magnitude: &'a [f32],
}

/// One optimizer step and what it ends in.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Parameters, first and second moments.
    pub state: [Vec<f32>; 3],
    /// ‖g‖.
    pub norm: f64,
}

/// What an optimizer step begins with.
#[derive(Debug, Clone, Copy)]
pub struct Begun<'a> {
    /// Parameters, first and second moments.
    pub state: [&'a [f32]; 3],
    /// Of the parameters.
    pub grads: &'a [f32],
    /// Mean over the targets.
    pub loss: f64,
    /// Above which the gradient is clipped.
    pub max_norm: Option<f64>,
}

/// One machine's form of every operation. Slices are the host's; a method gives what the operation writes.
pub trait Forms {
    /// `y`.
    fn norm_forward(&self, norm: Norm<'_>) -> Answer<Vec<f32>>;
    /// `y + norm(x)`.
    fn norm_forward_add(&self, norm: Norm<'_>, y: &[f32]) -> Answer<Vec<f32>>;
    /// `dx` with the gradient added.
    fn norm_backward(&self, norm: Norm<'_>, dy: &[f32], dx: &[f32]) -> Answer<Vec<f32>>;
    /// `dgain` with the gradient added.
    fn gain_backward(&self, norm: Norm<'_>, dy: &[f32], dgain: &[f32]) -> Answer<Vec<f32>>;
    /// `qkv` afterwards, and q and k of every row before the norm.
    fn rope_forward(&self, turned: Turned<'_>, qkv: &[f32]) -> Answer<[Vec<f32>; 2]>;
    /// `dqkv` afterwards.
    fn rope_backward(&self, turned: Turned<'_>, raw: &[f32], dqkv: &[f32]) -> Answer<Vec<f32>>;
    /// The gradients of both gains, queries' and keys', added to what is given.
    fn head_gains(&self, turned: Turned<'_>, raw: &[f32], dqkv: &[f32], dgains: [&[f32]; 2]) -> Answer<[Vec<f32>; 2]>;
    /// `y`.
    fn glu_forward(&self, activation: Activation, gate_up: &[f32], width: usize) -> Answer<Vec<f32>>;
    /// The gradient of `gate_up`.
    fn glu_backward(&self, activation: Activation, gate_up: &[f32], width: usize, dy: &[f32]) -> Answer<Vec<f32>>;
    /// Output and log-sum-exp.
    fn attention_forward(&self, heads: Heads, segments: &[Range<usize>], qkv: &[f32]) -> Answer<[Vec<f32>; 2]>;
    /// The gradient of `qkv`.
    fn attention_backward(
        &self,
        heads: Heads,
        segments: &[Range<usize>],
        qkv: &[f32],
        kept: [&[f32]; 2],
        dout: &[f32],
    ) -> Answer<Vec<f32>>;
    /// Output of the last `new` rows over keys and values of all, which were kept.
    fn decode(&self, heads: Heads, qkv: &[f32], new: usize) -> Answer<Vec<f32>>;
    /// Rows of a table, times a number.
    fn gather(&self, table: &[f32], rows: &[u32], width: usize, scale: f32) -> Answer<Vec<f32>>;
    /// `y` with rows of `x` in their places.
    fn scatter(&self, x: &[f32], rows: &[u32], width: usize, y: &[f32]) -> Answer<Vec<f32>>;
    /// `dtable` with the rows of `dy` times a number added to those of their tokens, padding's excepted.
    fn table_backward(
        &self,
        tokens: (&[u32], Option<u32>),
        dy: &[f32],
        scale: f32,
        width: usize,
        dtable: &[f32],
    ) -> Answer<Vec<f32>>;
    /// The factors of rows of `width` numbers of one module, 0 or 1 / (1 − p).
    fn dropout(&self, masks: &[(Masks, u32)], module: u32, width: usize) -> Answer<Vec<f32>>;
    /// `x Wᵀ + b`, W `[b, inputs]`.
    fn linear_forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Answer<Vec<f32>>;
    /// `onto + x Wᵀ + b`.
    fn linear_onto(&self, x: &[f32], weight: &[f32], bias: &[f32], onto: &[f32]) -> Answer<Vec<f32>>;
    /// `dy W`, W `[outputs, ..]`.
    fn linear_backward(&self, dy: &[f32], weight: &[f32], outputs: usize) -> Answer<Vec<f32>>;
    /// Gradients of the rows of a weight that have those columns of `dy`, and of their bias, added to what is given.
    fn weight_backward(&self, x: &[f32], dy: (&[f32], Columns), gradients: [&[f32]; 2]) -> Answer<[Vec<f32>; 2]>;
    /// `u`, and `y` with the product added.
    fn lora_forward(&self, product: Product<'_>, y: &[f32]) -> Answer<[Vec<f32>; 2]>;
    /// Gradients of A, B and x, added to what is given.
    fn lora_backward(
        &self,
        product: Product<'_>,
        u: &[f32],
        dy: &[f32],
        gradients: [&[f32]; 3],
    ) -> Answer<[Vec<f32>; 3]>;
    /// n and m / n of the module's rows.
    fn dora_lengths(&self, dora: Lengthened<'_>) -> Answer<[Vec<f32>; 2]>;
    /// `u` and `v`, and `y` with what DoRA adds.
    fn dora_forward(&self, dora: Lengthened<'_>, y: &[f32]) -> Answer<[Vec<f32>; 3]>;
    /// Gradients of A, B, m and x, added to what is given, from the kept `u` and `v`.
    fn dora_backward(
        &self,
        dora: Lengthened<'_>,
        kept: [&[f32]; 2],
        dy: &[f32],
        gradients: [&[f32]; 4],
    ) -> Answer<[Vec<f32>; 4]>;
    /// `y` with the product of an adapter on the embedding added.
    fn lookup_forward(&self, pair: Pair<'_, f32>, tokens: &[u32], y: &[f32]) -> Answer<Vec<f32>>;
    /// Its gradients of A and B, added to what is given; padding has none in A.
    fn lookup_backward(
        &self,
        pair: Pair<'_, f32>,
        tokens: (&[u32], Option<u32>),
        dy: &[f32],
        gradients: [&[f32]; 2],
    ) -> Answer<[Vec<f32>; 2]>;
    /// Loss of every row and the gradient of `x`; that of the weight is added to `dw`. `weight` is `[vocabulary, width]`.
    fn head(
        &self,
        x: &[f32],
        weight: &[f32],
        wanted: &[Wanted],
        softcap: Option<f32>,
        dw: &[f32],
    ) -> Answer<[Vec<f32>; 3]>;
    /// The same with an adapter on it, in several chunks of rows, and the gradients of A and B.
    fn head_adapted(&self, x: &[f32], weight: &[f32], wanted: &[Wanted], pair: Pair<'_, f32>) -> Answer<[Vec<f32>; 4]>;
    /// Losses of rows, summed by the adapter that each is of.
    fn loss_sums(&self, losses: &[f32], adapters: &[u32], count: usize) -> Answer<Vec<f64>>;
    /// One step, the third.
    fn adamw(&self, begun: Begun<'_>, settings: AdamW) -> Answer<Update>;
    /// NF4 codes, two a byte, and a factor per 64 numbers.
    fn nf4(&self, codes: &[u8], factors: &[f32]) -> Answer<Vec<f32>>;
    /// Eight-bit codes, and a factor per row of `width`.
    fn int8(&self, codes: &[i8], factors: &[f32], width: usize) -> Answer<Vec<f32>>;
    /// To the nearest bf16, ties to even.
    fn narrow(&self, x: &[f32]) -> Answer<Vec<f32>>;
    /// Every number, and so much more.
    fn shift(&self, x: &[f32], by: f32) -> Answer<Vec<f32>>;
}

/// One output of one operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Which.
    pub name: &'static str,
    /// What the machine gave.
    pub ours: Vec<f32>,
    /// What the plain form gives.
    pub plain: Vec<f64>,
    /// How far apart they may be, as a part of the largest number expected; 0: not at all.
    pub tolerance: f64,
}

/// One operation's check.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Which.
    pub name: &'static str,
    run: fn(&dyn Forms, &mut Fresh) -> Answer<Vec<Output>>,
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The output that is worst against its tolerance.
    pub output: &'static str,
    /// Its largest difference, as a part of the largest number expected; infinite where something is not finite.
    pub error: f64,
    /// What was allowed.
    pub tolerance: f64,
    /// A second run gave the same bits.
    pub identical: bool,
}

impl Verdict {
    /// Whether the case holds.
    pub fn holds(&self) -> bool {
        self.error <= self.tolerance && self.identical
    }
}

/// Every case, cheap ones first.
pub fn cases() -> Vec<Case> {
    case::all()
}

/// Runs a case twice on inputs that follow from `seed`. What a machine refuses in it is an error, as everywhere.
pub fn judge(case: &Case, forms: &dyn Forms, seed: u64) -> Answer<Verdict> {
    let run = || caught(|| (case.run)(forms, &mut Fresh::new(seed)))?;
    let (first, second) = (run()?, run()?);
    let bits = |outputs: &[Output]| -> Vec<u32> {
        outputs.iter().flat_map(|output| output.ours.iter().map(|x| x.to_bits())).collect()
    };
    Ok(verdict(&first, bits(&first) == bits(&second)))
}

/// By the output that is worst against its tolerance.
fn verdict(outputs: &[Output], identical: bool) -> Verdict {
    let worst = outputs.iter().map(|output| (output, output.error()));
    let share = |(output, error): &(&Output, f64)| error / output.tolerance.max(f64::MIN_POSITIVE);
    let (output, error) = worst.max_by(|a, b| share(a).total_cmp(&share(b))).expect("a case has an output");
    Verdict { output: output.name, error, tolerance: output.tolerance, identical }
}

impl Output {
    fn error(&self) -> f64 {
        assert_eq!(self.ours.len(), self.plain.len(), "{}: one number for each", self.name);
        let size = self.plain.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let apart = self.ours.iter().zip(&self.plain).map(|(ours, plain)| {
            let apart = (f64::from(*ours) - plain).abs();
            if apart.is_finite() { apart } else { f64::INFINITY }
        });
        let most = apart.fold(0.0f64, f64::max);
        if most == 0.0 { 0.0 } else { most / size }
    }
}

/// Random inputs that follow from a seed, every one different.
#[derive(Debug)]
pub struct Fresh {
    seed: u64,
    drawn: u32,
}

impl Fresh {
    /// The inputs of one case.
    pub fn new(seed: u64) -> Fresh {
        Fresh { seed, drawn: 0 }
    }

    /// `n` numbers in ±`bound` that bf16 holds exactly.
    pub fn numbers(&mut self, n: usize, bound: f32) -> Vec<f32> {
        let unit = |word: u32| word as f32 / u32::MAX as f32 * 2.0 - 1.0;
        self.words(n).into_iter().map(|word| bf16::from_f32(bound * unit(word)).to_f32()).collect()
    }

    /// `n` whole numbers below `bound`.
    pub fn below(&mut self, n: usize, bound: u32) -> Vec<u32> {
        self.words(n).into_iter().map(|word| word % bound).collect()
    }

    fn words(&mut self, n: usize) -> Vec<u32> {
        self.drawn += 1;
        let (key, draw) = ([self.seed as u32, (self.seed >> 32) as u32], self.drawn);
        (0..n).map(|i| philox(key, [i as u32, (i >> 32) as u32, draw, 0x7061_7269])[0]).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;

    use super::super::buffer::Refused;
    use super::*;

    #[test]
    fn the_cpu_forms_pass_every_case() {
        for case in cases() {
            let verdict = judge(&case, &cpu::Cpu::default(), 7).unwrap();
            assert!(verdict.holds(), "{}: {verdict:?}", case.name);
            assert!(
                verdict.error < 1e-5 || case.name == "narrow",
                "f32 is far better than bf16: {}: {verdict:?}",
                case.name
            );
        }
    }

    #[test]
    fn a_number_that_is_off_or_not_written_fails_its_case() {
        let output = |ours: Vec<f32>| Output { name: "y", ours, plain: vec![1.0, -4.0], tolerance: 0.01 };
        assert_eq!(output(vec![1.0, -4.0]).error(), 0.0);
        assert!(output(vec![1.2, -4.0]).error() > 0.01);
        assert_eq!(output(vec![1.0, f32::NAN]).error(), f64::INFINITY);
    }

    #[test]
    fn memory_that_is_refused_inside_a_case_is_its_error() {
        let case = Case { name: "greedy", run: |_, _| resume_unwind(Box::new(Refused { bytes: 7 })) };
        let error = judge(&case, &cpu::Cpu::default(), 7).expect_err("there is none");
        assert_eq!(error.to_string(), "take 7 bytes of memory");
    }

    #[test]
    fn inputs_follow_from_the_seed_and_bf16_holds_them() {
        let draw = |seed| Fresh::new(seed).numbers(100, 3.0);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).iter().all(|x| x.abs() <= 3.0 && bf16::from_f32(*x).to_f32() == *x));
        let mut fresh = Fresh::new(1);
        assert_ne!(fresh.numbers(8, 1.0), fresh.numbers(8, 1.0));
    }
}
