//! 4-bit normal floats (Dettmers et al., QLoRA, 2305.14314): 16 levels between −1 and 1, dense where a normal distribution is.

use lorikeet_plan::QUANT_BLOCK;
use rayon::prelude::*;

use super::rounded;
use super::scale::Scales;
use crate::ops::widen::Stored;

/// The levels, as bitsandbytes has them.
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];
/// Numbers taken apart by one thread at a time.
const PIECE: usize = 1 << 14;
const _: () = assert!(PIECE.is_multiple_of(4096), "a piece holds whole blocks of every size that is taken");

/// A tensor in 4 bits a number.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    /// Two numbers a byte, the first in the upper half.
    pub codes: Vec<u8>,
    /// One a block.
    pub scales: Scales,
    /// Numbers of a block.
    pub block: usize,
    /// The levels that the codes name.
    pub levels: [f32; 16],
    /// What the numbers were, and are again when they are taken apart.
    pub stored: Stored,
}

impl Nf4 {
    /// Quantises in blocks of 64, the scales too.
    pub fn new(numbers: &[f32], stored: Stored) -> Nf4 {
        let scales: Vec<f32> = numbers.par_chunks(QUANT_BLOCK).map(most).collect();
        let pairs = numbers.par_chunks(QUANT_BLOCK).zip(&scales);
        let codes = pairs.flat_map_iter(|(block, most)| packed(block, *most)).collect();
        Nf4 { codes, scales: Scales::nested(&scales), block: QUANT_BLOCK, levels: LEVELS, stored }
    }

    /// Overwrites `out` with the numbers from `first` on.
    pub fn widen(&self, first: usize, out: &mut [f32]) {
        let pieces = out.par_chunks_mut(PIECE).enumerate();
        pieces.for_each(|(piece, out)| self.widen_piece(first + piece * PIECE, out));
    }

    fn widen_piece(&self, first: usize, out: &mut [f32]) {
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let here = (self.block - at % self.block).min(rest.len());
            let (block, others) = rest.split_at_mut(here);
            let scale = self.scales.get(at / self.block);
            let values = self.levels.map(|level| rounded(level * scale, self.stored));
            for (i, x) in block.iter_mut().enumerate() {
                let (pair, upper) = (self.codes[(at + i) / 2], (at + i).is_multiple_of(2));
                *x = values[usize::from(if upper { pair >> 4 } else { pair & 15 })];
            }
            (at, rest) = (at + here, others);
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        self.codes.len() as u64 + self.scales.bytes()
    }
}

fn most(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |most: f32, x| most.max(x.abs()))
}

/// The codes of one block, two a byte; a lone last number is paired with zero.
fn packed(block: &[f32], most: f32) -> impl Iterator<Item = u8> {
    let factor = 1.0 / most.max(1e-38);
    // a last block that is not whole is divided, not multiplied
    let scaled = move |x: &f32| if block.len() == QUANT_BLOCK { x * factor } else { x / most.max(1e-38) };
    let code = move |x: &f32| nearest(scaled(x).clamp(-1.0, 1.0));
    block.chunks(2).map(move |pair| code(&pair[0]) << 4 | pair.get(1).map_or(nearest(0.0), code))
}

/// The level next to a number between −1 and 1; of two equally near ones the lower.
fn nearest(x: f32) -> u8 {
    let above = |pair: &[f32]| x > f32::midpoint(pair[0], pair[1]);
    LEVELS.windows(2).take_while(|pair| above(pair)).count() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_its_own_nearest() {
        for (code, level) in LEVELS.iter().enumerate() {
            assert_eq!(usize::from(nearest(*level)), code);
        }
        assert_eq!((nearest(-0.85), nearest(0.86), nearest(0.87)), (0, 14, 15));
    }

    #[test]
    fn a_part_is_taken_apart_as_the_whole_wherever_it_begins() {
        let numbers: Vec<f32> = (0..64 * 300 + 17).map(|i| ((i * 37 % 101) as f32 - 50.0) / 300.0).collect();
        for stored in [Stored::F32, Stored::Bf16, Stored::F16] {
            let weight = Nf4::new(&numbers, stored);
            let mut whole = vec![f32::NAN; numbers.len()];
            weight.widen(0, &mut whole);
            let far = numbers.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 0.17 * 0.17, "{stored:?}: {far}");
            for (first, len) in [(0, 1), (5, 64), (64, 128), (999, 17_000), (numbers.len() - 3, 3)] {
                let mut part = vec![f32::NAN; len];
                weight.widen(first, &mut part);
                assert_eq!(part, whole[first..first + len], "{len} from {first}");
            }
        }
    }

    #[test]
    fn a_block_of_zeros_stays_one() {
        let mut out = vec![1.0; 128];
        Nf4::new(&[0.0; 128], Stored::F32).widen(0, &mut out);
        assert_eq!(out, [0.0; 128]);
    }
}
