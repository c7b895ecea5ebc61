//! The largest singular values of a weight and their vectors, by subspace iteration from a random start (Halko, Martinsson and
//! Tropp 2011, with power iterations): a few products with the weight and small factorisations, whatever its size.

use crate::ops::matmul::{View, ViewMut};
use crate::ops::random;

/// Vectors carried beyond those wanted; they take up what is near the edge.
const SPARE: usize = 8;
/// Rounds of multiplying by the weight and its transpose.
const ROUNDS: usize = 16;
/// Sweeps of the small eigenvalue problem; it converges quadratically, long before.
const SWEEPS: usize = 30;

/// Singular values, largest first, and their vectors, one per row.
pub(super) struct Singular {
    pub(super) values: Vec<f32>,
    /// `[count, rows of the weight]`.
    pub(super) left: Vec<f32>,
    /// `[count, columns of the weight]`.
    pub(super) right: Vec<f32>,
}

/// The `count` largest of a weight with `cols` columns; zeros where it has fewer.
pub(super) fn largest(weight: &[f32], cols: usize, count: usize, seed: u64) -> Singular {
    let rows = weight.len() / cols;
    let width = (count + SPARE).min(rows).min(cols);
    let w = View::new(weight, rows, cols);
    let (mut left, mut right) = (vec![0.0; width * rows], vec![0.0; width * cols]);
    random::fill_uniform(&mut right, seed, 0, 1.0);
    for _ in 0..ROUNDS {
        orthonormalise(&mut right, cols);
        ViewMut::new(&mut left, width, rows).set(View::new(&right, width, cols).times(w.t()));
        orthonormalise(&mut left, rows);
        ViewMut::new(&mut right, width, cols).set(View::new(&left, width, rows).times(w));
    }
    // rows of `left` are orthonormal and right = left W, so W ≈ leftᵀ right; the small Gram matrix holds S²
    let (squares, turn) = symmetric_eigen(gram(&right, cols), width);
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|i, j| squares[*j].total_cmp(&squares[*i]));
    let mut found =
        Singular { values: vec![0.0; count], left: vec![0.0; count * rows], right: vec![0.0; count * cols] };
    for (slot, column) in order.into_iter().take(count).enumerate() {
        let value = squares[column].max(0.0).sqrt();
        found.values[slot] = value as f32;
        let share = |k: usize| turn[k * width + column];
        combine(&left, rows, share, 1.0, &mut found.left[slot * rows..][..rows]);
        let factor = if value > 0.0 { 1.0 / value } else { 0.0 };
        combine(&right, cols, share, factor, &mut found.right[slot * cols..][..cols]);
    }
    found
}

/// Σ over rows of `share(row) · row`, times `factor`.
fn combine(vectors: &[f32], len: usize, share: impl Fn(usize) -> f64, factor: f64, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        let sum: f64 = vectors.chunks(len).enumerate().map(|(k, row)| share(k) * f64::from(row[i])).sum();
        *out = (factor * sum) as f32;
    }
}

/// Gram–Schmidt over rows, twice, so that rounding leaves them orthogonal. A row that depends on others becomes zero.
fn orthonormalise(rows: &mut [f32], len: usize) {
    for i in 0..rows.len() / len {
        let (before, rest) = rows.split_at_mut(i * len);
        let row = &mut rest[..len];
        let was = dot(row, row).sqrt();
        for _ in 0..2 {
            for other in before.chunks(len) {
                let along = dot(row, other);
                row.iter_mut().zip(other).for_each(|(x, o)| *x = (f64::from(*x) - along * f64::from(*o)) as f32);
            }
        }
        let norm = dot(row, row).sqrt();
        let factor = if norm > 1e-7 * was { 1.0 / norm } else { 0.0 };
        row.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn gram(rows: &[f32], len: usize) -> Vec<f64> {
    let row = |i: usize| &rows[i * len..][..len];
    let n = rows.len() / len;
    (0..n * n).map(|at| dot(row(at / n), row(at % n))).collect()
}

/// Eigenvalues of a symmetric matrix, and its eigenvectors as columns, by Jacobi's rotations.
fn symmetric_eigen(mut m: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut v: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    for _ in 0..SWEEPS {
        for p in 0..n {
            for q in p + 1..n {
                if m[p * n + q].abs() > f64::MIN_POSITIVE {
                    rotate(&mut m, &mut v, n, (p, q));
                }
            }
        }
    }
    ((0..n).map(|i| m[i * n + i]).collect(), v)
}

/// Turns the plane (p, q) so that the entry there vanishes.
fn rotate(m: &mut [f64], v: &mut [f64], n: usize, (p, q): (usize, usize)) {
    let theta = (m[q * n + q] - m[p * n + p]) / (2.0 * m[p * n + q]);
    let tan = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let cos = 1.0 / (tan * tan + 1.0).sqrt();
    let sin = tan * cos;
    for k in 0..n {
        let (a, b) = (m[k * n + p], m[k * n + q]);
        (m[k * n + p], m[k * n + q]) = (cos * a - sin * b, sin * a + cos * b);
    }
    for k in 0..n {
        let (a, b) = (m[p * n + k], m[q * n + k]);
        (m[p * n + k], m[q * n + k]) = (cos * a - sin * b, sin * a + cos * b);
        let (a, b) = (v[k * n + p], v[k * n + q]);
        (v[k * n + p], v[k * n + q]) = (cos * a - sin * b, sin * a + cos * b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{assert_close, numbers32};

    #[test]
    fn a_matrix_of_known_values_is_taken_apart() {
        // rows along the axes, lengths 5, 3, 2, 0
        let mut weight = vec![0.0; 4 * 6];
        (weight[2], weight[6 + 5], weight[12]) = (3.0, -5.0, 2.0);
        let found = largest(&weight, 6, 3, 1);
        assert_close("values", &found.values, &[5.0, 3.0, 2.0], 1e-6);
        assert!((found.left[1].abs() - 1.0).abs() < 1e-6 && (found.right[5].abs() - 1.0).abs() < 1e-6);
        assert!(found.left[1] * found.right[5] < 0.0);
    }

    #[test]
    fn all_vectors_together_give_the_weight_back() {
        for (rows, cols) in [(7, 12), (12, 7)] {
            let weight = numbers32(3, rows * cols);
            let found = largest(&weight, cols, 7, 1);
            let back: Vec<f32> = (0..rows * cols)
                .map(|at| {
                    let part = |k: usize| {
                        found.values[k] * found.left[k * rows + at / cols] * found.right[k * cols + at % cols]
                    };
                    (0..7).map(part).sum()
                })
                .collect();
            assert_close("weight", &back, &weight, 1e-5);
            assert!(found.values.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn the_largest_values_of_a_large_matrix_do_not_depend_on_the_start() {
        // singular values that fall as those of trained weights do
        let (rows, cols) = (60, 90);
        let mut weight = vec![0.0; rows * cols];
        for k in 0..40u32 {
            let (u, v) = (numbers32(10 + k, rows), numbers32(100 + k, cols));
            let size = 0.8f32.powi(k as i32);
            weight.iter_mut().enumerate().for_each(|(at, w)| *w += size * u[at / cols] * v[at % cols]);
        }
        let [one, other] = [1, 2].map(|seed| largest(&weight, cols, 6, seed).values);
        assert_close("values", &one, &other, 1e-4);
    }

    #[test]
    fn a_weight_of_lower_rank_leaves_zeros() {
        let weight: Vec<f32> = (0..5 * 4).map(|at| ((at / 4) + 1) as f32 * ((at % 4) as f32 - 1.5)).collect();
        let found = largest(&weight, 4, 3, 1);
        assert!(found.values[0] > 1.0 && found.values[1..].iter().all(|s| *s < 1e-4), "{:?}", found.values);
        assert!(found.left.iter().chain(&found.right).all(|x| x.is_finite()));
    }
}
