//! The token cache: every example of a dataset as tokens on disk, written once, memory-mapped, read by number.
//!
//! ```text
//! magic "LKTOKENS" · version u32 · 0 u32
//! per example: tokens (u32 each) · supervised bits (one per token, lowest first, padded to 4 bytes) · name of its conversation
//! index: one entry of 64 bytes per example (`cache/entry.rs`)
//! tail: JSON, whatever the writer notes beside the examples
//! footer: index offset u64 · entries u64 · tail bytes u64 · BLAKE3 of magic, index, tail and the three numbers (32 bytes)
//! ```
//! All numbers are little-endian. A file is written aside and renamed when whole; its name is the hash of all that went into
//! it, so an existing one is never written again. Opening checks index and tail, which is at once done at any size; the tokens
//! of an example are checked against its entry when they are read. A file found damaged is taken away, so that the next start
//! makes it again. One that is read is locked for as long, shared, and its modification time is when that began: whoever makes room
//! takes those that nobody reads, the longest unread first.

mod entry;
mod write;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;

pub(crate) use entry::Entry;
pub use write::CacheWriter;

use crate::{DatasetError, Example, Key};
use entry::ENTRY_BYTES;

const MAGIC: &[u8; 8] = b"LKTOKENS";
const VERSION: u32 = 2;
const HEAD_BYTES: usize = 16;
const FOOTER_BYTES: usize = 56;

fn head() -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head
}

/// An opened cache, its index verified.
#[derive(Debug)]
pub struct TokenCache {
    path: PathBuf,
    map: Mmap,
    index: usize,
    len: usize,
    notes: serde_json::Value,
    /// Locked.
    _file: File,
}

impl TokenCache {
    /// Opens a cache. What cannot be opened and what is damaged are told apart; either is made anew.
    pub fn open(path: &Path) -> Result<TokenCache, DatasetError> {
        let failed = |source| DatasetError::Cache { verb: "open", path: path.to_owned(), source };
        // A pipe would be waited for.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(DatasetError::Damaged { path: path.to_owned(), reason: "it is no file".into() });
        }
        TokenCache::of(path, File::open(path).map_err(failed)?)
    }

    /// That of a file, which stood at this path when it was opened. A lock that it holds becomes a shared one.
    fn of(path: &Path, file: File) -> Result<TokenCache, DatasetError> {
        let failed = |source| DatasetError::Cache { verb: "open", path: path.to_owned(), source };
        let damaged = |reason| DatasetError::Damaged { path: path.to_owned(), reason };
        // Where neither can be done the file is made again too soon, at worst.
        let _ = (file.try_lock_shared(), file.set_modified(SystemTime::now()));
        // SAFETY: the file is ours, named by its content's hash, and only ever replaced by rename; nobody writes into it.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let (index, len, tail) = check_frame(&map).map_err(damaged)?;
        let notes = serde_json::from_slice(tail).map_err(|error| damaged(format!("the tail is broken: {error}")))?;
        Ok(TokenCache { path: path.to_owned(), map, index, len, notes, _file: file })
    }

    /// How many examples it holds.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// It holds none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whatever the writer noted beside the examples.
    pub const fn notes(&self) -> &serde_json::Value {
        &self.notes
    }

    /// What is known of an example without reading it.
    pub(crate) fn entry(&self, number: usize) -> Entry {
        assert!(number < self.len, "example {number} of {}", self.len);
        Entry::read(&self.map[self.index + number * ENTRY_BYTES..])
    }

    /// What is known of each example, in file order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + Clone + '_ {
        (0..self.len).map(|number| self.entry(number))
    }

    /// One example, checked.
    ///
    /// # Panics
    /// When `number` is not below [`TokenCache::len`].
    pub fn example(&self, number: usize) -> Result<Example, DatasetError> {
        let entry = self.entry(number);
        let block = self.block(&entry).ok_or_else(|| self.damaged(number))?;
        let (tokens, rest) = block.split_at(4 * entry.tokens as usize);
        let (bits, name) = rest.split_at(bit_bytes(entry.tokens));
        Ok(Example {
            tokens: tokens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            supervised: (0..entry.tokens as usize).map(|i| bits[i / 8] >> (i % 8) & 1 == 1).collect(),
            conversation: entry.conversation,
            key: Key { conversation: String::from_utf8_lossy(name).into_owned(), turn: entry.turn },
            cut: entry.cut,
        })
    }

    /// The bytes of an example, if they are what the entry says.
    fn block(&self, entry: &Entry) -> Option<&[u8]> {
        let start = usize::try_from(entry.offset).ok()?;
        let end = start.checked_add(entry.block_bytes())?;
        let block = self.map[..self.index].get(start..end)?;
        (entry::check_of(block) == entry.check).then_some(block)
    }

    fn damaged(&self, number: usize) -> DatasetError {
        let removed = fs::remove_file(&self.path).is_ok();
        let next = if removed { "; it was removed, the next start makes it again" } else { "; remove it" };
        let reason = format!("the tokens of example {number} do not match their hash{next}");
        DatasetError::Damaged { path: self.path.clone(), reason }
    }
}

/// Bytes of the supervised bits of so many tokens.
const fn bit_bytes(tokens: u32) -> usize {
    4 * (tokens as usize).div_ceil(32)
}

/// Checks head, footer and hash; returns where the index lies, how many entries it has, and the tail.
fn check_frame(map: &[u8]) -> Result<(usize, usize, &[u8]), String> {
    if map.len() < HEAD_BYTES + FOOTER_BYTES || map[..HEAD_BYTES] != head() {
        return Err("is not a token cache of this version".into());
    }
    let (body, footer) = map.split_at(map.len() - FOOTER_BYTES);
    let word = |at: usize| {
        let number = footer[at..at + 8].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        usize::try_from(number).unwrap_or(usize::MAX)
    };
    let (index, len, tail_bytes) = (word(0), word(8), word(16));
    let tail = len.checked_mul(ENTRY_BYTES).and_then(|bytes| bytes.checked_add(index));
    let end = tail.and_then(|tail| tail.checked_add(tail_bytes));
    let (Some(tail), true) = (tail, index >= HEAD_BYTES && end == Some(body.len())) else {
        return Err("the footer does not fit the file".into());
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&map[..HEAD_BYTES]).update(&body[index..]).update(&footer[..24]);
    if hasher.finalize().as_bytes()[..] != footer[24..] {
        return Err("the content does not match its hash".into());
    }
    Ok((index, len, &body[tail..]))
}
