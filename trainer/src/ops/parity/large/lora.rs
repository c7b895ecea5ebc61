//! An adapter's products: all of some rows, and some numbers of what is summed over all rows.

use half::bf16;
use rayon::prelude::*;

use super::super::case::output;
use super::super::{Answer, Output};
use super::{CUT, Large, ONCE, ROWS, SEVERAL, SUMMED, Shape, TWICE, all, dot};
use crate::lora::Dropout;
use crate::ops::cuda::dropout::RowMasks;
use crate::ops::cuda::lora::{self, Input, Pair};
use crate::ops::lora::Columns;
use crate::ops::random::Masks;

impl Large<'_> {
    /// A module of `inputs` and as many outputs as the residual stream is wide.
    pub(super) fn lora(&mut self, inputs: usize, p: f64) -> Answer<Vec<Output>> {
        const MODULE: u32 = 5;
        const SCALE: f32 = 2.0;
        let Shape { tokens, hidden: outputs, rank, .. } = self.shape;
        let [x, y, dy] = [tokens * inputs, tokens * outputs, tokens * outputs].map(|n| self.numbers(n, 1.0));
        let (a, b, dx) = (self.numbers(rank * inputs, 0.2), self.numbers(outputs * rank, 0.5), x.clone());
        let columns = Columns::all(outputs);
        let of_token =
            |token: usize| (Masks::new(Dropout { p, seed: 11 }, 2, token as u64 / 1000), token as u32 % 1000);
        let names: Vec<(Masks, u32)> = if p > 0.0 { (0..tokens).map(of_token).collect() } else { Vec::new() };
        let [on_x, on_a, on_b, on_dy] = [&x, &a, &b, &dy].map(|numbers| self.gpu.upload(numbers));
        let (on_x, on_a, on_b, on_dy) = (on_x?, on_a?, on_b?, on_dy?);
        let ([u, y_ours, dx_ours], [da, db]) = self.twice(|gpu| {
            let masks = RowMasks::upload(gpu, &names)?;
            let kept = if p > 0.0 { Some(masks.draw(gpu, MODULE, inputs)?) } else { None };
            let (x, a, b) = (on_x.as_view(), on_a.as_view(), on_b.as_view());
            let (pair, input) = (Pair { a: &a, b: &b, rank, scale: SCALE }, Input { x: &x, kept: kept.as_ref() });
            let (mut u, mut y, mut dx) = (gpu.poisoned::<bf16>(tokens * rank)?, gpu.upload(&y)?, gpu.upload(&dx)?);
            lora::forward(gpu, pair, input, &mut u.as_view_mut(), &mut y.as_view_mut(), columns)?;
            let (mut da, mut db) = (gpu.zeros::<f32>(rank * inputs)?, gpu.zeros::<f32>(outputs * rank)?);
            let (kept, gradients) =
                ((&u.as_view(), &on_dy.as_view(), columns), [&mut da.as_view_mut(), &mut db.as_view_mut()]);
            lora::backward(gpu, pair, input, kept, gradients, Some(&mut dx.as_view_mut()))?;
            Ok((all(gpu, [&u, &y, &dx])?, all(gpu, [&da, &db])?))
        })?;
        // everything of some rows, and sums over all rows for some ranks and columns
        let (rows, few_inputs, few_outputs) = (self.any(tokens, ROWS), self.any(inputs, 40), self.any(outputs, 40));
        let ranks = [0, rank / 2, rank - 1];
        let factors = |row: usize| {
            let mut factors = vec![1.0f32; inputs];
            names.get(row).into_iter().for_each(|(masks, token)| masks.factors(MODULE, *token, &mut factors));
            factors
        };
        let down = |row: usize| -> Vec<f64> {
            let masked: Vec<f64> =
                factors(row).iter().zip(&x[row * inputs..]).map(|(m, x)| f64::from(*m) * x.to_f64()).collect();
            a.chunks(inputs).map(|a| masked.iter().zip(a).map(|(x, a)| x * a.to_f64()).sum()).collect()
        };
        let up = |row: usize, r: usize| f64::from(SCALE) * dot(outputs, |o| (&dy[row * outputs + o], &b[o * rank + r]));
        let each_row =
            |f: &(dyn Fn(usize) -> Vec<f64> + Sync)| rows.par_iter().flat_map_iter(|row| f(*row)).collect::<Vec<f64>>();
        let u_plain = each_row(&down);
        let y_plain = each_row(&|row| {
            let u = down(row);
            let added = |o: &usize| (0..rank).map(|r| u[r] * b[o * rank + r].to_f64()).sum::<f64>();
            few_outputs.iter().map(|o| y[row * outputs + o].to_f64() + f64::from(SCALE) * added(o)).collect()
        });
        let dx_plain = each_row(&|row| {
            let (t, masked): (Vec<f64>, _) = ((0..rank).map(|r| up(row, r)).collect(), factors(row));
            let added = |i: &usize| (0..rank).map(|r| t[r] * a[r * inputs + i].to_f64()).sum::<f64>();
            few_inputs.iter().map(|i| dx[row * inputs + i].to_f64() + f64::from(masked[*i]) * added(i)).collect()
        });
        let sums = |count: usize, of_row: &(dyn Fn(usize, &mut [f64]) + Sync)| {
            let parts = (0..tokens).into_par_iter().fold(
                || vec![0.0; count],
                |mut sums, row| {
                    of_row(row, &mut sums);
                    sums
                },
            );
            parts.reduce(|| vec![0.0; count], |a, b| a.iter().zip(b).map(|(a, b)| a + b).collect())
        };
        let da_plain = sums(ranks.len() * few_inputs.len(), &|row, sums| {
            let masked = factors(row);
            for (r, sums) in ranks.iter().zip(sums.chunks_mut(few_inputs.len())) {
                let t = up(row, *r);
                let of = |i: usize| t * f64::from(masked[i]) * x[row * inputs + i].to_f64();
                sums.iter_mut().zip(&few_inputs).for_each(|(sum, i)| *sum += of(*i));
            }
        });
        let db_plain = sums(few_outputs.len() * ranks.len(), &|row, sums| {
            for (o, sums) in few_outputs.iter().zip(sums.chunks_mut(ranks.len())) {
                let of = |r: usize| f64::from(SCALE) * dy[row * outputs + o].to_f64() * u[row * rank + r].to_f64();
                sums.iter_mut().zip(ranks).for_each(|(sum, r)| *sum += of(r));
            }
        });
        let pick = |all: &[bf16], width: usize, few: &[usize]| -> Vec<f32> {
            rows.iter().flat_map(|row| few.iter().map(move |c| all[row * width + c].to_f32())).collect()
        };
        let every_rank: Vec<usize> = (0..rank).collect();
        let da = ranks.into_iter().flat_map(|r| few_inputs.iter().map(move |i| r * inputs + i)).map(|place| da[place]);
        let db = few_outputs.iter().flat_map(|o| ranks.map(|r| o * rank + r)).map(|place| db[place]);
        Ok(vec![
            output("u", pick(&u, rank, &every_rank), u_plain, ONCE),
            output("y", pick(&y_ours, outputs, &few_outputs), y_plain, TWICE),
            output("dx", pick(&dx_ours, inputs, &few_inputs), dx_plain, SEVERAL),
            output("dA", da.collect(), da_plain, SUMMED),
            output("dB", db.collect(), db_plain, CUT),
        ])
    }
}
