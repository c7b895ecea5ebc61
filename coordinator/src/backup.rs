//! A backup: one file with everything a coordinator cannot make again, taken while it runs or from a data directory at rest.
//!
//! ```text
//! backup.json    first: what this is, of when, of which layout and generation
//! ca/ keys/      the certificate authority, what signs upload links and what seals leave to read from nodes
//! state.redb     one moment of the store, sound on its own; token hashes are in it
//! blobs.json     every file that records name: hash, size, kind
//! blobs/         manifests of files that stay elsewhere; with `full` all files                 series/   with `full`
//! hashes.json    last: BLAKE3 of every entry before it, so that what was cut off or changed is seen before anything is restored
//! ```
//!
//! It is a tar file, so that ordinary tools read it, and it holds keys, so that only its owner may. `backup/restore.rs` is the way
//! back, `backup/verify.rs` says what of it is whole.

mod error;
mod restore;
mod verify;
mod write;

pub use error::BackupError;
pub use restore::{Restored, head_of, restore};
pub use verify::{Missing, Verified};
pub use write::{AuthorityFiles, write};

use crate::store::{Facts, Store};
use lorikeet_protocol::id::{Hash, UnixMillis};
use serde::{Deserialize, Serialize};
use std::{io::Write, path::Path};

/// The format of this page.
const FORMAT: u32 = 1;

/// What stands first in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Of the file.
    pub format: u32,
    /// When its moment was.
    pub taken: UnixMillis,
    /// The program that took it.
    pub version: String,
    /// The layout of the store in it.
    pub schema: u64,
    /// The cluster generation of its moment.
    pub generation: u32,
    /// Whether files, metrics and logs are in it.
    pub full: bool,
}

impl Head {
    /// Of a copy that was just made.
    pub fn new(facts: &Facts, full: bool) -> Self {
        Self {
            format: FORMAT,
            taken: crate::clock::now(),
            version: env!("CARGO_PKG_VERSION").into(),
            schema: facts.schema,
            generation: facts.generation,
            full,
        }
    }
}

/// An entry and what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    path: String,
    hash: Hash,
}

/// Takes a backup of a data directory that no coordinator runs on; `scratch` is a folder for a copy of the store.
pub fn take_at_rest(data: &Path, scratch: &Path, full: bool, out: impl Write) -> Result<Head, BackupError> {
    let copy = scratch.join("state.redb");
    let facts = Store::copy_of(&data.join("state.redb"), &copy)?;
    let head = Head::new(&facts, full);
    write(data, &AuthorityFiles::read(data)?, &copy, &facts, &head, out)?;
    Ok(head)
}

#[cfg(test)]
mod tests;
