//! 8-bit integers with a scale per row (Dettmers et al., LLM.int8(), 2208.07339): `n = round(127 w / s)`, `w ≈ n s / 127`.
//!
//! As bitsandbytes stores them. It multiplies integers with integers and keeps outlying columns of the input apart; here the
//! weight is taken apart and the input stays as it is, which is nearer to the unquantised product.

use half::f16;
use rayon::prelude::*;

/// 1 / 127 as bitsandbytes writes it.
const STEP: f32 = 7.874_016e-3;
/// Numbers taken apart by one thread at a time.
const PIECE: usize = 1 << 14;

/// A matrix in 8 bits a number.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8 {
    /// Row by row.
    pub codes: Vec<i8>,
    /// One a row.
    pub scales: Vec<f32>,
}

impl Int8 {
    /// Quantises rows of `cols` numbers, by way of 16-bit floats.
    pub fn new(numbers: &[f32], cols: usize) -> Int8 {
        let halved = |row: &[f32]| row.iter().map(|x| f16::from_f32(*x).to_f32()).collect::<Vec<_>>();
        let rows: Vec<(Vec<i8>, f32)> = numbers.par_chunks(cols).map(|row| quantised(&halved(row))).collect();
        let scales = rows.iter().map(|(_, scale)| *scale).collect();
        Int8 { codes: rows.into_iter().flat_map(|(codes, _)| codes).collect(), scales }
    }

    /// Overwrites `out` with the numbers from `first` on.
    pub fn widen(&self, first: usize, out: &mut [f32]) {
        let cols = self.codes.len() / self.scales.len();
        out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| {
            let first = first + piece * PIECE;
            for (i, x) in out.iter_mut().enumerate() {
                *x = f32::from(self.codes[first + i]) * self.scales[(first + i) / cols] * STEP;
            }
        });
    }

    /// What the codes of each row are multiplied by.
    #[cfg(feature = "cuda")]
    pub fn factors(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| scale * STEP).collect()
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        (self.codes.len() + 4 * self.scales.len()) as u64
    }
}

fn quantised(row: &[f32]) -> (Vec<i8>, f32) {
    let most = row.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    // as PyTorch divides a number by a tensor: the reciprocal first, which moves what lies half-way
    let factor = if most > 0.0 { 127.0 * (1.0 / most) } else { 0.0 };
    (row.iter().map(|x| (x * factor).round_ties_even() as i8).collect(), most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_within_half_a_step() {
        let numbers: Vec<f32> = (0..3 * 40_000).map(|i| ((i * 37 % 1001) as f32 - 500.0) / 3000.0).collect();
        let weight = Int8::new(&numbers, 40_000);
        let mut whole = vec![f32::NAN; numbers.len()];
        weight.widen(0, &mut whole);
        let far = numbers.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far <= 0.5 * weight.scales[0] / 127.0 + 1e-4, "{far}");
        let mut part = vec![f32::NAN; 50_000];
        weight.widen(39_999, &mut part);
        assert_eq!(part, whole[39_999..89_999]);
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        let mut out = vec![1.0; 8];
        Int8::new(&[0.0; 8], 4).widen(0, &mut out);
        assert_eq!(out, [0.0; 8]);
    }
}
