//! Products with a matrix of 16-bit brain floats: `y = x Wᵀ` and `dx = dy W`, W: [rows, cols] as its file holds it.
//!
//! The other operand is rounded to bf16 (to nearest, ties to even), products of two such numbers are exact in `f32`, and sums
//! are taken in `f32`: what AVX-512 BF16 does in one instruction per 32 pairs, at twice the rate of `f32`. Processors without
//! it run the same sums in the same order (`bf16/tile.rs`), in their widest vectors.
//!
//! ```text
//! for every panel of 48 columns of the result:               shared out among the threads
//!     for every 768 numbers of the inner index:
//!         W's part of the panel, rearranged: pairs of the inner index, 48 side by side    fits the second cache
//!         for every 8 rows: a tile of 8 × 48 sums in registers, added to the result
//! ```
//! Every number of the result is summed in an order that follows from the inner size alone: how many threads share the
//! panels does not show in the bits.

mod tile;

use half::bf16;
use rayon::prelude::*;

use super::simd;
use tile::{COLS, ROWS, Tile};

/// Numbers of the inner index at a time; even.
const DEPTH: usize = 768;

/// Pairs of a column that are rearranged at a time.
const PACKED: usize = 32;

/// Two neighbours along the inner index, the first in the low half.
type Pair = u32;

/// A matrix of brain floats, rows consecutive.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    numbers: &'a [bf16],
    rows: usize,
    cols: usize,
}

/// What a product does to its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// Overwrites it.
    Set,
    /// Is added to it.
    Add,
}

impl<'a> Matrix<'a> {
    /// From consecutive rows.
    pub fn new(numbers: &'a [bf16], rows: usize, cols: usize) -> Matrix<'a> {
        assert_eq!(numbers.len(), rows * cols, "a matrix of {rows} × {cols}");
        Matrix { numbers, rows, cols }
    }

    /// `y = x Wᵀ`, or `y += x Wᵀ`; x is [n, cols], y [n, rows].
    pub fn forward(self, x: &[f32], put: Put, y: &mut [f32]) {
        product(x, self.cols, Panels { of: self, transposed: true }, put, y);
    }

    /// `dx = dy W`; dy is [n, rows], dx [n, cols].
    pub fn backward(self, dy: &[f32], dx: &mut [f32]) {
        product(dy, self.rows, Panels { of: self, transposed: false }, Put::Set, dx);
    }
}

/// The right operand of a product, `[inner, outer]`: W, or its transpose.
#[derive(Clone, Copy)]
struct Panels<'a> {
    of: Matrix<'a>,
    transposed: bool,
}

impl Panels<'_> {
    fn outer(self) -> usize {
        if self.transposed { self.of.rows } else { self.of.cols }
    }

    /// Columns `first..first + cols` of pairs of the inner index from `start` on, into `panel`; an odd end is paired with zero.
    fn pack(self, start: usize, len: usize, first: usize, cols: usize, panel: &mut [[Pair; COLS]]) {
        let Matrix { numbers, cols: width, .. } = self.of;
        if self.transposed {
            // a few pairs of every column at a time, so that what is written stays in the first cache
            for (part, to) in panel.chunks_mut(PACKED).enumerate() {
                let at = start + part * 2 * PACKED;
                let len = (start + len - at).min(2 * PACKED);
                for col in 0..cols {
                    let (pairs, odd) = numbers[(first + col) * width + at..][..len].as_chunks::<2>();
                    for (to, [low, high]) in to.iter_mut().zip(pairs) {
                        to[col] = paired(*low, *high);
                    }
                    if let [last] = odd {
                        to[len / 2][col] = paired(*last, bf16::ZERO);
                    }
                }
            }
        } else {
            let row = |inner: usize| &numbers[inner * width + first..][..cols];
            for (pair, to) in panel.iter_mut().enumerate() {
                let inner = start + 2 * pair;
                if 2 * pair + 1 < len {
                    for ((to, low), high) in to.iter_mut().zip(row(inner)).zip(row(inner + 1)) {
                        *to = paired(*low, *high);
                    }
                } else {
                    to.iter_mut().zip(row(inner)).for_each(|(to, low)| *to = paired(*low, bf16::ZERO));
                }
            }
        }
    }
}

fn paired(low: bf16, high: bf16) -> Pair {
    Pair::from(low.to_bits()) | Pair::from(high.to_bits()) << 16
}

/// The nearest brain float's bits, ties to even; what is not a number stays so.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1))) >> 16;
    if x.is_nan() { 0x7FC0 } else { nearest }
}

/// Rows of `x` as pairs.
fn round_rows(x: &[f32], inner: usize) -> Vec<Pair> {
    let pairs = inner.div_ceil(2);
    let mut out = vec![0; x.len() / inner * pairs];
    out.par_chunks_mut(pairs).zip(x.par_chunks(inner)).with_min_len(16).for_each(|(out, x)| {
        simd::wide(
            #[inline(always)]
            || {
                let (twos, odd) = x.as_chunks::<2>();
                for (out, [low, high]) in out.iter_mut().zip(twos) {
                    *out = rounded(*low) | rounded(*high) << 16;
                }
                if let ([last], Some(out)) = (odd, out.last_mut()) {
                    *out = rounded(*last);
                }
            },
        );
    });
    out
}

/// `y = x · right`, or added to y.
fn product(x: &[f32], inner: usize, right: Panels<'_>, put: Put, y: &mut [f32]) {
    let (outer, n) = (right.outer(), x.len() / inner);
    assert!(x.len() == n * inner && y.len() == n * outer, "shapes of a product");
    let (x, pairs) = (round_rows(x, inner), inner.div_ceil(2));
    let y = Columns::new(y, outer);
    let panels = outer.div_ceil(COLS);
    // few panels and many threads: rows are shared out too, and a panel is packed once for each part
    let parts = (2 * rayon::current_num_threads()).div_ceil(panels).clamp(1, n.div_ceil(8 * ROWS).max(1));
    let part = n.div_ceil(parts).next_multiple_of(ROWS);
    (0..panels * parts).into_par_iter().with_max_len(1).for_each_init(Vec::new, |panel, task| {
        let first = task / parts * COLS;
        let cols = COLS.min(outer - first);
        let rows = task % parts * part..n.min((task % parts + 1) * part);
        for start in (0..inner).step_by(DEPTH) {
            let len = DEPTH.min(inner - start);
            // columns past the last keep what was there: nobody takes their sums
            panel.resize(len.div_ceil(2), [0; COLS]);
            right.pack(start, len, first, cols, panel);
            let add = put == Put::Add || start > 0;
            for top in rows.clone().step_by(ROWS) {
                // rows past the last repeat it: the tile is always whole, and what is too much is not taken
                let row = |r: usize| &x[(top + r).min(n - 1) * pairs + start / 2..][..panel.len()];
                let tile = Tile::of(std::array::from_fn(row), panel);
                for r in 0..ROWS.min(rows.end - top) {
                    // SAFETY: tasks that run at the same time differ in their columns or in their rows
                    let to = unsafe { y.of_row(top + r, first, cols) };
                    tile.put(r, add, to);
                }
            }
        }
    });
}

/// A matrix whose parts are written by several threads.
struct Columns<'a> {
    numbers: &'a [std::cell::UnsafeCell<f32>],
    width: usize,
}

// SAFETY: numbers are only reached through `of_row`, whose callers keep apart.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    fn new(numbers: &'a mut [f32], width: usize) -> Columns<'a> {
        let shared = std::ptr::from_mut(numbers) as *const [std::cell::UnsafeCell<f32>];
        // SAFETY: a cell has the layout of what it holds, and the exclusive borrow is held as long as this
        Columns { numbers: unsafe { &*shared }, width }
    }

    /// Some columns of one row.
    ///
    /// # Safety
    /// Nobody else may hold any of them.
    #[expect(clippy::mut_from_ref, reason = "exclusiveness is the caller's promise")]
    unsafe fn of_row(&self, row: usize, first: usize, cols: usize) -> &mut [f32] {
        let cells = &self.numbers[row * self.width + first..][..cols];
        // SAFETY: within bounds as just sliced, and the caller promises that nobody else holds them
        unsafe { std::slice::from_raw_parts_mut(std::cell::UnsafeCell::raw_get(cells.as_ptr()), cols) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::super::linear;
    use super::*;

    /// Odd sizes, one row, more than a tile, more than one depth; columns in whole panels and not.
    const SHAPES: [[usize; 3]; 5] = [[1, 5, 3], [7, 96, 64], [19, 33, 21], [70, 50, 801], [9, 1603, 48]];

    #[test]
    fn a_number_is_rounded_to_the_nearest_and_ties_to_even() {
        for x in numbers32(1, 1000).into_iter().chain([0.0, -0.0, 1e38, f32::MAX, f32::INFINITY, f32::NEG_INFINITY]) {
            assert_eq!(rounded(x), u32::from(bf16::from_f32(x).to_bits()), "{x}");
        }
        assert!(bf16::from_bits(rounded(f32::from_bits(0x7FFF_FFFF)) as u16).is_nan());
        assert_eq!(rounded(f32::from_bits(0x3F80_8000)), 0x3F80);
        assert_eq!(rounded(f32::from_bits(0x3F81_8000)), 0x3F82);
    }

    #[test]
    fn products_are_those_of_the_rounded_numbers() {
        for [n, rows, cols] in SHAPES {
            let (w, x, dy) = (brain(1, rows * cols), numbers32(2, n * cols), numbers32(3, n * rows));
            let matrix = Matrix::new(&w, rows, cols);
            let w: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
            let rounded = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect() };

            let (mut y, mut expected) = (vec![f32::NAN; n * rows], vec![0.0; n * rows]);
            matrix.forward(&x, Put::Set, &mut y);
            linear::forward_plain(&rounded(&x), &w, cols, &mut expected);
            assert_close("y", &y, &expected, 1e-6);
            matrix.forward(&x, Put::Add, &mut y);
            linear::forward_plain(&rounded(&x), &w, cols, &mut expected);
            assert_close("y twice", &y, &expected, 1e-6);

            let (mut dx, mut expected) = (vec![f32::NAN; n * cols], vec![0.0; n * cols]);
            matrix.backward(&dy, &mut dx);
            linear::backward_plain(&rounded(&dy), &w, cols, &mut expected);
            assert_close("dx", &dx, &expected, 1e-6);
        }
    }

    #[test]
    fn what_is_not_a_number_shows_in_the_product() {
        let w = brain(1, 4);
        let mut y = [0.0; 2];
        Matrix::new(&w, 2, 2).forward(&[1.0, f32::NAN], Put::Set, &mut y);
        assert!(y.iter().all(|y| y.is_nan()));
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        for [n, rows, cols] in [[300, 100, 900], [64, 1200, 576], [1, 300, 70]] {
            let (w, x, dy) = (brain(1, rows * cols), numbers32(2, n * cols), numbers32(3, n * rows));
            assert_same_bits_on_any_threads(|| {
                let (mut y, mut dx) = (vec![0.0; n * rows], vec![0.0; n * cols]);
                Matrix::new(&w, rows, cols).forward(&x, Put::Set, &mut y);
                Matrix::new(&w, rows, cols).backward(&dy, &mut dx);
                y.extend(dx);
                y
            });
        }
    }

    fn brain(seed: u32, n: usize) -> Vec<bf16> {
        numbers32(seed, n).into_iter().map(bf16::from_f32).collect()
    }
}
