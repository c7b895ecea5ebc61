//! Dropout of a matrix of inputs: `x∘m`, m either 0 or 1 / (1 − p). Which numbers fall out is drawn once per pass (`ops/random.rs`)
//! and remembered in a bit each, so that forward and backward see the same.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

use rayon::prelude::*;

use super::buffer::lengthen;
use super::random::Masks;
#[cfg(target_arch = "x86_64")]
use super::simd;

/// Rows that one thread takes at a time.
const ROWS: usize = 16;
/// Channels whose bits lie in one word.
const LANES: usize = u16::BITS as usize;

/// Which numbers of a matrix are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Bit c mod 16 of word c / 16 of a row: channel c is kept.
    words: Vec<u16>,
    width: usize,
    /// What the kept ones are multiplied by.
    factor: f32,
}

impl Kept {
    /// Draws for one module's rows of `width` numbers, given each row's masks and place in its example.
    pub fn draw(rows: &[(Masks, u32)], module: u32, width: usize) -> Kept {
        let per_row = width.div_ceil(LANES);
        let mut words = Vec::new();
        lengthen(&mut words, rows.len() * per_row);
        words.par_chunks_mut(per_row).zip(rows).with_min_len(ROWS).for_each(|(words, (masks, token))| {
            masks.kept(module, *token, words);
        });
        Kept { words, width, factor: rows.first().map_or(1.0, |(masks, _)| masks.keep()) }
    }

    /// `y = x∘m`.
    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        let blocks = y.par_chunks_mut(ROWS * self.width).zip(x.par_chunks(ROWS * self.width)).enumerate();
        blocks.for_each(|(block, (y, x))| self.apply_from(block * ROWS, x, y));
    }

    /// `y += x∘m`.
    pub fn add(&self, x: &[f32], y: &mut [f32]) {
        let blocks = y.par_chunks_mut(ROWS * self.width).zip(x.par_chunks(ROWS * self.width)).enumerate();
        blocks.for_each(|(block, (y, x))| self.add_from(block * ROWS, x, y));
    }

    /// [`Kept::apply`] for the rows from `first` on, by the calling thread.
    pub fn apply_from(&self, first: usize, x: &[f32], y: &mut [f32]) {
        self.each_row(first, x, y, false);
    }

    /// [`Kept::add`] for the rows from `first` on, by the calling thread.
    pub fn add_from(&self, first: usize, x: &[f32], y: &mut [f32]) {
        self.each_row(first, x, y, true);
    }

    fn each_row(&self, first: usize, x: &[f32], y: &mut [f32], add: bool) {
        let per_row = self.width.div_ceil(LANES);
        let words = self.words[first * per_row..].chunks(per_row);
        for ((y, x), words) in y.chunks_mut(self.width).zip(x.chunks(self.width)).zip(words) {
            let ((y, y_rest), (x, x_rest)) = (y.as_chunks_mut(), x.as_chunks());
            self.whole(words, add, x, y);
            let words = &words[x.len()..];
            portable(words, self.factor, add, x_rest, y_rest);
        }
    }

    #[inline]
    fn whole(&self, words: &[u16], add: bool, x: &[[f32; LANES]], y: &mut [[f32; LANES]]) {
        #[cfg(target_arch = "x86_64")]
        if simd::has_avx512() {
            // SAFETY: the feature was just found
            return unsafe { avx512::apply(words, self.factor, add, x, y) };
        }
        portable(words, self.factor, add, x.as_flattened(), y.as_flattened_mut());
    }
}

fn portable(words: &[u16], factor: f32, add: bool, x: &[f32], y: &mut [f32]) {
    for ((y, x), word) in y.chunks_mut(LANES).zip(x.chunks(LANES)).zip(words) {
        for (lane, (y, x)) in y.iter_mut().zip(x).enumerate() {
            let masked = if word & (1 << lane) != 0 { x * factor } else { 0.0 };
            let mut sum = if add { *y } else { 0.0 };
            sum += masked; // mutate: flip
            *y = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::numbers32;
    use super::*;
    use crate::lora::Dropout;

    #[test]
    fn a_mask_drops_its_share_scales_the_rest_and_adds_what_it_applies() {
        for width in [16, 33, 577] {
            let masks = Masks::new(Dropout { p: 0.1, seed: 3 }, 1, 5);
            let rows: Vec<_> = (0..200).map(|token| (masks, token)).collect();
            let kept = Kept::draw(&rows, 9, width);
            assert_eq!(kept, Kept::draw(&rows, 9, width));
            let (x, start) = (numbers32(1, 200 * width), numbers32(2, 200 * width));
            let (mut y, mut sum) = (vec![f32::NAN; x.len()], start.clone());
            kept.apply(&x, &mut y);
            kept.add(&x, &mut sum);
            assert!(y.iter().zip(&x).all(|(y, x)| *y == 0.0 || *y == x * (1.0 / 0.9)));
            assert!(sum.iter().zip(&start).zip(&y).all(|((sum, start), y)| *sum == start + y));
            let dropped = y.iter().filter(|y| **y == 0.0).count() as f64 / y.len() as f64;
            assert!((dropped - 0.1).abs() < 0.02, "{dropped} of a row of {width}");
        }
    }

    #[test]
    fn every_processor_masks_alike() {
        let masks = Masks::new(Dropout { p: 0.3, seed: 3 }, 1, 5);
        let rows: Vec<_> = (0..9).map(|token| (masks, token)).collect();
        let (width, factor) = (96, 1.0 / 0.7);
        let (kept, x) = (Kept::draw(&rows, 9, width), numbers32(1, 9 * width));
        for add in [false, true] {
            let (mut here, mut anywhere) = (numbers32(2, x.len()), numbers32(2, x.len()));
            kept.each_row(0, &x, &mut here, add);
            portable(&kept.words, factor as f32, add, &x, &mut anywhere);
            assert_eq!(here, anywhere);
        }
    }

    #[test]
    fn what_is_kept_of_a_row_depends_on_its_token_alone() {
        let masks = Masks::new(Dropout { p: 0.5, seed: 3 }, 1, 5);
        let of =
            |tokens: std::ops::Range<u32>| Kept::draw(&tokens.map(|token| (masks, token)).collect::<Vec<_>>(), 9, 100);
        let (all, tail) = (of(0..50), of(20..50));
        assert_eq!(all.words[20 * 7..], tail.words);
    }
}
