//! Everything that can go wrong with bytes, each with the file it went wrong on.

use lorikeet_protocol::id::Hash;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why bytes could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The disk is full.
    #[error("{what} {path}: no space is left", path = path.display())]
    NoSpace {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
    },
    /// The disk said no.
    #[error("{what} {path}", path = path.display())]
    Disk {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file that is not ours, and not one to be read.
    #[error("open {path}: {why}", path = path.display())]
    Refused {
        /// On which file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no such file, chunk or staging.
    #[error("read {what}: it is not here")]
    Missing {
        /// Which.
        what: String,
    },
    /// Bytes of ours no longer match their hash.
    #[error("read chunk {chunk} of {file}: its bytes are no longer what its hash says")]
    Changed {
        /// The file.
        file: Hash,
        /// The chunk.
        chunk: u32,
    },
    /// Bytes that came do not match the hash they came under.
    #[error("keep {what}: its BLAKE3 is {found}, expected {expected}")]
    Corrupt {
        /// Which.
        what: String,
        /// Of what came.
        found: Hash,
        /// As announced.
        expected: Hash,
    },
    /// A manifest or a chunk whose lengths cannot be.
    #[error("keep {what}: {why}")]
    Inconsistent {
        /// Which.
        what: String,
        /// What does not fit.
        why: &'static str,
    },
    /// More than was declared or is allowed.
    #[error("keep {what}: {found} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Which.
        what: String,
        /// Bytes so far and to come.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// More files than one attempt may have waiting for a report.
    #[error("keep {what}: {limit} files of its attempt wait for a report already, more are not taken")]
    TooMany {
        /// Which.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// Not everything has come yet.
    #[error("keep {what}: {found} of {expected} bytes have come")]
    Incomplete {
        /// Which.
        what: String,
        /// Bytes that came.
        found: u64,
        /// Bytes declared.
        expected: u64,
    },
    /// Somebody else writes it at this moment.
    #[error("write {what}: another writer is at it")]
    Busy {
        /// Which.
        what: String,
    },
    /// The work was cut short: the coordinator leaves.
    #[error("work on files: the coordinator is shutting down")]
    Closed,
}

impl BlobError {
    pub(super) fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| {
            let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            if full { Self::NoSpace { what, path } } else { Self::Disk { what, path, source } }
        }
    }

    pub(super) fn missing(what: impl ToString) -> Self {
        Self::Missing { what: what.to_string() }
    }
}
