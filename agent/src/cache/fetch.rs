//! One file from the coordinator to a partial file: missing chunks only, several at a time, each verified before it is written,
//! the whole verified at the end.

use super::CacheError;
use crate::{
    disk::{At, DiskError},
    link::blob::Source,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use lorikeet_protocol::{
    file::{CHUNK_BYTES, FileManifest},
    id::{AttemptId, Hash},
};
use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::task::spawn_blocking;

/// A chunk that arrives damaged this often is damaged at its source.
const TRIES: u32 = 3;

/// Completes `partial`; on success it holds exactly what the manifest says, synced.
pub(super) async fn fetch<S: Source>(
    source: &S,
    attempt: AttemptId,
    manifest: &FileManifest,
    partial: &Path,
    parallel: usize,
) -> Result<(), CacheError> {
    let manifest = Arc::new(manifest.clone());
    let (file, missing) = {
        let (manifest, path) = (Arc::clone(&manifest), partial.to_owned());
        spawn_blocking(move || open(&manifest, &path)).await??
    };
    let file = Arc::new(file);
    let chunks = stream::iter(missing.into_iter().map(Ok::<_, CacheError>));
    chunks
        .map(|index| {
            let (manifest, file) = (Arc::clone(&manifest), Arc::clone(&file));
            async move { fetch_chunk(source, attempt, &manifest, &file, index?, partial).await }
        })
        .buffer_unordered(parallel)
        .try_collect::<()>()
        .await?;
    let path = partial.to_owned();
    spawn_blocking(move || finish(&manifest, &file, &path)).await?
}

async fn fetch_chunk<S: Source>(
    source: &S,
    attempt: AttemptId,
    manifest: &FileManifest,
    file: &Arc<File>,
    index: u32,
    path: &Path,
) -> Result<(), CacheError> {
    let expected = manifest.chunks.get(index as usize).copied().ok_or(CacheError::Corrupt(manifest.hash))?;
    for _ in 0..TRIES {
        let refused = |refusal| CacheError::Refused { file: manifest.hash, refusal };
        let bytes = match source.chunk(attempt, manifest.hash, index).await {
            Ok(bytes) => bytes,
            Err(refusal) => return Err(refused(refusal)),
        };
        let (file, path): (_, PathBuf) = (Arc::clone(file), path.to_owned());
        if spawn_blocking(move || write_verified(&file, index, expected, &bytes, &path)).await?? {
            return Ok(());
        }
        tracing::warn!(file = %manifest.hash, chunk = index, "a chunk arrived damaged");
    }
    Err(CacheError::Corrupt(manifest.hash))
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
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).at("open", path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).at("read", path)?;
        if read == 0 {
            return Ok(Hash(*hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..read]);
    }
}
