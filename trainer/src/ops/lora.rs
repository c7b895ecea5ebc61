//! The adapter's product, added to the output of a frozen layer: `y += s · (x∘m) Aᵀ Bᵀ`, m the dropout factors of x.
//!
//! The small side comes first: `u = (x∘m) Aᵀ` is [tokens, rank] and kept. With `t = s · dy B`:
//!
//! ```text
//! dB += s · dyᵀ u      dA += tᵀ (x∘m)      dx += (t A)∘m
//! ```

use rayon::prelude::*;

use super::buffer::{Buffers, lengthen};
use super::dropout::Kept;
use super::matmul::{Product, View, ViewMut};
use super::real::Real;

/// A and B of one module.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a, R> {
    /// `[rank, inputs]`.
    pub a: &'a [R],
    /// `[outputs, rank]`.
    pub b: &'a [R],
    /// Rows of A.
    pub rank: usize,
    /// The factor s.
    pub scale: R,
}

/// Gradients of A and B, added to.
#[derive(Debug)]
pub struct PairGradient<'a, R> {
    /// As A.
    pub a: &'a mut [R],
    /// As B.
    pub b: &'a mut [R],
}

/// `u`, and `y` added to, plainly. `mask` holds the factor of every number in `x`.
pub fn forward_plain<R: Real>(pair: Pair<'_, R>, x: &[R], mask: &[R], u: &mut [R], y: &mut [R]) {
    let inputs = pair.a.len() / pair.rank;
    let masked: Vec<R> = x.iter().zip(mask).map(|(x, m)| *x * *m).collect();
    u.fill(R::default());
    super::linear::forward_plain(&masked, pair.a, inputs, u);
    let scaled: Vec<R> = u.iter().map(|u| *u * pair.scale).collect();
    super::linear::forward_plain(&scaled, pair.b, pair.rank, y);
}

/// Adds to all three gradients, plainly.
pub fn backward_plain<R: Real>(
    pair: Pair<'_, R>,
    (x, mask, u): (&[R], &[R], &[R]),
    dy: &[R],
    gradient: &mut PairGradient<'_, R>,
    dx: &mut [R],
) {
    let (rank, inputs, outputs) = (pair.rank, pair.a.len() / pair.rank, pair.b.len() / pair.rank);
    for (row, dy) in dy.chunks(outputs).enumerate() {
        let u = &u[row * rank..][..rank];
        for (r, u) in u.iter().enumerate() {
            let t = pair.scale * dy.iter().enumerate().map(|(o, dy)| *dy * pair.b[o * rank + r]).sum();
            for (o, dy) in dy.iter().enumerate() {
                gradient.b[o * rank + r] += pair.scale * *dy * *u; // mutate: flip
            }
            for i in 0..inputs {
                let at = row * inputs + i;
                gradient.a[r * inputs + i] += t * x[at] * mask[at]; // mutate: flip
                dx[at] += t * pair.a[r * inputs + i] * mask[at]; // mutate: flip
            }
        }
    }
}

/// Rows of a layer's output (or of its gradient) that belong to this module: fused layers have several side by side.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// Where they begin.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// Numbers in a whole row.
    pub stride: usize,
}

impl Columns {
    /// All of a layer that is not fused.
    pub fn all(count: usize) -> Columns {
        Columns { first: 0, count, stride: count }
    }
}

/// One run of tokens as this operation sees it: the input, and its dropout if there is any.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// `[tokens, inputs]`.
    pub x: &'a [f32],
    /// What is kept of it.
    pub kept: Option<&'a Kept>,
}

impl Input<'_> {
    /// Hands `x∘m` to `use_it`.
    pub(super) fn with_masked<T>(&self, buffers: &Buffers, use_it: impl FnOnce(&[f32]) -> T) -> T {
        let Some(kept) = self.kept else { return use_it(self.x) };
        let mut masked = buffers.take(self.x.len());
        kept.apply(self.x, &mut masked);
        let result = use_it(&masked);
        buffers.give(masked);
        result
    }

    /// `x∘m` of one block of rows; `masked` is room for it.
    fn block<'s>(&'s self, block: usize, inputs: usize, masked: &'s mut Vec<f32>) -> &'s [f32] {
        let x = self.x.chunks(ROWS * inputs).nth(block).expect("as many blocks as rows need");
        let Some(kept) = self.kept else { return x };
        lengthen(masked, x.len());
        kept.apply_from(block * ROWS, x, masked);
        masked
    }
}

/// Rows that one thread takes at a time: what they read and write stays in its cache from one product to the next.
const ROWS: usize = lorikeet_plan::ADAPTER_BLOCK_ROWS;

/// `u`, and the module's columns of `y` added to.
pub fn forward(pair: Pair<'_, f32>, input: Input<'_>, u: &mut [f32], y: &mut [f32], columns: Columns) {
    let (rank, inputs) = (pair.rank, pair.a.len() / pair.rank);
    let (a, b) = (View::new(pair.a, rank, inputs), View::new(pair.b, columns.count, rank));
    let blocks = u.par_chunks_mut(ROWS * rank).zip(y.par_chunks_mut(ROWS * columns.stride)).enumerate();
    blocks.with_max_len(1).for_each_init(Vec::new, |masked, (block, (u, y))| {
        let tokens = u.len() / rank;
        let x = View::new(input.block(block, inputs, masked), tokens, inputs);
        ViewMut::new(u, tokens, rank).set(x.times(a.t()).here());
        let mut y = ViewMut::strided(&mut y[columns.first..], tokens, columns.count, columns.stride);
        y += View::new(u, tokens, rank).times(b.t()).scaled(pair.scale).here();
    });
}

/// Adds to the gradients of A and B and, where one is wanted, of x. Each block of rows has sums of its own for A and B,
/// which are added in order.
pub fn backward(
    pair: Pair<'_, f32>,
    input: Input<'_>,
    buffers: &Buffers,
    (u, dy, columns): (&[f32], &[f32], Columns),
    gradient: &mut PairGradient<'_, f32>,
    dx: Option<&mut [f32]>,
) {
    let (rank, inputs, outputs) = (pair.rank, pair.a.len() / pair.rank, columns.count);
    let (a, b) = (View::new(pair.a, rank, inputs), View::new(pair.b, outputs, rank));
    let (blocks, sums) = (u.len().div_ceil(ROWS * rank), rank * (inputs + outputs));
    let mut partial = buffers.take(blocks * sums);
    let dx: Vec<Option<&mut [f32]>> = match dx {
        Some(dx) => dx.chunks_mut(ROWS * inputs).map(Some).collect(),
        None => (0..blocks).map(|_| None).collect(),
    };
    let tasks = partial.par_chunks_mut(sums).zip(dx).zip(u.par_chunks(ROWS * rank)).enumerate();
    tasks.with_max_len(1).for_each_init(Default::default, |room: &mut [Vec<f32>; 3], (block, ((partial, dx), u))| {
        let ([t, masked, unmasked], tokens) = (room, u.len() / rank);
        let first = block * ROWS * columns.stride + columns.first;
        let dy = View::strided(&dy[first..], tokens, outputs, columns.stride);
        lengthen(t, tokens * rank);
        ViewMut::new(t, tokens, rank).set(dy.times(b).scaled(pair.scale).here());
        let (t, (da, db)) = (View::new(t, tokens, rank), partial.split_at_mut(rank * inputs));
        // [rank, outputs]: the orientation in which its long side is contiguous is four times sooner
        ViewMut::new(db, rank, outputs).set(View::new(u, tokens, rank).t().times(dy).scaled(pair.scale).here());
        ViewMut::new(da, rank, inputs)
            .set(t.t().times(View::new(input.block(block, inputs, masked), tokens, inputs)).here());
        match (dx, input.kept) {
            (None, _) => {}
            (Some(dx), None) => {
                let mut dx = ViewMut::new(dx, tokens, inputs);
                dx += t.times(a).here(); // mutate: flip
            }
            (Some(dx), Some(kept)) => {
                lengthen(unmasked, dx.len());
                ViewMut::new(unmasked, tokens, inputs).set(t.times(a).here());
                kept.add_from(block * ROWS, unmasked, dx);
            }
        }
    });
    let (total, others) = partial.split_at_mut(sums.min(blocks * sums));
    total.par_chunks_mut(PIECE).enumerate().for_each(|(piece, total)| {
        for other in others.chunks(sums) {
            let other = &other[piece * PIECE..][..total.len()];
            total.iter_mut().zip(other).for_each(|(total, other)| *total += other); // mutate: flip
        }
    });
    if blocks > 0 {
        let (da, db) = total.split_at(rank * inputs);
        gradient.a.iter_mut().zip(da).for_each(|(sum, da)| *sum += da); // mutate: flip
        for (o, row) in gradient.b.chunks_mut(rank).enumerate() {
            for (r, sum) in row.iter_mut().enumerate() {
                *sum += db[r * outputs + o]; // mutate: flip
            }
        }
    }
    buffers.give(partial);
}

/// Numbers of a sum of blocks that one thread takes.
const PIECE: usize = 1 << 12;

/// Adds to the gradient of x alone: A and B are constants and x came without dropout.
pub fn backward_constant(pair: Pair<'_, f32>, buffers: &Buffers, (dy, columns): (&[f32], Columns), dx: &mut [f32]) {
    let (rank, inputs) = (pair.rank, pair.a.len() / pair.rank);
    let tokens = dx.len() / inputs;
    let dy = View::strided(&dy[columns.first..], tokens, columns.count, columns.stride);
    let mut t = buffers.take(tokens * rank);
    ViewMut::new(&mut t, tokens, rank).set(dy.times(View::new(pair.b, columns.count, rank)).scaled(pair.scale));
    let mut dx = ViewMut::new(dx, tokens, inputs);
    dx += View::new(&t, tokens, rank).times(View::new(pair.a, rank, inputs)); // mutate: flip
    buffers.give(t);
}

/// Adds a product to `dx`, through the masks.
pub(super) fn add_dx(product: Product<'_>, input: Input<'_>, buffers: &Buffers, inputs: usize, dx: &mut [f32]) {
    let tokens = dx.len() / inputs;
    let Some(kept) = input.kept else {
        let mut dx = ViewMut::new(dx, tokens, inputs);
        dx += product; // mutate: flip
        return;
    };
    let mut unmasked = buffers.take(dx.len());
    ViewMut::new(&mut unmasked, tokens, inputs).set(product);
    kept.add(&unmasked, dx);
    buffers.give(unmasked);
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::lora::Dropout;
    use crate::ops::random::Masks;

    #[test]
    fn the_plain_gradients_equal_finite_differences() {
        let (tokens, inputs, outputs, rank, scale) = (3, 5, 4, 2, 1.5);
        let (x, a, b) = (numbers(1, tokens * inputs), numbers(2, rank * inputs), numbers(3, outputs * rank));
        let mask: Vec<f64> = numbers(5, tokens * inputs).iter().map(|n| if *n < -0.4 { 0.0 } else { 1.25 }).collect();
        let dy = numbers(4, tokens * outputs);
        let run = |x: &[f64], a: &[f64], b: &[f64]| {
            let (mut u, mut y) = (vec![0.0; tokens * rank], vec![0.0; tokens * outputs]);
            forward_plain(Pair { a, b, rank, scale }, x, &mask, &mut u, &mut y);
            (u, dot(&dy, &y))
        };
        let u = run(&x, &a, &b).0;
        let (mut da, mut db, mut dx) = (vec![0.0; a.len()], vec![0.0; b.len()], vec![0.0; x.len()]);
        let mut gradient = PairGradient { a: &mut da, b: &mut db };
        backward_plain(Pair { a: &a, b: &b, rank, scale }, (&x, &mask, &u), &dy, &mut gradient, &mut dx);
        assert_gradient("dx", |x| run(x, &a, &b).1, &x, &dx);
        assert_gradient("dA", |a| run(&x, a, &b).1, &a, &da);
        assert_gradient("dB", |b| run(&x, &a, b).1, &b, &db);
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one_with_and_without_dropout() {
        let (tokens, inputs, outputs, rank, scale) = (2 * ROWS + 7, 33, 20, 4, 0.5);
        let columns = Columns { first: 7, count: outputs, stride: 40 };
        let (x, a, b) = (numbers32(1, tokens * inputs), numbers32(2, rank * inputs), numbers32(3, outputs * rank));
        let wide = numbers32(4, tokens * columns.stride);
        let pair = Pair { a: &a, b: &b, rank, scale };
        let buffers = Buffers::default();
        for p in [0.0, 0.3] {
            let masks = Masks::new(Dropout { p, seed: 1 }, 2, 3);
            let masks: Vec<_> = (0..if p > 0.0 { tokens as u32 } else { 0 }).map(|token| (masks, token)).collect();
            let mut mask = vec![1.0; tokens * inputs];
            mask.chunks_mut(inputs).zip(&masks).for_each(|(row, (masks, token))| masks.factors(4, *token, row));
            let kept = (p > 0.0).then(|| Kept::draw(&masks, 4, inputs));
            let input = Input { x: &x, kept: kept.as_ref() };

            let (mut u, mut y) = (vec![0.0; tokens * rank], wide.clone());
            forward(pair, input, &mut u, &mut y, columns);
            let (mut u_plain, mut y_plain) = (u.clone(), cut(&wide, columns));
            forward_plain(pair, &x, &mask, &mut u_plain, &mut y_plain);
            assert_close("u", &u, &u_plain, 1e-5);
            assert_close("y", &cut(&y, columns), &y_plain, 1e-5);

            let [mut da, mut db, mut dx] = [&a, &b, &x].map(|x| numbers32(9, x.len()));
            let (mut da_plain, mut db_plain, mut dx_plain) = (da.clone(), db.clone(), dx.clone());
            let mut gradient = PairGradient { a: &mut da, b: &mut db };
            backward(pair, input, &buffers, (&u, &wide, columns), &mut gradient, Some(&mut dx));
            let mut gradient = PairGradient { a: &mut da_plain, b: &mut db_plain };
            backward_plain(pair, (&x, &mask, &u), &cut(&wide, columns), &mut gradient, &mut dx_plain);
            assert_close("dA", &da, &da_plain, 1e-5);
            assert_close("dB", &db, &db_plain, 1e-5);
            assert_close("dx", &dx, &dx_plain, 1e-5);
            if kept.is_none() {
                let mut dx = numbers32(9, x.len());
                backward_constant(pair, &buffers, (&wide, columns), &mut dx);
                assert_close("dx of constants", &dx, &dx_plain, 1e-5);
            }
        }
    }

    fn cut(wide: &[f32], columns: Columns) -> Vec<f32> {
        wide.chunks(columns.stride).flat_map(|row| row[columns.first..][..columns.count].to_vec()).collect()
    }
}
