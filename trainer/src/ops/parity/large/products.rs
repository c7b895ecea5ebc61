//! Products of frozen weights: the largest of a block, and the head with its loss.

use half::bf16;
use rayon::prelude::*;

use super::super::case::output;
use super::super::{Answer, Output};
use super::{Large, ONCE, SEVERAL, Shape, TWICE, all, at, dot, of_rows, product};
use crate::ops::cuda::head::{self, Targets};
use crate::ops::cuda::linear::{self, Weight};
use crate::ops::head::{Wanted, loss_plain};

impl Large<'_> {
    pub(super) fn linear(&mut self) -> Answer<Vec<Output>> {
        let Shape { tokens, hidden: inputs, intermediate, .. } = self.shape;
        let outputs = 2 * intermediate;
        let [x, weight, dy] = [tokens * inputs, outputs * inputs, tokens * outputs].map(|n| self.numbers(n, 1.0));
        let on_weight = Weight::upload(self.gpu, &weight, &[], outputs, inputs)?;
        let (on_x, on_dy) = (self.gpu.upload(&x)?, self.gpu.upload(&dy)?);
        let [y, dx] = self.twice(|gpu| {
            let (mut y, mut dx) = (gpu.poisoned::<bf16>(tokens * outputs)?, gpu.poisoned::<bf16>(tokens * inputs)?);
            linear::forward(gpu, &on_x.as_view(), &on_weight, &mut y.as_view_mut())?;
            linear::backward(gpu, &on_dy.as_view(), &on_weight, &mut dx.as_view_mut())?;
            all(gpu, [&y, &dx])
        })?;
        let (of_y, of_dx) = (self.places(y.len()), self.places(dx.len()));
        let forth = |place: &usize| {
            let (row, column) = (place / outputs, place % outputs);
            dot(inputs, |i| (&x[row * inputs + i], &weight[column * inputs + i]))
        };
        let back = |place: &usize| {
            let (row, column) = (place / inputs, place % inputs);
            dot(outputs, |o| (&dy[row * outputs + o], &weight[o * inputs + column]))
        };
        Ok(vec![
            output("y", at(&y, &of_y), of_y.par_iter().map(forth).collect(), ONCE),
            output("dx", at(&dx, &of_dx), of_dx.par_iter().map(back).collect(), ONCE),
        ])
    }

    pub(super) fn head(&mut self) -> Answer<Vec<Output>> {
        let Shape { hidden, vocabulary, judged, .. } = self.shape;
        let (x, weight) = (self.numbers(judged * hidden, 1.0), self.numbers(vocabulary * hidden, 0.1));
        let targets = self.fresh.below(judged, vocabulary as u32);
        let wanted = |(row, target): (usize, &u32)| Wanted { target: *target, weight: (row % 4) as f32 / 4.0 };
        let wanted: Vec<Wanted> = targets.iter().enumerate().map(wanted).collect();
        let on_weight = Weight::upload(self.gpu, &weight, &[], vocabulary, hidden)?;
        let (on_x, targets) = (self.gpu.upload(&x)?, Targets::upload(self.gpu, &wanted)?);
        let (losses, dx) = self.twice(|gpu| {
            let (mut losses, mut dx) = (gpu.poisoned::<f32>(judged)?, gpu.poisoned::<bf16>(judged * hidden)?);
            let to = Some(&mut dx.as_view_mut());
            head::loss(gpu, &on_x.as_view(), (&on_weight, None), &targets, &mut (), &mut losses.as_view_mut(), to)?;
            Ok((gpu.download(&losses.as_view())?, gpu.download(&dx.as_view())?))
        })?;
        // both sides of where a chunk ends, the last row, and some
        let chunk = lorikeet_plan::GPU_LOGITS / vocabulary;
        let mut rows: Vec<usize> =
            [chunk - 1, chunk, 2 * chunk, judged - 1].into_iter().filter(|row| *row < judged).collect();
        rows.extend(self.any(judged, 4));
        let mut logits: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| {
                let x = &x[row * hidden..][..hidden];
                (0..vocabulary).into_par_iter().map(|word| product(x, &weight[word * hidden..][..hidden])).collect()
            })
            .collect();
        let of_row = |(row, logits): (&usize, &mut Vec<f64>)| {
            loss_plain(logits, wanted[*row].target as usize, f64::from(wanted[*row].weight))
        };
        let losses_plain = rows.iter().zip(&mut logits).map(of_row).collect();
        let back = |gradient: &Vec<f64>| -> Vec<f64> {
            let parts = gradient.par_iter().zip(weight.par_chunks(hidden)).fold(
                || vec![0.0; hidden],
                |mut sums, (g, weights)| {
                    sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += g * w.to_f64());
                    sums
                },
            );
            parts.reduce(|| vec![0.0; hidden], |a, b| a.iter().zip(b).map(|(a, b)| a + b).collect())
        };
        let dx_plain = logits.iter().flat_map(back).collect();
        let losses = rows.iter().map(|row| losses[*row]).collect();
        Ok(vec![
            output("losses", losses, losses_plain, TWICE),
            output("dx", of_rows(&dx, &rows, hidden), dx_plain, SEVERAL),
        ])
    }
}
