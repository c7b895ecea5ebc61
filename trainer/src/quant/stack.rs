//! Products with weights in fewer bits: a few rows at a time are taken apart into 32-bit floats and multiplied.
//!
//! ```text
//! y  = x Wᵀ     every block of rows makes its own columns of y
//! dx = dy W     every block of rows adds its columns of dy times itself, from the first block to the last
//! ```
//! Blocks follow from the shape alone, so the bits do not depend on the number of threads.

use std::cell::Cell;
use std::ops::Range;

use lorikeet_plan::SCRATCH_NUMBERS;

use super::Quantised;
use crate::ops::bf16::Put;
use crate::ops::matmul::{View, ViewMut};

/// Weights of several modules, one below the other.
#[derive(Debug, Clone)]
pub struct Stack {
    parts: Vec<(Range<usize>, Quantised)>,
    rows: usize,
    cols: usize,
}

thread_local! {
    /// Where rows are taken apart. Taken out while it is used, for a thread that waits may begin something else.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl Stack {
    /// Of weights with so many rows each.
    pub fn new(weights: Vec<(usize, Quantised)>, cols: usize) -> Stack {
        let mut rows = 0;
        let place = |(count, weight)| {
            let first = rows;
            rows += count;
            (first..rows, weight)
        };
        Stack { parts: weights.into_iter().map(place).collect(), rows, cols }
    }

    /// How many numbers it stands for.
    #[expect(clippy::len_without_is_empty, reason = "no weight is empty")]
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Inputs.
    #[cfg(feature = "cuda")]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The weights, and the rows that each makes up.
    #[cfg(feature = "cuda")]
    pub fn parts(&self) -> &[(Range<usize>, Quantised)] {
        &self.parts
    }

    /// Overwrites `out` with consecutive rows.
    pub fn widen(&self, rows: Range<usize>, out: &mut [f32]) {
        for (place, weight) in &self.parts {
            let (first, end) = (rows.start.max(place.start), rows.end.min(place.end));
            if first < end {
                let out = &mut out[(first - rows.start) * self.cols..(end - rows.start) * self.cols];
                weight.widen((first - place.start) * self.cols, out);
            }
        }
    }

    /// `y = x Wᵀ`, or `y += x Wᵀ`.
    pub fn forward(&self, x: &[f32], put: Put, y: &mut [f32]) {
        let tokens = x.len() / self.cols;
        self.each_block(|rows, weight| {
            let product = View::new(x, tokens, self.cols).times(View::new(weight, rows.len(), self.cols).t());
            let mut y = ViewMut::strided(&mut y[rows.start..], tokens, rows.len(), self.rows);
            match put {
                Put::Set => y.set(product),
                Put::Add => y += product,
            }
        });
    }

    /// `dx = dy W`.
    pub fn backward(&self, dy: &[f32], dx: &mut [f32]) {
        let tokens = dy.len() / self.rows;
        self.each_block(|rows, weight| {
            let dy = View::strided(&dy[rows.start..], tokens, rows.len(), self.rows);
            let product = dy.times(View::new(weight, rows.len(), self.cols));
            let mut dx = ViewMut::new(dx, tokens, self.cols);
            if rows.start == 0 {
                dx.set(product);
            } else {
                dx += product;
            }
        });
    }

    /// Hands every block of rows to `use_it`, taken apart.
    fn each_block(&self, mut use_it: impl FnMut(Range<usize>, &[f32])) {
        let most = (SCRATCH_NUMBERS / self.cols).clamp(1, self.rows);
        let mut scratch = SCRATCH.take();
        if scratch.len() < most * self.cols {
            scratch.resize(most * self.cols, 0.0);
        }
        for first in (0..self.rows).step_by(most) {
            let rows = first..(first + most).min(self.rows);
            let weight = &mut scratch[..rows.len() * self.cols];
            self.widen(rows.clone(), weight);
            use_it(rows, weight);
        }
        SCRATCH.set(scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Int8, Nf4};
    use super::*;
    use crate::ops::check::{assert_close, numbers32};
    use crate::ops::linear::{backward_plain, forward_plain};
    use crate::ops::widen::Stored;

    #[test]
    fn products_are_those_with_the_rows_taken_apart_however_many_blocks_there_are() {
        let (tokens, cols) = (5, 384);
        let counts = [SCRATCH_NUMBERS / cols - 7, 33, 90];
        let weights = counts.iter().enumerate().map(|(i, rows)| {
            let numbers = numbers32(i as u32, rows * cols);
            let weight = match i {
                1 => Quantised::Int8(Int8::new(&numbers, cols)),
                _ => Quantised::Nf4(Nf4::new(&numbers, Stored::F32)),
            };
            (*rows, weight)
        });
        let stack = Stack::new(weights.collect(), cols);
        let rows: usize = counts.iter().sum();
        let mut wide = vec![f32::NAN; rows * cols];
        stack.widen(0..rows, &mut wide);
        let (x, dy) = (numbers32(8, tokens * cols), numbers32(9, tokens * rows));
        let (mut y, mut expected) = (vec![f32::NAN; tokens * rows], vec![0.0; tokens * rows]);
        stack.forward(&x, Put::Set, &mut y);
        forward_plain(&x, &wide, cols, &mut expected);
        assert_close("y", &y, &expected, 1e-5);
        stack.forward(&x, Put::Add, &mut y);
        forward_plain(&x, &wide, cols, &mut expected);
        assert_close("y twice", &y, &expected, 1e-5);
        let (mut dx, mut expected) = (vec![f32::NAN; tokens * cols], vec![0.0; tokens * cols]);
        stack.backward(&dy, &mut dx);
        backward_plain(&dy, &wide, cols, &mut expected);
        assert_close("dx", &dx, &expected, 1e-5);
    }
}
