//! What lies in the cache beside whole files: half-fetched ones, and the tokens that workers keep here. They count, and they go like
//! everything else: what is longest unused first, never what somebody holds a lock of.

use super::Hash;
use crate::disk;
use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fs::{File, Metadata},
    io::ErrorKind,
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
        found.sort_unstable_by_key(|piece| Reverse(piece.used));
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
        // Its lock is held until it is gone.
        let _unused = match File::open(&path).map(|file| file.try_lock().map(|()| file)) {
            Ok(Ok(file)) => Some(file),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            // Who uses it cannot be asked.
            Ok(Err(_)) | Err(_) => return 0,
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_asked_whether_it_is_used_stays_and_what_is_gone_already_is_no_hindrance() {
        let folder = tempfile::tempdir().unwrap();
        let (shut, gone) = (folder.path().join("shut"), folder.path().join("gone"));
        std::os::unix::fs::symlink(&shut, &shut).unwrap();
        let piece = |path: &Path| Piece { used: SystemTime::UNIX_EPOCH, path: path.to_owned(), bytes: 5 };
        let mut rest = Rest { found: vec![piece(&gone), piece(&shut)], bytes: 10 };
        assert_eq!(rest.remove_oldest(), 0);
        assert!(shut.symlink_metadata().is_ok());
        assert_eq!((rest.remove_oldest(), rest.bytes), (5, 5));
    }
}
