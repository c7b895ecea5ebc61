//! The token cache: every example of a dataset as tokens on disk, written once, memory-mapped, read by index.
//!
//! ```text
//! magic "LKTOKENS" · version u32 · 0 u32
//! per example: tokens (u32 each) · supervised bits (one per token, lowest first, padded to 4 bytes)
//! tail: JSON {report, entries: [{offset, tokens, supervised, conversation, key, cut}]}
//! footer: tail offset u64 · tail bytes u64 · BLAKE3 of all before it (32 bytes)
//! ```
//! All numbers are little-endian. A file is written aside and renamed when whole; its name is the hash of all that went into
//! it, so an existing one is never written again. Opening checks the hash and every entry's bounds.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::{Cut, DatasetError, Example, Key};

const MAGIC: &[u8; 8] = b"LKTOKENS";
const VERSION: u32 = 1;
const HEAD_BYTES: u64 = 16;
const FOOTER_BYTES: usize = 48;

/// Where one example lies and what is known of it without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    offset: u64,
    /// Tokens.
    pub tokens: u32,
    /// How many of them are targets.
    pub supervised: u32,
    /// Ordinal of its conversation in the file.
    pub conversation: u64,
    /// Which conversation and turn.
    pub key: Key,
    /// What was cut away to fit.
    pub cut: Cut,
}

impl Entry {
    pub(crate) fn of(example: &Example, offset: u64) -> Entry {
        Entry {
            offset,
            tokens: u32::try_from(example.tokens.len()).expect("a record of 8 MiB is far below 4 Gi tokens"),
            supervised: example.supervised_count() as u32,
            conversation: example.conversation,
            key: example.key.clone(),
            cut: example.cut,
        }
    }
}

/// An opened, verified cache.
#[derive(Debug)]
pub struct TokenCache {
    map: Mmap,
    entries: Vec<Entry>,
    notes: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    notes: serde_json::Value,
    entries: Vec<Entry>,
}

impl TokenCache {
    /// Opens and verifies a cache. The error is the reason, for a message or for making it anew.
    pub fn open(path: &Path) -> Result<TokenCache, DatasetError> {
        open(path).map_err(|reason| DatasetError::Cache { path: path.to_owned(), reason })
    }

    /// What is known of each example, in file order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whatever the writer noted beside the examples.
    pub const fn notes(&self) -> &serde_json::Value {
        &self.notes
    }

    /// One example.
    ///
    /// # Panics
    /// When `index` is not below the number of entries.
    pub fn example(&self, index: usize) -> Example {
        let entry = &self.entries[index];
        let bytes = &self.map[entry.offset as usize..];
        let (tokens, bits) = bytes.split_at(4 * entry.tokens as usize);
        Example {
            tokens: tokens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            supervised: (0..entry.tokens as usize).map(|i| bits[i / 8] >> (i % 8) & 1 == 1).collect(),
            conversation: entry.conversation,
            key: entry.key.clone(),
            cut: entry.cut,
        }
    }
}

fn open(path: &Path) -> Result<TokenCache, String> {
    let file = File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    // SAFETY: the file is ours, named by its content's hash, and only ever replaced by rename; nobody writes into it.
    let map = unsafe { Mmap::map(&file) }.map_err(|error| format!("cannot be mapped: {error}"))?;
    let tail = check_frame(&map)?;
    let Tail { notes, entries } =
        serde_json::from_slice(tail).map_err(|error| format!("the tail is broken: {error}"))?;
    let end = tail.as_ptr() as u64 - map.as_ptr() as u64;
    for (index, entry) in entries.iter().enumerate() {
        let reach = entry.offset.checked_add(example_bytes(entry.tokens));
        if entry.offset < HEAD_BYTES || reach.is_none_or(|reach| reach > end) {
            return Err(format!("entry {index} points outside the data"));
        }
    }
    Ok(TokenCache { map, entries, notes })
}

/// Checks head, footer and hash; returns the tail.
fn check_frame(map: &[u8]) -> Result<&[u8], String> {
    let min = HEAD_BYTES as usize + FOOTER_BYTES;
    if map.len() < min || &map[..8] != MAGIC || map[8..12] != VERSION.to_le_bytes() {
        return Err("is not a token cache of this version".into());
    }
    let (body, footer) = map.split_at(map.len() - FOOTER_BYTES);
    let word = |at: usize| footer[at..at + 8].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let (start, bytes) = (word(0), word(8));
    if start < HEAD_BYTES || start.checked_add(bytes) != Some(body.len() as u64) {
        return Err("the footer does not fit the file".into());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(body).update(&footer[..16]);
    if hasher.finalize().as_bytes()[..] != footer[16..] {
        return Err("the content does not match its hash".into());
    }
    Ok(&body[start as usize..])
}

const fn example_bytes(tokens: u32) -> u64 {
    4 * tokens as u64 + 4 * (tokens as u64).div_ceil(32)
}

/// Writes a cache aside; nothing stands under its name before [`CacheWriter::finish`].
pub struct CacheWriter {
    path: PathBuf,
    aside: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    offset: u64,
    entries: Vec<Entry>,
}

impl CacheWriter {
    /// Begins a cache that will stand at `path`; its directory is made.
    pub fn create(path: &Path) -> Result<CacheWriter, DatasetError> {
        let fail = |error: io::Error| cache_error(path, &error);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(fail)?;
        }
        let aside = path.with_extension(format!("{}.partial", std::process::id()));
        let file = BufWriter::with_capacity(1 << 20, File::create(&aside).map_err(fail)?);
        let hasher = blake3::Hasher::new();
        let mut writer = CacheWriter { path: path.to_owned(), aside, file, hasher, offset: 0, entries: Vec::new() };
        let head = [&MAGIC[..], &VERSION.to_le_bytes(), &[0; 4]].concat();
        writer.write(&head)?;
        Ok(writer)
    }

    /// Adds an example.
    pub fn push(&mut self, example: &Example) -> Result<(), DatasetError> {
        let offset = self.offset;
        let mut bytes: Vec<u8> = example.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        for chunk in example.supervised.chunks(32) {
            let bits = chunk.iter().enumerate().fold(0u32, |bits, (i, on)| bits | u32::from(*on) << i);
            bytes.extend(bits.to_le_bytes());
        }
        self.write(&bytes)?;
        self.entries.push(Entry::of(example, offset));
        Ok(())
    }

    /// How many examples were added.
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing was added yet.
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes the tail, syncs, renames, and opens what now stands there.
    pub fn finish(mut self, notes: serde_json::Value) -> Result<TokenCache, DatasetError> {
        let start = self.offset;
        let tail = Tail { notes, entries: std::mem::take(&mut self.entries) };
        let json = serde_json::to_vec(&tail).expect("plain data is always JSON");
        self.write(&json)?;
        self.write(&[start.to_le_bytes(), (json.len() as u64).to_le_bytes()].concat())?;
        let hash = self.hasher.finalize();
        self.file.write_all(hash.as_bytes()).and_then(|()| self.publish()).map_err(|e| cache_error(&self.path, &e))?;
        TokenCache::open(&self.path)
    }

    fn publish(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.aside, &self.path)?;
        match self.path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DatasetError> {
        self.hasher.update(bytes);
        self.offset += bytes.len() as u64;
        self.file.write_all(bytes).map_err(|error| cache_error(&self.path, &error))
    }
}

impl Drop for CacheWriter {
    /// A writer that never finished leaves nothing; after `finish` the name aside is already gone.
    fn drop(&mut self) {
        let _already_renamed = fs::remove_file(&self.aside);
    }
}

fn cache_error(path: &Path, error: &io::Error) -> DatasetError {
    DatasetError::Cache { path: path.to_owned(), reason: error.to_string() }
}
