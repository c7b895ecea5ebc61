//! Bytes that are nearly right: a few changes to something that was.

use lorikeet_tests::chance;

/// Numbers that formats choke on, little-endian.
const NUMBERS: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// Chance, and the words of a format.
pub(crate) struct Mutator<'a> {
    seed: u64,
    words: &'a [&'a str],
}

impl<'a> Mutator<'a> {
    pub(crate) fn new(seed: u64, words: &'a [&'a str]) -> Self {
        Self { seed, words }
    }

    fn below(&mut self, end: usize) -> usize {
        chance(&mut self.seed, end.max(1) as u64) as usize
    }

    /// One of the pool with a change or a few.
    pub(crate) fn next(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let pick = self.below(pool.len());
        let mut bytes = pool[pick].clone();
        let most = 1 + self.below(4);
        for _ in 0..=self.below(most) {
            self.change(&mut bytes, pool);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let long = 1 + self.below(16);
        let end = (at + long).min(bytes.len());
        match self.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let new: Vec<u8> = (0..long).map(|_| self.below(256) as u8).collect();
                drop(bytes.splice(at..at, new));
            }
            4 => {
                let number = NUMBERS[self.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][self.below(4)];
                drop(bytes.splice(at..(at + width).min(bytes.len()), number[..width].iter().copied()));
            }
            5 => {
                let piece = bytes[at..end].to_vec();
                let again = self.below(64);
                drop(bytes.splice(at..at, piece.repeat(again)));
            }
            6 => {
                let other = &pool[self.below(pool.len())];
                let from = self.below(other.len() + 1);
                let piece = other[from..(from + 256).min(other.len())].to_vec();
                drop(bytes.splice(at..end, piece));
            }
            7 => bytes.truncate(at),
            _ if !self.words.is_empty() => {
                let word = self.words[self.below(self.words.len())].bytes();
                drop(bytes.splice(at..end, word));
            }
            _ => {}
        }
    }
}
