//! A person's upload: bytes in order, by one writer at a time, resumable at the last synced byte.
//!
//! `<dataset>.part` grows; `<dataset>.offset` says how much of it is synced, and whatever lies behind that after a crash is cut.
//! Completing writes `<dataset>.done` with the hash before the bytes are moved, so that a confirmation that is repeated after a
//! crash finds the file instead of an empty upload.

use super::{BlobError, Blobs, Claim, Entry, Inner, disk, lock};
use lorikeet_protocol::{
    file::FileManifest,
    id::{DatasetId, Hash},
};
use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes gathered before a write: network frames are small, and each write is a hop to another thread.
const GATHER_BYTES: usize = 1 << 20;
/// Bytes written between syncs: what a broken connection or a crash can cost.
const SYNC_BYTES: u64 = 64 << 20;

/// The one writer of an upload.
#[derive(Debug)]
pub struct Upload {
    claim: Claim,
    id: DatasetId,
    size: u64,
    file: Arc<File>,
    gathered: Vec<u8>,
    offset: u64,
    synced: u64,
}

impl Blobs {
    /// How many bytes of an upload are safe.
    pub async fn upload_offset(&self, id: DatasetId) -> Result<u64, BlobError> {
        self.work(move |inner| inner.upload_offset(id)).await
    }

    /// Becomes the writer of an upload of `size` bytes, at its offset.
    pub async fn resume_upload(&self, id: DatasetId, size: u64) -> Result<Upload, BlobError> {
        self.work(move |inner| {
            let claim = inner.claim(id.to_string())?;
            let offset = inner.upload_offset(id)?;
            let file = inner.open_part(id, offset)?;
            Ok(Upload { claim, id, size, file: Arc::new(file), gathered: Vec::new(), offset, synced: offset })
        })
        .await
    }

    /// Checks that everything is there and, if a hash is given, that it is the right thing; then keeps it. May be repeated.
    pub async fn complete_upload(
        &self,
        id: DatasetId,
        size: u64,
        expected: Option<Hash>,
    ) -> Result<FileManifest, BlobError> {
        self.work(move |inner| {
            let _claim = inner.claim(id.to_string())?;
            let manifest = match inner.done(id)? {
                Some(manifest) => manifest,
                None => inner.complete(id, size)?,
            };
            match expected.filter(|expected| *expected != manifest.hash) {
                None => Ok(manifest),
                Some(expected) => Err(BlobError::Corrupt { what: id.to_string(), found: manifest.hash, expected }),
            }
        })
        .await
    }

    /// Forgets what was staged for an upload: it was recorded, is deleted, or shall begin anew.
    pub async fn drop_upload(&self, id: DatasetId) -> Result<(), BlobError> {
        self.work(move |inner| {
            let _claim = inner.claim(id.to_string())?;
            ["offset", "part", "done"].iter().try_for_each(|kind| disk::remove(&inner.staged(id, kind)))
        })
        .await
    }
}

impl Upload {
    /// Where the next byte goes.
    pub fn offset(&self) -> u64 {
        self.offset + self.gathered.len() as u64
    }

    /// Takes bytes; refuses more than was declared before any of them is written.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let found = self.offset() + bytes.len() as u64;
        if found > self.size {
            return Err(BlobError::TooLarge { what: self.id.to_string(), found, limit: self.size });
        }
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GATHER_BYTES {
            self.flush().await?;
        }
        if self.offset - self.synced >= SYNC_BYTES {
            self.sync().await?;
        }
        Ok(())
    }

    /// Makes everything so far safe; only then may anybody be told of it.
    pub async fn sync(&mut self) -> Result<u64, BlobError> {
        self.flush().await?;
        let (id, offset, file) = (self.id, self.offset, Arc::clone(&self.file));
        let inner = Arc::clone(&self.claim.inner);
        let work = move || {
            file.sync_data().map_err(BlobError::disk("sync", &inner.staged(id, "part")))?;
            disk::write_whole(&inner.staged(id, "offset"), offset.to_string().as_bytes())
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| BlobError::Closed)??;
        self.synced = self.offset;
        Ok(self.offset)
    }

    async fn flush(&mut self) -> Result<(), BlobError> {
        let bytes = std::mem::take(&mut self.gathered);
        if bytes.is_empty() {
            return Ok(());
        }
        let (length, file) = (bytes.len() as u64, Arc::clone(&self.file));
        let path = self.claim.inner.staged(self.id, "part");
        let space = self.claim.inner.space.clone();
        let work = move || {
            let written = space.check(length).map_err(Into::into).and_then(|()| (&*file).write_all(&bytes));
            written.map_err(BlobError::disk("write", &path))
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| BlobError::Closed)??;
        self.offset += length;
        Ok(())
    }
}

impl Inner {
    fn staged(&self, id: DatasetId, kind: &str) -> PathBuf {
        self.staging.join(id.to_string()).with_extension(kind)
    }

    fn upload_offset(&self, id: DatasetId) -> Result<u64, BlobError> {
        if let Some(manifest) = self.done(id)? {
            return Ok(manifest.size);
        }
        let bytes = disk::read_small(&self.staged(id, "offset"))?.unwrap_or_default();
        // The file is written whole; one that is no number was never ours, and the upload begins anew.
        Ok(std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// The part, cut to what is known to be safe.
    fn open_part(&self, id: DatasetId, offset: u64) -> Result<File, BlobError> {
        let path = self.staged(id, "part");
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = options.map_err(BlobError::disk("open", &path))?;
        let length = file.metadata().map_err(BlobError::disk("look at", &path))?.len();
        if length > offset {
            file.set_len(offset).map_err(BlobError::disk("cut", &path))?;
        }
        file.seek(SeekFrom::Start(offset)).map_err(BlobError::disk("seek", &path))?;
        Ok(file)
    }

    /// What an earlier completion kept.
    fn done(&self, id: DatasetId) -> Result<Option<FileManifest>, BlobError> {
        let Some(hash) = self.done_hash(id)? else { return Ok(None) };
        Ok(self.own(hash)?.map(|entry| entry.manifest))
    }

    fn done_hash(&self, id: DatasetId) -> Result<Option<Hash>, BlobError> {
        let bytes = disk::read_small(&self.staged(id, "done"))?.unwrap_or_default();
        Ok(std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()))
    }

    /// What an earlier completion moved to its place before it failed: the part is gone then.
    fn moved(&self, id: DatasetId) -> Result<Option<FileManifest>, BlobError> {
        let content = self.done_hash(id)?.map(|hash| (hash, self.content(hash)));
        let Some((hash, content)) = content.filter(|(_, content)| content.exists()) else { return Ok(None) };
        Ok(Some(disk::manifest_at(&content)?).filter(|manifest| manifest.hash == hash))
    }

    fn complete(&self, id: DatasetId, size: u64) -> Result<FileManifest, BlobError> {
        let found = self.upload_offset(id)?;
        if found != size {
            return Err(BlobError::Incomplete { what: id.to_string(), found, expected: size });
        }
        if let Some(manifest) = self.moved(id)? {
            let ages = lock(&self.ages);
            self.write_entry(&Entry::here(manifest.clone()))?;
            drop(ages);
            disk::remove(&self.staged(id, "offset"))?;
            return Ok(manifest);
        }
        let part = self.staged(id, "part");
        self.open_part(id, size)?;
        let manifest = disk::manifest_at(&part)?;
        check_size(&part, manifest.size, size)?;
        disk::write_whole(&self.staged(id, "done"), manifest.hash.to_string().as_bytes())?;
        self.keep(&part, &manifest)?;
        disk::remove(&self.staged(id, "offset"))?;
        Ok(manifest)
    }
}

fn check_size(part: &Path, found: u64, expected: u64) -> Result<(), BlobError> {
    if found == expected {
        return Ok(());
    }
    Err(BlobError::Incomplete { what: part.display().to_string(), found, expected })
}
