//! A look at one file of a data directory that nobody serves from: whether every byte is what its manifest says.

use super::{Entry, disk};
use lorikeet_protocol::file::FileManifest;
use std::path::{Path, PathBuf};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is here, every byte of it.
    Whole,
    /// It is not here.
    Missing,
    /// It is here, and is another.
    Changed,
}

/// The manifest file of bytes that lie beside it.
pub fn entry_of(file: &FileManifest) -> Vec<u8> {
    serde_json::to_vec(&Entry::here(file.clone())).expect("a manifest is plain data")
}

/// Reads the whole file, wherever its bytes lie.
pub fn look_at(blobs: &Path, file: &FileManifest) -> Found {
    match whole_at(blobs, file) {
        Ok(_) => Found::Whole,
        Err(found) => found,
    }
}

/// Where the file lies whole: here, or at the first of the places where it was linked; else what was found instead.
pub fn whole_at(blobs: &Path, file: &FileManifest) -> Result<PathBuf, Found> {
    let name = file.hash.to_string();
    let content = blobs.join(&name[..2]).join(&name);
    let entry = disk::read_small(&content.with_extension("json")).ok().flatten().ok_or(Found::Missing)?;
    let entry: Entry = serde_json::from_slice(&entry).map_err(|_| Found::Changed)?;
    let mut found = Found::Missing;
    for place in [content].iter().chain(entry.links()).filter(|place| place.exists()) {
        if entry.manifest == *file && disk::manifest_at(place).is_ok_and(|found| found == *file) {
            return Ok(place.clone());
        }
        found = Found::Changed;
    }
    Err(found)
}
