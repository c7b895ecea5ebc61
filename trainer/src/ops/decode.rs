//! Attention of new tokens over keys and values that were kept: the last rows of a sequence, at the cost of those rows alone.
//!
//! The same sums as `attention.rs` makes, for a handful of rows instead of a whole segment: every score of a row is at hand at
//! once, so the softmax needs no streaming. There is no backward; nothing is trained through a cache.

use rayon::prelude::*;

use super::attention::Heads;
use super::simd;

/// Keys and values of every position so far, `[positions, keys · width]` each.
#[derive(Debug, Default)]
pub struct Kept {
    /// Turned.
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Kept {
    /// Whether it holds none yet.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Appends those of new rows.
    pub fn push(&mut self, heads: Heads, qkv: &[f32]) {
        for row in qkv.chunks(heads.stride()) {
            self.keys.extend_from_slice(&row[heads.out_stride()..heads.turned()]);
            self.values.extend_from_slice(&row[heads.turned()..]);
        }
    }
}

/// Output of the rows of `qkv`, whose keys and values are the last of those kept.
pub fn forward(heads: Heads, qkv: &[f32], kept: &Kept, out: &mut [f32]) {
    let stride = heads.keys * heads.width;
    let (rows, positions) = (qkv.len() / heads.stride(), kept.keys.len() / stride);
    let shared = heads.queries / heads.keys;
    out.par_chunks_mut(heads.width).enumerate().for_each(|(place, out)| {
        let (row, head) = (place / heads.queries, place % heads.queries);
        let position = positions - rows + row;
        let first = heads.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let column = head / shared * heads.width;
        let at = |of: &'_ [f32], j: usize| -> std::ops::Range<usize> {
            debug_assert!(j * stride + column + heads.width <= of.len(), "a position that was kept");
            j * stride + column..j * stride + column + heads.width
        };
        let q = &qkv[row * heads.stride() + head * heads.width..][..heads.width];
        let mut scores = vec![0.0; position + 1 - first];
        simd::wide(
            #[inline(always)]
            || {
                for (j, score) in (first..).zip(&mut scores) {
                    let product = simd::sum([q, &kept.keys[at(&kept.keys, j)]], |[q, k]| q * k);
                    *score = capped(product * heads.scale as f32, heads.softcap);
                }
                let most = simd::max(&scores);
                scores.iter_mut().for_each(|score| *score = simd::exp(*score - most));
                let sum = simd::sum([&scores], |[p]| p);
                out.fill(0.0);
                for (j, score) in (first..).zip(&scores) {
                    let p = score / sum;
                    out.iter_mut().zip(&kept.values[at(&kept.values, j)]).for_each(|(out, v)| *out += p * v);
                }
            },
        );
    });
}

#[inline(always)]
fn capped(score: f32, cap: Option<f64>) -> f32 {
    match cap {
        Some(cap) => cap as f32 * simd::tanh(score / cap as f32),
        None => score,
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention;
    use super::super::check::*;
    use super::*;

    #[test]
    fn new_rows_over_kept_ones_equal_the_plain_whole() {
        let plain = Heads { queries: 4, keys: 2, width: 6, scale: 0.4, softcap: None, window: None };
        let kinds = [plain, Heads { softcap: Some(1.5), ..plain }, Heads { window: Some(5), ..plain }];
        for (heads, (rows, new)) in kinds.into_iter().flat_map(|heads| [(1, 1), (9, 1), (40, 3)].map(|n| (heads, n))) {
            let qkv: Vec<f32> = numbers32(1, rows * heads.stride()).iter().map(|x| 3.0 * x).collect();
            let (mut whole, mut lse) = (vec![0.0; rows * heads.out_stride()], vec![0.0; rows * heads.queries]);
            attention::forward_plain(heads, &qkv, &mut whole, &mut lse);
            let mut kept = Kept::default();
            kept.push(heads, &qkv);
            let mut out = vec![f32::NAN; new * heads.out_stride()];
            forward(heads, &qkv[(rows - new) * heads.stride()..], &kept, &mut out);
            assert_close("out", &out, &whole[(rows - new) * heads.out_stride()..], 1e-5);
        }
    }
}
