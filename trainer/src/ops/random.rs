//! Counter-based random numbers (Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! A number is a function of a 64-bit key and a 128-bit counter, nothing is remembered between two of them: any part of a
//! mask can be made again, in any order, by any thread, in a later process. [`Masks`] makes dropout from it.

use super::simd;
use crate::lora::Dropout;

/// Domains keep streams of one seed apart.
const INIT: u32 = 1;
const DROPOUT: u32 = 2;

/// Four words from a key and a counter.
#[inline(always)]
pub fn philox([mut k0, mut k1]: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for _ in 0..10 {
        counter = round([k0, k1], counter);
        (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
    }
    counter
}

/// What the counter's even words are multiplied by.
pub(super) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What is added to the key after every round.
pub(super) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

#[inline(always)]
fn round([k0, k1]: [u32; 2], c: [u32; 4]) -> [u32; 4] {
    let p0 = u64::from(c[0]) * u64::from(MULTIPLIERS[0]);
    let p1 = u64::from(c[2]) * u64::from(MULTIPLIERS[1]);
    [(p1 >> 32) as u32 ^ c[1] ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k1, p0 as u32]
}

fn halves(wide: u64) -> [u32; 2] {
    [wide as u32, (wide >> 32) as u32]
}

/// Fills `out` evenly from ±`bound`; element i depends on (seed, tensor, i).
pub fn fill_uniform(out: &mut [f32], seed: u64, tensor: u32, bound: f64) {
    for (block, chunk) in out.chunks_mut(4).enumerate() {
        let [low, high] = halves(block as u64);
        let words = philox(halves(seed), [low, high, tensor, INIT]);
        for (x, word) in chunk.iter_mut().zip(words) {
            // the middle of one of 2^24 equal parts, so that neither end is favoured
            let unit = (f64::from(word >> 8) + 0.5) / f64::from(1u32 << 24);
            *x = ((2.0 * unit - 1.0) * bound) as f32;
        }
    }
}

/// The dropout masks of one example in one epoch: PEFT's inverted dropout, kept inputs are multiplied by 1 / (1 − p). Every module
/// has its own.
#[derive(Debug, Clone, Copy)]
pub struct Masks {
    key: [u32; 4],
    /// A word below it falls out.
    threshold: u32,
    keep: f32,
}

/// Counter blocks computed side by side.
const LANES: usize = 16;

impl Masks {
    /// Those of one example in one epoch.
    pub fn new(dropout: Dropout, epoch: u32, example: u64) -> Masks {
        let [low, high] = halves(example);
        // 160 bits of name do not fit one counter: the first block turns most of them into the key of the others
        let key = philox(halves(dropout.seed), [low, high, epoch, DROPOUT]);
        let threshold = (dropout.p * 2f64.powi(32)).round() as u32;
        Masks { key, threshold, keep: (1.0 / (1.0 - dropout.p)) as f32 }
    }

    /// What tells them from all others; with the two numbers below all that a device needs to make them.
    pub fn key(&self) -> [u32; 4] {
        self.key
    }

    /// The key of one module's generator.
    fn of(&self, module: u32) -> [u32; 2] {
        let [k0, k1, c0, c1] = self.key;
        let [k0, k1, ..] = philox([k0, k1], [c0, c1, module, DROPOUT]);
        [k0, k1]
    }

    /// A word below it falls out.
    pub fn threshold(&self) -> u32 {
        self.threshold
    }

    /// What kept inputs are multiplied by.
    pub fn keep(&self) -> f32 {
        self.keep
    }

    /// Which channels of one token `module` (any number that names layer and projection) keeps, 16 to a word. Channel c takes word
    /// (c / 16) mod 4 of the block with number (c / 64, c mod 16): sixteen neighbours are computed side by side.
    pub fn kept(&self, module: u32, token: u32, out: &mut [u16]) {
        let key = self.of(module);
        #[cfg(target_arch = "x86_64")]
        if simd::has_avx512() {
            // SAFETY: the feature was just found
            return unsafe { super::dropout::avx512::kept(key, [token, DROPOUT], self.threshold, out) };
        }
        simd::wide(
            #[inline(always)]
            || self.fill(key, token, out),
        );
    }

    #[inline(always)]
    fn fill(&self, key: [u32; 2], token: u32, out: &mut [u16]) {
        for (group, kept) in out.chunks_mut(4).enumerate() {
            let words = philox_lanes(key, [group as u32, token]);
            for (kept, words) in kept.iter_mut().zip(&words) {
                *kept = (0..LANES).fold(0, |bits, lane| bits | u16::from(words[lane] >= self.threshold) << lane);
            }
        }
    }

    /// The factors (0 or 1 / (1 − p)) of every channel of one token.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn factors(&self, module: u32, token: u32, out: &mut [f32]) {
        let mut kept = vec![0; out.len().div_ceil(LANES)];
        self.kept(module, token, &mut kept);
        for (c, out) in out.iter_mut().enumerate() {
            *out = if kept[c / LANES] & (1 << (c % LANES)) != 0 { self.keep } else { 0.0 };
        }
    }
}

/// [`philox`] for the counters `[group, lane, token, DROPOUT]` of every lane; word by word, so that lanes fill a vector.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "one index over eight arrays is what becomes vector code")]
fn philox_lanes([mut k0, mut k1]: [u32; 2], [group, token]: [u32; 2]) -> [[u32; LANES]; 4] {
    let mut c = [[group; LANES], std::array::from_fn(|lane| lane as u32), [token; LANES], [DROPOUT; LANES]];
    for _ in 0..10 {
        for lane in 0..LANES {
            [c[0][lane], c[1][lane], c[2][lane], c[3][lane]] =
                round([k0, k1], [c[0][lane], c[1][lane], c[2][lane], c[3][lane]]);
        }
        (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_words_its_authors_publish() {
        assert_eq!(philox([0, 0], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = u32::MAX;
        assert_eq!(philox([ones; 2], [ones; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn lanes_side_by_side_are_the_blocks_of_their_counters() {
        let lanes = philox_lanes([5, 6], [7, 8]);
        for lane in 0..LANES {
            assert_eq!(lanes.map(|word| word[lane]), philox([5, 6], [7, lane as u32, 8, DROPOUT]));
        }
    }

    #[test]
    fn every_processor_draws_the_same() {
        let masks = Masks::new(Dropout { p: 0.4, seed: 3 }, 1, 5);
        for token in [0, 1, 77] {
            let (mut here, mut anywhere) = ([0; 37], [0; 37]);
            masks.kept(9, token, &mut here);
            masks.fill(masks.of(9), token, &mut anywhere);
            assert_eq!(here, anywhere);
        }
    }

    #[test]
    fn a_mask_drops_its_share_and_keeps_the_mean() {
        let masks = Masks::new(Dropout { p: 0.1, seed: 3 }, 1, 5);
        let mut sum = 0.0;
        let mut dropped = 0;
        let mut row = vec![0.0; 577];
        for token in 0..200 {
            masks.factors(9, token, &mut row);
            sum += row.iter().sum::<f32>();
            dropped += row.iter().filter(|x| **x == 0.0).count();
        }
        let n = 200.0 * 577.0;
        assert!((dropped as f64 / n - 0.1).abs() < 0.004, "{dropped} of {n}");
        assert!((f64::from(sum) / n - 1.0).abs() < 0.005);
    }

    #[test]
    fn every_part_of_its_name_changes_a_mask() {
        let base = mask(0.5, 1, 2, 3, 4, 5);
        assert_eq!(base, mask(0.5, 1, 2, 3, 4, 5));
        for other in [
            mask(0.5, 9, 2, 3, 4, 5),
            mask(0.5, 1, 9, 3, 4, 5),
            mask(0.5, 1, 2, 9, 4, 5),
            mask(0.5, 1, 2, 1 << 40, 4, 5),
            mask(0.5, 1, 2, 3, 9, 5),
            mask(0.5, 1, 2, 3, 4, 9),
        ] {
            let same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((50..206).contains(&same), "{same} of 256 alike");
        }
    }

    fn mask(p: f64, seed: u64, epoch: u32, example: u64, module: u32, token: u32) -> Vec<f32> {
        let mut row = vec![0.0; 256];
        Masks::new(Dropout { p, seed }, epoch, example).factors(module, token, &mut row);
        row
    }
}
