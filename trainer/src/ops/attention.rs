//! Causal attention inside each segment: `out = softmax(c(σ q kᵀ)) v` over the keys up to the query's own position, or over the
//! last `window` of them. σ is a number, 1 / √d in most models; c is the soft cap, `c(s) = cap · tanh(s / cap)`, or nothing.
//!
//! A row of the input holds all query heads, then all key heads, then all value heads; several query heads share a key head.
//! The softmax streams over blocks of keys (running maximum m and sum l, output rescaled when m grows), so that nothing of size
//! T × T exists; what is kept for the backward is one number per row and head, `lse = m + ln l`, from which every probability
//! is made again: `p = exp(s − lse)` from the score `s = c(σ q·k)`. With `δ = Σ dout · out` of a row:
//!
//! ```text
//! dv = pᵀ dout      ds = p · (dout vᵀ − δ) · (1 − (s / cap)²)      dq = σ ds k      dk = σ dsᵀ q
//! ```
//!
//! One task is one segment and one query head; heads that share a key are added in head order afterwards.

mod task;

use std::ops::Range;

use rayon::prelude::*;

use super::real::Real;
use super::softcap;
use task::Task;

/// How a row of the input is laid out, and how a query scores the keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key heads, and as many value heads; divides `queries`.
    pub keys: usize,
    /// Width of a head.
    pub width: usize,
    /// What the product of query and key is multiplied by.
    pub scale: f64,
    /// Scores stay within ± this.
    pub softcap: Option<f64>,
    /// How many keys a query sees, itself included; without one, all up to itself.
    pub window: Option<usize>,
}

impl Heads {
    /// Numbers in a row of the input.
    pub const fn stride(self) -> usize {
        (self.queries + 2 * self.keys) * self.width
    }

    /// Numbers in a row of the output.
    pub const fn out_stride(self) -> usize {
        self.queries * self.width
    }

    /// Numbers in the query and key heads of a row.
    pub const fn turned(self) -> usize {
        (self.queries + self.keys) * self.width
    }

    /// The first key that the query at `position` sees.
    fn first_seen(self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Columns where query head `head` and the key and value heads it uses begin.
    fn columns(self, head: usize) -> [usize; 3] {
        let shared = head / (self.queries / self.keys);
        [head, self.queries + shared, self.queries + self.keys + shared].map(|head| head * self.width)
    }
}

/// Output and log-sum-exp of one segment, plainly.
pub fn forward_plain<R: Real>(heads: Heads, qkv: &[R], out: &mut [R], lse: &mut [R]) {
    let rows = qkv.len() / heads.stride();
    for (head, i) in (0..heads.queries).flat_map(|head| (0..rows).map(move |i| (head, i))) {
        let (first, scores) = (heads.first_seen(i), scores_plain(heads, qkv, head, i));
        let most = scores.iter().fold(scores[0], |most, s| if *s > most { *s } else { most });
        let sum: R = scores.iter().map(|s| (*s - most).exp()).sum();
        lse[i * heads.queries + head] = most + sum.ln();
        for c in 0..heads.width {
            let value = |j: usize| qkv[j * heads.stride() + heads.columns(head)[2] + c];
            let weighted = scores.iter().enumerate().map(|(j, s)| (*s - most).exp() / sum * value(first + j));
            out[i * heads.out_stride() + head * heads.width + c] = weighted.sum();
        }
    }
}

/// Adds the gradient of one segment to `dqkv`, plainly.
pub fn backward_plain<R: Real>(heads: Heads, qkv: &[R], out: &[R], lse: &[R], dout: &[R], dqkv: &mut [R]) {
    let rows = qkv.len() / heads.stride();
    let (stride, width, scale) = (heads.stride(), heads.width, R::of(heads.scale));
    for (head, i) in (0..heads.queries).flat_map(|head| (0..rows).map(move |i| (head, i))) {
        let [q, k, v] = heads.columns(head);
        let place = i * heads.out_stride() + head * width;
        let (out, dout) = (&out[place..place + width], &dout[place..place + width]);
        let delta: R = out.iter().zip(dout).map(|(o, d)| *o * *d).sum();
        for (j, score) in (heads.first_seen(i)..).zip(scores_plain(heads, qkv, head, i)) {
            let p = (score - lse[i * heads.queries + head]).exp();
            let mut slope: R = (0..width).map(|c| dout[c] * qkv[j * stride + v + c]).sum();
            slope -= delta; // mutate: flip
            let mut ds = [p * slope * scale];
            heads.softcap.into_iter().for_each(|cap| softcap::backward_plain(&[score], R::of(cap), &mut ds));
            for c in 0..width {
                dqkv[i * stride + q + c] += ds[0] * qkv[j * stride + k + c]; // mutate: flip
                dqkv[j * stride + k + c] += ds[0] * qkv[i * stride + q + c]; // mutate: flip
                dqkv[j * stride + v + c] += p * dout[c]; // mutate: flip
            }
        }
    }
}

/// Scores of query `i` against the keys that it sees.
fn scores_plain<R: Real>(heads: Heads, qkv: &[R], head: usize, i: usize) -> Vec<R> {
    let [q, k, _] = heads.columns(head);
    let (stride, scale) = (heads.stride(), R::of(heads.scale));
    let score = |j: usize| (0..heads.width).map(|c| qkv[i * stride + q + c] * qkv[j * stride + k + c]).sum::<R>();
    let mut scores: Vec<R> = (heads.first_seen(i)..=i).map(|j| score(j) * scale).collect();
    heads.softcap.into_iter().for_each(|cap| softcap::forward_plain(&mut scores, R::of(cap)));
    scores
}

/// Output of every row, and `lse` per row and head.
pub fn forward(heads: Heads, segments: &[Range<usize>], qkv: &[f32], out: &mut [f32], lse: &mut [f32]) {
    let done: Vec<_> = tasks(heads, segments).map(|task| task.forward(qkv)).collect();
    let (width, per_segment) = (heads.width, heads.queries);
    let rows = split(segments, out, heads.out_stride(), lse, per_segment);
    rows.into_par_iter().zip(done.par_chunks(per_segment)).for_each(|((out, lse), done)| {
        for (row, (out, lse)) in out.chunks_mut(heads.out_stride()).zip(lse.chunks_mut(per_segment)).enumerate() {
            for (head, (o, l)) in done.iter().enumerate() {
                out[head * width..][..width].copy_from_slice(&o[row * width..][..width]);
                lse[head] = l[row];
            }
        }
    });
}

/// Overwrites `dqkv` with the gradient.
pub fn backward(
    heads: Heads,
    segments: &[Range<usize>],
    qkv: &[f32],
    (out, lse): (&[f32], &[f32]),
    dout: &[f32],
    dqkv: &mut [f32],
) {
    let done: Vec<_> = tasks(heads, segments).map(|task| task.backward(qkv, (out, lse), dout)).collect();
    for (segment, done) in segments.iter().zip(done.chunks(heads.queries)) {
        let rows = &mut dqkv[segment.start * heads.stride()..segment.end * heads.stride()];
        rows.par_chunks_mut(heads.stride()).enumerate().with_min_len(16).for_each(|(row, d)| {
            d.fill(0.0);
            for (head, gradient) in done.iter().enumerate() {
                gradient.add_row(row, heads, head, d);
            }
        });
    }
}

/// Every segment and query head, in that order.
fn tasks<'a>(heads: Heads, segments: &'a [Range<usize>]) -> impl IndexedParallelIterator<Item = Task> + 'a {
    (0..segments.len() * heads.queries).into_par_iter().with_max_len(1).map(move |i| Task {
        heads,
        head: i % heads.queries,
        rows: segments[i / heads.queries].clone(),
    })
}

type RowsAndSums<'a> = (&'a mut [f32], &'a mut [f32]);

/// The rows of every segment in two buffers; segments cover all rows in order.
fn split<'a>(
    segments: &[Range<usize>],
    mut a: &'a mut [f32],
    a_stride: usize,
    mut b: &'a mut [f32],
    b_stride: usize,
) -> Vec<RowsAndSums<'a>> {
    let mut parts = Vec::with_capacity(segments.len());
    for segment in segments {
        let (first_a, rest_a) = a.split_at_mut(segment.len() * a_stride);
        let (first_b, rest_b) = b.split_at_mut(segment.len() * b_stride);
        parts.push((first_a, first_b));
        (a, b) = (rest_a, rest_b);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;

    const HEADS: Heads = Heads { queries: 4, keys: 2, width: 6, scale: 0.4, softcap: None, window: None };

    /// Windows shorter than a tile, longer than one, across two, and caps that bind.
    fn kinds() -> [Heads; 5] {
        let kind = |softcap, window| Heads { softcap, window, ..HEADS };
        [kind(None, None), kind(Some(1.5), None), kind(None, Some(3)), kind(None, Some(150)), kind(Some(2.0), Some(70))]
    }

    #[test]
    fn the_plain_gradient_equals_finite_differences() {
        for (softcap, window) in [(None, None), (Some(0.3), None), (None, Some(2)), (Some(0.5), Some(3))] {
            let heads = Heads { width: 2, softcap, window, ..HEADS };
            let rows = 5;
            let (qkv, dout) = (numbers(1, rows * heads.stride()), numbers(2, rows * heads.out_stride()));
            let run = |qkv: &[f64]| {
                let (mut out, mut lse) = (vec![0.0; rows * heads.out_stride()], vec![0.0; rows * heads.queries]);
                forward_plain(heads, qkv, &mut out, &mut lse);
                (out, lse)
            };
            let (out, lse) = run(&qkv);
            let mut dqkv = vec![0.0; qkv.len()];
            backward_plain(heads, &qkv, &out, &lse, &dout, &mut dqkv);
            assert_gradient("q, k and v", |qkv| dot(&dout, &run(qkv).0), &qkv, &dqkv);
        }
    }

    #[test]
    fn the_cpu_form_equals_the_plain_one_whatever_the_segments() {
        let lengths = [vec![1, 2, 3], vec![64, 1, 130], vec![300], vec![128, 129]];
        for (lengths, heads) in lengths.iter().flat_map(|lengths| kinds().map(|heads| (lengths, heads))) {
            let segments = ranges(lengths);
            let rows = lengths.iter().sum::<usize>();
            let qkv: Vec<f32> = numbers32(1, rows * heads.stride()).iter().map(|x| 3.0 * x).collect();
            let dout = numbers32(2, rows * heads.out_stride());
            let [out, lse, dqkv] = run(heads, &segments, &qkv, &dout);
            let [mut out_plain, mut lse_plain, mut dqkv_plain] = [&out, &lse, &dqkv].map(|x| vec![0.0; x.len()]);
            for rows in &segments {
                let of = |stride: usize| rows.start * stride..rows.end * stride;
                let (wide, narrow, sums) = (of(heads.stride()), of(heads.out_stride()), of(heads.queries));
                let (qkv, out, lse) = (&qkv[wide.clone()], &mut out_plain[narrow.clone()], &mut lse_plain[sums]);
                forward_plain(heads, qkv, out, lse);
                backward_plain(heads, qkv, out, lse, &dout[narrow], &mut dqkv_plain[wide]);
            }
            assert_close("out", &out, &out_plain, 1e-5);
            assert_close("lse", &lse, &lse_plain, 1e-5);
            assert_close("dqkv", &dqkv, &dqkv_plain, 1e-5);
        }
    }

    #[test]
    fn a_window_as_long_as_the_segment_hides_nothing() {
        let (qkv, dout) = (numbers32(1, 150 * HEADS.stride()), numbers32(2, 150 * HEADS.out_stride()));
        let of = |window| run(Heads { window, ..HEADS }, &ranges(&[150]), &qkv, &dout);
        assert_eq!(of(Some(150)), of(None));
        assert_ne!(of(Some(149)), of(None));
    }

    #[test]
    fn large_scores_do_not_overflow() {
        for heads in kinds() {
            let qkv: Vec<f32> = numbers32(1, 150 * heads.stride()).iter().map(|x| 60.0 * x).collect();
            let [out, lse, dqkv] = run(heads, &ranges(&[150]), &qkv, &numbers32(2, 150 * heads.out_stride()));
            assert!([out, lse, dqkv].iter().flatten().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let qkv = numbers32(1, 200 * HEADS.stride());
        let dout = numbers32(2, 200 * HEADS.out_stride());
        assert_same_bits_on_any_threads(|| run(HEADS, &ranges(&[70, 130]), &qkv, &dout).concat());
    }

    fn run(heads: Heads, segments: &[Range<usize>], qkv: &[f32], dout: &[f32]) -> [Vec<f32>; 3] {
        let rows = qkv.len() / heads.stride();
        let (mut out, mut lse) = (vec![0.0; rows * heads.out_stride()], vec![0.0; rows * heads.queries]);
        forward(heads, segments, qkv, &mut out, &mut lse);
        let mut dqkv = vec![f32::NAN; qkv.len()];
        backward(heads, segments, qkv, (&out, &lse), dout, &mut dqkv);
        [out, lse, dqkv]
    }

    fn ranges(lengths: &[usize]) -> Vec<Range<usize>> {
        let mut end = 0;
        let next = |len: &usize| {
            end += len;
            end - len..end
        };
        lengths.iter().map(next).collect()
    }
}
