//! The head and its loss: `logits = x Wᵀ`, `loss = ln Σ exp(logits) − logits[target]`, over supervised rows only.
//!
//! Logits of a chunk of rows exist at a time, are turned into their own gradient `w · (softmax − onehot)` and multiplied back:
//! memory is chunk × vocabulary, whatever the number of rows. W is frozen, also where it is the embedding.

use rayon::prelude::*;

use super::buffer::Buffers;
use super::linear::Weight;
use super::matmul::{View, ViewMut};
use super::real::Real;
use super::simd;

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
pub fn loss(x: &[f32], weight: &Weight, wanted: &[Wanted], buffers: &Buffers) -> Vec<f64> {
    chunked(x, weight, wanted, buffers, |_, _| ())
}

/// The same, and `dx` is overwritten with the weighted gradient.
pub fn loss_and_gradient(x: &[f32], weight: &Weight, wanted: &[Wanted], buffers: &Buffers, dx: &mut [f32]) -> Vec<f64> {
    let width = weight.cols();
    chunked(x, weight, wanted, buffers, |first, logits| {
        let rows = logits.len() / weight.rows();
        let dx = &mut dx[first * width..(first + rows) * width];
        ViewMut::new(dx, rows, width).set(View::new(logits, rows, weight.rows()).times(weight.view()));
    })
}

/// Runs over chunks of rows: logits, losses, then `then(first row, gradient of the logits)`.
fn chunked(
    x: &[f32],
    weight: &Weight,
    wanted: &[Wanted],
    buffers: &Buffers,
    mut then: impl FnMut(usize, &[f32]),
) -> Vec<f64> {
    let (width, vocabulary, chunk) = (weight.cols(), weight.rows(), lorikeet_plan::HEAD_CHUNK_ROWS);
    let mut losses = Vec::with_capacity(wanted.len());
    let mut logits = buffers.take(chunk.min(wanted.len()) * vocabulary);
    for (i, wanted) in wanted.chunks(chunk).enumerate() {
        let (first, rows) = (i * chunk, wanted.len());
        let logits = &mut logits[..rows * vocabulary];
        let x = View::new(&x[first * width..], rows, width);
        ViewMut::new(logits, rows, vocabulary).set(x.times(weight.view().t()));
        losses.par_extend(logits.par_chunks_mut(vocabulary).zip(wanted).map(|(row, wanted)| row_loss(row, *wanted)));
        then(first, logits);
    }
    buffers.give(logits);
    losses
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
    fn the_cpu_form_equals_the_plain_one_over_several_chunks() {
        let (rows, width, vocabulary) = (lorikeet_plan::HEAD_CHUNK_ROWS + 37, 12, 50);
        let (x, w) = (numbers32(1, rows * width), numbers32(2, vocabulary * width));
        let wanted: Vec<Wanted> = (0..rows)
            .map(|row| Wanted { target: (row * 7 % vocabulary) as u32, weight: 0.5 + (row % 3) as f32 })
            .collect();
        let weight = Weight::new(w.clone(), vocabulary, width);
        let buffers = Buffers::default();
        let mut dx = vec![f32::NAN; rows * width];
        let losses = loss_and_gradient(&x, &weight, &wanted, &buffers, &mut dx);
        assert_eq!(losses, loss(&x, &weight, &wanted, &buffers));
        let mut dx_plain = vec![0.0; rows * width];
        for (row, wanted) in wanted.iter().enumerate() {
            let place = row * width..(row + 1) * width;
            let mut logits = vec![0.0; vocabulary];
            super::super::linear::forward_plain(&x[place.clone()], &w, width, &mut logits);
            let plain = loss_plain(&mut logits, wanted.target as usize, wanted.weight);
            super::super::linear::backward_plain(&logits, &w, width, &mut dx_plain[place]);
            assert!((losses[row] - f64::from(plain)).abs() < 1e-5, "row {row}: {} and {plain}", losses[row]);
        }
        assert_close("dx", &dx, &dx_plain, 1e-5);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (rows, width, vocabulary) = (200, 32, 300);
        let (x, w) = (numbers32(1, rows * width), numbers32(2, vocabulary * width));
        let weight = Weight::new(w, vocabulary, width);
        let wanted: Vec<_> = (0..rows).map(|row| Wanted { target: row as u32, weight: 1.0 }).collect();
        assert_same_bits_on_any_threads(|| {
            let mut dx = vec![0.0; rows * width];
            let losses = loss_and_gradient(&x, &weight, &wanted, &Buffers::default(), &mut dx);
            dx.extend(losses.into_iter().map(|x| x as f32));
            dx
        });
    }
}
