//! File bytes: datasets in, checkpoints and adapters out, all named by what is in them.
//!
//! ```text
//! blobs/ab/<hash>          the bytes                      staging/<dataset>.part, .offset, .done    blob/upload.rs
//! blobs/ab/<hash>.json     manifest: proof of being whole   staging/<attempt>-<hash>.part           blob/incoming.rs
//! ```
//!
//! A file is written aside, hashed in 16 MiB chunks, synced with its folder, renamed, and only then gets its manifest, synced
//! in the same way: a manifest is there only if the bytes are. Every chunk that is read is compared with its hash. Base models
//! stay where they are: [`Blobs::link`] makes a manifest that points outside, at each place where the file was found, and a chunk
//! that matches at none of them is [`BlobError::Changed`]; what may be pointed at is `blob/outside.rs`. A link is no possession: what
//! a model or checkpoint names is ours, copied in if it was only linked (`blob/taken.rs`), and a file of ours is never replaced while
//! it is whole, because somebody may have it open. Who may read what is the caller's question; a hash is no permission: an attempt that
//! names a file which it may not read has to bring its bytes, here or not (`blob/brought.rs`).
//!
//! Disk work runs on blocking threads; [`Blobs`] is a cheap handle. What may go is decided outside: see [`Blobs::list`].

mod brought;
mod disk;
mod entry;
mod error;
mod incoming;
mod look;
mod outside;
mod taken;
mod upload;

pub use error::BlobError;
pub use incoming::Limit;
pub use look::{Found, entry_of, look_at, whole_at};
pub use upload::Upload;

use crate::space::Space;
use brought::Brought;
use entry::{Entry, Place};
use incoming::Arrival;
use lorikeet_protocol::{
    file::FileManifest,
    id::{AttemptId, Hash},
};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// A file that is kept, for whoever decides what may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub hash: Hash,
    /// Since when.
    pub since: SystemTime,
}

/// The handle that everybody holds.
#[derive(Debug, Clone)]
pub struct Blobs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    blobs: PathBuf,
    staging: PathBuf,
    /// Where files lie that are not ours.
    roots: outside::Roots,
    /// Names that somebody writes under at this moment.
    claims: Mutex<HashSet<String>>,
    /// What agents are uploading.
    incoming: Mutex<Arrivals>,
    /// What they have uploaded.
    brought: Brought,
    /// Asked before every byte that comes from outside.
    space: Space,
    /// Held by whoever finds a file here and makes it young again, and by whoever removes one because it is old.
    ages: Mutex<()>,
}

/// Files on their way in, by who brings them.
type Arrivals = HashMap<(AttemptId, Hash), Arc<Arrival>>;

/// The right to write under a name; given back when dropped.
#[derive(Debug)]
struct Claim {
    inner: Arc<Inner>,
    name: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.inner.claims).remove(&self.name);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section leaves its map whole, so a panic elsewhere says nothing against it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Blobs {
    /// Makes the folders if they are missing. Only files below `roots` are ever linked; what comes from outside leaves `keep_free`
    /// bytes of its disk.
    pub fn open(blobs: &Path, staging: &Path, roots: &[PathBuf], keep_free: u64) -> Result<Self, BlobError> {
        for folder in [blobs, staging] {
            std::fs::create_dir_all(folder).map_err(BlobError::disk("make", folder))?;
        }
        let (roots, space) = (outside::Roots::new(roots), Space::new(staging, keep_free));
        let (blobs, staging) = (blobs.to_owned(), staging.to_owned());
        let (claims, incoming, ages) = (Mutex::default(), Mutex::default(), Mutex::default());
        let brought = Brought::default();
        Ok(Self { inner: Arc::new(Inner { blobs, staging, roots, claims, incoming, brought, space, ages }) })
    }

    /// The manifest of a file that is here whole.
    pub async fn manifest(&self, hash: Hash) -> Result<Option<FileManifest>, BlobError> {
        self.work(move |inner| Ok(inner.entry(hash)?.map(|entry| entry.manifest))).await
    }

    /// Whether all of these are here whole, and ours.
    pub async fn have_all(&self, files: Vec<FileManifest>) -> Result<bool, BlobError> {
        self.work(move |inner| inner.has_all(&files)).await
    }

    /// One chunk, compared with its hash.
    pub async fn chunk(&self, hash: Hash, index: u32) -> Result<Vec<u8>, BlobError> {
        self.work(move |inner| inner.chunk(hash, index)).await
    }

    /// Where the bytes lie, for a child process that reads them.
    pub async fn path(&self, hash: Hash) -> Result<PathBuf, BlobError> {
        self.work(move |inner| {
            let entry = inner.entry(hash)?.ok_or_else(|| BlobError::missing(hash))?;
            let places = inner.places(&entry);
            let whole = |place: &&PathBuf| place.metadata().is_ok_and(|file| file.len() == entry.manifest.size);
            let there = places.iter().find(whole);
            Ok(there.unwrap_or(&places[0]).clone())
        })
        .await
    }

    /// Copies a file in.
    #[cfg(test)]
    pub(crate) async fn put(&self, file: PathBuf) -> Result<FileManifest, BlobError> {
        self.work(move |inner| {
            let aside = inner.staging.join(format!("put-{}.part", uuid::Uuid::now_v7().simple()));
            std::fs::copy(&file, &aside).map_err(BlobError::disk("copy", &file))?;
            let manifest = disk::manifest_at(&aside)?;
            inner.keep(&aside, &manifest)?;
            Ok(manifest)
        })
        .await
    }

    /// Hashes a file that stays where it is, below a root, and makes it readable under its hash.
    pub async fn link(&self, file: PathBuf) -> Result<FileManifest, BlobError> {
        self.work(move |inner| {
            let manifest = disk::manifest_of(&mut inner.roots.open(&file)?, &file)?;
            let _ages = lock(&inner.ages);
            match inner.entry(manifest.hash)? {
                Some(entry) if inner.is_ours(&entry) => disk::touch(&inner.entry_path(manifest.hash))?,
                known => {
                    let entry = known.unwrap_or_else(|| Entry::here(manifest.clone()));
                    inner.write_entry(&entry.linked_at(file))?;
                }
            }
            Ok(manifest)
        })
        .await
    }

    /// Removes a file that is as old as the list said. One that is not here is no fault, one that came or was offered again since stays.
    pub async fn delete(&self, kept: Kept) -> Result<(), BlobError> {
        self.work(move |inner| {
            let _ages = lock(&inner.ages);
            let path = inner.entry_path(kept.hash);
            if kept_file(&path).is_some_and(|found| found.since > kept.since) {
                return Ok(());
            }
            inner.brought.gone(kept.hash);
            disk::remove(&path)?;
            disk::remove(&inner.content(kept.hash))
        })
        .await
    }

    /// Every file that is here, and since when.
    pub async fn list(&self) -> Result<Vec<Kept>, BlobError> {
        self.work(|inner| {
            let mut kept = Vec::new();
            for folder in disk::list(&inner.blobs)? {
                let files = disk::list(&folder)?;
                kept.extend(files.iter().filter_map(|path| kept_file(path)));
            }
            Ok(kept)
        })
        .await
    }

    /// Removes what was staged and not touched since `before`, and bytes without a manifest from before then.
    pub async fn sweep(&self, before: SystemTime) -> Result<(), BlobError> {
        self.work(move |inner| {
            let old = |path: &Path| path.metadata().and_then(|file| file.modified()).is_ok_and(|time| time < before);
            for path in disk::list(&inner.staging)?.iter().filter(|path| old(path)) {
                disk::remove(path)?;
            }
            for folder in disk::list(&inner.blobs)? {
                let bare = |path: &&PathBuf| match path.extension() {
                    None => !path.with_extension("json").exists(),
                    // What a crash left of a manifest.
                    Some(kind) => kind == disk::ASIDE,
                };
                for path in disk::list(&folder)?.iter().filter(bare).filter(|path| old(path)) {
                    disk::remove(path)?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn work<T, F>(&self, work: F) -> Result<T, BlobError>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Inner>) -> Result<T, BlobError> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(|_| BlobError::Closed)?
    }
}

/// Some bytes of a file; `None`: it does not hold them.
fn read_at(
    opened: Result<File, BlobError>,
    path: &Path,
    range: Range<u64>,
    expected: Hash,
) -> Result<Option<Vec<u8>>, BlobError> {
    let Some(file) = outside::if_there(opened)? else { return Ok(None) };
    let mut bytes = vec![0; (range.end - range.start) as usize];
    match file.read_exact_at(&mut bytes, range.start) {
        Ok(()) => Ok(Some(bytes).filter(|bytes| disk::hash(bytes) == expected)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(BlobError::disk("read", path)(error)),
    }
}

fn kept_file(path: &Path) -> Option<Kept> {
    let hash = path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()?;
    Some(Kept { hash, since: path.metadata().ok()?.modified().ok()? })
}

impl Inner {
    fn content(&self, hash: Hash) -> PathBuf {
        let name = hash.to_string();
        self.blobs.join(&name[..2]).join(name)
    }

    fn entry_path(&self, hash: Hash) -> PathBuf {
        self.content(hash).with_extension("json")
    }

    fn entry(&self, hash: Hash) -> Result<Option<Entry>, BlobError> {
        let path = self.entry_path(hash);
        let Some(bytes) = disk::read_small(&path)? else { return Ok(None) };
        let damaged = |error| BlobError::disk("read", &path)(io::Error::new(io::ErrorKind::InvalidData, error));
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    fn write_entry(&self, entry: &Entry) -> Result<(), BlobError> {
        let path = self.entry_path(entry.manifest.hash);
        disk::write_whole(&path, &serde_json::to_vec(entry).expect("a manifest is plain data"))
    }

    /// Whether the bytes are here and not only linked. Their length is looked at, not every byte.
    fn is_ours(&self, entry: &Entry) -> bool {
        let length = || self.content(entry.manifest.hash).metadata().map(|file| file.len());
        entry.place == Place::Here && length().is_ok_and(|length| length == entry.manifest.size)
    }

    fn has_all(&self, files: &[FileManifest]) -> Result<bool, BlobError> {
        for file in files {
            if self.own(file.hash)?.is_none_or(|entry| entry.manifest != *file) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The entry of a file of ours.
    fn own(&self, hash: Hash) -> Result<Option<Entry>, BlobError> {
        Ok(self.entry(hash)?.filter(|entry| self.is_ours(entry)))
    }

    /// Moves a staged file, already hashed, to its place, unless the same is there and whole: an inspection may have it open, and is
    /// allowed that very file and no other of its name. One that was damaged is replaced.
    fn keep(&self, staged: &Path, manifest: &FileManifest) -> Result<(), BlobError> {
        let content = self.content(manifest.hash);
        // The long part of it, before anybody waits for us.
        File::open(staged).and_then(|file| file.sync_all()).map_err(BlobError::disk("sync", staged))?;
        let mut ages = lock(&self.ages);
        if self.own(manifest.hash)?.is_some() {
            drop(ages);
            let is_whole = disk::manifest_at(&content).is_ok_and(|found| found == *manifest);
            ages = lock(&self.ages);
            if is_whole && self.own(manifest.hash)?.is_some() {
                disk::touch(&self.entry_path(manifest.hash))?;
                return disk::remove(staged);
            }
        }
        disk::rename_synced(staged, &content)?;
        self.write_entry(&Entry::here(manifest.clone()))?;
        drop(ages);
        Ok(())
    }

    /// Where the bytes may lie, the likeliest first. What a crash or a restore left here counts too: each chunk is compared.
    fn places(&self, entry: &Entry) -> Vec<PathBuf> {
        let mut places = vec![self.content(entry.manifest.hash)];
        places.extend_from_slice(entry.links());
        places
    }

    fn chunk(&self, hash: Hash, index: u32) -> Result<Vec<u8>, BlobError> {
        let entry = self.entry(hash)?.ok_or_else(|| BlobError::missing(hash))?;
        let chunk = || BlobError::missing(format!("chunk {index} of {hash}"));
        let range = entry.manifest.range(index).ok_or_else(chunk)?;
        let expected = entry.manifest.chunks.get(index as usize).ok_or_else(chunk)?;
        // A manifest without its bytes: somebody took them away.
        let mut failed = BlobError::Changed { file: hash, chunk: index };
        for place in self.places(&entry) {
            let opened = if place == self.content(hash) {
                File::open(&place).map_err(BlobError::disk("open", &place))
            } else {
                self.roots.open(&place)
            };
            match read_at(opened, &place, range.clone(), *expected) {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => {}
                // Trouble with a place that may still hold it says more than another that does not.
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn claim(self: &Arc<Self>, name: String) -> Result<Claim, BlobError> {
        if lock(&self.claims).insert(name.clone()) {
            Ok(Claim { inner: Arc::clone(self), name })
        } else {
            Err(BlobError::Busy { what: name })
        }
    }
}

/// What a manifest file says, and whether the bytes lie elsewhere: for the tests that look at every decoder.
#[doc(hidden)]
pub fn read_manifest_file(json: &[u8]) -> serde_json::Result<(FileManifest, bool)> {
    serde_json::from_slice::<Entry>(json).map(|entry| (entry.manifest, entry.place != Place::Here))
}

#[cfg(test)]
mod tests;
