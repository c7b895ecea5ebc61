//! Room on a disk: how much is left, and how much of it is not for users. One rule, asked before every byte that is written.
//!
//! The store is not stopped by it: what is kept free is kept for the store.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A folder's disk and what must stay free on it; cheap to clone.
#[derive(Debug, Clone)]
pub struct Space {
    folder: Arc<PathBuf>,
    keep_free: u64,
}

/// Less is free than must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} more bytes would leave less than {keep_free} of the {free} that are free")]
pub struct Short {
    /// Bytes to come.
    pub wanted: u64,
    /// Bytes that are free now.
    pub free: u64,
    /// Bytes that must stay free.
    pub keep_free: u64,
}

impl Space {
    /// Of the disk that holds `folder`.
    pub fn new(folder: &Path, keep_free: u64) -> Self {
        Self { folder: Arc::new(folder.to_owned()), keep_free }
    }

    /// Whether `wanted` bytes may be written. A disk that cannot be asked answers when it is written to.
    pub fn check(&self, wanted: u64) -> Result<(), Short> {
        let Ok(free) = free_bytes(&self.folder) else { return Ok(()) };
        if free >= self.keep_free.saturating_add(wanted) {
            return Ok(());
        }
        Err(Short { wanted, free, keep_free: self.keep_free })
    }
}

impl From<Short> for io::Error {
    fn from(short: Short) -> Self {
        Self::new(io::ErrorKind::StorageFull, short)
    }
}

/// Bytes that may still be written to the disk of `folder`.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail * disk.f_frsize)
}

/// Whether an error says that there is no room: on the disk, or for this user.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Room that is held back so that it can be given away when there is no other: a file of zeros.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
}

/// Some hundred commits, and more than the store needs to be opened again.
const RESERVE_BYTES: u64 = 16 << 20;

impl Reserve {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Takes the room, unless it is taken; false: there is none, and none is held.
    pub(crate) fn take(&self) -> io::Result<bool> {
        if self.path.metadata().is_ok_and(|file| file.len() == RESERVE_BYTES) {
            return Ok(true);
        }
        match self.fill() {
            Ok(()) => Ok(true),
            Err(error) if is_full(&error) => self.release().map(|()| false),
            Err(error) => Err(error),
        }
    }

    fn fill(&self) -> io::Result<()> {
        let file = File::create(&self.path)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES) {
            // A file system that cannot promise room gets the zeros themselves.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                io::copy(&mut io::Read::take(io::repeat(0), RESERVE_BYTES), &mut &file)?;
            }
            allocated => allocated?,
        }
        file.sync_all()
    }

    /// Gives the room away.
    pub(crate) fn release(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_stay_free_is_not_for_use() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Space::new(folder.path(), 0).check(1), Ok(()));
        let short = Space::new(folder.path(), u64::MAX).check(0).unwrap_err();
        assert!(is_full(&short.into()), "{short}");
    }

    #[test]
    fn a_reserve_is_taken_once_and_given_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reserve");
        let reserve = Reserve::at(path.clone());
        assert!(reserve.take().unwrap() && reserve.take().unwrap());
        assert_eq!(path.metadata().unwrap().len(), RESERVE_BYTES);
        reserve.release().unwrap();
        reserve.release().unwrap();
        assert!(!path.exists());
    }
}
