//! One file to a partial file, from the coordinator and from nodes that have it: missing chunks only, several at a time, each verified
//! before it is written, the whole verified at the end.

use super::{
    CacheError,
    divide::{Asked, Division, Failure},
    tally::Tally,
};
use crate::{
    disk::{At, DiskError},
    link::{blob::Source, chain},
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lorikeet_protocol::{
    file::{CHUNK_BYTES, FileManifest},
    id::{AttemptId, Hash, NodeId},
    share::Giver,
};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::spawn_blocking;

/// A chunk that arrives damaged this often is damaged at its source.
const TRIES: u32 = 3;
/// Nothing but what lands is waited for.
const FAR: Duration = Duration::from_secs(86_400);

/// How much is asked at the same time, and how long for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manners {
    /// Chunks.
    pub(super) parallel: usize,
    /// Once nothing else is left to ask for, what takes a node longer is asked of the coordinator as well, and the other way round.
    pub(super) late: Duration,
    /// A file does not wait for the first names of nodes for longer: the coordinator has it.
    pub(super) names_within: Duration,
    /// When the coordinator is asked again who has the file.
    pub(super) ask_again: Duration,
}

impl Manners {
    /// A chunk in ten seconds is 13 Mbit/s. Grants live for two minutes, and in half a minute more nodes have the file.
    pub(super) fn new(parallel: usize) -> Self {
        let [late, names_within, ask_again] = [10, 5, 30].map(Duration::from_secs);
        Self { parallel, late, names_within, ask_again }
    }
}

/// Completes `partial`; on success it holds exactly what the manifest says, synced.
pub(super) async fn fetch<S: Source>(
    source: &S,
    attempt: AttemptId,
    manifest: &FileManifest,
    partial: &Path,
    manners: Manners,
    tally: &Tally,
) -> Result<(), CacheError> {
    let manifest = Arc::new(manifest.clone());
    let (file, missing) = {
        let (manifest, path) = (Arc::clone(&manifest), partial.to_owned());
        spawn_blocking(move || open(&manifest, &path)).await??
    };
    let fetch = Fetch { source, attempt, manifest, file: Arc::new(file), path: partial, tally };
    fetch.run(Division::new(missing, manners.parallel, manners.late), manners).await?;
    let Fetch { manifest, file, .. } = fetch;
    let path = partial.to_owned();
    spawn_blocking(move || finish(&manifest, &file, &path)).await?
}

/// What every request of it needs.
struct Fetch<'a, S> {
    source: &'a S,
    attempt: AttemptId,
    manifest: Arc<FileManifest>,
    file: Arc<File>,
    path: &'a Path,
    tally: &'a Tally,
}

/// What came.
enum Landed {
    Chunk(Asked, u32, Result<(), Missed>),
    Names(Vec<Giver>),
}

/// Why a chunk did not.
enum Missed {
    /// It cannot be had at all.
    ForGood(CacheError),
    /// A node did not bring it.
    Node(Failure),
}

impl<S: Source> Fetch<'_, S> {
    async fn run(&self, mut division: Division, manners: Manners) -> Result<(), CacheError> {
        let started = Instant::now();
        let mut givers = BTreeMap::new();
        let mut brought = BTreeMap::<Asked, u64>::new();
        // What fits into a chunk is not worth a handshake.
        let shared = self.manifest.chunks.len() > 1 && !division.is_done();
        let mut flying: FuturesUnordered<BoxFuture<'_, Landed>> = FuturesUnordered::new();
        if shared {
            flying.push(self.names().map(Landed::Names).boxed());
        }
        let mut names_by = if shared { manners.names_within } else { Duration::ZERO };
        let (mut ask_again, mut braked) = (None, Duration::ZERO);
        loop {
            // The wait for what was asked comes before the next request, so that it makes nobody late.
            while names_by.max(braked) <= started.elapsed()
                && let Some((whom, chunk)) = division.next(started.elapsed())
            {
                let giver = if let Asked::Node(node) = whom { givers.get(&node).copied() } else { None };
                flying.push(self.ask(whom, chunk, giver).boxed());
                braked = started.elapsed() + self.source.brake(self.length(chunk));
            }
            if division.is_done() {
                break;
            }
            let (now, free) = (started.elapsed(), names_by.max(braked));
            let more = if free > now { Some(free) } else { division.deadline() };
            let wake = started + [more, ask_again].into_iter().flatten().min().unwrap_or(FAR);
            tokio::select! {
                Some(landed) = flying.next() => match landed {
                    Landed::Names(named) => {
                        take_up(named, &mut division, &mut givers);
                        (names_by, ask_again) = (Duration::ZERO, Some(started.elapsed() + manners.ask_again));
                    }
                    Landed::Chunk(whom, chunk, Ok(())) => {
                        if division.arrived(whom, chunk) {
                            *brought.entry(whom).or_default() += self.length(chunk);
                            self.count(whom, chunk);
                        }
                    }
                    Landed::Chunk(Asked::Node(node), chunk, Err(Missed::Node(failure))) => {
                        division.failed(node, chunk, failure);
                    }
                    Landed::Chunk(_, _, Err(Missed::ForGood(error))) => return Err(error),
                    Landed::Chunk(Asked::Coordinator, ..) => unreachable!("the coordinator's chunks come, or fail for good"),
                },
                () = tokio::time::sleep_until(wake.into()) => {
                    if ask_again.is_some_and(|at| at <= started.elapsed()) {
                        // Behind four chunks on a slow line it takes a while.
                        ask_again = None;
                        flying.push(self.names().map(Landed::Names).boxed());
                    }
                }
            }
        }
        self.say(&brought);
        Ok(())
    }

    fn length(&self, chunk: u32) -> u64 {
        let range = self.manifest.range(chunk).unwrap_or_default();
        range.end - range.start
    }

    fn count(&self, whom: Asked, chunk: u32) {
        match whom {
            Asked::Coordinator => self.tally.fetched(self.length(chunk)),
            Asked::Node(_) => self.tally.took(self.length(chunk)),
        }
    }

    fn say(&self, brought: &BTreeMap<Asked, u64>) {
        let from_coordinator = brought.get(&Asked::Coordinator).copied().unwrap_or(0);
        let node = |(whom, bytes): (&Asked, &u64)| match whom {
            Asked::Node(node) => Some(format!("{node} {bytes}")),
            Asked::Coordinator => None,
        };
        let from_nodes = brought.iter().filter_map(node).collect::<Vec<_>>().join(", ");
        tracing::info!(file = %self.manifest.hash, attempt = %self.attempt, size = self.manifest.size, from_coordinator, from_nodes, "fetched");
    }

    async fn names(&self) -> Vec<Giver> {
        self.source.givers(self.attempt, self.manifest.hash).await
    }

    async fn ask(&self, whom: Asked, chunk: u32, giver: Option<Giver>) -> Landed {
        let came = match (whom, giver) {
            (Asked::Coordinator, _) => self.of_the_coordinator(chunk).await.map_err(Missed::ForGood),
            (Asked::Node(_), Some(giver)) => self.of_a_node(&giver, chunk).await,
            (Asked::Node(_), None) => Err(Missed::Node(Failure::Away)),
        };
        Landed::Chunk(whom, chunk, came)
    }

    async fn of_a_node(&self, giver: &Giver, chunk: u32) -> Result<(), Missed> {
        let (file, node) = (self.manifest.hash, giver.node);
        let bytes = self.source.take(giver, chunk).await.map_err(|error| {
            tracing::info!(%file, chunk, %node, "a node does not bring a chunk, others do: could not {}", chain(&error));
            Missed::Node(if error.is_unreached() { Failure::NotReached } else { Failure::Away })
        })?;
        if self.keep(chunk, bytes).await.map_err(Missed::ForGood)? {
            return Ok(());
        }
        tracing::warn!(%file, chunk, %node, "a node brought other bytes than it should; it is not asked for this file again");
        Err(Missed::Node(Failure::Lied))
    }

    async fn of_the_coordinator(&self, chunk: u32) -> Result<(), CacheError> {
        let file = self.manifest.hash;
        for _ in 0..TRIES {
            let asked = self.source.chunk(self.attempt, file, chunk).await;
            let bytes = asked.map_err(|refusal| CacheError::Refused { file, refusal })?;
            if self.keep(chunk, bytes).await? {
                return Ok(());
            }
            tracing::warn!(%file, chunk, "a chunk arrived damaged");
        }
        Err(CacheError::Corrupt(file))
    }

    /// Writes a chunk, if it is what it should be.
    async fn keep(&self, chunk: u32, bytes: Vec<u8>) -> Result<bool, CacheError> {
        let expected = self.manifest.chunks.get(chunk as usize).copied();
        let expected = expected.ok_or(CacheError::Corrupt(self.manifest.hash))?;
        let (file, path): (_, PathBuf) = (Arc::clone(&self.file), self.path.to_owned());
        Ok(spawn_blocking(move || write_verified(&file, chunk, expected, &bytes, &path)).await??)
    }
}

/// Newer grants take the place of older ones.
fn take_up(named: Vec<Giver>, division: &mut Division, givers: &mut BTreeMap<NodeId, Giver>) {
    division.name(named.iter().map(|giver| giver.node));
    givers.extend(named.into_iter().map(|giver| (giver.node, giver)));
}

fn write_verified(file: &File, index: u32, expected: Hash, bytes: &[u8], path: &Path) -> Result<bool, DiskError> {
    if *blake3::hash(bytes).as_bytes() != expected.0 {
        return Ok(false);
    }
    file.write_all_at(bytes, u64::from(index) * CHUNK_BYTES).at("write", path)?;
    Ok(true)
}

/// The partial file and the chunks that are not whole in it.
fn open(manifest: &FileManifest, path: &Path) -> Result<(File, Vec<u32>), DiskError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).at("open", path)?;
    if file.metadata().at("read", path)?.len() > manifest.size {
        file.set_len(manifest.size).at("cut", path)?;
    }
    let mut missing = Vec::new();
    for (index, expected) in (0u32..).zip(&manifest.chunks) {
        let whole = manifest.range(index).is_some_and(|range| holds(&file, range, expected));
        if !whole {
            missing.push(index);
        }
    }
    Ok((file, missing))
}

fn holds(file: &File, range: std::ops::Range<u64>, expected: &Hash) -> bool {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).expect("a chunk is 16 MiB at most")];
    file.read_exact_at(&mut bytes, range.start).is_ok() && *blake3::hash(&bytes).as_bytes() == expected.0
}

/// Chunks and whole are two claims of the manifest; the name of the file is the second.
fn finish(manifest: &FileManifest, file: &File, path: &Path) -> Result<(), CacheError> {
    file.sync_all().at("sync", path)?;
    if hash_of(path)? == manifest.hash {
        return Ok(());
    }
    std::fs::remove_file(path).at("remove", path)?;
    Err(CacheError::Corrupt(manifest.hash))
}

/// The hash of a file's bytes.
pub(super) fn hash_of(path: &Path) -> Result<Hash, DiskError> {
    hash_of_open(&File::open(path).at("open", path)?, path)
}

/// The same of an open one, wherever it was found.
pub(super) fn hash_of_open(mut file: &File, path: &Path) -> Result<Hash, DiskError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).at("read", path)?;
        if read == 0 {
            return Ok(Hash(*hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..read]);
    }
}
