//! What of the files that records name is here, and whole: every chunk against its hash.

use super::BackupError;
use crate::{
    blob::{self, Found},
    store::{FileKind, Store},
};
use lorikeet_protocol::id::Hash;
use std::{collections::BTreeMap, path::Path};

/// What was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files that records name.
    pub named: u64,
    /// Those of them that are here, with every byte as it was.
    pub whole: u64,
    /// The others.
    pub missing: Vec<Missing>,
}

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub hash: Hash,
    /// What it is.
    pub kind: FileKind,
    /// It is here, but not what it was.
    pub is_changed: bool,
}

/// Looks at everything that the store of `data` names.
pub(super) fn verify(data: &Path) -> Result<Verified, BackupError> {
    let store = Store::open(&data.join("state.redb"))?;
    let named: BTreeMap<_, _> =
        store.facts()?.files.into_iter().map(|(kind, file)| (file.hash, (kind, file))).collect();
    let mut verified = Verified { named: named.len() as u64, ..Verified::default() };
    for (hash, (kind, file)) in named {
        match blob::look_at(&data.join("blobs"), &file) {
            Found::Whole => verified.whole += 1,
            Found::Missing => verified.missing.push(Missing { hash, kind, is_changed: false }),
            Found::Changed => verified.missing.push(Missing { hash, kind, is_changed: true }),
        }
    }
    Ok(verified)
}
