//! One line of a cache's index: where an example lies and what is known of it without reading it.
//!
//! ```text
//! offset u64 · check u64 · conversation u64 · name [16] · tokens u32 · supervised u32 · turn u32 · name bytes u32
//!        · cut messages u32 · cut tokens u32
//! ```
//! `check` is the beginning of the BLAKE3 of the example's bytes, `name` that of its conversation's name.

use super::bit_bytes;
use crate::split::half;
use crate::{Cut, Example};

pub(super) const ENTRY_BYTES: usize = 64;

/// Where one example lies and what is known of it without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(super) offset: u64,
    pub(super) check: u64,
    /// Ordinal of its conversation in the file.
    pub(crate) conversation: u64,
    /// Hash of the conversation's name.
    pub(crate) name: [u8; 16],
    /// Tokens.
    pub(crate) tokens: u32,
    /// How many of them are targets.
    pub(crate) supervised: u32,
    pub(super) turn: u32,
    pub(super) name_bytes: u32,
    /// What was cut away to fit.
    pub(crate) cut: Cut,
}

impl Entry {
    /// Of an example that lies nowhere yet.
    pub(crate) fn of(example: &Example) -> Entry {
        let count = |length: usize| u32::try_from(length).expect("a record of 8 MiB is far below 4 Gi of anything");
        Entry {
            offset: 0,
            check: 0,
            conversation: example.conversation,
            name: half(&blake3::hash(example.key.conversation.as_bytes())),
            tokens: count(example.tokens.len()),
            supervised: count(example.supervised_count()),
            turn: example.key.turn,
            name_bytes: count(example.key.conversation.len()),
            cut: example.cut,
        }
    }

    /// Bytes of the example itself.
    pub(super) const fn block_bytes(&self) -> usize {
        4 * self.tokens as usize + bit_bytes(self.tokens) + self.name_bytes as usize
    }

    pub(super) fn write(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        for (at, word) in [self.offset, self.check, self.conversation].into_iter().enumerate() {
            bytes[8 * at..8 * at + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes[24..40].copy_from_slice(&self.name);
        let words = [self.tokens, self.supervised, self.turn, self.name_bytes, self.cut.messages, self.cut.tokens];
        for (at, word) in words.into_iter().enumerate() {
            bytes[40 + 4 * at..44 + 4 * at].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Entry {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let mut name = [0; 16];
        name.copy_from_slice(&bytes[24..40]);
        Entry {
            offset: long(0),
            check: long(8),
            conversation: long(16),
            name,
            tokens: word(40),
            supervised: word(44),
            turn: word(48),
            name_bytes: word(52),
            cut: Cut { messages: word(56), tokens: word(60) },
        }
    }
}

/// The beginning of a block's hash.
pub(super) fn check_of(block: &[u8]) -> u64 {
    let hash = blake3::hash(block);
    hash.as_bytes()[..8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;

    #[test]
    fn an_entry_comes_back_as_it_was_written() {
        let example = Example {
            tokens: vec![7; 70],
            supervised: (0..70).map(|i| i % 3 == 0).collect(),
            conversation: 1 << 40,
            key: Key { conversation: "ü-1".into(), turn: 9 },
            cut: Cut { messages: 2, tokens: 31 },
        };
        let entry = Entry { offset: u64::MAX - 1, check: 0x0102_0304_0506_0708, ..Entry::of(&example) };
        assert_eq!(Entry::read(&entry.write()), entry);
        assert_eq!((entry.supervised, entry.block_bytes()), (24, 280 + 12 + 4));
    }
}
