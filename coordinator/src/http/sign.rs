//! Signed links: a keyed BLAKE3 over everything the link stands for, so that it works for that and nothing else.
//!
//! What is signed is not in the link but taken from the record when the link is used; so a link dies with its object, its
//! owner or its size. Reading how far an upload is and adding to it are one class of methods.

use crate::secret;
use lorikeet_protocol::id::{DatasetId, UnixMillis, UserId};
use std::{fmt, io, path::Path};
use subtle::ConstantTimeEq;

/// Holds the key; made at the first start, 0600.
pub(crate) struct Signer {
    key: [u8; 32],
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

/// What an upload link stands for.
#[derive(Debug, Clone, Copy)]
pub(super) struct UploadLink {
    pub(super) id: DatasetId,
    pub(super) owner: UserId,
    pub(super) size: u64,
    pub(super) expires: UnixMillis,
}

impl Signer {
    /// Reads the key, or makes it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { key: secret::open(path)? })
    }

    /// The signature, in hex.
    pub(super) fn upload(&self, link: &UploadLink) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        // Every field has a fixed length, so no two links sign the same bytes.
        hasher.update(b"upload/1");
        hasher.update(&link.id.bytes());
        hasher.update(&link.owner.bytes());
        hasher.update(&link.size.to_le_bytes());
        hasher.update(&link.expires.0.to_le_bytes());
        hasher.finalize().to_hex().to_string()
    }

    /// Whether a signature is ours.
    pub(super) fn is_upload(&self, link: &UploadLink, signature: &str) -> bool {
        self.upload(link).as_bytes().ct_eq(signature.as_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_link_works_for_what_it_was_made_for_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let (signer, again) = (Signer::open(&path).unwrap(), Signer::open(&path).unwrap());
        let id = |n| Uuid::from_u128(n);
        let link = UploadLink { id: DatasetId(id(1)), owner: UserId(id(2)), size: 3, expires: UnixMillis(4) };
        let signature = signer.upload(&link);
        assert!(again.is_upload(&link, &signature));
        for other in [
            UploadLink { id: DatasetId(id(9)), ..link },
            UploadLink { owner: UserId(id(9)), ..link },
            UploadLink { size: 9, ..link },
            UploadLink { expires: UnixMillis(9), ..link },
        ] {
            assert!(!again.is_upload(&other, &signature), "{other:?}");
        }
        assert!(!again.is_upload(&link, ""));
    }
}
