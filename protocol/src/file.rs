//! Files as the parts name them to each other: a size, a hash, and the hash of each chunk.

use crate::id::Hash;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Bytes of a chunk. Ranges on the wire are whole chunks, so that each can be verified on arrival.
pub const CHUNK_BYTES: u64 = 16 << 20;

/// What a file's bytes are, without its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileManifest {
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of the whole.
    pub hash: Hash,
    /// BLAKE3 of each chunk of [`CHUNK_BYTES`]; the last may be shorter; none for an empty file.
    pub chunks: Vec<Hash>,
}

impl FileManifest {
    /// How many chunks a file of `size` bytes has.
    pub fn chunk_count(size: u64) -> u64 {
        size.div_ceil(CHUNK_BYTES)
    }

    /// Where chunk `index` lies in the file, if there is one.
    pub fn range(&self, index: u32) -> Option<Range<u64>> {
        let start = u64::from(index) * CHUNK_BYTES;
        (start < self.size).then(|| start..self.size.min(start + CHUNK_BYTES))
    }

    /// Whether size and number of chunks agree; what comes from a peer may lie.
    pub fn is_consistent(&self) -> bool {
        self.chunks.len() as u64 == Self::chunk_count(self.size)
    }
}

/// A file with the name it has in its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedFile {
    /// A relative path of plain components: see [`is_plain_path`].
    pub path: String,
    /// What is in it.
    pub manifest: FileManifest,
}

/// Whether `path` is relative, of 1 to 4 plain components, and says nothing that a file system could read as a way out.
pub fn is_plain_path(path: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part.len() <= 128
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    path.split('/').count() <= 4 && path.split('/').all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_a_file_and_nothing_more() {
        let manifest =
            FileManifest { size: CHUNK_BYTES + 5, hash: Hash([0; 32]), chunks: vec![Hash([1; 32]), Hash([2; 32])] };
        assert!(manifest.is_consistent());
        assert_eq!(manifest.range(0), Some(0..CHUNK_BYTES));
        assert_eq!(manifest.range(1), Some(CHUNK_BYTES..CHUNK_BYTES + 5));
        assert_eq!(manifest.range(2), None);
        assert_eq!(FileManifest::chunk_count(0), 0);
    }

    #[test]
    fn a_path_never_leads_out() {
        for good in ["adapter_model.safetensors", "adapter/README.md", "model-00001-of-00002.safetensors"] {
            assert!(is_plain_path(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", ".hidden", "a\0b", "a/b/c/d/e", "ünï", "a b", "C:\\x"]
        {
            assert!(!is_plain_path(bad), "{bad}");
        }
    }
}
