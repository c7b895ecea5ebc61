//! Files of an attempt on their way to the coordinator.
//!
//! First everything is *staged*: hard links under `uploads/<attempt>/<hash>`, made and hashed before the first byte leaves, so
//! that a worker which drops an old checkpoint takes nothing away from us, and a report can be sent again with its files
//! until it is acknowledged. A checkpoint is verified against its own manifest on the way.

use crate::{
    disk::{self, At, DiskError},
    host::Fault,
    link::{blob::Blobs, chain},
    places::Places,
};
use lorikeet_protocol::{
    agent::REPORT_FILES,
    blob::Refusal,
    file::{CHUNK_BYTES, FileManifest, NamedFile, is_plain_path},
    id::{AttemptId, Hash},
    job::{FailureClass, Outcome},
    worker::{ADAPTER, WrittenFile},
};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fs::File,
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::task::spawn_blocking;

/// A checkpoint's own list of its files, written last.
const MANIFEST: &str = "manifest.json";
/// What of the adapter goes into the model's record.
const SUMMARY: &str = "training_summary.json";
/// A report with a longer summary would not fit into a frame.
const SUMMARY_BYTES: u64 = 256 << 10;
/// The coordinator may lose what was staged there once or twice; more often is no accident.
const TRIES: u32 = 3;

/// Why files are not with the coordinator, for good.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Its worker has removed it: a newer one is there, or comes.
    #[error("read {}: its worker has removed it", .0.display())]
    Removed(PathBuf),
    /// A file is not what its list says.
    #[error("verify {}: {found}", path.display())]
    Unverified {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        found: String,
    },
    /// The coordinator does not take it.
    #[error("upload {path}: the coordinator refused: {refusal:?}")]
    Refused {
        /// Which.
        path: String,
        /// Why.
        refusal: Refusal,
    },
    /// More files than a report may name.
    #[error("upload what the worker wrote: {found} files, {REPORT_FILES} at most are taken")]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// A task of ours died.
    #[error("upload: a helper thread failed: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

impl UploadError {
    /// What it means for the attempt whose result it was.
    pub(crate) fn fault(&self) -> Fault {
        let outcome = match self {
            Self::Disk(error) if error.is_full() => Outcome::DiskFull,
            Self::Refused { refusal: Refusal::NotYours, .. } => Outcome::Superseded,
            Self::Refused { refusal: Refusal::TooLarge, .. } | Self::TooMany { .. } => Outcome::UserError,
            Self::Disk(_) | Self::Removed(_) | Self::Unverified { .. } | Self::Refused { .. } | Self::Thread(_) => {
                Outcome::Lost
            }
        };
        // All that is judged here is how much comes out, and the settings decide that.
        let class = (outcome == Outcome::UserError).then_some(FailureClass::Settings);
        Fault { class, ..Fault::new(outcome, chain(self)) }
    }
}

/// Stages and sends.
#[derive(Debug, Clone)]
pub(crate) struct Uploader {
    pub(crate) places: Places,
    pub(crate) blobs: Blobs,
}

impl Uploader {
    /// A checkpoint's every file; `path` is relative to the attempt directory.
    pub(crate) async fn checkpoint(&self, id: AttemptId, path: String) -> Result<Vec<NamedFile>, UploadError> {
        let (folder, staging) = (self.places.attempt(id).join(&path), self.places.uploads(id));
        if !is_plain_path(&path) {
            return Err(UploadError::Unverified { path: folder, found: "its name is no plain path".into() });
        }
        let files = spawn_blocking(move || stage_checkpoint(&folder, &staging)).await??;
        self.send(id, &files).await?;
        Ok(files)
    }

    /// The adapter's every file, and its training summary.
    pub(crate) async fn adapter(
        &self,
        id: AttemptId,
        written: Vec<WrittenFile>,
    ) -> Result<(Vec<NamedFile>, Option<String>), UploadError> {
        let (folder, staging) = (self.places.attempt(id).join(ADAPTER), self.places.uploads(id));
        let staged = spawn_blocking(move || stage_adapter(&folder, &staging, &written)).await??;
        self.send(id, &staged.0).await?;
        Ok(staged)
    }

    /// Files that are staged already: sends what the coordinator lacks.
    pub(crate) async fn send(&self, id: AttemptId, files: &[NamedFile]) -> Result<(), UploadError> {
        for file in files {
            self.send_one(id, file).await?;
        }
        Ok(())
    }

    /// The reports that named these files are acknowledged, and none that waits names them.
    pub(crate) fn drop_staged(&self, id: AttemptId, files: &[NamedFile], still_named: &BTreeSet<Hash>) {
        for file in files.iter().filter(|file| !still_named.contains(&file.manifest.hash)) {
            if let Err(error) = disk::remove_file(&self.staged(id, file)) {
                tracing::warn!("could not {}", chain(&error));
            }
        }
    }

    fn staged(&self, id: AttemptId, file: &NamedFile) -> PathBuf {
        self.places.uploads(id).join(file.manifest.hash.to_string())
    }

    async fn send_one(&self, id: AttemptId, file: &NamedFile) -> Result<(), UploadError> {
        let mut last = Refusal::Missing;
        for _ in 0..TRIES {
            match self.try_one(id, file).await? {
                Ok(()) => return Ok(()),
                Err(Refusal::Missing) => last = Refusal::Missing,
                Err(refusal) => return Err(UploadError::Refused { path: file.path.clone(), refusal }),
            }
        }
        Err(UploadError::Refused { path: file.path.clone(), refusal: last })
    }

    async fn try_one(&self, id: AttemptId, file: &NamedFile) -> Result<Result<(), Refusal>, UploadError> {
        let wanted = match self.blobs.offer(id, file.manifest.clone()).await {
            Ok(wanted) if wanted.is_empty() => return Ok(Ok(())),
            Ok(wanted) => wanted,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for chunk in wanted {
            let (path, manifest) = (self.staged(id, file), file.manifest.clone());
            let bytes = spawn_blocking(move || read_chunk(&path, &manifest, chunk)).await??;
            if let Err(refusal) = self.blobs.put(id, file.manifest.hash, chunk, &bytes).await {
                return Ok(Err(refusal));
            }
        }
        Ok(self.blobs.finish(id, file.manifest.hash).await)
    }
}

fn read_chunk(path: &Path, manifest: &FileManifest, chunk: u32) -> Result<Vec<u8>, DiskError> {
    let range = manifest.range(chunk).unwrap_or(0..0);
    let mut bytes = vec![0; usize::try_from(range.end - range.start).expect("a chunk is 16 MiB at most")];
    File::open(path).and_then(|file| file.read_exact_at(&mut bytes, range.start)).at("read", path)?;
    Ok(bytes)
}

/// What the trainer's manifest says of a file. Unknown keys are fine: a newer trainer may say more.
#[derive(Deserialize)]
struct Listed {
    path: String,
    size: u64,
    blake3: Hash,
}

#[derive(Deserialize)]
struct Manifest {
    files: Vec<Listed>,
}

fn stage_checkpoint(folder: &Path, staging: &Path) -> Result<Vec<NamedFile>, UploadError> {
    stage_listed(folder, staging).map_err(|error| {
        let is_there = |path: &Path| path.try_exists().ok();
        let is_removed = is_there(folder) == Some(false) && folder.parent().and_then(is_there) == Some(true);
        if is_removed { UploadError::Removed(folder.to_owned()) } else { error }
    })
}

fn stage_listed(folder: &Path, staging: &Path) -> Result<Vec<NamedFile>, UploadError> {
    let path = folder.join(MANIFEST);
    let json = std::fs::read(&path).at("read", &path)?;
    let manifest: Manifest = serde_json::from_slice(&json)
        .map_err(|error| UploadError::Unverified { path: path.clone(), found: error.to_string() })?;
    // The manifest itself is one of them.
    bound(manifest.files.len() + 1)?;
    let mut files = Vec::with_capacity(manifest.files.len() + 1);
    for listed in &manifest.files {
        let file = stage(folder, &listed.path, staging)?;
        verify(folder, &file, listed.size, listed.blake3)?;
        files.push(file);
    }
    files.push(stage(folder, MANIFEST, staging)?);
    Ok(files)
}

fn stage_adapter(
    folder: &Path,
    staging: &Path,
    written: &[WrittenFile],
) -> Result<(Vec<NamedFile>, Option<String>), UploadError> {
    bound(written.len())?;
    let mut files = Vec::with_capacity(written.len());
    let mut summary = None;
    for listed in written {
        let file = stage(folder, &listed.path, staging)?;
        verify(folder, &file, listed.size, listed.hash)?;
        if listed.path == SUMMARY && listed.size <= SUMMARY_BYTES {
            let path = folder.join(SUMMARY);
            summary = Some(std::fs::read_to_string(&path).at("read", &path)?);
        }
        files.push(file);
    }
    Ok((files, summary))
}

/// A report beyond it would end session after session.
fn bound(found: usize) -> Result<(), UploadError> {
    if found > REPORT_FILES { Err(UploadError::TooMany { found }) } else { Ok(()) }
}

fn verify(folder: &Path, file: &NamedFile, size: u64, hash: Hash) -> Result<(), UploadError> {
    let found = &file.manifest;
    if (found.size, found.hash) == (size, hash) {
        return Ok(());
    }
    let found = format!("found {} bytes with the hash {}, expected {size} with {hash}", found.size, found.hash);
    Err(UploadError::Unverified { path: folder.join(&file.path), found })
}

/// Links a file into the staging folder under its hash.
fn stage(folder: &Path, name: &str, staging: &Path) -> Result<NamedFile, UploadError> {
    let path = folder.join(name);
    if !is_plain_path(name) {
        return Err(UploadError::Unverified { path, found: "its name is no plain path".into() });
    }
    // A link that leads elsewhere would carry off what the worker may read and the coordinator should not have.
    if !path.symlink_metadata().at("read", &path)?.is_file() {
        return Err(UploadError::Unverified { path, found: "it is no regular file".into() });
    }
    disk::create_folder(staging)?;
    // Checkpoint and adapter of one attempt may be staged at the same time.
    static ASIDE: AtomicU64 = AtomicU64::new(0);
    let aside = staging.join(format!("aside-{}", ASIDE.fetch_add(1, Ordering::Relaxed)));
    disk::remove_file(&aside)?;
    std::fs::hard_link(&path, &aside).at("link", &path)?;
    let manifest = manifest_of(&aside)?;
    let staged = staging.join(manifest.hash.to_string());
    std::fs::rename(&aside, &staged).at("keep", &staged)?;
    // Renaming one name of a file over another of the same file does nothing and leaves both.
    disk::remove_file(&aside)?;
    Ok(NamedFile { path: name.to_owned(), manifest })
}

/// Hashes a file, whole and by chunks, in one pass.
fn manifest_of(path: &Path) -> Result<FileManifest, DiskError> {
    let mut file = File::open(path).at("open", path)?;
    let (mut whole, mut chunks, mut size) = (blake3::Hasher::new(), Vec::new(), 0);
    loop {
        let mut bytes = Vec::new();
        let read = file.by_ref().take(CHUNK_BYTES).read_to_end(&mut bytes).at("read", path)?;
        if read == 0 {
            return Ok(FileManifest { size, hash: Hash(*whole.finalize().as_bytes()), chunks });
        }
        whole.update(&bytes);
        chunks.push(Hash(*blake3::hash(&bytes).as_bytes()));
        size += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_staged_and_survives_its_removal() {
        let (folder, staging) = checkpoint(None);
        let files = stage_checkpoint(folder.path(), staging.path()).unwrap();
        assert_eq!(files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["a.bin", "b.bin", MANIFEST]);
        std::fs::remove_dir_all(folder.path()).unwrap();
        for file in &files {
            let bytes = std::fs::read(staging.path().join(file.manifest.hash.to_string())).unwrap();
            assert_eq!(*blake3::hash(&bytes).as_bytes(), file.manifest.hash.0);
        }
        assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_checkpoint_that_its_worker_has_removed_is_told_from_one_that_cannot_be_read() {
        let (folder, staging) = checkpoint(None);
        let gone = stage_checkpoint(&folder.path().join("step-1"), staging.path()).unwrap_err();
        assert!(matches!(gone, UploadError::Removed(_)), "{gone}");
        let lost = stage_checkpoint(&folder.path().join("checkpoints/step-1"), staging.path()).unwrap_err();
        assert!(matches!(lost, UploadError::Disk(_)), "{lost}");
        std::fs::remove_file(folder.path().join(MANIFEST)).unwrap();
        let torn = stage_checkpoint(folder.path(), staging.path()).unwrap_err();
        assert!(matches!(torn, UploadError::Disk(_)), "{torn}");
    }

    #[test]
    fn staging_twice_leaves_the_same_files() {
        let (folder, staging) = checkpoint(None);
        let first = stage_checkpoint(folder.path(), staging.path()).unwrap();
        assert_eq!(stage_checkpoint(folder.path(), staging.path()).unwrap(), first);
        assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_checkpoint_with_a_swapped_file_is_not_uploaded() {
        let (folder, staging) = checkpoint(None);
        std::fs::write(folder.path().join("a.bin"), b"swapped").unwrap();
        let error = stage_checkpoint(folder.path(), staging.path()).unwrap_err().to_string();
        assert!(error.contains("a.bin") && error.contains("expected"), "{error}");
    }

    #[test]
    fn a_list_that_leads_out_of_its_folder_is_refused() {
        let (folder, staging) = checkpoint(Some("../a.bin"));
        let error = stage_checkpoint(folder.path(), staging.path()).unwrap_err().to_string();
        assert!(error.contains("plain path"), "{error}");
    }

    #[test]
    fn a_symbolic_link_is_refused() {
        let (folder, staging) = checkpoint(None);
        std::fs::remove_file(folder.path().join("a.bin")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("a.bin")).unwrap();
        let error = stage_checkpoint(folder.path(), staging.path()).unwrap_err().to_string();
        assert!(error.contains("regular file"), "{error}");
    }

    #[test]
    fn a_manifest_counts_every_chunk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big");
        std::fs::write(&path, vec![7; CHUNK_BYTES as usize + 1]).unwrap();
        let manifest = manifest_of(&path).unwrap();
        assert!(manifest.is_consistent());
        assert_eq!((manifest.size, manifest.chunks.len()), (CHUNK_BYTES + 1, 2));
    }

    fn checkpoint(renamed: Option<&str>) -> (tempfile::TempDir, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for (name, bytes) in [("a.bin", b"one"), ("b.bin", b"two")] {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            let hash = blake3::hash(bytes).to_string();
            let name = renamed.filter(|_| name == "a.bin").unwrap_or(name);
            files.push(serde_json::json!({ "path": name, "size": 3, "blake3": hash }));
        }
        let json = serde_json::json!({ "version": 1, "step": 5, "kind": "PERIODIC", "files": files });
        std::fs::write(folder.path().join(MANIFEST), json.to_string()).unwrap();
        (folder, tempfile::tempdir().unwrap())
    }
}
