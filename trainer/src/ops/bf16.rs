//! Products with a matrix of 16-bit brain floats: `y = x Wᵀ` and `dx = dy W`, W: [rows, cols] as its file holds it.
//!
//! The other operand is rounded to bf16 (to nearest, ties to even), products of two such numbers are exact in `f32`, and sums
//! are taken in `f32`: what AMX does in one instruction per 256 sums of 16 pairs, AVX-512 BF16 in one per 16 sums of a pair, and other
//! processors number by number (`bf16/tile.rs`). Which of them it is shows in the last bits.
//!
//! ```text
//! x, rounded and cut into steps of 32 rows × 32 numbers of the inner index (bf16/pack.rs)     once, by all threads
//! for every group of columns of the result:                                                    shared out among the threads
//!     for every 640 numbers of the inner index:
//!         for every 32 columns:
//!             W's part, cut into steps likewise                                                fits the first cache
//!             for every 32 rows: 32 × 32 sums in registers, set or added to the result
//! ```
//! Every number of the result is summed in an order that follows from the inner size alone: how many threads share the
//! columns does not show in the bits.

#[cfg(target_arch = "x86_64")]
mod amx;
mod pack;
mod tile;

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

use half::bf16;
use rayon::prelude::*;

use pack::{Hand, Number, SIDE, Source, Step};
use tile::Block;

/// Steps of the inner index whose sums stay in registers; of the right operand so many steps are packed at a time.
const DEPTH: usize = 20;

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
        product(x, self.right(self.rows, self.cols, true), put, y);
    }

    /// `dx = dy W`; dy is [n, rows], dx [n, cols].
    pub fn backward(self, dy: &[f32], dx: &mut [f32]) {
        product(dy, self.right(self.cols, self.rows, false), Put::Set, dx);
    }

    fn right(self, lines: usize, inner: usize, along: bool) -> Source<'a, bf16> {
        Source { numbers: self.numbers, lines, inner, stride: self.cols, along, factor: 1.0 }
    }
}

/// `y = x · right`, or added to y.
fn product(x: &[f32], right: Source<'_, bf16>, put: Put, y: &mut [f32]) {
    let (inner, n) = (right.inner, x.len() / right.inner);
    assert!(x.len() == n * inner && y.len() == n * right.lines, "shapes of a product");
    let x = Source { numbers: x, lines: n, inner, stride: inner, along: true, factor: 1.0 };
    let (left, y) = (packed_by_all(&x), Results::new(y, n, right.lines, right.lines));
    let (panels, blocks, threads) = (right.lines.div_ceil(SIDE), n.div_ceil(SIDE), rayon::current_num_threads());
    let groups = panels.min(if threads == 1 { 1 } else { 4 * threads });
    // few panels and many threads: rows are shared out too, and a panel is packed once for each part
    let parts = (2 * threads).div_ceil(panels).clamp(1, blocks.div_ceil(2).max(1));
    (0..groups * parts).into_par_iter().with_max_len(1).for_each_init(Vec::new, |panel, task| {
        let (group, part) = (task / parts, task % parts);
        let share = |n: usize, of: usize, i: usize| n * i / of..n * (i + 1) / of;
        let (block, steps) = (Block::new(), right.steps());
        for depth in depths(steps) {
            for column in share(panels, groups, group) {
                let panel = packed(&right, Hand::Right, column, depth.clone(), panel);
                for row in share(blocks, parts, part) {
                    let left = &left[row * steps..][depth.clone()];
                    let add = put == Put::Add || depth.start > 0;
                    // SAFETY: tasks that run at the same time differ in their columns or in their rows
                    unsafe { y.put(&block, (left, panel), add, [row * SIDE, column * SIDE]) };
                }
            }
        }
    });
}

/// Parts of the inner index, of about the same size.
fn depths(steps: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let parts = steps.div_ceil(DEPTH);
    (0..parts).map(move |i| steps * i / parts..steps * (i + 1) / parts)
}

/// All steps of a left operand, row by row of blocks.
fn packed_by_all<T: Number>(source: &Source<'_, T>) -> Vec<Step> {
    let (blocks, steps) = (source.lines.div_ceil(SIDE), source.steps());
    let mut all = Vec::new();
    super::buffer::reserve(&mut all, blocks * steps);
    let room = &mut all.spare_capacity_mut()[..blocks * steps];
    room.par_chunks_mut(steps).enumerate().for_each(|(block, to)| source.pack(Hand::Left, block * SIDE, 0, to));
    // SAFETY: every block has been packed
    unsafe { all.set_len(blocks * steps) };
    all
}

/// The steps `depth` of 32 lines, in `room`.
fn packed<'a, T: Number>(
    source: &Source<'_, T>,
    hand: Hand,
    block: usize,
    depth: std::ops::Range<usize>,
    room: &'a mut Vec<MaybeUninit<Step>>,
) -> &'a [Step] {
    if room.len() < depth.len() {
        room.resize(depth.len(), MaybeUninit::uninit());
    }
    let room = &mut room[..depth.len()];
    source.pack(hand, block * SIDE, depth.start, room);
    // SAFETY: packed just now
    unsafe { std::slice::from_raw_parts(room.as_ptr().cast(), room.len()) }
}

/// A matrix whose blocks are written by several threads.
struct Results<'a> {
    numbers: &'a [UnsafeCell<f32>],
    rows: usize,
    cols: usize,
    stride: usize,
}

// SAFETY: numbers are only reached through `put`, whose callers keep apart.
unsafe impl Sync for Results<'_> {}

impl<'a> Results<'a> {
    fn new(numbers: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Results<'a> {
        assert!(
            rows == 0 || cols <= stride && (rows - 1) * stride + cols <= numbers.len(),
            "results have their places"
        );
        let shared = std::ptr::from_mut(numbers) as *const [UnsafeCell<f32>];
        // SAFETY: a cell has the layout of what it holds, and the exclusive borrow is held as long as this
        Results { numbers: unsafe { &*shared }, rows, cols, stride }
    }

    /// Sets the block of sums that begins at `row` and `col`, or adds to it.
    ///
    /// # Safety
    /// Nobody else may use any of its numbers meanwhile.
    unsafe fn put(&self, block: &Block, (left, right): (&[Step], &[Step]), add: bool, [row, col]: [usize; 2]) {
        let (rows, cols) = (SIDE.min(self.rows - row), SIDE.min(self.cols - col));
        let to = UnsafeCell::raw_get(self.numbers[row * self.stride + col..].as_ptr());
        if rows == SIDE && cols == SIDE {
            // SAFETY: a whole block of the results, which lie in the slice; the caller keeps others out
            return unsafe { block.put((left, right), rows, add, to, self.stride) };
        }
        let mut whole = [0.0; SIDE * SIDE];
        // SAFETY: room of our own for a whole block
        unsafe { block.put((left, right), rows, false, whole.as_mut_ptr(), SIDE) };
        for (row, sums) in whole.chunks(SIDE).take(rows).enumerate() {
            // SAFETY: a row's part of the results, as above
            let to = unsafe { std::slice::from_raw_parts_mut(to.add(row * self.stride), cols) };
            to.iter_mut().zip(sums).for_each(|(to, sum)| *to = if add { *to + sum } else { *sum });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::super::linear;
    use super::*;

    /// Odd sizes, one row, whole blocks, more than one depth; columns in whole blocks and not.
    const SHAPES: [[usize; 3]; 6] = [[1, 5, 3], [7, 96, 64], [64, 96, 128], [19, 33, 21], [70, 50, 801], [9, 1603, 48]];

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
