//! Operands of a product as its tiles read them: rounded to bf16 and cut into steps of 32 × 32.
//!
//! A step holds 32 lines (rows of the left operand, columns of the right one) and 32 numbers of the inner index, two neighbours of which are
//! a [`Pair`]. It is two tiles of sixteen lines; in one of the left operand a line's pairs lie side by side, in one of the right
//! operand the lines do:
//!
//! ```text
//! left    line 0: pair 0, pair 1, …, pair 15         right    pair 0: line 0, line 1, …, line 15
//!         line 1: pair 0, …                                   pair 1: line 0, …
//! ```
//! Lines and numbers that the matrix does not have are zero. So one of the two is the other, transposed; which of them a matrix
//! gives without that depends on which of its indices is consecutive in memory.

use std::mem::MaybeUninit;

use half::bf16;

/// Lines of a step, and numbers of the inner index.
pub(super) const SIDE: usize = 32;
/// Lines of a tile, and pairs of the inner index.
pub(super) const TILE: usize = 16;

/// Two neighbours along the inner index, the first in the low half.
pub(super) type Pair = u32;

/// Two tiles.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(super) struct Step(pub(super) [[[Pair; TILE]; TILE]; 2]);

/// Which operand a matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hand {
    Left,
    Right,
}

/// A number that is rounded to a brain float, or is one.
pub(super) trait Number: Copy + Sync {
    /// The bits of the nearest brain float to it times `factor`.
    fn round(self, factor: f32) -> u16;

    /// The same of 32 consecutive ones, of which those in `mask` are read and the others are zero.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW and BF16, and numbers in `mask` can be read.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(from: *const Self, mask: u32, factor: f32) -> std::arch::x86_64::__m512i;
}

impl Number for f32 {
    #[inline(always)]
    fn round(self, factor: f32) -> u16 {
        let x = self * factor;
        let bits = x.to_bits();
        let nearest = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
        // what is not a number stays so
        if x.is_nan() { 0x7FC0 } else { nearest as u16 }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(from: *const f32, mask: u32, factor: f32) -> std::arch::x86_64::__m512i {
        use std::arch::x86_64::*;
        // SAFETY: as promised; what is masked out is not touched
        unsafe {
            let factor = _mm512_set1_ps(factor);
            let low = _mm512_mul_ps(factor, _mm512_maskz_loadu_ps(mask as u16, from));
            let high = _mm512_mul_ps(factor, _mm512_maskz_loadu_ps((mask >> 16) as u16, from.wrapping_add(16)));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn round(self, factor: f32) -> u16 {
        if factor == 1.0 { self.to_bits() } else { Number::round(self.to_f32(), factor) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(from: *const bf16, mask: u32, factor: f32) -> std::arch::x86_64::__m512i {
        debug_assert!(factor == 1.0, "a matrix of brain floats is taken as it is");
        // SAFETY: as promised; what is masked out is not touched
        unsafe { std::arch::x86_64::_mm512_maskz_loadu_epi16(mask, from.cast()) }
    }
}

/// A matrix somewhere in a slice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a, T> {
    pub(super) numbers: &'a [T],
    pub(super) lines: usize,
    pub(super) inner: usize,
    /// From one line to the next where `along`; otherwise from one number of the inner index to the next.
    pub(super) stride: usize,
    /// Whether the numbers of a line are consecutive; otherwise the lines are.
    pub(super) along: bool,
    /// What every number is multiplied by before it is rounded.
    pub(super) factor: f32,
}

impl<T: Number> Source<'_, T> {
    /// Steps that a line takes.
    pub(super) fn steps(&self) -> usize {
        self.inner.div_ceil(SIDE)
    }

    /// 32 lines from `line` on, in the steps from `step` on; initialises all of `to`.
    pub(super) fn pack(&self, hand: Hand, line: usize, step: usize, to: &mut [MaybeUninit<Step>]) {
        let last = |n: usize, stride: usize| n.saturating_sub(1) * stride;
        let (outer, consecutive) = if self.along { (self.lines, self.inner) } else { (self.inner, self.lines) };
        assert!(
            outer == 0 || consecutive == 0 || last(outer, self.stride) + consecutive <= self.numbers.len(),
            "{outer} × {consecutive} numbers lie within {}",
            self.numbers.len()
        );
        #[cfg(target_arch = "x86_64")]
        if super::tile::has_bf16() {
            // SAFETY: the features were just found, and the matrix lies in the slice
            unsafe { self.pack_wide(hand, line, step, to) };
            return;
        }
        for (i, to) in to.iter_mut().enumerate() {
            to.write(self.step(hand, line, (step + i) * SIDE));
        }
    }

    /// One step, number by number.
    fn step(&self, hand: Hand, line: usize, inner: usize) -> Step {
        let mut step = Step([[[0; TILE]; TILE]; 2]);
        let (line_stride, inner_stride) = if self.along { (self.stride, 1) } else { (1, self.stride) };
        for l in 0..SIDE.min(self.lines.saturating_sub(line)) {
            for k in 0..SIDE.min(self.inner.saturating_sub(inner)) {
                let number = self.numbers[(line + l) * line_stride + (inner + k) * inner_stride].round(self.factor);
                let (tile, l, pair) = (l / TILE, l % TILE, k / 2);
                let [row, col] = if hand == Hand::Left { [l, pair] } else { [pair, l] };
                step.0[tile][row][col] |= Pair::from(number) << (16 * (k % 2));
            }
        }
        step
    }

    /// # Safety
    /// The processor has the features, and all numbers of the matrix lie within the slice.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack_wide(&self, hand: Hand, line: usize, step: usize, to: &mut [MaybeUninit<Step>]) {
        use std::arch::x86_64::*;
        let lines = SIDE.min(self.lines.saturating_sub(line));
        // of two vectors of 32 numbers: pairs of the first sixteen, pairs of the others
        let places: [[u16; 32]; 2] =
            [0, 16].map(|from| std::array::from_fn(|i| from + i as u16 / 2 + if i % 2 == 1 { 32 } else { 0 }));
        // SAFETY: 64 bytes of plain numbers
        let places = places.map(|places| unsafe { _mm512_loadu_si512(places.as_ptr().cast()) });
        let base = self.numbers.as_ptr();
        for (i, to) in to.iter_mut().enumerate() {
            let inner = (step + i) * SIDE;
            let inners = SIDE.min(self.inner.saturating_sub(inner));
            let mut tiles = [[_mm512_setzero_si512(); TILE]; 2];
            if self.along {
                let mask = first(inners);
                for l in 0..lines {
                    // SAFETY: the line is one of the matrix, and no more than its numbers are read
                    tiles[l / TILE][l % TILE] =
                        unsafe { T::load(base.wrapping_add((line + l) * self.stride + inner), mask, self.factor) };
                }
            } else {
                let mask = first(lines);
                for pair in 0..inners.div_ceil(2) {
                    let from = base.wrapping_add((inner + 2 * pair) * self.stride + line);
                    let both = if 2 * pair + 1 < inners { mask } else { 0 };
                    // SAFETY: likewise; of an odd end's second row nothing is read
                    let (low, high) = unsafe {
                        (T::load(from, mask, self.factor), T::load(from.wrapping_add(self.stride), both, self.factor))
                    };
                    for (tile, places) in tiles.iter_mut().zip(&places) {
                        tile[pair] = _mm512_permutex2var_epi16(low, *places, high);
                    }
                }
            }
            if self.along != (hand == Hand::Left) {
                tiles = tiles.map(|tile| transposed(tile));
            }
            let to = to.as_mut_ptr().cast::<__m512i>();
            for (at, row) in tiles.as_flattened().iter().enumerate() {
                // SAFETY: a step is 32 vectors, aligned as one
                unsafe { to.add(at).write(*row) };
            }
        }
    }
}

/// A mask of so many.
fn first(n: usize) -> u32 {
    if n < 32 { (1 << n) - 1 } else { u32::MAX }
}

/// Sixteen rows of sixteen, as columns.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn transposed(rows: [std::arch::x86_64::__m512i; TILE]) -> [std::arch::x86_64::__m512i; TILE] {
    use std::arch::x86_64::*;
    let (mut a, mut b, mut c, mut out) = (rows, rows, rows, rows);
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // now four rows at a time: quarter l of b[4 g + j] is column 4 l + j of rows 4 g..4 g + 4
    for g in [0, 4, 8, 12] {
        b[g] = _mm512_unpacklo_epi64(a[g], a[g + 2]);
        b[g + 1] = _mm512_unpackhi_epi64(a[g], a[g + 2]);
        b[g + 2] = _mm512_unpacklo_epi64(a[g + 1], a[g + 3]);
        b[g + 3] = _mm512_unpackhi_epi64(a[g + 1], a[g + 3]);
    }
    for j in 0..4 {
        c[j] = _mm512_shuffle_i32x4::<0x88>(b[j], b[4 + j]);
        c[4 + j] = _mm512_shuffle_i32x4::<0xDD>(b[j], b[4 + j]);
        c[8 + j] = _mm512_shuffle_i32x4::<0x88>(b[8 + j], b[12 + j]);
        c[12 + j] = _mm512_shuffle_i32x4::<0xDD>(b[8 + j], b[12 + j]);
    }
    for j in 0..4 {
        out[j] = _mm512_shuffle_i32x4::<0x88>(c[j], c[8 + j]);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(c[4 + j], c[12 + j]);
        out[8 + j] = _mm512_shuffle_i32x4::<0xDD>(c[j], c[8 + j]);
        out[12 + j] = _mm512_shuffle_i32x4::<0xDD>(c[4 + j], c[12 + j]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::super::check::numbers32;
    use super::*;

    #[test]
    fn a_number_is_rounded_to_the_nearest_and_ties_to_even() {
        for x in numbers32(1, 1000).into_iter().chain([0.0, -0.0, 1e38, f32::MAX, f32::INFINITY, f32::NEG_INFINITY]) {
            assert_eq!(Number::round(x, 1.0), bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(bf16::from_bits(Number::round(f32::from_bits(0x7FFF_FFFF), 1.0)).is_nan());
        assert_eq!(Number::round(f32::from_bits(0x3F80_8000), 1.0), 0x3F80);
        assert_eq!(Number::round(f32::from_bits(0x3F81_8000), 1.0), 0x3F82);
    }

    /// Wide or not, whatever is consecutive, whichever operand; with odd ends, and what was there before overwritten.
    #[test]
    fn every_step_holds_the_numbers_of_its_lines() {
        for [lines, inner] in [[32, 32], [1, 1], [33, 31], [50, 95], [7, 64], [64, 5]] {
            for (along, hand) in [(true, Hand::Left), (true, Hand::Right), (false, Hand::Left), (false, Hand::Right)] {
                let stride = 3 + if along { inner } else { lines };
                let numbers = numbers32(1, stride * if along { lines } else { inner });
                let source = Source { numbers: &numbers, lines, inner, stride, along, factor: 0.5 };
                let brain: Vec<bf16> = numbers.iter().map(|x| bf16::from_f32(*x)).collect();
                let narrow = Source { numbers: &brain, lines, inner, stride, along, factor: 1.0 };
                for line in (0..lines).step_by(SIDE) {
                    assert_eq!(packed(&source, hand, line), plain(&source, hand, line), "{lines} × {inner}");
                    assert_eq!(packed(&narrow, hand, line), plain(&narrow, hand, line), "{lines} × {inner}");
                }
            }
        }
    }

    fn packed<T: Number>(source: &Source<'_, T>, hand: Hand, line: usize) -> Vec<[[[Pair; TILE]; TILE]; 2]> {
        let poison = Step([[[0xABCD_EF01; TILE]; TILE]; 2]);
        let mut to = vec![MaybeUninit::new(poison); source.steps()];
        source.pack(hand, line, 0, &mut to);
        // SAFETY: initialised with poison, if with nothing else
        to.into_iter().map(|step| unsafe { step.assume_init() }.0).collect()
    }

    fn plain<T: Number>(source: &Source<'_, T>, hand: Hand, line: usize) -> Vec<[[[Pair; TILE]; TILE]; 2]> {
        (0..source.steps()).map(|step| source.step(hand, line, step * SIDE).0).collect()
    }
}
