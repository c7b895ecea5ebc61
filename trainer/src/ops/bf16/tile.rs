//! Sums of 32 × 32 results: what the processor at hand does for it.
//!
//! | | takes | order of a sum |
//! |---|---|---|
//! | AMX (`amx.rs`) | 16 × 16 results and 16 pairs an instruction | the first numbers of all sixteen pairs by themselves, the second ones by themselves, then both together to what was there |
//! | AVX-512 BF16 | 16 results and a pair an instruction | pair by pair, the second number first |
//! | any other | a number | the same, except for numbers too small to be normal, which the instructions take for zero |
//!
//! So the last bits of a result tell the first kind of processor from the others, as they do for products in `f32`.

use super::super::simd;
#[cfg(target_arch = "x86_64")]
use super::amx;
use super::pack::{Pair, SIDE, Step, TILE};

/// Rows of one pass over the columns: with two vectors of results each, there is room for a row and two columns in 32 registers.
const ROWS: usize = 8;

/// What takes the sums on this thread. AMX has to be told the shapes of its tiles before and to let go of them
/// after, so that this is made once for many blocks.
#[derive(Debug)]
pub(super) enum Block {
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Tiles),
    #[cfg(target_arch = "x86_64")]
    Avx512,
    Portable,
}

impl Block {
    pub(super) fn new() -> Block {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(tiles) = amx::Tiles::take() {
                return Block::Amx(tiles);
            }
            if has_bf16() {
                return Block::Avx512;
            }
        }
        Block::Portable
    }

    /// Puts 32 rows of 32 sums to `to`, rows `stride` apart, or adds to what is there. Those past the first `rows` are not wanted and
    /// may be left as they were: a single row costs others than AMX a quarter of all.
    ///
    /// # Safety
    /// Those numbers can be read and written, and nobody else does meanwhile.
    pub(super) unsafe fn put(
        &self,
        (left, right): (&[Step], &[Step]),
        rows: usize,
        add: bool,
        to: *mut f32,
        stride: usize,
    ) {
        assert_eq!(left.len(), right.len(), "inner sizes of a product");
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as promised
            Block::Amx(tiles) => unsafe { tiles.put(left, right, add, to, stride) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as promised, and the features were found when this was made
            Block::Avx512 => unsafe { with_bf16((left, right), rows, add, to, stride) },
            // SAFETY: as promised
            Block::Portable => unsafe { portable((left, right), rows, add, to, stride) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) fn has_bf16() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512bw") && has!("avx512bf16")
}

/// # Safety
/// As [`Block::put`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn with_bf16((left, right): (&[Step], &[Step]), rows: usize, add: bool, to: *mut f32, stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: both are 64 bytes of plain numbers
    let brain = |pairs: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) };
    for top in (0..rows.min(SIDE)).step_by(ROWS) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (left, right) in left.iter().zip(right) {
            let rows = left.0[top / TILE][top % TILE..][..ROWS].as_ptr();
            for pair in 0..TILE {
                // SAFETY: sixteen pairs, and rows as just sliced
                let columns =
                    [0, 1].map(|half| brain(unsafe { _mm512_loadu_si512(right.0[half][pair].as_ptr().cast()) }));
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: likewise
                    let row = brain(_mm512_set1_epi32(unsafe { (*rows.add(row))[pair] }.cast_signed()));
                    for (sum, column) in sums.iter_mut().zip(&columns) {
                        *sum = _mm512_dpbf16_ps(*sum, row, *column);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                // SAFETY: the caller's promise
                unsafe {
                    let to = to.add((top + row) * stride + half * TILE);
                    _mm512_storeu_ps(to, if add { _mm512_add_ps(_mm512_loadu_ps(to), *sum) } else { *sum });
                }
            }
        }
    }
}

/// # Safety
/// As [`Block::put`].
unsafe fn portable((left, right): (&[Step], &[Step]), rows: usize, add: bool, to: *mut f32, stride: usize) {
    for row in 0..rows.min(SIDE) {
        // SAFETY: the caller's promise
        let to = unsafe { std::slice::from_raw_parts_mut(to.add(row * stride), SIDE) };
        let sums = simd::wide(
            #[inline(always)]
            || {
                let mut sums = [[0.0; TILE]; 2];
                for (left, right) in left.iter().zip(right) {
                    for (pair, row) in left.0[row / TILE][row % TILE].iter().enumerate() {
                        let [low, high] = halves(*row);
                        for (sums, columns) in sums.iter_mut().zip(&right.0) {
                            for (sum, column) in sums.iter_mut().zip(&columns[pair]) {
                                let [below, above] = halves(*column);
                                *sum += high * above;
                                *sum += low * below;
                            }
                        }
                    }
                }
                sums
            },
        );
        for (to, sum) in to.iter_mut().zip(sums.as_flattened()) {
            *to = if add { *to + sum } else { *sum };
        }
    }
}

#[inline(always)]
fn halves(pair: Pair) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xFFFF_0000)]
}

#[cfg(test)]
mod tests {
    use super::super::super::check::{assert_close, numbers, numbers32};
    use super::super::pack::{Hand, Source};
    use super::*;

    /// All that this processor has, the one it would choose first.
    fn kinds() -> Vec<Block> {
        let mut kinds = vec![Block::new(), Block::Portable];
        #[cfg(target_arch = "x86_64")]
        kinds.extend(has_bf16().then_some(Block::Avx512));
        kinds
    }

    #[test]
    fn every_kind_gives_the_sums_of_f64_and_touches_nothing_else() {
        const STRIDE: usize = SIDE + 5;
        for inner in [1, 2, 31, 74, 768] {
            let of = |seed, hand| {
                let brain: Vec<half::bf16> =
                    numbers(seed, SIDE * inner).into_iter().map(half::bf16::from_f64).collect();
                let source = Source { numbers: &brain, lines: SIDE, inner, stride: inner, along: true, factor: 1.0 };
                let mut steps = Vec::with_capacity(source.steps());
                source.pack(hand, 0, 0, &mut steps.spare_capacity_mut()[..source.steps()]);
                // SAFETY: packed just now
                unsafe { steps.set_len(source.steps()) };
                (brain, steps)
            };
            let ((x, left), (w, right)) = (of(1, Hand::Left), of(2, Hand::Right));
            let product = |row: usize, col: usize| -> f64 {
                (0..inner).map(|k| f64::from(x[row * inner + k]) * f64::from(w[col * inner + k])).sum()
            };
            for (kind, add) in kinds().iter().flat_map(|kind| [(kind, false), (kind, true)]) {
                let before = numbers32(3, SIDE * STRIDE);
                let mut sums = before.clone();
                if !add {
                    (0..SIDE).for_each(|row| sums[row * STRIDE..][..SIDE].fill(f32::NAN));
                }
                // SAFETY: 32 rows of 32 numbers that are ours
                unsafe { kind.put((&left, &right), SIDE, add, sums.as_mut_ptr(), STRIDE) };
                let expected: Vec<f32> = (0..SIDE * STRIDE)
                    .map(|at| match (at / STRIDE, at % STRIDE) {
                        (row, col) if col < SIDE => product(row, col) + if add { f64::from(before[at]) } else { 0.0 },
                        _ => f64::from(before[at]),
                    })
                    .map(|x| x as f32)
                    .collect();
                assert_close(&format!("{kind:?}, {inner}, {add}"), &sums, &expected, 1e-6);
            }
        }
    }
}
