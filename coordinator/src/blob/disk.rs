//! Files made whole or not at all: written aside, synced, renamed, the folder synced.

use super::BlobError;
use lorikeet_protocol::{
    file::{CHUNK_BYTES, FileManifest},
    id::Hash,
};
use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// The ending of files that are not whole yet.
pub(super) const ASIDE: &str = "aside";

/// BLAKE3 of some bytes.
pub(super) fn hash(bytes: &[u8]) -> Hash {
    Hash(*blake3::hash(bytes).as_bytes())
}

/// The manifest of a file of ours.
pub(super) fn manifest_at(path: &Path) -> Result<FileManifest, BlobError> {
    manifest_of(&mut File::open(path).map_err(BlobError::disk("open", path))?, path)
}

/// Reads an open file once, for its size, its hash and those of its chunks.
pub(super) fn manifest_of(file: &mut File, path: &Path) -> Result<FileManifest, BlobError> {
    let (mut whole, mut chunks, mut size) = (blake3::Hasher::new(), Vec::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let mut chunk = blake3::Hasher::new();
        let mut part = Read::take(&mut *file, CHUNK_BYTES);
        let mut length = 0;
        loop {
            let read = part.read(&mut buffer).map_err(BlobError::disk("read", path))?;
            if read == 0 {
                break;
            }
            chunk.update(&buffer[..read]);
            whole.update(&buffer[..read]);
            length += read as u64;
        }
        if length == 0 {
            return Ok(FileManifest { size, hash: Hash(*whole.finalize().as_bytes()), chunks });
        }
        size += length;
        chunks.push(Hash(*chunk.finalize().as_bytes()));
    }
}

/// The whole of a small file; `None`: there is none.
pub(super) fn read_small(path: &Path) -> Result<Option<Vec<u8>>, BlobError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(BlobError::disk("read", path)(error)),
    }
}

/// A small file that is there whole or as it was before.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), BlobError> {
    // A name of its own: two writers of one entry must not share it.
    let aside = path.with_extension(format!("{}.{ASIDE}", uuid::Uuid::now_v7().simple()));
    let folder = make_folder_of(path)?;
    let mut file = File::create(&aside).map_err(BlobError::disk("make", &aside))?;
    file.write_all(bytes).map_err(BlobError::disk("write", &aside))?;
    file.sync_all().map_err(BlobError::disk("sync", &aside))?;
    std::fs::rename(&aside, path).map_err(BlobError::disk("rename to", path))?;
    sync_folder(folder)
}

/// Syncs a file, moves it, and syncs the folder it now lies in.
pub(super) fn rename_synced(from: &Path, to: &Path) -> Result<(), BlobError> {
    File::open(from).and_then(|file| file.sync_all()).map_err(BlobError::disk("sync", from))?;
    let folder = make_folder_of(to)?;
    std::fs::rename(from, to).map_err(BlobError::disk("rename to", to))?;
    sync_folder(folder)
}

/// The folder of a file, made if it is missing, its own name synced then.
fn make_folder_of(path: &Path) -> Result<&Path, BlobError> {
    let folder = path.parent().expect("every path here lies in one of our folders");
    if !folder.is_dir() {
        std::fs::create_dir_all(folder).map_err(BlobError::disk("make", folder))?;
        sync_folder(folder.parent().unwrap_or(folder))?;
    }
    Ok(folder)
}

fn sync_folder(folder: &Path) -> Result<(), BlobError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(BlobError::disk("sync", folder))
}

/// Removes a file; one that is not there is no fault.
pub(super) fn remove(path: &Path) -> Result<(), BlobError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(BlobError::disk("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes a file look as if it was written now.
pub(super) fn touch(path: &Path) -> Result<(), BlobError> {
    let touched = File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
    touched.map_err(BlobError::disk("touch", path))
}

/// What lies in a folder.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, BlobError> {
    let entries = std::fs::read_dir(folder).map_err(BlobError::disk("list", folder))?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(BlobError::disk("list", folder))).collect()
}
