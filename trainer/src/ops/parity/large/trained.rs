//! What a model that is trained itself gets: gradients of weights, gains, biases and of the embedding.

use half::bf16;
use lorikeet_plan::Rope;
use rayon::prelude::*;

use super::super::case::{output, turn_plainly, wide};
use super::super::{Answer, Output};
use super::{CUT, EPS, EXACT, Large, ROWS, Shape, all, dot};
use crate::ops::cuda::rope::Turns;
use crate::ops::cuda::{linear, lookup, norm, rope};
use crate::ops::lookup::Standing;
use crate::ops::lora::Columns;
use crate::ops::norm as plain_norm;
use crate::ops::rope::{Known, Rotations, Turn};

impl Large<'_> {
    pub(super) fn weight(&mut self) -> Answer<Vec<Output>> {
        let Shape { tokens, hidden: inputs, intermediate, .. } = self.shape;
        // up, beside the gate
        let columns = Columns { first: intermediate, count: intermediate, stride: 2 * intermediate };
        let [x, dy] = [tokens * inputs, tokens * columns.stride].map(|n| self.numbers(n, 1.0));
        let before = self.fresh.numbers(inputs, 1.0).repeat(columns.count);
        let (on_x, on_dy) = (self.gpu.upload(&x)?, self.gpu.upload(&dy)?);
        let dw = self.twice(|gpu| {
            let (mut dw, dy) = (gpu.upload(&before)?, (&on_dy.as_view(), columns));
            linear::weight_backward(gpu, &on_x.as_view(), inputs, dy, &mut dw.as_view_mut())?;
            gpu.download(&dw.as_view())
        })?;
        let places = self.places(dw.len());
        let plain = |place: &usize| {
            let (row, column) = (columns.first + place / inputs, place % inputs);
            f64::from(before[*place]) + dot(tokens, |t| (&dy[t * columns.stride + row], &x[t * inputs + column]))
        };
        let ours = places.iter().map(|place| dw[*place]).collect();
        Ok(vec![output("dW", ours, places.par_iter().map(plain).collect(), CUT)])
    }

    pub(super) fn sums_over_rows(&mut self) -> Answer<Vec<Output>> {
        let Shape { tokens, hidden: width, .. } = self.shape;
        let heads = self.heads();
        let lengths = self.segments().map(|segment| segment.len());
        let rotations =
            Rotations::new(&Rope { theta: 500_000.0, scaling: None }, heads.width, &lengths, &Known::default());
        let turns = Turns::upload(self.gpu, &rotations)?;
        let [x, dy] = [2.0, 1.0].map(|bound| self.numbers(tokens * width, bound));
        let [raw, dqkv] = [tokens * heads.turned(), tokens * heads.stride()].map(|n| self.numbers(n, 1.0));
        let keys =
            Columns { first: heads.queries * heads.width, count: heads.keys * heads.width, stride: heads.stride() };
        let [on_x, on_dy, on_raw, on_dqkv] = [&x, &dy, &raw, &dqkv].map(|all| self.gpu.upload(all));
        let (on_x, on_dy, on_raw, on_dqkv) = (on_x?, on_dy?, on_raw?, on_dqkv?);
        let of_kinds = [0..heads.width, heads.width..2 * heads.width];
        let [gain, bias, gains] = self.twice(|gpu| {
            let [mut gain, mut bias, mut gains] =
                [gpu.zeros::<f32>(width)?, gpu.zeros(keys.count)?, gpu.zeros(2 * heads.width)?];
            norm::gain_backward(gpu, &on_x.as_view(), EPS, &on_dy.as_view(), &mut gain.as_view_mut())?;
            linear::bias_backward(gpu, (&on_dqkv.as_view(), keys), &mut bias.as_view_mut())?;
            let passed = (&on_raw.as_view(), &on_dqkv.as_view());
            rope::gains_backward(gpu, heads, EPS, &turns, passed, (&mut gains, of_kinds.clone()))?;
            all(gpu, [&gain, &bias, &gains])
        })?;
        let mut of_gain = vec![0.0; width];
        plain_norm::gain_backward_plain(&wide_of(&x), EPS, &wide_of(&dy), &mut of_gain);
        let of_bias = |c: usize| (0..tokens).map(|row| dqkv[row * keys.stride + keys.first + c].to_f64()).sum();
        let mut back = wide_of(&dqkv);
        turn_plainly(heads, &rotations, &mut back, Turn::Back);
        let mut of_gains = vec![0.0; 2 * heads.width];
        let (of_queries, of_keys) = of_gains.split_at_mut(heads.width);
        for (x, dy) in wide_of(&raw).chunks(heads.turned()).zip(back.chunks(heads.stride())) {
            plain_norm::gain_backward_plain(&x[..keys.first], EPS, &dy[..keys.first], of_queries);
            plain_norm::gain_backward_plain(&x[keys.first..], EPS, &dy[keys.first..heads.turned()], of_keys);
        }
        Ok(vec![
            output("gain", gain, of_gain, EXACT),
            output("bias", bias, (0..keys.count).map(of_bias).collect(), EXACT),
            output("gains of heads", gains, of_gains, EXACT),
        ])
    }

    pub(super) fn table(&mut self) -> Answer<Vec<Output>> {
        let Shape { tokens, hidden: width, vocabulary, .. } = self.shape;
        let rows = vocabulary / 8;
        let mut seen = self.fresh.below(tokens, rows as u32);
        // one that stands everywhere
        seen.iter_mut().step_by(3).for_each(|token| *token = 5);
        let dy = self.numbers(tokens * width, 1.0);
        let standing = lookup::Standing::upload(self.gpu, &Standing::new(&seen, None))?;
        let on_dy = self.gpu.upload(&dy)?;
        let dtable = self.twice(|gpu| {
            let mut dtable = gpu.zeros::<f32>(rows * width)?;
            lookup::table_backward(gpu, &standing, &on_dy.as_view(), 0.5, width, &mut dtable.as_view_mut())?;
            gpu.download(&dtable.as_view())
        })?;
        let of_tokens: Vec<usize> = [5].into_iter().chain(self.any(rows, ROWS)).collect();
        let plain = |token: &usize| -> Vec<f64> {
            let mut sums = vec![0.0; width];
            for (_, dy) in seen.iter().zip(dy.chunks(width)).filter(|(of, _)| **of as usize == *token) {
                sums.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += 0.5 * dy.to_f64());
            }
            sums
        };
        let ours = of_tokens.iter().flat_map(|token| &dtable[token * width..][..width]).copied().collect();
        Ok(vec![output("dE", ours, of_tokens.iter().flat_map(plain).collect(), EXACT)])
    }
}

fn wide_of(all: &[bf16]) -> Vec<f64> {
    wide(&all.iter().map(|x| x.to_f32()).collect::<Vec<_>>())
}
