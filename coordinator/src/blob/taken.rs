//! Files that were only linked and that a record of ours names: their bytes are copied in, so that nobody outside can take them away.

use super::{BlobError, Blobs, Entry, Inner, disk};
use lorikeet_protocol::id::Hash;
use std::{fs::File, io::Write, path::Path, sync::Arc};

impl Blobs {
    /// Makes a file ours if it is only linked; says whether it had to be copied.
    pub async fn take_in(&self, hash: Hash) -> Result<bool, BlobError> {
        self.work(move |inner| {
            let linked = inner.entry(hash)?.filter(|entry| !entry.links().is_empty());
            linked.as_ref().map_or(Ok(false), |entry| inner.take_in(entry).map(|()| true))
        })
        .await
    }
}

impl Inner {
    pub(super) fn take_in(self: &Arc<Self>, entry: &Entry) -> Result<(), BlobError> {
        let _claim = self.claim(format!("a copy of {}", entry.manifest.hash))?;
        // A name of its own: two attempts may offer the same file.
        let aside = self.staging.join(format!("taken-{}.part", uuid::Uuid::now_v7().simple()));
        let taken = self.copy_chunks(entry, &aside).and_then(|()| self.keep(&aside, &entry.manifest));
        if taken.is_err() {
            disk::remove(&aside)?;
        }
        taken
    }

    /// Chunk by chunk, each compared with its hash on the way.
    fn copy_chunks(&self, entry: &Entry, to: &Path) -> Result<(), BlobError> {
        let mut file = File::create_new(to).map_err(BlobError::disk("make", to))?;
        for index in 0..entry.manifest.chunks.len() as u32 {
            let bytes = self.chunk(entry.manifest.hash, index)?;
            let written =
                self.space.check(bytes.len() as u64).map_err(Into::into).and_then(|()| file.write_all(&bytes));
            written.map_err(BlobError::disk("write", to))?;
        }
        Ok(())
    }
}
