//! Files of an attempt on their way to the coordinator.
//!
//! First everything is *staged*: hard links under `uploads/<attempt>/<hash>`, made and hashed before the first byte leaves, so
//! that a worker which drops an old checkpoint takes nothing away from us, and a report can be sent again with its files
//! until it is acknowledged. A checkpoint is verified against its own manifest on the way.
//!
//! Files of several checkpoints, and of the adapter, may be the same and lie there once. One stays as long as a report that waits names it, or
//! an upload under way whose report is not queued yet; whatever else lies there goes ([`Uploader::sweep`]).

use crate::{
    beneath::{self, For},
    disk::{self, At, DiskError},
    host::Fault,
    link::{blob::Blobs, chain},
    places::Places,
};
use lorikeet_protocol::{
    agent::{REPORT_FILES, Report, ReportBody, SUMMARY_BYTES},
    blob::Refusal,
    file::{CHUNK_BYTES, FileManifest, NamedFile, is_plain_path},
    id::{AttemptId, Hash},
    job::{FailureClass, Outcome},
    worker::{ADAPTER, CHECKPOINTS, WrittenFile},
};
use rustix::fs::{AtFlags, CWD};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{ErrorKind, Read},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::task::spawn_blocking;

/// A checkpoint's own list of its files, written last.
const MANIFEST: &str = "manifest.json";
/// What of the adapter goes into the model's record.
const SUMMARY: &str = "training_summary.json";
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

    /// Whether what is staged may not be what was named: it is missing, cut or of other bytes, for a worker can still write to it.
    fn doubts_staged(&self) -> bool {
        match self {
            Self::Disk(error) => error.is_missing() || error.cause.kind() == ErrorKind::UnexpectedEof,
            Self::Refused { refusal, .. } => *refusal == Refusal::Corrupt,
            Self::Removed(_) | Self::Unverified { .. } | Self::TooMany { .. } | Self::Thread(_) => false,
        }
    }

    /// Whether files will never be with the coordinator, which takes no report, of whatever attempt, behind one that names them.
    pub(crate) fn is_for_good(&self) -> bool {
        match self {
            Self::Disk(error) => error.is_missing(),
            Self::Removed(_) | Self::Unverified { .. } | Self::TooMany { .. } => true,
            Self::Refused { refusal, .. } => *refusal == Refusal::TooLarge,
            Self::Thread(_) => false,
        }
    }
}

/// One upload of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Errand {
    /// Of the checkpoint of the event with this `seq`.
    Checkpoint(u64),
    /// Of the result.
    Adapter,
}

/// What uploads under way have staged.
type UnderWay = BTreeMap<(AttemptId, Errand), BTreeSet<Hash>>;

/// Stages and sends.
#[derive(Debug, Clone)]
pub(crate) struct Uploader {
    pub(crate) places: Places,
    pub(crate) blobs: Blobs,
    under_way: Arc<Mutex<UnderWay>>,
}

impl Uploader {
    pub(crate) fn new(places: Places, blobs: Blobs) -> Self {
        Self { places, blobs, under_way: Arc::default() }
    }

    /// An upload begins: what it stages stays until it is [`over`](Self::over).
    pub(crate) fn begin(&self, id: AttemptId, errand: Errand) {
        lock(&self.under_way).insert((id, errand), BTreeSet::new());
    }

    /// Its report is queued, or there will be none.
    pub(crate) fn over(&self, id: AttemptId, errand: Errand) {
        lock(&self.under_way).remove(&(id, errand));
    }

    /// None of this attempt's uploads is wanted any more.
    pub(crate) fn abandon(&self, id: AttemptId) {
        lock(&self.under_way).retain(|(of, _), _| *of != id);
    }

    /// A checkpoint's every file; `path` is relative to the attempt directory.
    pub(crate) async fn checkpoint(
        &self,
        id: AttemptId,
        seq: u64,
        path: String,
    ) -> Result<Vec<NamedFile>, UploadError> {
        let (directory, staging) = (self.places.attempt(id), self.staging(id, Some(Errand::Checkpoint(seq))));
        if !is_plain_path(&path) {
            let path = directory.join(path);
            return Err(UploadError::Unverified { path, found: "its name is no plain path".into() });
        }
        let stage = move || stage_checkpoint(Below { directory: &directory, path: Path::new(&path) }, &staging);
        let files = spawn_blocking(stage).await??;
        self.send(id, &files).await?;
        Ok(files)
    }

    /// The adapter's every file, and its training summary.
    pub(crate) async fn adapter(
        &self,
        id: AttemptId,
        written: Vec<WrittenFile>,
    ) -> Result<(Vec<NamedFile>, Option<String>), UploadError> {
        let (directory, staging) = (self.places.attempt(id), self.staging(id, Some(Errand::Adapter)));
        let stage =
            move || stage_adapter(Below { directory: &directory, path: Path::new(ADAPTER) }, &staging, &written);
        let staged = spawn_blocking(stage).await??;
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

    /// The files of a report that waits, once more. One that is no longer staged as it was is staged again, where its worker still has it so;
    /// who changes it even then has none.
    pub(crate) async fn send_again(&self, report: &Report) -> Result<(), UploadError> {
        let (id, files) = (report.attempt, report.body.files());
        match self.send(id, files).await {
            Err(error) if error.doubts_staged() => {
                let (directory, staging, files) = (self.places.attempt(id), self.staging(id, None), files.to_vec());
                let path = if let ReportBody::Checkpoint(checkpoint) = &report.body {
                    format!("{CHECKPOINTS}/step-{:08}", checkpoint.step)
                } else {
                    ADAPTER.to_owned()
                };
                let stage =
                    move || stage_again(Below { directory: &directory, path: Path::new(&path) }, &files, &staging);
                spawn_blocking(stage).await??;
                match self.send(id, report.body.files()).await {
                    Err(error) if error.doubts_staged() => {
                        Err(UploadError::Unverified { path: self.places.uploads(id), found: chain(&error) })
                    }
                    sent => sent,
                }
            }
            sent => sent,
        }
    }

    /// Removes what is staged of an attempt and neither `named` by a report that waits nor of an upload under way.
    pub(crate) fn sweep(&self, id: AttemptId, named: &BTreeSet<Hash>) {
        sweep(&self.places.uploads(id), id, named, &self.under_way);
    }

    fn staging(&self, id: AttemptId, errand: Option<Errand>) -> Staging {
        let of = errand.map(|errand| (id, errand));
        Staging { folder: self.places.uploads(id), under_way: Arc::clone(&self.under_way), of }
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

/// Where an attempt's files are staged.
struct Staging {
    folder: PathBuf,
    under_way: Arc<Mutex<UnderWay>>,
    /// By which upload; none where a report that waits names them.
    of: Option<(AttemptId, Errand)>,
}

impl Staging {
    /// Gives a file its name, which is told first.
    fn keep(&self, aside: &Path, hash: Hash) -> Result<(), DiskError> {
        let mut under_way = lock(&self.under_way);
        if let Some(staged) = self.of.and_then(|of| under_way.get_mut(&of)) {
            staged.insert(hash);
        }
        let staged = self.folder.join(hash.to_string());
        std::fs::rename(aside, &staged).at("keep", &staged)
    }
}

fn sweep(folder: &Path, id: AttemptId, named: &BTreeSet<Hash>, under_way: &Mutex<UnderWay>) {
    // Held until the end, so that nothing gets a name here that is not told yet.
    let under_way = lock(under_way);
    let of_uploads = under_way.iter().filter(|((of, _), _)| *of == id).flat_map(|(_, staged)| staged);
    let wanted: BTreeSet<_> = named.iter().chain(of_uploads).collect();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let hash = entry.file_name().to_str().and_then(|name| name.parse::<Hash>().ok());
        if let Some(Err(error)) = hash.filter(|hash| !wanted.contains(hash)).map(|_| disk::remove_file(&entry.path())) {
            tracing::warn!("could not {}", chain(&error));
        }
    }
}

fn lock(under_way: &Mutex<UnderWay>) -> MutexGuard<'_, UnderWay> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder that a worker wrote, in its directory.
#[derive(Clone, Copy)]
struct Below<'a> {
    directory: &'a Path,
    path: &'a Path,
}

impl Below<'_> {
    /// For people.
    fn join(self, name: &str) -> PathBuf {
        self.directory.join(self.path).join(name)
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

fn stage_checkpoint(folder: Below<'_>, staging: &Staging) -> Result<Vec<NamedFile>, UploadError> {
    stage_listed(folder, staging).map_err(|error| {
        let path = folder.directory.join(folder.path);
        let is_there = |path: &Path| path.try_exists().ok();
        let is_removed = is_there(&path) == Some(false) && path.parent().and_then(is_there) == Some(true);
        if is_removed { UploadError::Removed(path) } else { error }
    })
}

/// What a report names and is not there, or no longer is what it names; nothing else is taken for it.
fn stage_again(folder: Below<'_>, files: &[NamedFile], staging: &Staging) -> Result<(), UploadError> {
    for file in files {
        let staged = staging.folder.join(file.manifest.hash.to_string());
        if !is_staged(&staged, file.manifest.hash)? {
            disk::remove_file(&staged)?;
            let found = stage(folder, &file.path, staging)?;
            verify(folder, &found, file.manifest.size, file.manifest.hash)?;
        }
    }
    Ok(())
}

fn is_staged(staged: &Path, hash: Hash) -> Result<bool, DiskError> {
    match File::open(staged) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        opened => Ok(manifest_of(&opened.at("open", staged)?, staged)?.hash == hash),
    }
}

fn stage_listed(folder: Below<'_>, staging: &Staging) -> Result<Vec<NamedFile>, UploadError> {
    let path = folder.join(MANIFEST);
    let json = beneath::read(folder.directory, &folder.path.join(MANIFEST)).at("read", &path)?;
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
    folder: Below<'_>,
    staging: &Staging,
    written: &[WrittenFile],
) -> Result<(Vec<NamedFile>, Option<String>), UploadError> {
    bound(written.len())?;
    let mut files = Vec::with_capacity(written.len());
    let mut summary = None;
    for listed in written {
        let file = stage(folder, &listed.path, staging)?;
        verify(folder, &file, listed.size, listed.hash)?;
        if listed.path == SUMMARY {
            summary = read_summary(&staging.folder.join(listed.hash.to_string()), listed.hash)?;
        }
        files.push(file);
    }
    Ok((files, summary))
}

/// Read from what was verified, and once more compared: its worker may still write it. One that a report cannot carry word for word is none,
/// for the coordinator ends session after session in which it hears another.
fn read_summary(staged: &Path, hash: Hash) -> Result<Option<String>, DiskError> {
    let mut bytes = Vec::new();
    let file = File::open(staged).at("open", staged)?;
    file.take(SUMMARY_BYTES as u64 + 1).read_to_end(&mut bytes).at("read", staged)?;
    let fits = bytes.len() <= SUMMARY_BYTES && Hash(*blake3::hash(&bytes).as_bytes()) == hash;
    Ok(String::from_utf8(bytes).ok().filter(|_| fits))
}

/// A report beyond it would end session after session.
fn bound(found: usize) -> Result<(), UploadError> {
    if found > REPORT_FILES { Err(UploadError::TooMany { found }) } else { Ok(()) }
}

fn verify(folder: Below<'_>, file: &NamedFile, size: u64, hash: Hash) -> Result<(), UploadError> {
    let found = &file.manifest;
    if (found.size, found.hash) == (size, hash) {
        return Ok(());
    }
    let found = format!("found {} bytes with the hash {}, expected {size} with {hash}", found.size, found.hash);
    Err(UploadError::Unverified { path: folder.join(&file.path), found })
}

/// Links a file into the staging folder under its hash.
fn stage(folder: Below<'_>, name: &str, staging: &Staging) -> Result<NamedFile, UploadError> {
    let path = folder.join(name);
    if !is_plain_path(name) {
        return Err(UploadError::Unverified { path, found: "its name is no plain path".into() });
    }
    // A link that leads elsewhere would carry off what the worker may read and the coordinator should not have.
    let file = match beneath::open_file(folder.directory, &folder.path.join(name), For::Reading) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            return Err(UploadError::Unverified { path, found: error.to_string() });
        }
        opened => opened.at("open", &path)?,
    };
    disk::create_folder(&staging.folder)?;
    // Checkpoint and adapter of one attempt may be staged at the same time.
    static ASIDE: AtomicU64 = AtomicU64::new(0);
    let aside = staging.folder.join(format!("aside-{}", ASIDE.fetch_add(1, Ordering::Relaxed)));
    disk::remove_file(&aside)?;
    // What was opened, whatever has the name by now.
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, opened, CWD, &aside, AtFlags::SYMLINK_FOLLOW)
        .map_err(std::io::Error::from)
        .at("link", &path)?;
    let staged = manifest_of(&file, &path).and_then(|manifest| {
        staging.keep(&aside, manifest.hash)?;
        Ok(manifest)
    });
    // Renaming one name of a file over another of the same file does nothing and leaves both.
    disk::remove_file(&aside)?;
    Ok(NamedFile { path: name.to_owned(), manifest: staged? })
}

/// Hashes a file, whole and by chunks, in one pass.
fn manifest_of(mut file: &File, path: &Path) -> Result<FileManifest, DiskError> {
    let (mut whole, mut chunks, mut size) = (blake3::Hasher::new(), Vec::new(), 0);
    loop {
        let mut bytes = Vec::new();
        let read = (&mut file).take(CHUNK_BYTES).read_to_end(&mut bytes).at("read", path)?;
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
        let files = stage_all(&folder, &staging).unwrap();
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
        let stage = |path: &str| {
            let below = Below { directory: folder.path(), path: Path::new(path) };
            stage_checkpoint(below, &anybodys(staging.path())).unwrap_err()
        };
        let gone = stage("step-1");
        assert!(matches!(gone, UploadError::Removed(_)), "{gone}");
        let lost = stage("checkpoints/step-1");
        assert!(matches!(lost, UploadError::Disk(_)), "{lost}");
        std::fs::remove_file(folder.path().join(MADE).join(MANIFEST)).unwrap();
        let torn = stage(MADE);
        assert!(matches!(torn, UploadError::Disk(_)), "{torn}");
    }

    #[test]
    fn staging_twice_leaves_the_same_files() {
        let (folder, staging) = checkpoint(None);
        let first = stage_all(&folder, &staging).unwrap();
        assert_eq!(stage_all(&folder, &staging).unwrap(), first);
        assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_checkpoint_with_a_swapped_file_is_not_uploaded() {
        let (folder, staging) = checkpoint(None);
        std::fs::write(folder.path().join(MADE).join("a.bin"), b"swapped").unwrap();
        let error = stage_all(&folder, &staging).unwrap_err().to_string();
        assert!(error.contains("a.bin") && error.contains("expected"), "{error}");
    }

    #[test]
    fn a_list_that_leads_out_of_its_folder_is_refused() {
        let (folder, staging) = checkpoint(Some("../a.bin"));
        let error = stage_all(&folder, &staging).unwrap_err().to_string();
        assert!(error.contains("plain path"), "{error}");
    }

    #[test]
    fn symbolic_links_are_refused_wherever_they_stand() {
        let (folder, staging) = checkpoint(None);
        let made = folder.path().join(MADE);
        // The whole checkpoint is somebody else's, and a file of it.
        std::os::unix::fs::symlink(&made, folder.path().join("checkpoints")).unwrap();
        let below = Below { directory: folder.path(), path: Path::new("checkpoints") };
        let error = stage_checkpoint(below, &anybodys(staging.path())).unwrap_err().to_string();
        assert!(error.contains("checkpoints"), "{error}");
        std::fs::remove_file(made.join("a.bin")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", made.join("a.bin")).unwrap();
        let error = stage_all(&folder, &staging).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_report_names_and_is_gone_is_staged_again_as_it_was_or_not_at_all() {
        let (folder, staging) = checkpoint(None);
        let files = stage_all(&folder, &staging).unwrap();
        let staged = staging.path().join(files[0].manifest.hash.to_string());
        std::fs::remove_file(&staged).unwrap();
        let below = Below { directory: folder.path(), path: Path::new(MADE) };
        stage_again(below, &files, &anybodys(staging.path())).unwrap();
        assert_eq!(std::fs::read(&staged).unwrap(), b"one");
        std::fs::remove_file(&staged).unwrap();
        std::fs::remove_file(folder.path().join(MADE).join("a.bin")).unwrap();
        let lost = stage_again(below, &files, &anybodys(staging.path())).unwrap_err();
        assert!(lost.is_for_good(), "{lost}");
        std::fs::write(folder.path().join(MADE).join("a.bin"), b"other").unwrap();
        let other = stage_again(below, &files, &anybodys(staging.path())).unwrap_err();
        assert!(other.is_for_good(), "{other}");
    }

    #[test]
    fn a_staged_file_that_its_worker_has_changed_or_cut_is_staged_again_as_it_was_or_not_at_all() {
        let (folder, staging) = checkpoint(None);
        let files = stage_all(&folder, &staging).unwrap();
        let (staged, below) = (
            staging.path().join(files[0].manifest.hash.to_string()),
            Below { directory: folder.path(), path: Path::new(MADE) },
        );
        let made = folder.path().join(MADE).join("a.bin");
        for changed in ["other", "on"] {
            // The same file by two names.
            std::fs::write(&made, changed).unwrap();
            assert_eq!(std::fs::read_to_string(&staged).unwrap(), changed);
            let lost = stage_again(below, &files, &anybodys(staging.path())).unwrap_err();
            assert!(lost.is_for_good(), "{lost}");
            std::fs::write(&made, "one").unwrap();
            stage_again(below, &files, &anybodys(staging.path())).unwrap();
            assert_eq!(std::fs::read(&staged).unwrap(), b"one");
        }
    }

    #[test]
    fn a_summary_is_what_was_verified_or_none_and_never_longer_than_a_report_may_carry() {
        let of = |bytes: &[u8]| {
            let (folder, staging) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            std::fs::write(folder.path().join(SUMMARY), bytes).unwrap();
            let hash = Hash(*blake3::hash(bytes).as_bytes());
            let written = WrittenFile { path: SUMMARY.into(), size: bytes.len() as u64, hash };
            let below = Below { directory: folder.path(), path: Path::new("") };
            let (files, summary) = stage_adapter(below, &anybodys(staging.path()), &[written]).unwrap();
            let staged = staging.path().join(files[0].manifest.hash.to_string());
            std::fs::write(&staged, "another").unwrap();
            assert_eq!(read_summary(&staged, hash).unwrap(), None, "it was written to since");
            summary
        };
        assert_eq!(of(b"{}").as_deref(), Some("{}"));
        assert_eq!(of(&vec![b'x'; SUMMARY_BYTES]).map(|text| text.len()), Some(SUMMARY_BYTES));
        assert!(of(&vec![b'x'; SUMMARY_BYTES + 1]).is_none());
        // Each of them would be three bytes of text.
        assert!(of(&vec![0xff; SUMMARY_BYTES]).is_none());
    }

    #[test]
    fn what_an_upload_under_way_has_staged_stays_though_a_report_that_named_the_same_is_acknowledged() {
        let (folder, data) = (checkpoint(None).0, tempfile::tempdir().unwrap());
        let (id, places, under_way) = (attempt(), Places::new(data.path()), Arc::<Mutex<UnderWay>>::default());
        let sweep = |named: &BTreeSet<Hash>| {
            sweep(&places.uploads(id), id, named, &under_way);
            std::fs::read_dir(places.uploads(id)).unwrap().count()
        };
        let stage = |seq| {
            let of = Some((id, Errand::Checkpoint(seq)));
            let staging = Staging { folder: places.uploads(id), under_way: Arc::clone(&under_way), of };
            stage_checkpoint(Below { directory: folder.path(), path: Path::new(MADE) }, &staging).unwrap()
        };
        lock(&under_way).insert((id, Errand::Checkpoint(7)), BTreeSet::new());
        let files = stage(7);
        assert_eq!(sweep(&BTreeSet::new()), 3, "its report is not queued yet");
        lock(&under_way).clear();
        let other = AttemptId { job: lorikeet_protocol::id::JobId(uuid::Uuid::from_u128(8)), ..id };
        lock(&under_way).insert((other, Errand::Checkpoint(7)), files.iter().map(|file| file.manifest.hash).collect());
        assert_eq!(sweep(&[files[0].manifest.hash].into()), 1, "a report that waits names it");
        stage(8);
        assert_eq!(sweep(&BTreeSet::new()), 0, "nobody wants that upload any more");
    }

    fn attempt() -> AttemptId {
        let token = lorikeet_protocol::id::AttemptToken { generation: 1, number: 1 };
        AttemptId { job: lorikeet_protocol::id::JobId(uuid::Uuid::from_u128(7)), token }
    }

    #[test]
    fn a_manifest_counts_every_chunk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big");
        std::fs::write(&path, vec![7; CHUNK_BYTES as usize + 1]).unwrap();
        let manifest = manifest_of(&File::open(&path).unwrap(), &path).unwrap();
        assert!(manifest.is_consistent());
        assert_eq!((manifest.size, manifest.chunks.len()), (CHUNK_BYTES + 1, 2));
    }

    /// Where the one below lies in its directory.
    const MADE: &str = "made";

    fn anybodys(folder: &Path) -> Staging {
        Staging { folder: folder.to_owned(), under_way: Arc::default(), of: None }
    }

    fn stage_all(folder: &tempfile::TempDir, staging: &tempfile::TempDir) -> Result<Vec<NamedFile>, UploadError> {
        let below = Below { directory: folder.path(), path: Path::new(MADE) };
        stage_checkpoint(below, &anybodys(staging.path()))
    }

    fn checkpoint(renamed: Option<&str>) -> (tempfile::TempDir, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(MADE)).unwrap();
        let mut files = Vec::new();
        for (name, bytes) in [("a.bin", b"one"), ("b.bin", b"two")] {
            std::fs::write(folder.path().join(MADE).join(name), bytes).unwrap();
            let hash = blake3::hash(bytes).to_string();
            let name = renamed.filter(|_| name == "a.bin").unwrap_or(name);
            files.push(serde_json::json!({ "path": name, "size": 3, "blake3": hash }));
        }
        let json = serde_json::json!({ "version": 1, "step": 5, "kind": "PERIODIC", "files": files });
        std::fs::write(folder.path().join(MADE).join(MANIFEST), json.to_string()).unwrap();
        (folder, tempfile::tempdir().unwrap())
    }
}
