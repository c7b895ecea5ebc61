//! Base models and datasets on this disk, by hash: fetched once, checked whole, shared by every attempt that names them.
//!
//! ```text
//! cache/files/<hash>     complete and verified; read-only; its modification time is when it was last fetched or given out
//! cache/partial/<hash>   chunks so far; which of them are whole is asked of their hashes, not of a note beside them
//! cache/tokens/          what workers made of datasets (`lorikeet-dataset`), each locked by who reads or writes it
//! ```
//! A [`Pin`] keeps a file from being evicted. The budget is kept by evicting what is longest unused, of all three; where what is in use alone
//! fills it, a fetch fails with a name. What other nodes read here counts as just used, so it is the last to be evicted; but they pin
//! nothing, so they are never in the way of this node's own work.
//!
//! Disks fail and people err, so a file is looked at before it is given out: its size and its modification time each time, its bytes
//! once after every start, whenever that time is not the one we set, and once an attempt that had it went wrong. Beside that every file is
//! read again every week ([`scrub`](Cache::scrub)), at a pace that nobody notices. What is not what its name says is dropped, and fetched
//! anew by whoever wants it next.

mod divide;
mod fetch;
mod rest;
mod scrub;
mod tally;

#[cfg(test)]
mod tests;

use crate::{
    config,
    disk::{self, At, DiskError},
    link::blob::Source,
};
use fetch::Manners;
use lorikeet_protocol::{
    blob::Refusal,
    file::{CHUNK_BYTES, FileManifest},
    id::{AttemptId, Hash},
    share::Moved,
};
use rest::Rest;
pub(crate) use rest::taken;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tally::Tally;
use tokio::sync::watch;

/// Half-fetched files that nobody came back for are dropped at the start after this long.
const PARTIAL_LIFE: Duration = Duration::from_secs(7 * 86_400);

/// Why a file is not here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Everything in the cache is in use.
    #[error("make room for {needed} bytes: the cache may hold {budget}, and {pinned} are in use")]
    NoRoom {
        /// What the file needs.
        needed: u64,
        /// What the config allows.
        budget: u64,
        /// What cannot be evicted.
        pinned: u64,
    },
    /// The coordinator does not give it.
    #[error("fetch {file}: the coordinator refused: {refusal:?}")]
    Refused {
        /// Which.
        file: Hash,
        /// Why.
        refusal: Refusal,
    },
    /// What came is not what was named, again and again. The coordinator compares before it sends and the line is authenticated, so
    /// this is the node's own doing.
    #[error("fetch {0}: its bytes are not what its hash says")]
    Corrupt(Hash),
    /// A task of ours died.
    #[error("fetch: a helper thread failed: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    budget: u64,
    manners: Manners,
    index: Mutex<Index>,
    tally: Tally,
    /// Told whenever a file came or went.
    changed: watch::Sender<()>,
}

/// What is here and what is on its way.
#[derive(Debug, Default)]
struct Index {
    files: BTreeMap<Hash, Entry>,
    /// One lock per file being fetched: two attempts that want it fetch it once.
    fetching: BTreeMap<Hash, Arc<tokio::sync::Mutex<()>>>,
    /// Bytes promised to fetches that run.
    reserved: u64,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    used: SystemTime,
    /// The modification time with which its bytes were last known to be whole; none before they were read in this process.
    whole: Option<SystemTime>,
    /// When its bytes were last read to the end, or it was found here.
    read: Instant,
    pins: u32,
}

impl Entry {
    fn new(size: u64, used: SystemTime) -> Self {
        Self { size, used, whole: None, read: Instant::now(), pins: 0 }
    }
}

/// A file that stays as long as this lives.
#[derive(Debug)]
pub(crate) struct Pin {
    cache: Cache,
    hash: Hash,
    path: PathBuf,
}

impl Pin {
    /// The file: complete, verified, read-only.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What its bytes are.
    pub(crate) fn hash(&self) -> Hash {
        self.hash
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(entry) = self.cache.index().files.get_mut(&self.hash) {
            entry.pins -= 1;
        }
    }
}

impl Cache {
    /// Opens the cache and looks at what is there.
    pub(crate) fn open(folder: &Path, config: &config::Cache) -> Result<Self, DiskError> {
        let files = folder.join("files");
        disk::create_folder(&files)?;
        disk::create_folder(&folder.join("partial"))?;
        drop_stale(&folder.join("partial"))?;
        let mut index = Index::default();
        for entry in std::fs::read_dir(&files).at("list", &files)? {
            let entry = entry.at("list", &files)?;
            let meta = entry.metadata().at("read", &entry.path())?;
            match entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                Some(hash) => {
                    let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    index.files.insert(hash, Entry::new(meta.len(), used));
                }
                None => tracing::warn!(path = %entry.path().display(), "a stranger lies in the cache"),
            }
        }
        let inner = Inner {
            folder: folder.to_owned(),
            budget: config.budget,
            manners: Manners::new(config.parallel),
            index: Mutex::new(index),
            tally: Tally::default(),
            changed: watch::Sender::new(()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Hashes of what is here, the most recently used first.
    pub(crate) fn hashes(&self, most: usize) -> Vec<Hash> {
        let index = self.index();
        let mut files: Vec<_> = index.files.iter().map(|(hash, entry)| (entry.used, *hash)).collect();
        files.sort_unstable_by(|a, b| b.cmp(a));
        files.into_iter().take(most).map(|(_, hash)| hash).collect()
    }

    /// Wakes whenever a file came or went.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// Bytes that came and went since this agent started.
    pub(crate) fn moved(&self) -> Moved {
        self.inner.tally.moved()
    }

    /// A chunk of a file that is here, for another node, which compares it with its hash. `None`: there is none to give. It pins nothing:
    /// an eviction takes the name away, and what is open is read to its end.
    pub(crate) async fn lend(&self, file: Hash, chunk: u32) -> Option<Vec<u8>> {
        let failed = |error: &std::io::Error| tracing::warn!(%file, chunk, %error, "a chunk that another node wants cannot be read");
        let opened = self.open_for_others(file)?.inspect_err(failed).ok()?;
        let read = tokio::task::spawn_blocking(move || read_chunk(&opened, chunk)).await.ok()?;
        read.inspect_err(failed).ok().filter(|bytes| !bytes.is_empty())
    }

    /// Under the lock, so that nobody evicts it between the look and the opening.
    fn open_for_others(&self, hash: Hash) -> Option<std::io::Result<File>> {
        let mut index = self.index();
        index.files.get_mut(&hash)?.used = SystemTime::now();
        Some(File::open(self.path(hash)))
    }

    /// So many bytes went to another node.
    pub(crate) fn gave(&self, bytes: u64) {
        self.inner.tally.gave(bytes);
    }

    /// The file, from here, from the coordinator or from nodes that have it.
    pub(crate) async fn get<S: Source>(
        &self,
        source: &S,
        attempt: AttemptId,
        manifest: &FileManifest,
    ) -> Result<Pin, CacheError> {
        let turn = Arc::clone(self.index().fetching.entry(manifest.hash).or_default());
        let held = turn.lock().await;
        let fetched = self.get_alone(source, attempt, manifest).await;
        drop(held);
        let mut index = self.index();
        if Arc::strong_count(&turn) == 2 {
            index.fetching.remove(&manifest.hash);
        }
        fetched
    }

    /// Keeps a file that is here, whatever it holds by now; for attempts found again after a restart.
    pub(crate) fn pin(&self, hash: Hash) -> Option<Pin> {
        let mut index = self.index();
        let entry = index.files.get_mut(&hash)?;
        entry.pins += 1;
        entry.used = SystemTime::now();
        Some(Pin { cache: self.clone(), hash, path: self.path(hash) })
    }

    /// Whether an open file is the one that is here.
    pub(crate) fn has(&self, hash: Hash, file: &File) -> bool {
        disk::is_at(file, &self.path(hash)).unwrap_or(false)
    }

    /// Whether the bytes of a link to what was here are still those, all of them read. If not, what is here is read before it is given out.
    pub(crate) fn is_still(&self, hash: Hash, file: &File) -> bool {
        let is_still = fetch::hash_of_open(file, &self.path(hash)).is_ok_and(|found| found == hash);
        if !is_still {
            self.distrust(hash);
        }
        is_still
    }

    /// A file is read to its end before it is given out again.
    pub(crate) fn distrust(&self, hash: Hash) {
        if let Some(entry) = self.index().files.get_mut(&hash) {
            entry.whole = None;
        }
    }

    /// Whether a file is still what its name says. One that cannot be read is not.
    async fn is_whole(&self, pin: &Pin, size: u64) -> Result<bool, CacheError> {
        let (path, hash) = (pin.path.clone(), pin.hash);
        let known = self.index().files.get(&hash).and_then(|entry| entry.whole);
        let look = move || {
            let meta = std::fs::metadata(&path).ok().filter(|meta| meta.len() == size);
            let is_known = |modified| known == Some(modified);
            let same = || fetch::hash_of(&path).is_ok_and(|found| found == hash);
            meta.is_some_and(|meta| meta.modified().is_ok_and(is_known) || same())
        };
        Ok(tokio::task::spawn_blocking(look).await?)
    }

    /// A whole file is given out: it is used now, and its time from now on is that of these bytes.
    fn mark(&self, pin: &Pin) {
        // Where the time cannot be set, the one it has will do: the file merely looks unused at the next start.
        let _ = File::open(&pin.path).and_then(|file| file.set_modified(SystemTime::now()));
        let modified = std::fs::metadata(&pin.path).and_then(|meta| meta.modified()).ok();
        if let Some(entry) = self.index().files.get_mut(&pin.hash) {
            entry.whole = modified;
        }
    }

    async fn get_alone<S: Source>(
        &self,
        source: &S,
        attempt: AttemptId,
        manifest: &FileManifest,
    ) -> Result<Pin, CacheError> {
        if let Some(pin) = self.pin(manifest.hash) {
            if self.is_whole(&pin, manifest.size).await? {
                self.mark(&pin);
                return Ok(pin);
            }
            tracing::error!(path = %pin.path.display(), "a file of the cache is not what it was when it came; it is fetched anew");
            self.discard(pin)?;
        }
        let room = self.reserve(manifest.size)?;
        let partial = self.inner.folder.join("partial").join(manifest.hash.to_string());
        let fetched = fetch::fetch(source, attempt, manifest, &partial, self.inner.manners, &self.inner.tally).await;
        if let Err(CacheError::Disk(error)) = &fetched
            && error.is_full()
        {
            // What came so far is the room that others lack.
            disk::remove_file(&partial)?;
        }
        fetched?;
        let path = self.path(manifest.hash);
        disk::make_read_only(&partial)?;
        {
            // Whoever has read the file of that name judges, and drops, that one or none.
            let _index = self.index();
            std::fs::rename(&partial, &path).at("keep", &path)?;
        }
        disk::sync_parent(&path)?;
        let mut index = self.index();
        // An attempt that runs may still hold the damaged one that was here before.
        let pins = 1 + index.files.get(&manifest.hash).map_or(0, |entry| entry.pins);
        index.files.insert(manifest.hash, Entry { pins, ..Entry::new(manifest.size, SystemTime::now()) });
        drop((index, room));
        self.inner.changed.send_replace(());
        let pin = Pin { cache: self.clone(), hash: manifest.hash, path };
        self.mark(&pin);
        Ok(pin)
    }

    /// Takes a damaged file away. What runs on it keeps its own link to it.
    fn discard(&self, pin: Pin) -> Result<(), CacheError> {
        disk::remove_file(&pin.path)?;
        let hash = pin.hash;
        drop(pin);
        let mut index = self.index();
        if index.files.get(&hash).is_some_and(|entry| entry.pins == 0) {
            index.files.remove(&hash);
        }
        self.inner.changed.send_replace(());
        Ok(())
    }

    /// Makes room, evicting what is longest unused.
    fn reserve(&self, needed: u64) -> Result<Room, CacheError> {
        let mut index = self.index();
        let mut rest = self.rest(&index);
        while index.total() + rest.bytes + needed > self.inner.budget {
            if self.evict(&mut index, &mut rest)?.is_none() {
                let pinned = index.total() + rest.bytes;
                return Err(CacheError::NoRoom { needed, budget: self.inner.budget, pinned });
            }
        }
        index.reserved += needed;
        Ok(Room { cache: self.clone(), bytes: needed })
    }

    /// The disk is short of this much: evicts what is longest unused, never what is in use; says how much that was.
    pub(crate) fn shed(&self, short: u64) -> u64 {
        let (mut index, mut freed) = (self.index(), 0);
        let mut rest = self.rest(&index);
        while freed < short {
            match self.evict(&mut index, &mut rest) {
                Ok(Some(bytes)) => freed += bytes,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!("could not {}", lorikeet_protocol::chain(&error));
                    break;
                }
            }
        }
        if freed > 0 {
            tracing::warn!(freed, "the disk is nearly full: files were evicted from the cache");
        }
        freed
    }

    /// Takes away what is longest unused, and how many bytes that gave; `None`: everything is in use.
    fn evict(&self, index: &mut Index, rest: &mut Rest) -> Result<Option<u64>, DiskError> {
        let Some((used, oldest)) = index.oldest() else {
            return Ok(rest.oldest().is_some().then(|| rest.remove_oldest()));
        };
        if rest.oldest().is_some_and(|other| other < used) {
            return Ok(Some(rest.remove_oldest()));
        }
        disk::remove_file(&self.path(oldest))?;
        tracing::info!(file = %oldest, "evicted from the cache");
        let freed = index.files.remove(&oldest).map_or(0, |entry| entry.size);
        self.inner.changed.send_replace(());
        Ok(Some(freed))
    }

    fn rest(&self, index: &Index) -> Rest {
        Rest::find(&self.inner.folder, &index.fetched())
    }

    /// A file that is simply there, whatever it holds.
    #[cfg(test)]
    pub(crate) fn hold(&self, hash: Hash, bytes: &[u8]) {
        std::fs::write(self.path(hash), bytes).expect("the folder is ours");
        self.index().files.insert(hash, Entry::new(bytes.len() as u64, SystemTime::now()));
    }

    fn path(&self, hash: Hash) -> PathBuf {
        self.inner.folder.join("files").join(hash.to_string())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.inner.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn total(&self) -> u64 {
        self.reserved + self.files.values().map(|entry| entry.size).sum::<u64>()
    }

    fn oldest(&self) -> Option<(SystemTime, Hash)> {
        let unused = self.files.iter().filter(|(_, entry)| entry.pins == 0);
        unused.map(|(hash, entry)| (entry.used, *hash)).min()
    }

    /// What somebody fetches, or is about to.
    fn fetched(&self) -> BTreeSet<Hash> {
        let held = self.fetching.iter().filter(|(_, turn)| Arc::strong_count(turn) > 1);
        held.map(|(hash, _)| *hash).collect()
    }
}

/// Bytes of the budget, promised to one fetch.
struct Room {
    cache: Cache,
    bytes: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.cache.index().reserved -= self.bytes;
    }
}

/// Empty behind the file's end.
fn read_chunk(file: &File, chunk: u32) -> std::io::Result<Vec<u8>> {
    let start = u64::from(chunk) * CHUNK_BYTES;
    let length = file.metadata()?.len().saturating_sub(start).min(CHUNK_BYTES);
    let mut bytes = vec![0; usize::try_from(length).expect("a chunk is 16 MiB at most")];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

fn drop_stale(folder: &Path) -> Result<(), DiskError> {
    for entry in std::fs::read_dir(folder).at("list", folder)? {
        let path = entry.at("list", folder)?.path();
        let modified = path.metadata().and_then(|meta| meta.modified()).at("read", &path)?;
        if modified.elapsed().is_ok_and(|age| age > PARTIAL_LIFE) {
            disk::remove_file(&path)?;
        }
    }
    Ok(())
}
