//! The frozen linear layer `y = x Wᵀ`, W: [out, in]. Its weight gets no gradient and none is computed.

use super::matmul::{View, ViewMut};
use super::real::Real;

/// A frozen weight, `[rows, cols]` as Hugging Face stores it: rows are outputs.
#[derive(Debug, Clone)]
pub struct Weight {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Weight {
    /// From consecutive rows.
    pub fn new(data: Vec<f32>, rows: usize, cols: usize) -> Weight {
        assert_eq!(data.len(), rows * cols, "a weight of {rows} × {cols}");
        Weight { data, rows, cols }
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// The whole matrix.
    pub fn view(&self) -> View<'_> {
        View::new(&self.data, self.rows, self.cols)
    }
}

/// Adds `x Wᵀ` to `y`, plainly.
pub fn forward_plain<R: Real>(x: &[R], weight: &[R], inputs: usize, y: &mut [R]) {
    let outputs = weight.len() / inputs;
    for (x, y) in x.chunks(inputs).zip(y.chunks_mut(outputs)) {
        for (y, w) in y.iter_mut().zip(weight.chunks(inputs)) {
            *y += x.iter().zip(w).map(|(x, w)| *x * *w).sum();
        }
    }
}

/// Adds `dy W` to `dx`, plainly.
pub fn backward_plain<R: Real>(dy: &[R], weight: &[R], inputs: usize, dx: &mut [R]) {
    let outputs = weight.len() / inputs;
    for (dy, dx) in dy.chunks(outputs).zip(dx.chunks_mut(inputs)) {
        for (dy, w) in dy.iter().zip(weight.chunks(inputs)) {
            for (dx, w) in dx.iter_mut().zip(w) {
                *dx += *dy * *w; // mutate: flip
            }
        }
    }
}

/// `y = x Wᵀ`.
pub fn forward(x: &[f32], weight: &Weight, y: &mut [f32]) {
    let tokens = x.len() / weight.cols;
    ViewMut::new(y, tokens, weight.rows).set(View::new(x, tokens, weight.cols).times(weight.view().t()));
}

/// `y += x Wᵀ`: a residual branch ends in it.
pub fn forward_add(x: &[f32], weight: &Weight, y: &mut [f32]) {
    let tokens = x.len() / weight.cols;
    let mut y = ViewMut::new(y, tokens, weight.rows);
    y += View::new(x, tokens, weight.cols).times(weight.view().t());
}

/// `dx = dy W`.
pub fn backward(dy: &[f32], weight: &Weight, dx: &mut [f32]) {
    let tokens = dy.len() / weight.rows;
    ViewMut::new(dx, tokens, weight.cols).set(View::new(dy, tokens, weight.rows).times(weight.view()));
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    #[test]
    fn the_plain_gradient_equals_finite_differences() {
        let (x, w, dy) = (numbers(1, 3 * 4), numbers(2, 5 * 4), numbers(3, 3 * 5));
        let loss = |x: &[f64]| {
            let mut y = vec![0.0; 15];
            forward_plain(x, &w, 4, &mut y);
            dot(&dy, &y)
        };
        let mut dx = vec![0.0; 12];
        backward_plain(&dy, &w, 4, &mut dx);
        assert_gradient("dx", loss, &x, &dx);
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one() {
        let (tokens, inputs, outputs) = (19, 33, 21);
        let (x, w, dy) =
            (numbers32(1, tokens * inputs), numbers32(2, outputs * inputs), numbers32(3, tokens * outputs));
        let weight = Weight::new(w.clone(), outputs, inputs);
        let (mut y, mut expected) = (vec![f32::NAN; tokens * outputs], vec![0.0; tokens * outputs]);
        forward(&x, &weight, &mut y);
        forward_plain(&x, &w, inputs, &mut expected);
        assert_close("y", &y, &expected, 1e-5);
        forward_add(&x, &weight, &mut y);
        forward_plain(&x, &w, inputs, &mut expected);
        assert_close("y twice", &y, &expected, 1e-5);
        let (mut dx, mut expected) = (vec![f32::NAN; tokens * inputs], vec![0.0; tokens * inputs]);
        backward(&dy, &weight, &mut dx);
        backward_plain(&dy, &w, inputs, &mut expected);
        assert_close("dx", &dx, &expected, 1e-5);
    }
}
