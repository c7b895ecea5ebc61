//! SwiGLU: `y = silu(gate) · up` with `silu(x) = x σ(x)`. A row of the input is gate and up side by side.
//!
//! `dup = dy · silu(gate)`, `dgate = dy · up · σ(gate) (1 + gate (1 − σ(gate)))`.

use rayon::prelude::*;

use super::real::Real;
use super::simd;

/// `y` of every row of `gate_up`, plainly.
pub fn forward_plain<R: Real>(gate_up: &[R], width: usize, y: &mut [R]) {
    for (row, y) in gate_up.chunks(2 * width).zip(y.chunks_mut(width)) {
        let (gate, up) = row.split_at(width);
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = *g * sigmoid(*g) * *u;
        }
    }
}

/// Overwrites `gate_up` with its gradient, plainly.
pub fn backward_plain<R: Real>(gate_up: &mut [R], width: usize, dy: &[R]) {
    for (row, dy) in gate_up.chunks_mut(2 * width).zip(dy.chunks(width)) {
        let (gate, up) = row.split_at_mut(width);
        for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
            let s = sigmoid(*g);
            let mut slope = s;
            slope += *g * s * (R::of(1.0) - s); // mutate: flip
            let (mut dg, mut du) = (R::default(), R::default());
            dg += *dy * *u * slope; // mutate: flip
            du += *dy * *g * s; // mutate: flip
            (*g, *u) = (dg, du);
        }
    }
}

fn sigmoid<R: Real>(x: R) -> R {
    R::of(1.0) / (R::of(1.0) + (-x).exp())
}

/// `y` of every row of `gate_up`.
pub fn forward(gate_up: &[f32], width: usize, y: &mut [f32]) {
    y.par_chunks_mut(width).zip(gate_up.par_chunks(2 * width)).with_min_len(8).for_each(|(y, row)| {
        let (gate, up) = row.split_at(width);
        simd::wide(
            #[inline(always)]
            || {
                for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                    *y = *g * *u / (1.0 + simd::exp(-*g));
                }
            },
        );
    });
}

/// Overwrites `gate_up` with its gradient.
pub fn backward(gate_up: &mut [f32], width: usize, dy: &[f32]) {
    gate_up.par_chunks_mut(2 * width).zip(dy.par_chunks(width)).with_min_len(8).for_each(|(row, dy)| {
        let (gate, up) = row.split_at_mut(width);
        simd::wide(
            #[inline(always)]
            || {
                for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
                    let s = 1.0 / (1.0 + simd::exp(-*g));
                    let mut slope = s;
                    slope += *g * s * (1.0 - s); // mutate: flip
                    let (mut dg, mut du) = (0.0, 0.0);
                    dg += *dy * *u * slope; // mutate: flip
                    du += *dy * *g * s; // mutate: flip
                    (*g, *u) = (dg, du);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    #[test]
    fn the_plain_gradient_equals_finite_differences() {
        let (x, dy) = (numbers(1, 20), numbers(2, 10));
        let loss = |x: &[f64]| {
            let mut y = vec![0.0; 10];
            forward_plain(x, 5, &mut y);
            dot(&dy, &y)
        };
        let mut dx = x.clone();
        backward_plain(&mut dx, 5, &dy);
        assert_gradient("gate and up", loss, &x, &dx);
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one() {
        let (rows, width) = (3, 37);
        let x: Vec<f32> = numbers32(1, rows * 2 * width).iter().map(|x| 8.0 * x).collect();
        let (mut y, mut expected) = (vec![0.0; rows * width], vec![0.0; rows * width]);
        forward(&x, width, &mut y);
        forward_plain(&x, width, &mut expected);
        assert_close("y", &y, &expected, 1e-6);
        let dy = numbers32(2, rows * width);
        let (mut dx, mut expected) = (x.clone(), x);
        backward(&mut dx, width, &dy);
        backward_plain(&mut expected, width, &dy);
        assert_close("dx", &dx, &expected, 1e-6);
    }

    #[test]
    fn a_very_negative_gate_is_zero_and_a_very_large_one_is_itself() {
        let mut y = [0.0; 2];
        forward(&[-500.0, 300.0, 2.0, 2.0], 2, &mut y);
        assert!(y[0].abs() < 1e-30 && y[1] == 600.0, "{y:?}");
    }
}
