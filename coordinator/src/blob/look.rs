//! A look at one file of a data directory that nobody serves from: whether every byte is what its manifest says.

use super::{Entry, disk};
use lorikeet_protocol::file::FileManifest;
use std::path::Path;

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

/// Reads the whole file, wherever its bytes lie.
pub fn look_at(blobs: &Path, file: &FileManifest) -> Found {
    let name = file.hash.to_string();
    let content = blobs.join(&name[..2]).join(&name);
    let entry = disk::read_small(&content.with_extension("json")).ok().flatten();
    let Some(entry) = entry else { return Found::Missing };
    let Ok(entry) = serde_json::from_slice::<Entry>(&entry) else { return Found::Changed };
    let bytes = entry.place.unwrap_or(content);
    if !bytes.exists() {
        return Found::Missing;
    }
    let is_whole = entry.manifest == *file && disk::manifest_at(&bytes).is_ok_and(|found| found == *file);
    if is_whole { Found::Whole } else { Found::Changed }
}
