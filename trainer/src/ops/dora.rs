//! DoRA: the adapted weight's rows keep a length of their own. With V = W + s B A, row norms n = ‖V‖ and the trained magnitude m,
//! the layer computes `y = x Wᵀ + b + (m/n − 1) ∘ z + (m/n) ∘ s (x∘k) Aᵀ Bᵀ` where `z = (x∘k) Wᵀ` and k are the dropout factors.
//!
//! As in PEFT, n follows the weights but gets no gradient. With g = m / n and v = z + s (x∘k) Aᵀ Bᵀ:
//!
//! ```text
//! y += g ∘ v − z        dm += Σ dy ∘ v / n        dv = g ∘ dy: dA, dB as without DoRA
//! dx += (((g − 1) ∘ dy) W + s (dv B) A) ∘ k
//! ```

use rayon::prelude::*;

use super::buffer::Buffers;
use super::lora::{self, Columns, Input, Pair, PairGradient};
use super::matmul::{View, ViewMut};
use super::real::Real;
use super::simd;

/// Rows of V that exist at a time on one thread.
const ROWS: usize = 32;

/// The frozen weight under an adapter and the lengths of its rows.
#[derive(Debug, Clone, Copy)]
pub struct Dora<'a, R> {
    /// `[outputs, inputs]`.
    pub weight: &'a [R],
    /// m.
    pub magnitude: &'a [R],
    /// n.
    pub norms: &'a [R],
}

/// Gradients, added to.
#[derive(Debug)]
pub struct DoraGradient<'a, R> {
    /// Of A and B.
    pub pair: PairGradient<'a, R>,
    /// Of m.
    pub magnitude: &'a mut [R],
}

/// Row norms of `W + s B A`, plainly.
pub fn norms_plain<R: Real>(weight: &[R], pair: Pair<'_, R>, norms: &mut [R]) {
    let inputs = pair.a.len() / pair.rank;
    for ((row, b), norm) in weight.chunks(inputs).zip(pair.b.chunks(pair.rank)).zip(norms) {
        let moved = |i: usize| {
            let product: R = b.iter().enumerate().map(|(r, b)| *b * pair.a[r * inputs + i]).sum();
            row[i] + pair.scale * product
        };
        *norm = (0..inputs).map(|i| moved(i) * moved(i)).sum::<R>().sqrt();
    }
}

/// `v`, and `y` added to, plainly. `u` is what [`lora::forward_plain`] keeps.
pub fn forward_plain<R: Real>(
    dora: Dora<'_, R>,
    pair: Pair<'_, R>,
    (x, mask): (&[R], &[R]),
    (u, v): (&mut [R], &mut [R]),
    y: &mut [R],
) {
    let inputs = pair.a.len() / pair.rank;
    let masked: Vec<R> = x.iter().zip(mask).map(|(x, m)| *x * *m).collect();
    v.fill(R::default());
    super::linear::forward_plain(&masked, dora.weight, inputs, v);
    y.iter_mut().zip(&*v).for_each(|(y, z)| *y -= *z);
    lora::forward_plain(pair, x, mask, u, v);
    for (y, v) in y.chunks_mut(dora.norms.len()).zip(v.chunks(dora.norms.len())) {
        for (o, (y, v)) in y.iter_mut().zip(v).enumerate() {
            *y += dora.magnitude[o] / dora.norms[o] * *v;
        }
    }
}

/// Adds to all gradients, plainly.
pub fn backward_plain<R: Real>(
    dora: Dora<'_, R>,
    pair: Pair<'_, R>,
    (x, mask, u, v): (&[R], &[R], &[R], &[R]),
    dy: &[R],
    gradient: &mut DoraGradient<'_, R>,
    dx: &mut [R],
) {
    let (inputs, outputs) = (pair.a.len() / pair.rank, dora.norms.len());
    let mut dv = dy.to_vec();
    for (dv, v) in dv.chunks_mut(outputs).zip(v.chunks(outputs)) {
        for o in 0..outputs {
            gradient.magnitude[o] += dv[o] * v[o] / dora.norms[o]; // mutate: flip
            dv[o] = dv[o] * dora.magnitude[o] / dora.norms[o];
        }
    }
    lora::backward_plain(pair, (x, mask, u), &dv, &mut gradient.pair, dx);
    dv.iter_mut().zip(dy).for_each(|(dv, dy)| *dv -= *dy); // mutate: flip
    let mut unmasked = vec![R::default(); dx.len()];
    super::linear::backward_plain(&dv, dora.weight, inputs, &mut unmasked);
    for ((dx, d), m) in dx.iter_mut().zip(unmasked).zip(mask) {
        *dx += d * *m; // mutate: flip
    }
}

/// Row norms of `W + s B A`.
pub fn norms(weight: &[f32], pair: Pair<'_, f32>, norms: &mut [f32]) {
    let (rank, inputs) = (pair.rank, pair.a.len() / pair.rank);
    let a = View::new(pair.a, rank, inputs);
    let blocks = norms.par_chunks_mut(ROWS).zip(weight.par_chunks(ROWS * inputs)).zip(pair.b.par_chunks(ROWS * rank));
    blocks.for_each(|((norms, rows), b)| {
        let mut moved = rows.to_vec();
        let mut v = ViewMut::new(&mut moved, norms.len(), inputs);
        v += View::new(b, norms.len(), rank).times(a).scaled(pair.scale).here();
        for (norm, row) in norms.iter_mut().zip(moved.chunks(inputs)) {
            let square = simd::wide(
                #[inline(always)]
                || simd::sum([row], |[x]| x * x),
            );
            *norm = square.sqrt();
        }
    });
}

/// `u`, `v`, and the module's columns of `y`, which hold the frozen layer's output, added to.
pub fn forward(
    dora: Dora<'_, f32>,
    pair: Pair<'_, f32>,
    input: Input<'_>,
    buffers: &Buffers,
    (u, v): (&mut [f32], &mut [f32]),
    (y, columns): (&mut [f32], Columns),
) {
    let (inputs, outputs) = (pair.a.len() / pair.rank, columns.count);
    let tokens = input.x.len() / inputs;
    input.with_masked(buffers, |x| {
        let weight = View::new(dora.weight, outputs, inputs);
        ViewMut::new(v, tokens, outputs).set(View::new(x, tokens, inputs).times(weight.t()));
    });
    each_row(y, columns, v, |y, z| y.iter_mut().zip(z).for_each(|(y, z)| *y -= z));
    let whole = Columns::all(outputs);
    lora::forward(pair, input, u, v, whole);
    each_row(y, columns, v, |y, v| {
        for (o, (y, v)) in y.iter_mut().zip(v).enumerate() {
            *y += dora.magnitude[o] / dora.norms[o] * v;
        }
    });
}

/// Adds to the gradients of A, B and m and, where one is wanted, of x.
pub fn backward(
    dora: Dora<'_, f32>,
    pair: Pair<'_, f32>,
    (input, u, v): (Input<'_>, &[f32], &[f32]),
    buffers: &Buffers,
    (dy, columns): (&[f32], Columns),
    gradient: &mut DoraGradient<'_, f32>,
    dx: Option<&mut [f32]>,
) {
    let (inputs, outputs) = (pair.a.len() / pair.rank, columns.count);
    let tokens = input.x.len() / inputs;
    let mut dv = buffers.take(tokens * outputs);
    for (row, dv) in dv.chunks_mut(outputs).enumerate() {
        let dy = &dy[row * columns.stride + columns.first..][..outputs];
        let v = &v[row * outputs..][..outputs];
        for o in 0..outputs {
            gradient.magnitude[o] += dy[o] * v[o] / dora.norms[o]; // mutate: flip
            dv[o] = dora.magnitude[o] / dora.norms[o] * dy[o];
        }
    }
    let whole = Columns::all(outputs);
    let mut dx = dx;
    lora::backward(pair, input, buffers, (u, &dv, whole), &mut gradient.pair, dx.as_deref_mut());
    if let Some(dx) = dx {
        for (row, dv) in dv.chunks_mut(outputs).enumerate() {
            let dy = &dy[row * columns.stride + columns.first..][..outputs];
            dv.iter_mut().zip(dy).for_each(|(dv, dy)| *dv -= dy); // mutate: flip
        }
        let weight = View::new(dora.weight, outputs, inputs);
        lora::add_dx(View::new(&dv, tokens, outputs).times(weight), input, buffers, inputs, dx);
    }
    buffers.give(dv);
}

/// Hands every row's columns of `y` and its row of `v` to `f`.
fn each_row(y: &mut [f32], columns: Columns, v: &[f32], f: impl Fn(&mut [f32], &[f32]) + Sync) {
    let rows = y.par_chunks_mut(columns.stride).zip(v.par_chunks(columns.count));
    rows.with_min_len(16).for_each(|(y, v)| f(&mut y[columns.first..][..columns.count], v));
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::super::dropout::Kept;
    use super::super::random::Masks;
    use super::*;
    use crate::lora::Dropout;

    #[test]
    fn the_plain_gradients_equal_finite_differences_with_the_norms_held_still() {
        let (tokens, inputs, outputs, rank, scale) = (3, 5, 4, 2, 1.5);
        let (x, a, b) = (numbers(1, tokens * inputs), numbers(2, rank * inputs), numbers(3, outputs * rank));
        let (weight, magnitude) = (numbers(6, outputs * inputs), numbers(7, outputs));
        let mask: Vec<f64> = numbers(5, tokens * inputs).iter().map(|n| if *n < -0.4 { 0.0 } else { 1.25 }).collect();
        let dy = numbers(4, tokens * outputs);
        let mut norms = vec![0.0; outputs];
        norms_plain(&weight, Pair { a: &a, b: &b, rank, scale }, &mut norms);
        let run = |x: &[f64], a: &[f64], b: &[f64], magnitude: &[f64]| {
            let (mut u, mut v) = (vec![0.0; tokens * rank], vec![0.0; tokens * outputs]);
            let mut y = vec![0.0; tokens * outputs];
            super::super::linear::forward_plain(x, &weight, inputs, &mut y);
            let dora = Dora { weight: &weight, magnitude, norms: &norms };
            forward_plain(dora, Pair { a, b, rank, scale }, (x, &mask), (&mut u, &mut v), &mut y);
            (u, v, dot(&dy, &y))
        };
        let (u, v, _) = run(&x, &a, &b, &magnitude);
        let (mut da, mut db, mut dm) = (vec![0.0; a.len()], vec![0.0; b.len()], vec![0.0; outputs]);
        let mut dx = vec![0.0; x.len()];
        super::super::linear::backward_plain(&dy, &weight, inputs, &mut dx);
        let pair = PairGradient { a: &mut da, b: &mut db };
        let mut gradient = DoraGradient { pair, magnitude: &mut dm };
        let dora = Dora { weight: &weight, magnitude: &magnitude, norms: &norms };
        backward_plain(dora, Pair { a: &a, b: &b, rank, scale }, (&x, &mask, &u, &v), &dy, &mut gradient, &mut dx);
        assert_gradient("dx", |x| run(x, &a, &b, &magnitude).2, &x, &dx);
        assert_gradient("dA", |a| run(&x, a, &b, &magnitude).2, &a, &da);
        assert_gradient("dB", |b| run(&x, &a, b, &magnitude).2, &b, &db);
        assert_gradient("dm", |m| run(&x, &a, &b, m).2, &magnitude, &dm);
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one_with_and_without_dropout() {
        let (tokens, inputs, outputs, rank, scale) = (40, 33, 70, 4, 0.5);
        let columns = Columns { first: 7, count: outputs, stride: 90 };
        let (x, a, b) = (numbers32(1, tokens * inputs), numbers32(2, rank * inputs), numbers32(3, outputs * rank));
        let (weight, magnitude, wide) =
            (numbers32(6, outputs * inputs), numbers32(7, outputs), numbers32(4, tokens * columns.stride));
        let pair = Pair { a: &a, b: &b, rank, scale };
        let buffers = Buffers::default();
        let (mut of_rows, mut plain) = (vec![0.0; outputs], vec![0.0; outputs]);
        norms(&weight, pair, &mut of_rows);
        norms_plain(&weight, pair, &mut plain);
        assert_close("norms", &of_rows, &plain, 1e-6);
        let dora = Dora { weight: &weight, magnitude: &magnitude, norms: &of_rows };
        for p in [0.0, 0.3] {
            let masks = Masks::new(Dropout { p, seed: 1 }, 2, 3);
            let masks: Vec<_> = (0..if p > 0.0 { tokens as u32 } else { 0 }).map(|token| (masks, token)).collect();
            let mut mask = vec![1.0; tokens * inputs];
            mask.chunks_mut(inputs).zip(&masks).for_each(|(row, (masks, token))| masks.factors(4, *token, row));
            let kept = (p > 0.0).then(|| Kept::draw(&masks, 4, inputs));
            let input = Input { x: &x, kept: kept.as_ref() };

            let (mut u, mut v, mut y) = (vec![0.0; tokens * rank], vec![0.0; tokens * outputs], wide.clone());
            forward(dora, pair, input, &buffers, (&mut u, &mut v), (&mut y, columns));
            let (mut u_plain, mut v_plain, mut y_plain) = (u.clone(), v.clone(), cut(&wide, columns));
            forward_plain(dora, pair, (&x, &mask), (&mut u_plain, &mut v_plain), &mut y_plain);
            assert_close("v", &v, &v_plain, 1e-5);
            assert_close("y", &cut(&y, columns), &y_plain, 1e-5);

            let [mut da, mut db, mut dm, mut dx] = [&a, &b, &magnitude, &x].map(|x| numbers32(9, x.len()));
            let [mut da_plain, mut db_plain, mut dm_plain, mut dx_plain] = [&da, &db, &dm, &dx].map(Clone::clone);
            let mut gradient = DoraGradient { pair: PairGradient { a: &mut da, b: &mut db }, magnitude: &mut dm };
            backward(dora, pair, (input, &u, &v), &buffers, (&wide, columns), &mut gradient, Some(&mut dx));
            let mut gradient =
                DoraGradient { pair: PairGradient { a: &mut da_plain, b: &mut db_plain }, magnitude: &mut dm_plain };
            let kept = (&x[..], &mask[..], &u[..], &v[..]);
            backward_plain(dora, pair, kept, &cut(&wide, columns), &mut gradient, &mut dx_plain);
            assert_close("dA", &da, &da_plain, 1e-5);
            assert_close("dB", &db, &db_plain, 1e-5);
            assert_close("dm", &dm, &dm_plain, 1e-5);
            assert_close("dx", &dx, &dx_plain, 1e-5);
        }
    }

    fn cut(wide: &[f32], columns: Columns) -> Vec<f32> {
        wide.chunks(columns.stride).flat_map(|row| row[columns.first..][..columns.count].to_vec()).collect()
    }
}
