//! One query head of one segment, tile by tile; one thread does it from beginning to end.

use std::ops::Range;

use super::super::buffer::zeros;
use super::super::matmul::{View, ViewMut};
use super::super::{simd, softcap};
use super::Heads;

/// Rows of a tile of scores.
const QUERIES: usize = 128;
/// Columns of a tile of scores; a multiple of [`QUERIES`], so that no key of a tile but those of its last one is ahead of every query.
const KEYS: usize = 128;

/// One query head of one segment.
pub(super) struct Task {
    pub(super) heads: Heads,
    pub(super) head: usize,
    pub(super) rows: Range<usize>,
}

/// Gradients of one query head, rows consecutive.
pub(super) struct Gradient {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Gradient {
    /// Adds its row to `d`, a row of the whole gradient.
    pub(super) fn add_row(&self, row: usize, heads: Heads, head: usize, d: &mut [f32]) {
        let width = heads.width;
        let [q, k, v] = heads.columns(head);
        for (at, part) in [(q, &self.q), (k, &self.k), (v, &self.v)] {
            for (d, x) in d[at..at + width].iter_mut().zip(&part[row * width..]) {
                *d += x; // mutate: flip
            }
        }
    }
}

impl Task {
    /// Rows `range` of this segment, the columns of one head that begin at `column`.
    fn view<'a>(&self, qkv: &'a [f32], column: usize, range: Range<usize>) -> View<'a> {
        let stride = self.heads.stride();
        View::strided(&qkv[(self.rows.start + range.start) * stride + column..], range.len(), self.heads.width, stride)
    }

    fn out_view<'a>(&self, out: &'a [f32], range: Range<usize>) -> View<'a> {
        let stride = self.heads.out_stride();
        let first = (self.rows.start + range.start) * stride + self.head * self.heads.width;
        View::strided(&out[first..], range.len(), self.heads.width, stride)
    }

    /// Blocks of this segment's rows.
    fn blocks(&self, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let len = self.rows.len();
        (0..len).step_by(size).map(move |start| start..(start + size).min(len))
    }

    /// Output and log-sum-exp of this head, rows consecutive.
    pub(super) fn forward(&self, qkv: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let width = self.heads.width;
        let (mut out, mut lse) = (zeros(self.rows.len() * width), zeros(self.rows.len()));
        let mut tile = zeros(QUERIES * KEYS);
        for queries in self.blocks(QUERIES) {
            let out = &mut out[queries.start * width..queries.end * width];
            self.forward_block(qkv, queries.clone(), &mut tile, out, &mut lse[queries]);
        }
        (out, lse)
    }

    fn forward_block(&self, qkv: &[f32], queries: Range<usize>, tile: &mut [f32], out: &mut [f32], lse: &mut [f32]) {
        let (n, width) = (queries.len(), self.heads.width);
        let [q, k, v] = self.heads.columns(self.head);
        let mut running = [(f32::NEG_INFINITY, 0.0); QUERIES];
        let seen = self.heads.first_seen(queries.start)..queries.end;
        for keys in self.blocks(KEYS).filter(|keys| keys.start < seen.end && keys.end > seen.start) {
            let keys = keys.start..keys.end.min(queries.end);
            let mut scores = ViewMut::new(tile, n, keys.len());
            let product = self.view(qkv, q, queries.clone()).times(self.view(qkv, k, keys.clone()).t());
            scores.set(product.scaled(self.heads.scale as f32).here());
            for (i, state) in running[..n].iter_mut().enumerate() {
                let row = &mut tile[i * keys.len()..][..keys.len()];
                let shrink = absorb(row, self.visible(&keys, queries.start + i), self.cap(), state);
                out[i * width..][..width].iter_mut().for_each(|o| *o *= shrink);
            }
            let mut sum = ViewMut::new(out, n, width);
            sum += View::new(tile, n, keys.len()).times(self.view(qkv, v, keys)).here();
        }
        for (i, (most, sum)) in running[..n].iter().enumerate() {
            out[i * width..][..width].iter_mut().for_each(|o| *o /= sum);
            lse[i] = most + sum.ln();
        }
    }

    /// Gradients of this head.
    pub(super) fn backward(&self, qkv: &[f32], (out, lse): (&[f32], &[f32]), dout: &[f32]) -> Gradient {
        let numbers = self.rows.len() * self.heads.width;
        let mut gradient = Gradient { q: zeros(numbers), k: zeros(numbers), v: zeros(numbers) };
        let delta = self.delta(out, dout);
        let lse: Vec<f32> = self.rows.clone().map(|row| lse[row * self.heads.queries + self.head]).collect();
        let mut tiles = [zeros(QUERIES * KEYS), zeros(QUERIES * KEYS)];
        for keys in self.blocks(KEYS) {
            let sees =
                |queries: &Range<usize>| queries.end > keys.start && self.heads.first_seen(queries.start) < keys.end;
            for queries in self.blocks(QUERIES).filter(sees) {
                let keys = keys.start..keys.end.min(queries.end);
                self.backward_tile(qkv, dout, (&lse, &delta), (queries, keys), &mut tiles, &mut gradient);
            }
        }
        gradient
    }

    /// δ of every row.
    fn delta(&self, out: &[f32], dout: &[f32]) -> Vec<f32> {
        let width = self.heads.width;
        let place = |row: usize| row * self.heads.out_stride() + self.head * width;
        let row = |row: usize| {
            let (o, d) = (&out[place(row)..][..width], &dout[place(row)..][..width]);
            simd::wide(
                #[inline(always)]
                || simd::sum([o, d], |[o, d]| o * d),
            )
        };
        self.rows.clone().map(row).collect()
    }

    fn backward_tile(
        &self,
        qkv: &[f32],
        dout: &[f32],
        (lse, delta): (&[f32], &[f32]),
        (queries, keys): (Range<usize>, Range<usize>),
        [p, ds]: &mut [Vec<f32>; 2],
        gradient: &mut Gradient,
    ) {
        let (n, m, width, scale) = (queries.len(), keys.len(), self.heads.width, self.heads.scale as f32);
        let [q, k, v] = self.heads.columns(self.head);
        let (q, k, v) =
            (self.view(qkv, q, queries.clone()), self.view(qkv, k, keys.clone()), self.view(qkv, v, keys.clone()));
        let dout = self.out_view(dout, queries.clone());
        ViewMut::new(p, n, m).set(q.times(k.t()).scaled(scale).here());
        ViewMut::new(ds, n, m).set(dout.times(v.t()).here());
        for i in 0..n {
            let (p, ds) = (&mut p[i * m..][..m], &mut ds[i * m..][..m]);
            let row = queries.start + i;
            soften(p, ds, self.visible(&keys, row), self.cap(), (lse[row], delta[row]));
        }
        let (p, ds) = (View::new(p, n, m), View::new(ds, n, m));
        let of = |range: &Range<usize>| range.start * width..range.end * width;
        let mut dv = ViewMut::new(&mut gradient.v[of(&keys)], m, width);
        dv += p.t().times(dout).here(); // mutate: flip
        let mut dq = ViewMut::new(&mut gradient.q[of(&queries)], n, width);
        dq += ds.times(k).scaled(scale).here(); // mutate: flip
        let mut dk = ViewMut::new(&mut gradient.k[of(&keys)], m, width);
        dk += ds.t().times(q).scaled(scale).here(); // mutate: flip
    }

    fn cap(&self) -> Option<f32> {
        self.heads.softcap.map(|cap| cap as f32)
    }

    /// Which of `keys` the query at `position` sees, counted from the first of them; may be none.
    fn visible(&self, keys: &Range<usize>, position: usize) -> Range<usize> {
        let within = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
        within(self.heads.first_seen(position))..within(position + 1)
    }
}

/// Turns scores into unnormalised probabilities under the new running maximum; returns the factor that brings everything
/// summed before under it.
fn absorb(row: &mut [f32], visible: Range<usize>, cap: Option<f32>, (most, sum): &mut (f32, f32)) -> f32 {
    if visible.is_empty() {
        row.fill(0.0);
        return 1.0;
    }
    simd::wide(
        #[inline(always)]
        || {
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
            let seen = &mut row[visible];
            if let Some(cap) = cap {
                softcap::forward(seen, cap);
            }
            let larger = most.max(simd::max(seen));
            let shrink = simd::exp(*most - larger);
            seen.iter_mut().for_each(|s| *s = simd::exp(*s - larger));
            *sum = *sum * shrink + simd::sum([seen], |[p]| p);
            *most = larger;
            shrink
        },
    )
}

/// Turns scores into probabilities and `dout vᵀ` into `ds`.
fn soften(p: &mut [f32], ds: &mut [f32], visible: Range<usize>, cap: Option<f32>, (lse, delta): (f32, f32)) {
    simd::wide(
        #[inline(always)]
        || {
            for outside in [0..visible.start, visible.end..p.len()] {
                p[outside.clone()].fill(0.0);
                ds[outside].fill(0.0);
            }
            let (p, ds) = (&mut p[visible.clone()], &mut ds[visible]);
            ds.iter_mut().for_each(|ds| *ds -= delta); // mutate: flip
            if let Some(cap) = cap {
                softcap::forward(p, cap);
                softcap::backward(p, cap, ds);
            }
            for (p, ds) in p.iter_mut().zip(ds) {
                *p = simd::exp(*p - lse);
                *ds *= *p;
            }
        },
    );
}
