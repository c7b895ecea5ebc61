//! Gated linear units: `y = f(gate) · up`, f the SiLU (SwiGLU) or the tanh form of GELU (GeGLU). A row of the input is gate and
//! up side by side.
//!
//! ```text
//! dup = dy · f(gate)      dgate = dy · up · f'(gate)
//! silu(x) = x σ(x)                       silu'(x) = σ(x) (1 + x (1 − σ(x)))
//! gelu(x) = x (1 + t) / 2                gelu'(x) = (1 + t) / 2 + x (1 − t²) / 2 · √(2/π) (1 + 3 · 0.044715 x²)
//!           t = tanh(√(2/π) (x + 0.044715 x³))
//! ```

use lorikeet_plan::Activation;
use rayon::prelude::*;

use super::real::Real;
use super::simd;

/// √(2/π).
const ROOT: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

/// `y` of every row of `gate_up`, plainly.
pub fn forward_plain<R: Real>(activation: Activation, gate_up: &[R], width: usize, y: &mut [R]) {
    for (row, y) in gate_up.chunks(2 * width).zip(y.chunks_mut(width)) {
        let (gate, up) = row.split_at(width);
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = value_and_slope(activation, *g).0 * *u;
        }
    }
}

/// Overwrites `gate_up` with its gradient, plainly.
pub fn backward_plain<R: Real>(activation: Activation, gate_up: &mut [R], width: usize, dy: &[R]) {
    for (row, dy) in gate_up.chunks_mut(2 * width).zip(dy.chunks(width)) {
        let (gate, up) = row.split_at_mut(width);
        for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
            let (value, slope) = value_and_slope(activation, *g);
            let (mut dg, mut du) = (R::default(), R::default());
            dg += *dy * *u * slope; // mutate: flip
            du += *dy * value; // mutate: flip
            (*g, *u) = (dg, du);
        }
    }
}

fn value_and_slope<R: Real>(activation: Activation, x: R) -> (R, R) {
    let one = R::of(1.0);
    match activation {
        Activation::Silu => {
            let s = one / (one + (-x).exp());
            let mut slope = s;
            slope += x * s * (one - s); // mutate: flip
            (x * s, slope)
        }
        Activation::GeluTanh => {
            let t = (R::of(ROOT) * (x + R::of(CUBIC) * x * x * x)).tanh();
            let half = R::of(0.5);
            let mut slope = half * (one + t);
            slope += half * x * (one - t * t) * R::of(ROOT) * (one + R::of(3.0 * CUBIC) * x * x); // mutate: flip
            (half * x * (one + t), slope)
        }
    }
}

/// `y` of every row of `gate_up`.
pub fn forward(activation: Activation, gate_up: &[f32], width: usize, y: &mut [f32]) {
    y.par_chunks_mut(width).zip(gate_up.par_chunks(2 * width)).with_min_len(8).for_each(|(y, row)| {
        let (gate, up) = row.split_at(width);
        match activation {
            Activation::Silu => forward_row(gate, up, y, silu),
            Activation::GeluTanh => forward_row(gate, up, y, |x| 0.5 * x * (1.0 + gelu_tanh(x))),
        }
    });
}

#[inline(always)]
fn forward_row(gate: &[f32], up: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    simd::wide(
        #[inline(always)]
        || {
            for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                *y = f(*g) * *u;
            }
        },
    );
}

/// Overwrites `gate_up` with its gradient.
pub fn backward(activation: Activation, gate_up: &mut [f32], width: usize, dy: &[f32]) {
    gate_up.par_chunks_mut(2 * width).zip(dy.par_chunks(width)).with_min_len(8).for_each(|(row, dy)| {
        let (gate, up) = row.split_at_mut(width);
        match activation {
            Activation::Silu => backward_row(gate, up, dy, silu_and_slope),
            Activation::GeluTanh => backward_row(gate, up, dy, gelu_and_slope),
        }
    });
}

#[inline(always)]
fn backward_row(gate: &mut [f32], up: &mut [f32], dy: &[f32], f: impl Fn(f32) -> (f32, f32)) {
    simd::wide(
        #[inline(always)]
        || {
            for ((g, u), dy) in gate.iter_mut().zip(up).zip(dy) {
                let (value, slope) = f(*g);
                let (mut dg, mut du) = (0.0, 0.0);
                dg += *dy * *u * slope; // mutate: flip
                du += *dy * value; // mutate: flip
                (*g, *u) = (dg, du);
            }
        },
    );
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + simd::exp(-x))
}

#[inline(always)]
fn silu_and_slope(x: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + simd::exp(-x));
    let mut slope = s;
    slope += x * s * (1.0 - s); // mutate: flip
    (x * s, slope)
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    simd::tanh(ROOT as f32 * (x + CUBIC as f32 * x * x * x))
}

#[inline(always)]
fn gelu_and_slope(x: f32) -> (f32, f32) {
    let t = gelu_tanh(x);
    let mut slope = 0.5 * (1.0 + t);
    slope += 0.5 * x * (1.0 - t * t) * ROOT as f32 * (1.0 + 3.0 * CUBIC as f32 * x * x); // mutate: flip
    (0.5 * x * (1.0 + t), slope)
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    const BOTH: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

    #[test]
    fn the_plain_gradient_equals_finite_differences() {
        let (x, dy) = (numbers(1, 20), numbers(2, 10));
        for activation in BOTH {
            let loss = |x: &[f64]| {
                let mut y = vec![0.0; 10];
                forward_plain(activation, x, 5, &mut y);
                dot(&dy, &y)
            };
            let mut dx = x.clone();
            backward_plain(activation, &mut dx, 5, &dy);
            assert_gradient("gate and up", loss, &x, &dx);
        }
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one() {
        let (rows, width) = (3, 37);
        let start: Vec<f32> = numbers32(1, rows * 2 * width).iter().map(|x| 8.0 * x).collect();
        for activation in BOTH {
            let x = start.clone();
            let (mut y, mut expected) = (vec![0.0; rows * width], vec![0.0; rows * width]);
            forward(activation, &x, width, &mut y);
            forward_plain(activation, &x, width, &mut expected);
            assert_close("y", &y, &expected, 1e-6);
            let dy = numbers32(2, rows * width);
            let (mut dx, mut expected) = (x.clone(), x);
            backward(activation, &mut dx, width, &dy);
            backward_plain(activation, &mut expected, width, &dy);
            assert_close("dx", &dx, &expected, 1e-6);
        }
    }

    #[test]
    fn a_very_negative_gate_is_zero_and_a_very_large_one_is_itself() {
        for activation in BOTH {
            let mut y = [0.0; 2];
            forward(activation, &[-500.0, 300.0, 2.0, 2.0], 2, &mut y);
            assert!(y[0].abs() < 1e-30 && y[1] == 600.0, "{y:?}");
            let mut dx = [-500.0, 300.0, 2.0, 2.0];
            backward(activation, &mut dx, 2, &[1.0, 1.0]);
            assert!(dx.iter().all(|x| x.is_finite()), "{dx:?}");
        }
    }
}
