//! Attention in many waves of tiles: some rows and heads of the output and of every gradient.

use half::bf16;
use rayon::prelude::*;

use super::super::case::{output, wide};
use super::super::{Answer, Output};
use super::{EXACT, Large, ROWS, SEVERAL, TWICE, all, of_rows, product};
use crate::ops::cuda::attention::{self, Tiles};

impl Large<'_> {
    pub(super) fn attention(&mut self) -> Answer<Vec<Output>> {
        let (heads, tokens, segments) = (self.heads(), self.shape.tokens, self.segments());
        let (stride, out_stride, width) = (heads.stride(), heads.out_stride(), heads.width);
        let (qkv, dout) = (self.numbers(tokens * stride, 2.0), self.numbers(tokens * out_stride, 1.0));
        let tiles = Tiles::upload(self.gpu, &segments)?;
        let (on_qkv, on_dout) = (self.gpu.upload(&qkv)?, self.gpu.upload(&dout)?);
        let ([out, dqkv], lse) = self.twice(|gpu| {
            let (mut out, mut dqkv) =
                (gpu.poisoned::<bf16>(tokens * out_stride)?, gpu.poisoned::<bf16>(tokens * stride)?);
            let mut lse = gpu.poisoned::<f32>(tokens * heads.queries)?;
            let qkv = on_qkv.as_view();
            attention::forward(gpu, heads, &tiles, &qkv, &mut out.as_view_mut(), &mut lse.as_view_mut())?;
            let kept = (&out.as_view(), &lse.as_view());
            attention::backward(gpu, heads, &tiles, &qkv, kept, &on_dout.as_view(), &mut dqkv.as_view_mut())?;
            Ok((all(gpu, [&out, &dqkv])?, gpu.download(&lse.as_view())?))
        })?;
        let group = heads.queries / heads.keys;
        let segment =
            |row: usize| segments.iter().find(|segment| segment.contains(&row)).expect("segments cover all rows");
        let part = |row: usize, head: usize| &qkv[row * stride + head * width..][..width];
        let of_out =
            |all: &[bf16], row: usize, head: usize| of_rows(&all[row * out_stride + head * width..], &[0], width);
        let score = |row: usize, head: usize, key: usize| {
            heads.scale * product(part(row, head), part(key, heads.queries + head / group))
        };
        let value = |key: usize, head: usize| part(key, heads.queries + heads.keys + head / group);
        // late rows, which see many keys and so have small numbers, and not the first, beside whose they would not count
        let late: Vec<usize> = self.any(tokens / 2, ROWS).into_iter().map(|row| row + tokens / 4).collect();
        let of_heads = self.any(heads.queries, ROWS);
        let queries: Vec<(usize, usize)> =
            late.into_iter().chain([tokens - 1]).zip(of_heads.into_iter().chain([0])).collect();
        let forth: Vec<(Vec<f64>, f64)> = queries
            .par_iter()
            .map(|(row, head)| {
                let keys = segment(*row).start..row + 1;
                let scores: Vec<f64> = keys.clone().map(|key| score(*row, *head, key)).collect();
                let most = scores.iter().fold(f64::MIN, |most, s| most.max(*s));
                let lse = most + scores.iter().map(|s| (s - most).exp()).sum::<f64>().ln();
                let mut mean = vec![0.0; width];
                for (key, s) in keys.zip(scores) {
                    let p = (s - lse).exp();
                    mean.iter_mut().zip(value(key, *head)).for_each(|(mean, v)| *mean += p * v.to_f64());
                }
                (mean, lse)
            })
            .collect();
        // what a backward pass begins with is what the forward pass kept
        let slope = |row: usize, head: usize, key: usize| {
            let (out, dout) = (wide(&of_out(&out, row, head)), &dout[row * out_stride + head * width..][..width]);
            let delta: f64 = out.iter().zip(dout).map(|(o, d)| o * d.to_f64()).sum();
            let p = (score(row, head, key) - f64::from(lse[row * heads.queries + head])).exp();
            (p, heads.scale * p * (product(dout, value(key, head)) - delta))
        };
        let dq: Vec<f64> = queries
            .par_iter()
            .flat_map_iter(|(row, head)| {
                let mut dq = vec![0.0; width];
                for key in segment(*row).start..row + 1 {
                    let (_, ds) = slope(*row, *head, key);
                    let k = part(key, heads.queries + head / group);
                    dq.iter_mut().zip(k).for_each(|(dq, k)| *dq += ds * k.to_f64());
                }
                dq
            })
            .collect();
        let keys: Vec<(usize, usize)> = queries.iter().map(|(row, head)| (*row, head / group)).collect();
        let dkv: Vec<[Vec<f64>; 2]> = keys
            .par_iter()
            .map(|(key, shared)| {
                let (mut dk, mut dv) = (vec![0.0; width], vec![0.0; width]);
                for (row, head) in
                    (*key..segment(*key).end).flat_map(|row| (0..group).map(move |i| (row, shared * group + i)))
                {
                    let (p, ds) = slope(row, head, *key);
                    dk.iter_mut().zip(part(row, head)).for_each(|(dk, q)| *dk += ds * q.to_f64());
                    let dout = &dout[row * out_stride + head * width..][..width];
                    dv.iter_mut().zip(dout).for_each(|(dv, d)| *dv += p * d.to_f64());
                }
                [dk, dv]
            })
            .collect();
        let ours = |of: &dyn Fn(usize, usize) -> Vec<f32>| {
            queries.iter().flat_map(|(row, head)| of(*row, *head)).collect::<Vec<f32>>()
        };
        let gradient = |row: usize, head: usize| of_rows(&dqkv[row * stride + head * width..], &[0], width);
        let of_keys =
            |first: usize| keys.iter().flat_map(|(row, head)| gradient(*row, first + head)).collect::<Vec<f32>>();
        let lse = queries.iter().map(|(row, head)| lse[row * heads.queries + head]).collect();
        let [dk, dv] = [0, 1].map(|i| dkv.iter().flat_map(|both| both[i].clone()).collect::<Vec<f64>>());
        Ok(vec![
            output(
                "out",
                ours(&|row, head| of_out(&out, row, head)),
                forth.iter().flat_map(|(mean, _)| mean.clone()).collect(),
                TWICE,
            ),
            output("lse", lse, forth.iter().map(|(_, lse)| *lse).collect(), EXACT),
            output("dq", ours(&gradient), dq, SEVERAL),
            output("dk", of_keys(heads.queries), dk, SEVERAL),
            output("dv", of_keys(heads.queries + heads.keys), dv, SEVERAL),
        ])
    }
}
