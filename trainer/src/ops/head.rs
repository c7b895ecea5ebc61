//! The head and its loss: `logits = cap(x Wᵀ)`, `loss = ln Σ exp(logits) − logits[target]`, over supervised rows only; cap is the
//! soft cap, where the model has one.
//!
//! Logits of a chunk of rows exist at a time, are turned into their own gradient `w · (softmax − onehot)` and multiplied back:
//! memory is chunk × vocabulary, whatever the number of rows. Where W itself is trained its gradient is taken chunk by chunk too.

use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffers;
use super::linear::Weight;
use super::machine::{Part, PartMut};
use super::real::Real;
use super::{simd, softcap};

/// The head's weights and what becomes of its products.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// One row per token of the vocabulary.
    pub weight: &'a Weight,
    /// Logits stay within ± this.
    pub softcap: Option<f32>,
}

/// What is trained at the head, adapters or its own weight, chunk by chunk of rows; all that it is handed lies where the head is computed.
pub trait Beside {
    /// Adds to the products of `rows`, before they are capped.
    fn forward(&mut self, rows: Range<usize>, x: &Part<'_>, logits: PartMut<'_>);
    /// Takes its gradients from that of the products and adds to that of x; asked right after the chunk's forward.
    fn backward(&mut self, rows: Range<usize>, x: &Part<'_>, dlogits: &Part<'_>, dx: PartMut<'_>);
}

/// Nothing.
impl Beside for () {
    fn forward(&mut self, _: Range<usize>, _: &Part<'_>, _: PartMut<'_>) {}
    fn backward(&mut self, _: Range<usize>, _: &Part<'_>, _: &Part<'_>, _: PartMut<'_>) {}
}

impl Head<'_> {
    /// Logits of `rows`, whose inputs are `x`.
    pub fn logits(&self, rows: Range<usize>, x: &[f32], beside: &mut dyn Beside, logits: &mut [f32]) {
        super::linear::forward(x, self.weight, logits);
        beside.forward(rows, &Part::Host(x), PartMut::Host(logits));
        if let Some(cap) = self.softcap {
            logits.par_chunks_mut(self.weight.rows()).for_each(|row| capped(row, cap));
        }
    }
}

/// Loss of one row, plainly; turns `logits` into `weight` times their gradient.
pub fn loss_plain<R: Real>(logits: &mut [R], target: usize, weight: R) -> R {
    let most = logits.iter().fold(logits[0], |most, x| if *x > most { *x } else { most });
    let sum: R = logits.iter().map(|x| (*x - most).exp()).sum();
    let loss = most + sum.ln() - logits[target];
    for x in logits.iter_mut() {
        *x = weight * ((*x - most).exp() / sum);
    }
    logits[target] -= weight; // mutate: flip
    loss
}

/// What becomes of each row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted {
    /// The token to be predicted.
    pub target: u32,
    /// What its loss counts in the gradient.
    pub weight: f32,
}

/// −ln p of every row's target. `x` is [rows, width].
pub fn loss(x: &[f32], head: Head<'_>, wanted: &[Wanted], beside: &mut dyn Beside, buffers: &Buffers) -> Vec<f64> {
    chunked(x, head, wanted, (beside, None), buffers)
}

/// The same, and `dx` is overwritten with the weighted gradient.
pub fn loss_and_gradient(
    x: &[f32],
    head: Head<'_>,
    wanted: &[Wanted],
    beside: &mut dyn Beside,
    buffers: &Buffers,
    dx: &mut [f32],
) -> Vec<f64> {
    chunked(x, head, wanted, (beside, Some(dx)), buffers)
}

/// Runs over chunks of rows: logits, losses, and the gradient where one is wanted.
fn chunked(
    x: &[f32],
    head: Head<'_>,
    wanted: &[Wanted],
    (beside, mut dx): (&mut dyn Beside, Option<&mut [f32]>),
    buffers: &Buffers,
) -> Vec<f64> {
    let (width, vocabulary, chunk) = (head.weight.cols(), head.weight.rows(), lorikeet_plan::HEAD_CHUNK_ROWS);
    let mut losses = Vec::with_capacity(wanted.len());
    let mut logits = buffers.take(chunk.min(wanted.len()) * vocabulary);
    for (i, wanted) in wanted.chunks(chunk).enumerate() {
        let rows = i * chunk..i * chunk + wanted.len();
        let logits = &mut logits[..rows.len() * vocabulary];
        let x = &x[rows.start * width..rows.end * width];
        head.logits(rows.clone(), x, beside, logits);
        let pairs = logits.par_chunks_mut(vocabulary).zip(wanted);
        losses.par_extend(pairs.map_init(Vec::new, |scratch, (row, wanted)| match head.softcap {
            None => row_loss(row, *wanted),
            Some(cap) => capped_row_loss(row, *wanted, cap, scratch),
        }));
        if let Some(dx) = dx.as_deref_mut() {
            let dx = &mut dx[rows.start * width..rows.end * width];
            super::linear::backward(logits, head.weight, dx);
            beside.backward(rows, &Part::Host(x), &Part::Host(logits), PartMut::Host(dx));
        }
    }
    buffers.give(logits);
    losses
}

fn capped(logits: &mut [f32], cap: f32) {
    simd::wide(
        #[inline(always)]
        || softcap::forward(logits, cap),
    );
}

/// The loss of logits that were capped; its gradient is carried back through the cap. `scratch` keeps them meanwhile.
fn capped_row_loss(logits: &mut [f32], wanted: Wanted, cap: f32, scratch: &mut Vec<f32>) -> f64 {
    scratch.clear();
    scratch.extend_from_slice(logits);
    let loss = row_loss(logits, wanted);
    simd::wide(
        #[inline(always)]
        || softcap::backward(scratch, cap, logits),
    );
    loss
}

fn row_loss(logits: &mut [f32], wanted: Wanted) -> f64 {
    let target = wanted.target as usize;
    let chosen = logits[target];
    let (most, sum) = simd::wide(
        #[inline(always)]
        || {
            let most = simd::max(logits);
            logits.iter_mut().for_each(|x| *x = simd::exp(*x - most));
            let sum = simd::sum([logits], |[x]| x);
            let factor = wanted.weight / sum;
            logits.iter_mut().for_each(|x| *x *= factor);
            (most, sum)
        },
    );
    logits[target] -= wanted.weight; // mutate: flip
    f64::from(sum).ln() + f64::from(most) - f64::from(chosen)
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    #[test]
    fn the_plain_gradient_equals_finite_differences() {
        let logits = numbers(1, 9);
        let mut gradient = logits.clone();
        loss_plain(&mut gradient, 4, 1.0);
        assert_gradient("logits", |x| loss_plain(&mut x.to_vec(), 4, 0.0), &logits, &gradient);
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one_over_several_chunks_with_and_without_a_cap() {
        let (rows, width, vocabulary) = (lorikeet_plan::HEAD_CHUNK_ROWS + 37, 12, 50);
        let (x, w) = (numbers32(1, rows * width), numbers32(2, vocabulary * width));
        let wanted: Vec<Wanted> = (0..rows)
            .map(|row| Wanted { target: (row * 7 % vocabulary) as u32, weight: 0.5 + (row % 3) as f32 })
            .collect();
        let weight = Weight::new(w.clone(), vocabulary, width);
        let buffers = Buffers::default();
        for softcap in [None, Some(0.7)] {
            let head = Head { weight: &weight, softcap };
            let mut dx = vec![f32::NAN; rows * width];
            let losses = loss_and_gradient(&x, head, &wanted, &mut (), &buffers, &mut dx);
            assert_eq!(losses, loss(&x, head, &wanted, &mut (), &buffers));
            let mut dx_plain = vec![0.0; rows * width];
            for (row, wanted) in wanted.iter().enumerate() {
                let place = row * width..(row + 1) * width;
                let mut logits = vec![0.0; vocabulary];
                super::super::linear::forward_plain(&x[place.clone()], &w, width, &mut logits);
                softcap.into_iter().for_each(|cap| softcap::forward_plain(&mut logits, cap));
                let bent = logits.clone();
                let plain = loss_plain(&mut logits, wanted.target as usize, wanted.weight);
                softcap.into_iter().for_each(|cap| softcap::backward_plain(&bent, cap, &mut logits));
                super::super::linear::backward_plain(&logits, &w, width, &mut dx_plain[place]);
                assert!((losses[row] - f64::from(plain)).abs() < 1e-5, "row {row}: {} and {plain}", losses[row]);
            }
            assert_close("dx", &dx, &dx_plain, 1e-5);
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (rows, width, vocabulary) = (200, 32, 300);
        let (x, w) = (numbers32(1, rows * width), numbers32(2, vocabulary * width));
        let weight = Weight::new(w, vocabulary, width);
        let head = Head { weight: &weight, softcap: Some(2.0) };
        let wanted: Vec<_> = (0..rows).map(|row| Wanted { target: row as u32, weight: 1.0 }).collect();
        assert_same_bits_on_any_threads(|| {
            let mut dx = vec![0.0; rows * width];
            let losses = loss_and_gradient(&x, head, &wanted, &mut (), &Buffers::default(), &mut dx);
            dx.extend(losses.into_iter().map(|x| x as f32));
            dx
        });
    }
}
