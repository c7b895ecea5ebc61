//! What lies in the cache beside whole files: half-fetched ones, and the tokens that workers keep here. They count, and they go like
//! everything else: what is longest unused first, never what somebody holds a lock of.

use super::Hash;
use crate::disk;
use std::{
    collections::BTreeSet,
    fs::{File, Metadata},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Where that lies.
const FOLDERS: [&str; 2] = ["partial", "tokens"];

/// What was found, the one longest unused last.
#[derive(Debug)]
pub(super) struct Rest {
    found: Vec<Piece>,
    /// Of all of it, as far as it was not removed.
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct Piece {
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
}

impl Rest {
    /// Looks; what is being fetched is counted by who fetches it.
    pub(super) fn find(cache: &Path, fetching: &BTreeSet<Hash>) -> Self {
        let mut found: Vec<_> = FOLDERS.iter().flat_map(|folder| pieces(&cache.join(folder), fetching)).collect();
        found.sort_unstable_by(|a, b| b.used.cmp(&a.used));
        let bytes = found.iter().map(|piece| piece.bytes).sum();
        Self { found, bytes }
    }

    /// Since when the first to go is unused.
    pub(super) fn oldest(&self) -> Option<SystemTime> {
        self.found.last().map(|piece| piece.used)
    }

    /// Removes that one; how many bytes it took: none where somebody uses it, or it does not go.
    pub(super) fn remove_oldest(&mut self) -> u64 {
        let Some(Piece { path, bytes, .. }) = self.found.pop() else { return 0 };
        let is_in_use = File::open(&path).is_ok_and(|file| file.try_lock().is_err());
        if is_in_use {
            return 0;
        }
        if let Err(error) = disk::remove_file(&path) {
            tracing::warn!("could not {}", lorikeet_protocol::chain(&error));
            return 0;
        }
        tracing::info!(path = %path.display(), "evicted from the cache");
        self.bytes -= bytes;
        bytes
    }
}

/// Bytes that a cache takes of its disk, in all.
pub(crate) fn taken(cache: &Path) -> u64 {
    let files = pieces(&cache.join("files"), &BTreeSet::new()).iter().map(|piece| piece.bytes).sum::<u64>();
    files + Rest::find(cache, &BTreeSet::new()).bytes
}

fn pieces(folder: &Path, fetching: &BTreeSet<Hash>) -> Vec<Piece> {
    let is_fetched = |name: &str| name.parse().is_ok_and(|hash| fetching.contains(&hash));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let pieces = entries.filter_map(|entry| {
        let meta = entry.metadata().ok().filter(Metadata::is_file)?;
        let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        // A half-fetched file has holes.
        let piece = Piece { used, path: entry.path(), bytes: meta.blocks() * 512 };
        (!entry.file_name().to_str().is_some_and(is_fetched)).then_some(piece)
    });
    pieces.collect()
}
