//! RMSNorm over every query head and every key head, each kind with a gain of its own; values stay as they are.
//!
//! The norm is that of `norm.rs`, on heads instead of rows, in place. Its backward needs the heads as they were.

use rayon::prelude::*;

use super::attention::Heads;
use super::norm;
use super::real::Real;

/// The gains, one number per column of a head.
#[derive(Debug, Clone, Copy)]
pub struct Gains<'a, R> {
    /// Of query heads.
    pub queries: &'a [R],
    /// Of key heads.
    pub keys: &'a [R],
}

impl<R> Gains<'_, R> {
    /// The gain of a head, queries first.
    #[inline(always)]
    fn of(&self, heads: Heads, head: usize) -> &[R] {
        if head < heads.queries { self.queries } else { self.keys }
    }
}

/// Norms the heads of every row of q, k and v, plainly.
pub fn forward_plain<R: Real>(heads: Heads, gains: Gains<'_, R>, eps: f64, qkv: &mut [R]) {
    for row in qkv.chunks_mut(heads.stride()) {
        for (head, x) in row[..heads.turned()].chunks_mut(heads.width).enumerate() {
            let before = x.to_vec();
            norm::forward_plain(&before, gains.of(heads, head), eps, x);
        }
    }
}

/// Turns the gradient of normed heads into that of `raw`, which holds q and k of every row before the norm, plainly.
pub fn backward_plain<R: Real>(heads: Heads, gains: Gains<'_, R>, eps: f64, raw: &[R], dqkv: &mut [R]) {
    for (raw, row) in raw.chunks(heads.turned()).zip(dqkv.chunks_mut(heads.stride())) {
        let pairs = raw.chunks(heads.width).zip(row[..heads.turned()].chunks_mut(heads.width));
        for (head, (x, d)) in pairs.enumerate() {
            let dy = d.to_vec();
            d.fill(R::default());
            norm::backward_plain(x, gains.of(heads, head), eps, &dy, d);
        }
    }
}

/// Norms the heads of every row of q, k and v; what was there before goes to `raw`, q and k of every row.
pub fn forward(heads: Heads, gains: Gains<'_, f32>, eps: f64, qkv: &mut [f32], raw: &mut [f32]) {
    let rows = qkv.par_chunks_mut(heads.stride()).zip(raw.par_chunks_mut(heads.turned()));
    rows.with_min_len(16).for_each(|(row, raw)| {
        let row = &mut row[..heads.turned()];
        raw.copy_from_slice(row);
        let pairs = raw.chunks(heads.width).zip(row.chunks_mut(heads.width));
        for (head, (x, y)) in pairs.enumerate() {
            norm::forward_row(x, gains.of(heads, head), eps, y);
        }
    });
}

/// Turns the gradient of normed heads into that of `raw`.
pub fn backward(heads: Heads, gains: Gains<'_, f32>, eps: f64, raw: &[f32], dqkv: &mut [f32]) {
    let rows = dqkv.par_chunks_mut(heads.stride()).zip(raw.par_chunks(heads.turned()));
    rows.with_min_len(16).for_each_init(
        || vec![0.0; heads.width],
        |dy, (row, raw)| {
            let pairs = raw.chunks(heads.width).zip(row[..heads.turned()].chunks_mut(heads.width));
            for (head, (x, d)) in pairs.enumerate() {
                dy.copy_from_slice(d);
                d.fill(0.0);
                norm::backward_row(x, gains.of(heads, head), eps, dy, d);
            }
        },
    );
}

/// Adds to the gradients of both gains, queries' and keys', from that of the normed heads.
pub fn gains_backward(heads: Heads, eps: f64, raw: &[f32], dqkv: &[f32], [queries, keys]: [&mut [f32]; 2]) {
    for (raw, row) in raw.chunks(heads.turned()).zip(dqkv.chunks(heads.stride())) {
        for (head, (x, dy)) in raw.chunks(heads.width).zip(row.chunks(heads.width)).enumerate() {
            let dgain = if head < heads.queries { &mut *queries } else { &mut *keys };
            norm::gain_backward_row(x, eps, dy, dgain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    const EPS: f64 = 1e-5;
    const HEADS: Heads = Heads { queries: 2, keys: 1, width: 6, scale: 1.0, softcap: None, window: None };

    #[test]
    fn the_plain_gradient_equals_finite_differences() {
        let (x, dy) = (numbers(1, 3 * HEADS.stride()), numbers(2, 3 * HEADS.stride()));
        let (queries, keys) = (numbers(3, 6), numbers(4, 6));
        let gains = Gains { queries: &queries, keys: &keys };
        let loss = |x: &[f64]| {
            let mut y = x.to_vec();
            forward_plain(HEADS, gains, EPS, &mut y);
            dot(&dy, &y)
        };
        let mut dx = dy.clone();
        backward_plain(HEADS, gains, EPS, &raw(&x), &mut dx);
        assert_gradient("q, k and v", loss, &x, &dx);
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one() {
        let n = 21 * HEADS.stride();
        let (queries, keys) = (numbers32(3, 6), numbers32(4, 6));
        let gains = Gains { queries: &queries, keys: &keys };
        let x = numbers32(1, n);
        let (mut y, mut expected, mut kept) = (x.clone(), x.clone(), vec![0.0; raw(&x).len()]);
        forward(HEADS, gains, EPS, &mut y, &mut kept);
        forward_plain(HEADS, gains, EPS, &mut expected);
        assert_close("y", &y, &expected, 1e-6);
        assert_eq!(kept, raw(&x));
        let (mut dx, mut expected) = (numbers32(2, n), numbers32(2, n));
        backward(HEADS, gains, EPS, &kept, &mut dx);
        backward_plain(HEADS, gains, EPS, &kept, &mut expected);
        assert_close("dx", &dx, &expected, 1e-5);
    }

    #[test]
    fn the_gradients_of_the_gains_are_those_of_the_norm_head_by_head() {
        let n = 9 * HEADS.stride();
        let (x, dy) = (numbers32(1, n), numbers32(2, n));
        let [mut queries, mut keys] = [numbers32(3, 6), numbers32(4, 6)];
        let [mut of_queries, mut of_keys] = [queries.clone(), keys.clone()];
        gains_backward(HEADS, EPS, &raw(&x), &dy, [&mut queries, &mut keys]);
        for (x, dy) in x.chunks(HEADS.stride()).zip(dy.chunks(HEADS.stride())) {
            norm::gain_backward_plain(&x[..12], EPS, &dy[..12], &mut of_queries);
            norm::gain_backward_plain(&x[12..18], EPS, &dy[12..18], &mut of_keys);
        }
        assert_close("queries", &queries, &of_queries, 1e-5);
        assert_close("keys", &keys, &of_keys, 1e-5);
    }

    fn raw<R: Copy>(qkv: &[R]) -> Vec<R> {
        qkv.chunks(HEADS.stride()).flat_map(|row| row[..HEADS.turned()].to_vec()).collect()
    }
}
