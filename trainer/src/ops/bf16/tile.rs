//! One tile of a product of brain floats, 8 rows by 48 columns: its sums stay in registers.
//!
//! A step takes one pair of each row and one pair of each column and adds both products to each sum, the second of the pair first, as
//! `vdpbf16ps` does. The portable form does the same in `f32`: the product of two brain floats has 16 significant bits and is
//! exact. They differ in numbers too small to be normal, which the instruction takes for zero.

use super::super::simd;
use super::Pair;

/// Rows of a tile.
pub(super) const ROWS: usize = 8;
/// Columns of a tile: three vectors of 16. With 24 sums, three columns and a row there is room for in 32 registers.
pub(super) const COLS: usize = 48;

/// Finished sums.
pub(super) struct Tile([[f32; COLS]; ROWS]);

impl Tile {
    /// Of rows and columns of pairs, equally many.
    #[inline]
    pub(super) fn of(rows: [&[Pair]; ROWS], columns: &[[Pair; COLS]]) -> Tile {
        #[cfg(target_arch = "x86_64")]
        if has_bf16() {
            // SAFETY: the features were just found
            return unsafe { with_bf16(rows, columns) };
        }
        portable(rows, columns)
    }

    /// One row of it into `to`, or added to it; `to` may be narrower.
    #[inline]
    pub(super) fn put(&self, row: usize, add: bool, to: &mut [f32]) {
        let sums = &self.0[row];
        match <&mut [f32; COLS]>::try_from(&mut *to) {
            // of known length: three vectors, no call
            Ok(to) if add => to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum),
            Ok(to) => *to = *sums,
            Err(_) if add => to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum),
            Err(_) => to.iter_mut().zip(sums).for_each(|(to, sum)| *to = *sum),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512bf16")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn with_bf16(rows: [&[Pair]; ROWS], columns: &[[Pair; COLS]]) -> Tile {
    use std::arch::x86_64::*;
    // SAFETY: both are 64 bytes of plain numbers
    let brain = |pairs: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) };
    let rows = rows.map(|row| &row[..columns.len()]);
    let mut sums = [[_mm512_setzero_ps(); 3]; ROWS];
    for (k, column) in columns.iter().enumerate() {
        // SAFETY: three vectors of 16 pairs are the 48 of the column
        let column = [0, 16, 32].map(|at| brain(unsafe { _mm512_loadu_si512(column.as_ptr().add(at).cast()) }));
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let row = brain(_mm512_set1_epi32(row[k].cast_signed()));
            for (sum, column) in sums.iter_mut().zip(&column) {
                *sum = _mm512_dpbf16_ps(*sum, row, *column);
            }
        }
    }
    let mut tile = [[0.0; COLS]; ROWS];
    for (tile, sums) in tile.iter_mut().zip(&sums) {
        for (to, sum) in tile.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
            // SAFETY: 16 numbers
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), *sum) };
        }
    }
    Tile(tile)
}

fn portable(rows: [&[Pair]; ROWS], columns: &[[Pair; COLS]]) -> Tile {
    Tile(rows.map(|row| {
        simd::wide(
            #[inline(always)]
            || {
                let mut sums = [0.0; COLS];
                for (row, column) in row.iter().zip(columns) {
                    let [low, high] = halves(*row);
                    for (sum, column) in sums.iter_mut().zip(column) {
                        let [below, above] = halves(*column);
                        *sum += high * above;
                        *sum += low * below;
                    }
                }
                sums
            },
        )
    }))
}

#[inline(always)]
fn halves(pair: Pair) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xFFFF_0000)]
}

#[cfg(test)]
mod tests {
    use super::super::super::check::{assert_close, numbers32};
    use super::*;

    #[test]
    fn every_processor_gives_the_same_sums() {
        for pairs in [1, 2, 37, 384] {
            let of = |seed: u32, n: usize| -> Vec<Pair> {
                numbers32(seed, 2 * n)
                    .chunks(2)
                    .map(|two| (two[0].to_bits() >> 16) | (two[1].to_bits() & 0xFFFF_0000))
                    .collect()
            };
            let (x, w) = (of(1, ROWS * pairs), of(2, COLS * pairs));
            let rows: [&[Pair]; ROWS] = std::array::from_fn(|row| &x[row * pairs..][..pairs]);
            let columns = w.as_chunks::<COLS>().0;
            let (here, anywhere) = (Tile::of(rows, columns), portable(rows, columns));
            for row in 0..ROWS {
                assert_close("a row of the tile", &here.0[row], &anywhere.0[row], 1e-6);
            }
        }
    }
}
