//! DoRA on the second of two fused modules, with dropout: some rows of what it gives, and lengths of some rows of the weight.

use half::bf16;
use rayon::prelude::*;

use super::super::case::output;
use super::super::{Answer, Output};
use super::{EXACT, Large, ROWS, SEVERAL, Shape, TWICE, all, dot};
use crate::lora::Dropout;
use crate::ops::cuda::dora::{self, Dora, Lengths};
use crate::ops::cuda::dropout::RowMasks;
use crate::ops::cuda::linear::Weight;
use crate::ops::cuda::lora::{Input, Pair};
use crate::ops::lora::Columns;
use crate::ops::random::Masks;

const MODULE: u32 = 6;
const SCALE: f32 = 2.0;

/// What is given, as brain floats have it.
struct Given {
    weight: Vec<bf16>,
    a: Vec<bf16>,
    b: Vec<bf16>,
    magnitude: Vec<f32>,
    names: Vec<(Masks, u32)>,
    width: usize,
    rank: usize,
}

impl Given {
    /// Of the module's row `o` of `W + s B A`, number `i`.
    fn moved(&self, o: usize, i: usize) -> f64 {
        let product = dot(self.rank, |r| (&self.b[o * self.rank + r], &self.a[r * self.width + i]));
        self.own(o, i) + f64::from(SCALE) * product
    }

    fn own(&self, o: usize, i: usize) -> f64 {
        self.weight[(self.width + o) * self.width + i].to_f64()
    }

    fn norm(&self, o: usize) -> f64 {
        (0..self.width).map(|i| self.moved(o, i).powi(2)).sum::<f64>().sqrt()
    }

    fn factors(&self, row: usize) -> Vec<f64> {
        let mut factors = vec![1.0f32; self.width];
        let (masks, token) = &self.names[row];
        masks.factors(MODULE, *token, &mut factors);
        factors.into_iter().map(f64::from).collect()
    }
}

impl Large<'_> {
    pub(super) fn dora(&mut self) -> Answer<Vec<Output>> {
        let Shape { tokens, hidden: width, rank, .. } = self.shape;
        let columns = Columns { first: width, count: width, stride: 2 * width };
        let of_token =
            |token: usize| (Masks::new(Dropout { p: 0.1, seed: 11 }, 2, token as u64 / 1000), token as u32 % 1000);
        let root = (width as f32).sqrt();
        let given = Given {
            weight: self.numbers(2 * width * width, 0.5),
            a: self.numbers(rank * width, 0.1),
            b: self.numbers(width * rank, 0.1),
            magnitude: self.fresh.numbers(width, 0.1).iter().map(|m| (m + 0.4) * root).collect(),
            names: (0..tokens).map(of_token).collect(),
            width,
            rank,
        };
        let [x, y, dy] = [width, 2 * width, 2 * width].map(|row| self.numbers(tokens * row, 1.0));
        let weight = Weight::upload(self.gpu, &given.weight, &[], 2 * width, width)?;
        let [on_x, on_dy, on_a, on_b] = [&x, &dy, &given.a, &given.b].map(|numbers| self.gpu.upload(numbers));
        let (on_x, on_dy, on_a, on_b) = (on_x?, on_dy?, on_a?, on_b?);
        let magnitude = self.gpu.upload(&given.magnitude)?;
        let ([v, y_ours, dx], [n, dm]) = self.twice(|gpu| {
            let kept = RowMasks::upload(gpu, &given.names)?.draw(gpu, MODULE, width)?;
            let (x, a, b) = (on_x.as_view(), on_a.as_view(), on_b.as_view());
            let (pair, input) = (Pair { a: &a, b: &b, rank, scale: SCALE }, Input { x: &x, kept: Some(&kept) });
            let lengths = Lengths::measure(gpu, &weight, columns, pair, &magnitude.as_view())?;
            let dora = Dora { weight: &weight, lengths: &lengths };
            let (mut u, mut v) = (gpu.poisoned::<bf16>(tokens * rank)?, gpu.poisoned::<bf16>(tokens * width)?);
            let (mut y, mut dx) = (gpu.upload(&y)?, gpu.zeros::<bf16>(tokens * width)?);
            let to = (&mut u.as_view_mut(), &mut v.as_view_mut());
            dora::forward(gpu, dora, pair, input, to, (&mut y.as_view_mut(), columns))?;
            let [mut da, mut db, mut dm] =
                [gpu.zeros::<f32>(rank * width)?, gpu.zeros(width * rank)?, gpu.zeros(width)?];
            let gradients = [&mut da.as_view_mut(), &mut db.as_view_mut(), &mut dm.as_view_mut()];
            let (kept, dy) = ((input, &u.as_view(), &v.as_view()), (&on_dy.as_view(), columns));
            dora::backward(gpu, dora, pair, kept, dy, gradients, Some(&mut dx.as_view_mut()))?;
            let [n, _] = lengths.read(gpu)?;
            Ok((all(gpu, [&v, &y, &dx])?, [n, gpu.download(&dm.as_view())?]))
        })?;
        let norms: Vec<f64> = (0..width).into_par_iter().map(|o| given.norm(o)).collect();
        let g: Vec<f64> = given.magnitude.iter().zip(&norms).map(|(m, n)| f64::from(*m) / n).collect();
        let (rows, few) = (self.any(tokens, ROWS), self.any(width, 40));
        let d = |row: usize, o: usize| dy[row * 2 * width + width + o].to_f64();
        let each_row =
            |f: &(dyn Fn(usize) -> Vec<f64> + Sync)| rows.par_iter().flat_map_iter(|row| f(*row)).collect::<Vec<f64>>();
        // z and v of some columns
        let both = |row: usize| -> Vec<[f64; 2]> {
            let factors = given.factors(row);
            let masked: Vec<f64> = (0..width).map(|i| factors[i] * x[row * width + i].to_f64()).collect();
            let along = |of: &dyn Fn(usize) -> f64| (0..width).map(|i| masked[i] * of(i)).sum::<f64>();
            few.iter().map(|o| [along(&|i| given.own(*o, i)), along(&|i| given.moved(*o, i))]).collect()
        };
        let v_plain = each_row(&|row| both(row).into_iter().map(|[_, v]| v).collect());
        let y_plain = each_row(&|row| {
            let added = |(o, [z, v]): (&usize, [f64; 2])| y[row * 2 * width + width + o].to_f64() + g[*o] * v - z;
            few.iter().zip(both(row)).map(added).collect()
        });
        let dx_plain = each_row(&|row| {
            let factors = given.factors(row);
            let back = |i: usize| -> f64 {
                (0..width).map(|o| d(row, o) * (g[o] * given.moved(o, i) - given.own(o, i))).sum()
            };
            few.iter().map(|i| factors[*i] * back(*i)).collect()
        });
        let dm_plain =
            |o: &usize| (0..tokens).map(|row| d(row, *o) * v[row * width + o].to_f64()).sum::<f64>() / norms[*o];
        let pick = |all: &[bf16], stride: usize, first: usize| -> Vec<f32> {
            rows.iter().flat_map(|row| few.iter().map(move |c| all[row * stride + first + c].to_f32())).collect()
        };
        let some = |all: &[f32]| few.iter().map(|o| all[*o]).collect();
        Ok(vec![
            output("n", some(&n), few.iter().map(|o| norms[*o]).collect(), EXACT),
            output("v", pick(&v, width, 0), v_plain, TWICE),
            output("y", pick(&y_ours, 2 * width, width), y_plain, TWICE),
            output("dm", some(&dm), few.par_iter().map(dm_plain).collect(), EXACT),
            output("dx", pick(&dx, width, 0), dx_plain, SEVERAL),
        ])
    }
}
