//! Soft cap: `y = c · tanh(x / c)` keeps numbers within ±c and hardly moves small ones.
//!
//! `dx = dy · (1 − (y / c)²)`: the slope follows from the result, so nothing else is kept.

use super::real::Real;
use super::simd;

/// `y` in the place of `x`, plainly.
pub fn forward_plain<R: Real>(x: &mut [R], cap: R) {
    x.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh());
}

/// Turns the gradient for `y` into that for `x`, plainly.
pub fn backward_plain<R: Real>(y: &[R], cap: R, dy: &mut [R]) {
    for (y, dy) in y.iter().zip(dy) {
        let mut slope = R::of(1.0);
        slope -= *y / cap * (*y / cap); // mutate: flip
        *dy = *dy * slope;
    }
}

/// `y` in the place of `x`.
#[inline(always)]
pub fn forward(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = cap * simd::tanh(*x / cap));
}

/// Turns the gradient for `y` into that for `x`.
#[inline(always)]
pub fn backward(y: &[f32], cap: f32, dy: &mut [f32]) {
    for (y, dy) in y.iter().zip(dy) {
        let share = *y / cap;
        let mut slope = 1.0;
        slope -= share * share; // mutate: flip
        *dy *= slope;
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    #[test]
    fn the_plain_gradient_equals_finite_differences() {
        let (x, dy, cap) = (numbers(1, 12), numbers(2, 12), 0.4);
        let run = |x: &[f64]| {
            let mut y = x.to_vec();
            forward_plain(&mut y, cap);
            y
        };
        let mut dx = dy.clone();
        backward_plain(&run(&x), cap, &mut dx);
        assert_gradient("dx", |x| dot(&dy, &run(x)), &x, &dx);
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one_and_stays_within_the_cap() {
        let x: Vec<f32> = numbers32(1, 300).iter().map(|x| 40.0 * x).collect();
        let (mut y, mut expected) = (x.clone(), x);
        forward(&mut y, 5.0);
        forward_plain(&mut expected, 5.0);
        assert_close("y", &y, &expected, 1e-6);
        assert!(y.iter().all(|y| y.abs() <= 5.0));
        let (mut dy, mut expected) = (numbers32(2, 300), numbers32(2, 300));
        backward(&y, 5.0, &mut dy);
        backward_plain(&y, 5.0, &mut expected);
        assert_close("dx", &dy, &expected, 1e-6);
    }
}
