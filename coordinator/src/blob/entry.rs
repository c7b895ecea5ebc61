//! The manifest file of one hash: what the file is, and where its bytes lie.

use lorikeet_protocol::file::FileManifest;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Each is tried when a file is read; a family of models that shares a tokenizer has a dozen.
const MOST_LINKS: usize = 32;

/// What the manifest file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) manifest: FileManifest,
    pub(super) place: Place,
}

/// Where the bytes lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub(super) enum Place {
    /// Here, and they are ours.
    Here,
    /// Outside, once for each base that has the file, in the order in which they were registered. Any of them may go or change.
    Linked(Vec<PathBuf>),
}

/// The same in JSON. A single link is a plain path, as it was before a file could have several.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Here,
    Once(PathBuf),
    Several(Vec<PathBuf>),
}

impl From<Written> for Place {
    fn from(written: Written) -> Self {
        match written {
            Written::Here => Self::Here,
            Written::Once(path) => Self::Linked(vec![path]),
            Written::Several(paths) => Self::Linked(paths),
        }
    }
}

impl From<Place> for Written {
    fn from(place: Place) -> Self {
        match place {
            Place::Here => Self::Here,
            Place::Linked(paths) => match <[PathBuf; 1]>::try_from(paths) {
                Ok([path]) => Self::Once(path),
                Err(paths) => Self::Several(paths),
            },
        }
    }
}

impl Entry {
    /// Of bytes that are here.
    pub(super) fn here(manifest: FileManifest) -> Self {
        Self { manifest, place: Place::Here }
    }

    /// Where the bytes lie outside; nowhere if they are ours.
    pub(super) fn links(&self) -> &[PathBuf] {
        match &self.place {
            Place::Here => &[],
            Place::Linked(paths) => paths,
        }
    }

    /// The same with one link more; of too many the oldest goes.
    pub(super) fn linked_at(mut self, path: PathBuf) -> Self {
        match &mut self.place {
            Place::Linked(paths) if paths.contains(&path) => {}
            Place::Linked(paths) => {
                paths.push(path);
                paths.drain(..paths.len().saturating_sub(MOST_LINKS));
            }
            Place::Here => self.place = Place::Linked(vec![path]),
        }
        self
    }
}
