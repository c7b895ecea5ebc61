//! Reading again, slowly, what lies here: a disk that forgets a bit does not say so, and the time of the file stays what it was.
//!
//! The file that was read longest ago comes first. What has rotted is dropped, so that the next attempt that wants it fetches it, and
//! other nodes are not given it; what runs on it keeps its link, for it has read what it needs by now. Whoever reads here takes no
//! more of the disk than `cache.scrub` allows.

use super::Cache;
use crate::disk;
use lorikeet_protocol::{id::Hash, rate::Bucket};
use std::{
    fs::File,
    io::{self, Read},
    time::{Duration, Instant},
};

/// A file is read again after this long: often enough that a second copy, at the coordinator, is unlikely to have gone as well.
const EVERY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Read at once, then waited for.
const PIECE: u64 = 1 << 20;

/// With nothing to read it is looked again after this long at most.
const IDLE: Duration = Duration::from_secs(3600);

/// How fast is read.
#[derive(Debug)]
pub(super) struct Pace {
    bucket: Bucket,
    begun: Instant,
    /// Bytes that were waited for.
    pub(super) passed: u64,
}

impl Pace {
    pub(super) fn new(bandwidth: u64) -> Self {
        Self { bucket: Bucket::new(bandwidth, PIECE), begun: Instant::now(), passed: 0 }
    }

    async fn wait_for(&mut self, bytes: u64) {
        self.passed += bytes;
        tokio::time::sleep(self.bucket.take(bytes, self.begun.elapsed())).await;
    }
}

impl Cache {
    /// Reads everything again and again, so many bytes in a second, until the agent leaves.
    pub(crate) async fn scrub(self, bandwidth: u64) {
        let mut pace = Pace::new(bandwidth);
        loop {
            match self.due(EVERY) {
                Some((hash, rest)) if rest.is_zero() => self.look_over(hash, &mut pace).await,
                Some((_, rest)) => tokio::time::sleep(rest.min(IDLE)).await,
                None => tokio::time::sleep(IDLE).await,
            }
        }
    }

    /// The file that was read longest ago, and how long it has until that is too long.
    pub(super) fn due(&self, every: Duration) -> Option<(Hash, Duration)> {
        let index = self.index();
        let (hash, entry) = index.files.iter().min_by_key(|(_, entry)| entry.read)?;
        Some((*hash, every.saturating_sub(entry.read.elapsed())))
    }

    /// One file, to its end; `pace` is waited for before each piece.
    pub(super) async fn look_over(&self, hash: Hash, pace: &mut Pace) {
        let path = self.path(hash);
        let opened = File::open(&path).and_then(|file| Ok((file.try_clone()?, file)));
        let (found, read) = match opened {
            Ok((file, read)) => (hash_at_a_pace(file, pace).await, Some(read)),
            Err(error) => (Err(error), None),
        };
        self.judge(hash, found, read.as_ref());
    }

    /// What was found of the file that was opened. Whoever fetches it anew meanwhile gives its name to another, of which nothing was read.
    pub(super) fn judge(&self, hash: Hash, found: io::Result<Hash>, read: Option<&File>) {
        let (path, mut index) = (self.path(hash), self.index());
        let Some(entry) = index.files.get_mut(&hash) else { return };
        entry.read = Instant::now();
        let was_read = |read: &File| disk::is_at(read, &path).unwrap_or(false);
        if path.exists() && !read.is_some_and(was_read) {
            return;
        }
        if found.as_ref().is_ok_and(|found| *found == hash) {
            return;
        }
        let (error, pins) = (found.err().map(|error| error.to_string()), entry.pins);
        tracing::error!(path = %path.display(), error, "a file of the cache has rotted on this disk; it is dropped, and fetched anew when it is wanted");
        if let Err(error) = disk::remove_file(&path) {
            return tracing::warn!("could not {}", lorikeet_protocol::chain(&error));
        }
        if pins == 0 {
            index.files.remove(&hash);
        }
        self.inner.changed.send_replace(());
    }
}

async fn hash_at_a_pace(file: File, pace: &mut Pace) -> io::Result<Hash> {
    let mut reading = (file, blake3::Hasher::new(), Vec::new());
    loop {
        pace.wait_for(PIECE).await;
        let piece = move || {
            let (file, hasher, buffer) = &mut reading;
            buffer.clear();
            let read = file.take(PIECE).read_to_end(buffer)?;
            hasher.update(buffer);
            io::Result::Ok((read, reading))
        };
        let (read, again) = tokio::task::spawn_blocking(piece).await.map_err(io::Error::other)??;
        reading = again;
        if read == 0 {
            return Ok(Hash(*reading.1.finalize().as_bytes()));
        }
    }
}
