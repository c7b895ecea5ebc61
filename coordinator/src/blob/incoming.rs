//! An agent's upload: a manifest first, then its chunks in any order, each compared with its hash on arrival.
//!
//! Each attempt stages under its own name, so that no attempt can stand in the way of another's. What survives a restart is the
//! part file alone: the next offer hashes its chunks again and asks for those that are missing or torn.

use super::{BlobError, Blobs, Inner, brought, disk, lock};
use lorikeet_protocol::{
    file::FileManifest,
    id::{AttemptId, Hash},
};
use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex},
};

/// Files one attempt may have under way: a checkpoint and an adapter have about a dozen each.
const FILES_UNDER_WAY: usize = 64;

/// Bytes that one attempt may have staged: on their way in, or brought and waiting for a report that names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub u64);

/// A file on its way in. Its manifest never changes and needs no lock; the rest has one of its own, because hashing takes a while.
#[derive(Debug)]
pub(super) struct Arrival {
    manifest: FileManifest,
    file: Mutex<Incoming>,
}

/// What of it is here.
#[derive(Debug)]
struct Incoming {
    manifest: FileManifest,
    path: PathBuf,
    file: File,
    have: Vec<bool>,
}

impl Blobs {
    /// Which chunks of a file are still wanted; none: the attempt has brought it whole. That somebody else has it here counts for nothing.
    pub async fn offer(&self, attempt: AttemptId, manifest: FileManifest, limit: Limit) -> Result<Vec<u32>, BlobError> {
        self.work(move |inner| inner.offer(attempt, manifest, limit, false)).await
    }

    /// The same of a file that the attempt may read anyway: if it is here, nothing of it is wanted.
    pub async fn offer_own(
        &self,
        attempt: AttemptId,
        manifest: FileManifest,
        limit: Limit,
    ) -> Result<Vec<u32>, BlobError> {
        self.work(move |inner| inner.offer(attempt, manifest, limit, true)).await
    }

    /// Whether all of these are here whole, and ours, and this attempt has brought them.
    pub async fn has_brought(&self, attempt: AttemptId, files: Vec<FileManifest>) -> Result<bool, BlobError> {
        let brought = files.iter().all(|file| self.inner.brought.has(attempt, file.hash));
        if brought { self.have_all(files).await } else { Ok(false) }
    }

    /// A report names these files of an attempt's: neither they nor what it brought before them counts any longer as staged.
    pub fn reported(&self, attempt: AttemptId, files: &[Hash]) {
        self.inner.brought.reported(attempt, files);
    }

    /// Takes one chunk of an offered file.
    pub async fn put_chunk(&self, attempt: AttemptId, file: Hash, index: u32, bytes: Vec<u8>) -> Result<(), BlobError> {
        self.work(move |inner| {
            let incoming = inner.incoming(attempt, file)?;
            inner.space.check(bytes.len() as u64).map_err(|short| incoming.disk("write")(short.into()))?;
            lock(&incoming.file).put(index, &bytes)
        })
        .await
    }

    /// How long chunk `index` of an offered file must be.
    pub fn chunk_length(&self, attempt: AttemptId, file: Hash, index: u32) -> Result<u64, BlobError> {
        let incoming = self.inner.incoming(attempt, file)?;
        incoming
            .manifest
            .range(index)
            .map(|range| range.end - range.start)
            .ok_or_else(|| BlobError::missing(format!("chunk {index} of {file}")))
    }

    /// Checks the whole and keeps it; a file that is already here is done.
    pub async fn finish(&self, attempt: AttemptId, file: Hash) -> Result<(), BlobError> {
        self.work(move |inner| inner.finish(attempt, file)).await
    }

    /// Attempts of which there are files under way, or brought.
    pub fn attempts(&self) -> BTreeSet<AttemptId> {
        let mut attempts = self.inner.brought.attempts();
        attempts.extend(lock(&self.inner.incoming).keys().map(|(attempt, _)| *attempt));
        attempts
    }

    /// Drops what an attempt staged and did not finish, and forgets what it brought.
    pub async fn drop_incoming(&self, attempt: AttemptId) -> Result<(), BlobError> {
        self.work(move |inner| {
            lock(&inner.incoming).retain(|(whose, _), _| *whose != attempt);
            inner.brought.forget(attempt);
            let prefix = format!("{attempt}-");
            let own = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
            disk::list(&inner.staging)?.iter().filter(|path| own(path)).try_for_each(|path| disk::remove(path))
        })
        .await
    }
}

impl Inner {
    fn incoming(&self, attempt: AttemptId, file: Hash) -> Result<Arc<Arrival>, BlobError> {
        let known = lock(&self.incoming).get(&(attempt, file)).cloned();
        known.ok_or_else(|| BlobError::missing(format!("an offer of {file} by {attempt}")))
    }

    fn offer(
        self: &Arc<Self>,
        attempt: AttemptId,
        manifest: FileManifest,
        limit: Limit,
        is_own: bool,
    ) -> Result<Vec<u32>, BlobError> {
        let file = manifest.hash;
        let inconsistent = |why| BlobError::Inconsistent { what: file.to_string(), why };
        if !manifest.is_consistent() {
            return Err(inconsistent("its manifest has another number of chunks than its size"));
        }
        let ages = lock(&self.ages);
        // Who may not read it is not told whether it is here, either.
        let is_known = is_own || self.brought.has(attempt, file);
        let known = if is_known { self.entry(file)? } else { None };
        match &known {
            Some(entry) if entry.manifest != manifest => {
                return Err(inconsistent("its manifest is not the one of the file with this hash"));
            }
            Some(entry) if self.is_ours(entry) => {
                // As if it came now: nobody may sweep it before a report names it.
                disk::touch(&self.entry_path(file))?;
                self.brought.note(attempt, file, 0);
                return Ok(Vec::new());
            }
            Some(_) | None => {}
        }
        drop(ages);
        self.check_limit(attempt, &manifest, limit)?;
        // A base has it, an adapter's tokenizer for one. The base may go, so it must be ours; if it cannot be copied, it is sent.
        if known.is_some_and(|entry| self.take_in(&entry).is_ok()) {
            self.brought.note(attempt, file, manifest.size);
            return Ok(Vec::new());
        }
        let known = lock(&self.incoming).get(&(attempt, file)).cloned();
        let incoming = match known.filter(|known| known.manifest == manifest) {
            Some(known) => known,
            None => Arc::new(Arrival::open(self.part(attempt, file), manifest)?),
        };
        let wanted = lock(&incoming.file).wanted();
        lock(&self.incoming).insert((attempt, file), incoming);
        if wanted.is_empty() {
            // Everything came before and only the end was missing.
            self.finish(attempt, file)?;
        }
        Ok(wanted)
    }

    fn part(&self, attempt: AttemptId, file: Hash) -> PathBuf {
        self.staging.join(format!("{attempt}-{file}.part"))
    }

    fn check_limit(&self, attempt: AttemptId, manifest: &FileManifest, limit: Limit) -> Result<(), BlobError> {
        let table = lock(&self.incoming);
        let others = table.iter().filter(|((whose, file), _)| *whose == attempt && *file != manifest.hash);
        let sizes: Vec<u64> = others.map(|(_, arrival)| arrival.manifest.size).collect();
        drop(table);
        let (files, bytes) = self.brought.waiting(attempt);
        let found = sizes.iter().sum::<u64>().saturating_add(bytes).saturating_add(manifest.size);
        if sizes.len() >= FILES_UNDER_WAY {
            return Err(BlobError::Busy { what: format!("more files of {attempt}") });
        }
        if files >= brought::FILES {
            return Err(BlobError::TooMany { what: manifest.hash.to_string(), limit: brought::FILES });
        }
        if found > limit.0 {
            return Err(BlobError::TooLarge { what: manifest.hash.to_string(), found, limit: limit.0 });
        }
        Ok(())
    }

    fn finish(&self, attempt: AttemptId, file: Hash) -> Result<(), BlobError> {
        let incoming = match self.incoming(attempt, file) {
            Err(_) if self.brought.has(attempt, file) && self.own(file)?.is_some() => return Ok(()),
            incoming => incoming?,
        };
        let finished = lock(&incoming.file).finish(self);
        // Whatever came of it, memory no longer knows what lies on the disk: the part may have been moved before a step failed.
        // The next offer hashes what is left of it, as after a restart.
        lock(&self.incoming).remove(&(attempt, file));
        if finished.is_ok() {
            self.brought.note(attempt, file, incoming.manifest.size);
        }
        // A whole that does not match its hash is hopeless: its chunks match, so the manifest lied, and the sender begins anew.
        if matches!(finished, Ok(()) | Err(BlobError::Corrupt { .. })) {
            disk::remove(&self.part(attempt, file))?;
        }
        finished
    }
}

impl Arrival {
    fn open(path: PathBuf, manifest: FileManifest) -> Result<Self, BlobError> {
        let file = Mutex::new(Incoming::open(path, manifest.clone())?);
        Ok(Self { manifest, file })
    }

    fn disk(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> BlobError + use<> {
        BlobError::disk(what, &lock(&self.file).path)
    }
}

impl Incoming {
    /// Hashes what an earlier run left.
    fn open(path: PathBuf, manifest: FileManifest) -> Result<Self, BlobError> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(BlobError::disk("open", &path))?;
        let left = file.metadata().map_err(BlobError::disk("look at", &path))?.len();
        let mut incoming = Self { have: vec![false; manifest.chunks.len()], manifest, path, file };
        if left > 0 {
            incoming.have = (0..incoming.have.len()).map(|index| incoming.chunk_is_good(index)).collect();
        }
        Ok(incoming)
    }

    fn chunk_is_good(&self, index: usize) -> bool {
        let Some(range) = u32::try_from(index).ok().and_then(|index| self.manifest.range(index)) else { return false };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut bytes, range.start).is_ok() && disk::hash(&bytes) == self.manifest.chunks[index]
    }

    fn wanted(&self) -> Vec<u32> {
        (0..).zip(&self.have).filter(|(_, have)| !**have).map(|(index, _)| index).collect()
    }

    fn put(&mut self, index: u32, bytes: &[u8]) -> Result<(), BlobError> {
        let what = || format!("chunk {index} of {}", self.manifest.hash);
        let range = self.manifest.range(index).ok_or_else(|| BlobError::missing(what()))?;
        if range.end - range.start != bytes.len() as u64 {
            return Err(BlobError::Inconsistent { what: what(), why: "it is not as long as its place in the file" });
        }
        let (found, expected) = (disk::hash(bytes), self.manifest.chunks[index as usize]);
        if found != expected {
            return Err(BlobError::Corrupt { what: what(), found, expected });
        }
        self.file.write_all_at(bytes, range.start).map_err(BlobError::disk("write", &self.path))?;
        self.have[index as usize] = true;
        Ok(())
    }

    fn finish(&mut self, inner: &Inner) -> Result<(), BlobError> {
        let what = self.manifest.hash.to_string();
        let have = self.have.iter().filter(|have| **have).count() as u64;
        if have != self.have.len() as u64 {
            return Err(BlobError::Inconsistent { what, why: "not every chunk has come" });
        }
        // A stale part may be longer than the file.
        self.file.set_len(self.manifest.size).map_err(BlobError::disk("cut", &self.path))?;
        let found = disk::manifest_at(&self.path)?;
        if found != self.manifest {
            return Err(BlobError::Corrupt { what, found: found.hash, expected: self.manifest.hash });
        }
        inner.keep(&self.path, &self.manifest)
    }
}
