//! RMSNorm: `y = x · g / √(mean(x²) + ε)`, row by row. Frozen, the gain gets no gradient; where the model itself is trained,
//! `dg = Σ ρ x · dy`.
//!
//! With `ρ = 1 / √(mean(x²) + ε)` and `t = g · dy`: `dx = ρ t − ρ³ x · mean(x · t)`. Nothing is saved: ρ is made again.

use rayon::prelude::*;

use super::real::Real;
use super::simd;

/// `y = norm(x)`, plainly.
pub fn forward_plain<R: Real>(x: &[R], gain: &[R], eps: f64, y: &mut [R]) {
    let width = gain.len();
    for (x, y) in x.chunks(width).zip(y.chunks_mut(width)) {
        let rho = rho(x, eps);
        for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
            *y = *x * rho * *g;
        }
    }
}

/// Adds the gradient for `x` to `dx`, plainly.
pub fn backward_plain<R: Real>(x: &[R], gain: &[R], eps: f64, dy: &[R], dx: &mut [R]) {
    let width = gain.len();
    for ((x, dy), dx) in x.chunks(width).zip(dy.chunks(width)).zip(dx.chunks_mut(width)) {
        let rho = rho(x, eps);
        let along: R = x.iter().zip(dy).zip(gain).map(|((x, dy), g)| *x * *dy * *g).sum();
        let back = rho * rho * rho * along / R::of(width as f64);
        for (((dx, x), dy), g) in dx.iter_mut().zip(x).zip(dy).zip(gain) {
            *dx += rho * *g * *dy; // mutate: flip
            *dx -= back * *x; // mutate: flip
        }
    }
}

/// Adds to the gradient of the gain, plainly.
pub fn gain_backward_plain<R: Real>(x: &[R], eps: f64, dy: &[R], dgain: &mut [R]) {
    let width = dgain.len();
    for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
        let rho = rho(x, eps);
        for ((dg, x), dy) in dgain.iter_mut().zip(x).zip(dy) {
            *dg += rho * *x * *dy; // mutate: flip
        }
    }
}

fn rho<R: Real>(x: &[R], eps: f64) -> R {
    let square: R = x.iter().map(|x| *x * *x).sum();
    R::of(1.0) / (square / R::of(x.len() as f64) + R::of(eps)).sqrt()
}

/// `y = norm(x)`.
pub fn forward(x: &[f32], gain: &[f32], eps: f64, y: &mut [f32]) {
    let rows = y.par_chunks_mut(gain.len()).zip(x.par_chunks(gain.len()));
    rows.with_min_len(16).for_each(|(y, x)| forward_row(x, gain, eps, y));
}

/// `y += norm(x)`: a residual branch ends in it.
pub fn forward_add(x: &[f32], gain: &[f32], eps: f64, y: &mut [f32]) {
    let rows = y.par_chunks_mut(gain.len()).zip(x.par_chunks(gain.len()));
    rows.with_min_len(16).for_each(|(y, x)| each(x, gain, eps, y, |y, normed| *y += normed));
}

/// One row of [`forward`].
#[inline(always)]
pub(super) fn forward_row(x: &[f32], gain: &[f32], eps: f64, y: &mut [f32]) {
    each(x, gain, eps, y, |y, normed| *y = normed);
}

#[inline(always)]
fn each(x: &[f32], gain: &[f32], eps: f64, y: &mut [f32], put: impl Fn(&mut f32, f32)) {
    simd::wide(
        #[inline(always)]
        || {
            let rho = rho_of(x, eps);
            for ((y, x), g) in y.iter_mut().zip(x).zip(gain) {
                put(y, *x * rho * *g);
            }
        },
    );
}

/// Adds the gradient for `x` to `dx`.
pub fn backward(x: &[f32], gain: &[f32], eps: f64, dy: &[f32], dx: &mut [f32]) {
    let width = gain.len();
    let rows = dx.par_chunks_mut(width).zip(x.par_chunks(width)).zip(dy.par_chunks(width));
    rows.with_min_len(16).for_each(|((dx, x), dy)| backward_row(x, gain, eps, dy, dx));
}

/// One row of [`backward`].
#[inline(always)]
pub(super) fn backward_row(x: &[f32], gain: &[f32], eps: f64, dy: &[f32], dx: &mut [f32]) {
    simd::wide(
        #[inline(always)]
        || {
            let rho = rho_of(x, eps);
            let along = simd::sum([x, dy, gain], |[x, dy, g]| x * dy * g);
            let back = rho * rho * rho * along / gain.len() as f32;
            for (((dx, x), dy), g) in dx.iter_mut().zip(x).zip(dy).zip(gain) {
                let mut step = rho * *g * *dy;
                step -= back * *x; // mutate: flip
                *dx += step; // mutate: flip
            }
        },
    );
}

/// Adds to the gradient of the gain: fixed blocks of rows, added in order.
pub fn gain_backward(x: &[f32], eps: f64, dy: &[f32], dgain: &mut [f32]) {
    const ROWS: usize = 64;
    let width = dgain.len();
    let blocks = x.par_chunks(ROWS * width).zip(dy.par_chunks(ROWS * width));
    let parts: Vec<Vec<f32>> = blocks
        .map(|(x, dy)| {
            let mut part = vec![0.0; width];
            for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
                gain_backward_row(x, eps, dy, &mut part);
            }
            part
        })
        .collect();
    for part in parts {
        dgain.iter_mut().zip(part).for_each(|(dg, part)| *dg += part); // mutate: flip
    }
}

/// One row of it.
#[inline(always)]
pub(super) fn gain_backward_row(x: &[f32], eps: f64, dy: &[f32], dgain: &mut [f32]) {
    simd::wide(
        #[inline(always)]
        || {
            let rho = rho_of(x, eps);
            for ((dg, x), dy) in dgain.iter_mut().zip(x).zip(dy) {
                *dg += rho * *x * *dy; // mutate: flip
            }
        },
    );
}

#[inline(always)]
fn rho_of(x: &[f32], eps: f64) -> f32 {
    let square = simd::sum([x], |[x]| x * x);
    1.0 / (square / x.len() as f32 + eps as f32).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    const EPS: f64 = 1e-5;

    #[test]
    fn the_plain_gradient_equals_finite_differences() {
        let (x, gain, dy) = (numbers(1, 24), numbers(2, 8), numbers(3, 24));
        let loss = |x: &[f64]| {
            let mut y = vec![0.0; 24];
            forward_plain(x, &gain, EPS, &mut y);
            dot(&dy, &y)
        };
        let mut dx = vec![0.0; 24];
        backward_plain(&x, &gain, EPS, &dy, &mut dx);
        assert_gradient("dx", loss, &x, &dx);
    }

    #[test]
    fn the_gradient_of_the_gain_equals_finite_differences_and_the_cpu_form_it() {
        let (x, gain, dy) = (numbers(1, 24), numbers(2, 8), numbers(3, 24));
        let loss = |gain: &[f64]| {
            let mut y = vec![0.0; 24];
            forward_plain(&x, gain, EPS, &mut y);
            dot(&dy, &y)
        };
        let mut dgain = vec![0.0; 8];
        gain_backward_plain(&x, EPS, &dy, &mut dgain);
        assert_gradient("dgain", loss, &gain, &dgain);
        let (x, dy) = (numbers32(1, 150 * 8), numbers32(3, 150 * 8));
        let (mut ours, mut expected) = (numbers32(4, 8), numbers32(4, 8));
        gain_backward(&x, EPS, &dy, &mut ours);
        gain_backward_plain(&x, EPS, &dy, &mut expected);
        assert_close("dgain", &ours, &expected, 1e-5);
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one() {
        for width in [7, 16, 577] {
            let n = 5 * width;
            let (x, gain, dy) = (numbers32(1, n), numbers32(2, width), numbers32(3, n));
            let (mut y, mut expected) = (vec![0.0; n], vec![0.0; n]);
            forward(&x, &gain, EPS, &mut y);
            forward_plain(&x, &gain, EPS, &mut expected);
            assert_close("y", &y, &expected, 1e-6);
            forward_add(&x, &gain, EPS, &mut y);
            expected.iter_mut().for_each(|y| *y *= 2.0);
            assert_close("y twice", &y, &expected, 1e-6);
            let (mut dx, mut expected) = (numbers32(4, n), numbers32(4, n));
            backward(&x, &gain, EPS, &dy, &mut dx);
            backward_plain(&x, &gain, EPS, &dy, &mut expected);
            assert_close("dx", &dx, &expected, 1e-5);
        }
    }
}
