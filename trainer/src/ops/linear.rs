//! The linear layer `y = x Wᵀ + b`, W: [out, in], b only where the model has one. Frozen, weight and bias get no gradient and none
//! is computed; where the model itself is trained, `dW = dyᵀ x` and `db = Σ dy`.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::bf16::{Matrix, Put};
use super::lora::Columns;
use super::matmul::{View, ViewMut};
use super::real::Real;
use crate::quant::Stack;

/// A weight, `[rows, cols]` as Hugging Face stores it: rows are outputs.
#[derive(Debug, Clone)]
pub struct Weight {
    numbers: Numbers,
    /// One number per row, or none at all.
    bias: Vec<f32>,
    rows: usize,
    cols: usize,
}

/// How the numbers of a weight lie in memory, and with it how products with them are taken.
#[derive(Debug, Clone)]
pub enum Numbers {
    /// Products in `f32`.
    F32(Vec<f32>),
    /// The other operand is rounded to bf16 too, sums are `f32` (`ops/bf16.rs`).
    Bf16(Vec<bf16>),
    /// A few rows at a time become `f32`, and products are taken in it (`quant/stack.rs`).
    Quantised(Stack),
}

impl Numbers {
    fn len(&self) -> usize {
        match self {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::Bf16(numbers) => numbers.len(),
            Numbers::Quantised(stack) => stack.len(),
        }
    }
}

impl From<Vec<f32>> for Numbers {
    fn from(numbers: Vec<f32>) -> Numbers {
        Numbers::F32(numbers)
    }
}

impl From<Vec<bf16>> for Numbers {
    fn from(numbers: Vec<bf16>) -> Numbers {
        Numbers::Bf16(numbers)
    }
}

impl From<Stack> for Numbers {
    fn from(stack: Stack) -> Numbers {
        Numbers::Quantised(stack)
    }
}

impl Weight {
    /// From consecutive rows.
    pub fn new(numbers: impl Into<Numbers>, rows: usize, cols: usize) -> Weight {
        let numbers = numbers.into();
        assert_eq!(numbers.len(), rows * cols, "a weight of {rows} × {cols}");
        Weight { numbers, bias: Vec::new(), rows, cols }
    }

    /// With a bias; an empty one is none.
    pub fn with_bias(self, bias: Vec<f32>) -> Weight {
        assert!(bias.is_empty() || bias.len() == self.rows, "a bias of {} numbers for {} rows", bias.len(), self.rows);
        Weight { bias, ..self }
    }

    /// How its numbers lie in memory.
    #[cfg(feature = "cuda")]
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// One number per row, or none at all.
    #[cfg(feature = "cuda")]
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Consecutive rows as `f32`: as they are, or converted.
    pub fn rows_of(&self, rows: Range<usize>) -> Cow<'_, [f32]> {
        let place = rows.start * self.cols..rows.end * self.cols;
        match &self.numbers {
            Numbers::F32(numbers) => Cow::Borrowed(&numbers[place]),
            Numbers::Bf16(numbers) => Cow::Owned(numbers[place].iter().map(|number| number.to_f32()).collect()),
            Numbers::Quantised(stack) => {
                let mut wide = vec![0.0; place.len()];
                stack.widen(rows, &mut wide);
                Cow::Owned(wide)
            }
        }
    }

    /// Consecutive rows, to be changed, and their part of the bias. Only a weight in `f32` is ever trained.
    pub fn rows_mut(&mut self, rows: Range<usize>) -> (&mut [f32], &mut [f32]) {
        let Numbers::F32(numbers) = &mut self.numbers else { panic!("a weight that is trained lies in f32") };
        let bias = if self.bias.is_empty() { &mut [][..] } else { &mut self.bias[rows.clone()] };
        (&mut numbers[rows.start * self.cols..rows.end * self.cols], bias)
    }

    /// `y = x Wᵀ` or `y += x Wᵀ`, without the bias.
    fn forward(&self, x: &[f32], put: Put, y: &mut [f32]) {
        let tokens = x.len() / self.cols;
        match &self.numbers {
            Numbers::F32(numbers) => {
                let product = View::new(x, tokens, self.cols).times(View::new(numbers, self.rows, self.cols).t());
                let mut y = ViewMut::new(y, tokens, self.rows);
                match put {
                    Put::Set => y.set(product),
                    Put::Add => y += product,
                }
            }
            Numbers::Bf16(numbers) => Matrix::new(numbers, self.rows, self.cols).forward(x, put, y),
            Numbers::Quantised(stack) => stack.forward(x, put, y),
        }
    }

    /// `dx = dy W`.
    fn backward(&self, dy: &[f32], dx: &mut [f32]) {
        let tokens = dy.len() / self.rows;
        match &self.numbers {
            Numbers::F32(numbers) => {
                let weight = View::new(numbers, self.rows, self.cols);
                ViewMut::new(dx, tokens, self.cols).set(View::new(dy, tokens, self.rows).times(weight));
            }
            Numbers::Bf16(numbers) => Matrix::new(numbers, self.rows, self.cols).backward(dy, dx),
            Numbers::Quantised(stack) => stack.backward(dy, dx),
        }
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

/// Adds to the gradients of weight and bias, plainly.
pub fn weights_backward_plain<R: Real>(x: &[R], dy: &[R], inputs: usize, dw: &mut [R], db: &mut [R]) {
    for (x, dy) in x.chunks(inputs).zip(dy.chunks(db.len())) {
        for (o, dy) in dy.iter().enumerate() {
            db[o] += *dy; // mutate: flip
            for (dw, x) in dw[o * inputs..][..inputs].iter_mut().zip(x) {
                *dw += *dy * *x; // mutate: flip
            }
        }
    }
}

/// `y = x Wᵀ + b`.
pub fn forward(x: &[f32], weight: &Weight, y: &mut [f32]) {
    if weight.bias.is_empty() {
        weight.forward(x, Put::Set, y);
    } else {
        y.par_chunks_mut(weight.rows).for_each(|row| row.copy_from_slice(&weight.bias));
        weight.forward(x, Put::Add, y);
    }
}

/// `y += x Wᵀ + b`: a residual branch ends in it.
pub fn forward_add(x: &[f32], weight: &Weight, y: &mut [f32]) {
    if !weight.bias.is_empty() {
        y.par_chunks_mut(weight.rows).for_each(|row| row.iter_mut().zip(&weight.bias).for_each(|(y, b)| *y += b));
    }
    weight.forward(x, Put::Add, y);
}

/// `dx = dy W`.
pub fn backward(dy: &[f32], weight: &Weight, dx: &mut [f32]) {
    weight.backward(dy, dx);
}

/// Adds to the gradient of the rows of a weight whose outputs are those columns of `dy`.
pub fn weight_backward(x: &[f32], inputs: usize, (dy, columns): (&[f32], Columns), dw: &mut [f32]) {
    let tokens = x.len() / inputs;
    let dy = View::strided(&dy[columns.first..], tokens, columns.count, columns.stride);
    let mut dw = ViewMut::new(dw, columns.count, inputs);
    dw += dy.t().times(View::new(x, tokens, inputs)); // mutate: flip
}

/// Adds to the gradient of their bias.
pub fn bias_backward((dy, columns): (&[f32], Columns), db: &mut [f32]) {
    for row in dy.chunks(columns.stride) {
        for (db, dy) in db.iter_mut().zip(&row[columns.first..][..columns.count]) {
            *db += dy; // mutate: flip
        }
    }
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

    #[test]
    fn the_gradients_of_weight_and_bias_equal_finite_differences_and_the_cpu_form_them() {
        let (tokens, inputs, outputs) = (3, 4, 5);
        let (x, w, b) = (numbers(1, tokens * inputs), numbers(2, outputs * inputs), numbers(3, outputs));
        let dy = numbers(4, tokens * outputs);
        let loss = |w: &[f64], b: &[f64]| {
            let mut y: Vec<f64> = b.repeat(tokens);
            forward_plain(&x, w, inputs, &mut y);
            dot(&dy, &y)
        };
        let (mut dw, mut db) = (vec![0.0; w.len()], vec![0.0; b.len()]);
        weights_backward_plain(&x, &dy, inputs, &mut dw, &mut db);
        assert_gradient("dW", |w| loss(w, &b), &w, &dw);
        assert_gradient("db", |b| loss(&w, b), &b, &db);

        let columns = Columns { first: 2, count: outputs, stride: 9 };
        let (x, wide) = (numbers32(1, tokens * inputs), numbers32(4, tokens * columns.stride));
        let narrow: Vec<f32> = wide.chunks(9).flat_map(|row| row[2..7].to_vec()).collect();
        let (mut dw, mut db) = (numbers32(8, outputs * inputs), numbers32(9, outputs));
        let (mut dw_plain, mut db_plain) = (dw.clone(), db.clone());
        weight_backward(&x, inputs, (&wide, columns), &mut dw);
        bias_backward((&wide, columns), &mut db);
        weights_backward_plain(&x, &narrow, inputs, &mut dw_plain, &mut db_plain);
        assert_close("dW", &dw, &dw_plain, 1e-6);
        assert_close("db", &db, &db_plain, 1e-6);
    }

    #[test]
    fn a_weight_of_brain_floats_gives_the_same_to_the_precision_of_its_numbers() {
        let (tokens, inputs, outputs) = (19, 33, 21);
        let (x, dy) = (numbers32(1, tokens * inputs), numbers32(3, tokens * outputs));
        let w: Vec<bf16> = numbers32(2, outputs * inputs).into_iter().map(bf16::from_f32).collect();
        let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
        let [narrow, wide] = [Weight::new(w, outputs, inputs), Weight::new(wide, outputs, inputs)]
            .map(|weight| weight.with_bias(numbers32(4, outputs)));
        assert_eq!(narrow.rows_of(3..5), wide.rows_of(3..5));
        let run = |weight: &Weight| {
            let (mut y, mut dx) = (vec![f32::NAN; tokens * outputs], vec![f32::NAN; tokens * inputs]);
            forward(&x, weight, &mut y);
            forward_add(&x, weight, &mut y);
            backward(&dy, weight, &mut dx);
            [y, dx]
        };
        for (narrow, wide) in run(&narrow).iter().zip(run(&wide)) {
            assert_close("y or dx", narrow, &wide, 1.0 / 256.0);
        }
    }

    #[test]
    fn a_bias_is_added_to_every_row() {
        let weight = Weight::new(vec![0.0; 6], 2, 3).with_bias(vec![1.0, -2.0]);
        let mut y = vec![f32::NAN; 4];
        forward(&[0.5; 6], &weight, &mut y);
        assert_eq!(y, [1.0, -2.0, 1.0, -2.0]);
        forward_add(&[0.5; 6], &weight, &mut y);
        assert_eq!(y, [2.0, -4.0, 2.0, -4.0]);
    }
}
