//! Training and validation apart, by conversation: pairs of one conversation hold each other's history and never part.
//!
//! Each conversation draws a number from (seed, its key); the lowest draw the validation side. So neither the order of the
//! file nor its encoding matters, and a conversation added later moves at most one other across.

use std::collections::{BTreeMap, HashSet};

use crate::cache::Entry;

/// Indices of the examples to train on and to validate on, each in file order.
pub(crate) fn split(entries: &[Entry], fraction: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let held_out = held_out(entries, fraction, seed);
    (0..entries.len()).partition(|index| !held_out.contains(&entries[*index].conversation))
}

fn held_out(entries: &[Entry], fraction: f64, seed: u64) -> HashSet<u64> {
    let draws: BTreeMap<([u8; 32], u64), ()> =
        entries.iter().map(|entry| ((draw(seed, &entry.key.conversation), entry.conversation), ())).collect();
    draws.into_keys().take(how_many(entries, fraction)).map(|(_, conversation)| conversation).collect()
}

/// The nearest whole number, but never none of either side when both were asked for and can be.
fn how_many(entries: &[Entry], fraction: f64) -> usize {
    let all = entries.iter().map(|entry| entry.conversation).collect::<HashSet<_>>().len();
    if fraction <= 0.0 || all < 2 {
        return 0;
    }
    ((all as f64 * fraction).round() as usize).clamp(1, all - 1)
}

fn draw(seed: u64, conversation: &str) -> [u8; 32] {
    *blake3::Hasher::new().update(&seed.to_le_bytes()).update(conversation.as_bytes()).finalize().as_bytes()
}
