//! One new row, and a few, over all that was kept of a long sequence: every head of each.

use half::bf16;
use rayon::prelude::*;

use super::super::case::output;
use super::super::{Answer, Output};
use super::{Large, ROWS, TWICE, of_rows, product};
use crate::ops::cuda::decode::{self, Kept};

impl Large<'_> {
    pub(super) fn decode(&mut self) -> Answer<Vec<Output>> {
        let (heads, tokens) = (self.heads(), self.shape.tokens);
        let (stride, width) = (heads.stride(), heads.width);
        let qkv = self.numbers(tokens * stride, 2.0);
        let on_gpu = self.gpu.upload(&qkv)?;
        let row = |row: usize, head: usize| &qkv[row * stride + head * width..][..width];
        let shared = |head: usize| heads.queries + head / (heads.queries / heads.keys);
        let plain = |at: usize, head: usize| -> Vec<f64> {
            let score = |key: usize| heads.scale * product(row(at, head), row(key, shared(head)));
            let scores: Vec<f64> = (0..=at).map(score).collect();
            let most = scores.iter().fold(f64::MIN, |most, s| most.max(*s));
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            let mut mean = vec![0.0; width];
            for (key, s) in scores.iter().enumerate() {
                let (p, value) = ((s - most).exp() / sum, row(key, shared(head) + heads.keys));
                mean.iter_mut().zip(value).for_each(|(mean, v)| *mean += p * v.to_f64());
            }
            mean
        };
        let mut of = |name: &'static str, new: usize| -> Answer<Output> {
            let before = tokens - new;
            let out = self.twice(|gpu| {
                let (mut kept, mut out) = (Kept::default(), gpu.poisoned::<bf16>(new * heads.out_stride())?);
                let rows = on_gpu.slice(before * stride..);
                kept.push(gpu, heads, &on_gpu.slice(..before * stride))?;
                kept.push(gpu, heads, &rows)?;
                decode::forward(gpu, heads, &rows, &kept, &mut out.as_view_mut())?;
                gpu.download(&out.as_view())
            })?;
            let each: Vec<(usize, usize)> =
                (before..tokens).flat_map(|row| (0..heads.queries).map(move |head| (row, head))).collect();
            let plain = each.par_iter().flat_map_iter(|(row, head)| plain(*row, *head)).collect();
            Ok(output(name, of_rows(&out, &[0], out.len()), plain, TWICE))
        };
        Ok(vec![of("one row", 1)?, of("several rows", ROWS)?])
    }
}
