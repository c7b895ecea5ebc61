//! Training and validation apart, by conversation: pairs of one conversation hold each other's history and never part.
//!
//! Each conversation draws a number from (seed, its name); the lowest draw the validation side. So neither the order of the
//! file nor its encoding matters, and a conversation added later moves at most one other across.

use crate::cache::Entry;

/// Numbers of the examples to train on and to validate on, each in file order.
pub(crate) fn split(entries: impl Iterator<Item = Entry> + Clone, fraction: f64, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let held_out = held_out(entries.clone(), fraction, seed);
    let is_held_out = |entry: &Entry| held_out.get(entry.conversation as usize).copied().unwrap_or(false);
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for (number, entry) in (0..).zip(entries) {
        if is_held_out(&entry) { validation.push(number) } else { train.push(number) }
    }
    (train, validation)
}

/// Whether the conversation of that ordinal is held out.
fn held_out(entries: impl Iterator<Item = Entry>, fraction: f64, seed: u64) -> Vec<bool> {
    let mut draws: Vec<([u8; 16], u64)> = Vec::new();
    let mut seen = Vec::new();
    for entry in entries {
        let ordinal = entry.conversation as usize;
        if seen.len() <= ordinal {
            seen.resize(ordinal + 1, false);
        }
        if !seen[ordinal] {
            seen[ordinal] = true;
            draws.push((draw(seed, &entry.name), entry.conversation));
        }
    }
    let count = how_many(draws.len(), fraction);
    draws.sort_unstable();
    seen.fill(false);
    for (_, ordinal) in &draws[..count] {
        seen[*ordinal as usize] = true;
    }
    seen
}

/// The nearest whole number, but never none of either side when both were asked for and can be.
fn how_many(all: usize, fraction: f64) -> usize {
    if fraction <= 0.0 || all < 2 {
        return 0;
    }
    ((all as f64 * fraction).round() as usize).clamp(1, all - 1)
}

fn draw(seed: u64, name: &[u8; 16]) -> [u8; 16] {
    let hash = blake3::Hasher::new().update(&seed.to_le_bytes()).update(name).finalize();
    half(&hash)
}

/// The first half of a hash: enough to tell apart whatever fits on a disk.
pub(crate) fn half(hash: &blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}
