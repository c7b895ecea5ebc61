//! Writing a backup: entry by entry, each hashed on its way.

use super::{BackupError, Head, Sum};
use crate::{
    blob,
    store::{Facts, FileKind},
};
use lorikeet_protocol::{file::FileManifest, id::Hash};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// A file that records name.
#[derive(Debug, Serialize)]
struct Named {
    hash: Hash,
    size: u64,
    kind: FileKind,
}

/// The files of the certificate authorities, read at one moment: they are few and small, and may change while the rest is sent.
pub struct AuthorityFiles(Vec<(String, Vec<u8>)>);

impl AuthorityFiles {
    /// Reads those of `data`.
    pub fn read(data: &Path) -> Result<Self, BackupError> {
        let read = |path: PathBuf| {
            let bytes = std::fs::read(&path).map_err(BackupError::file("read", &path))?;
            Ok((name_of(data, &path), bytes))
        };
        below(&data.join("ca"))?.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

/// Writes a backup of `data`, whose store was copied to `state` when `authority` was read.
pub fn write(
    data: &Path,
    authority: &AuthorityFiles,
    state: &Path,
    facts: &Facts,
    head: &Head,
    out: impl Write,
) -> Result<(), BackupError> {
    let mut writer = Entries { tar: tar::Builder::new(out), sums: Vec::new(), seconds: head.taken.0 / 1_000 };
    writer.json("backup.json", head)?;
    for (name, bytes) in &authority.0 {
        writer.entry(name, bytes.len() as u64, bytes.as_slice()).map_err(BackupError::Write)?;
    }
    for path in below(&data.join("keys"))? {
        writer.file(data, &path)?;
    }
    writer.copy("state.redb", state)?;
    let named = |(kind, file): &(FileKind, FileManifest)| Named { hash: file.hash, size: file.size, kind: *kind };
    writer.json("blobs.json", &facts.files.iter().map(named).collect::<Vec<_>>())?;
    let mut files: BTreeMap<Hash, (bool, &FileManifest)> = BTreeMap::new();
    for (kind, file) in &facts.files {
        files.entry(file.hash).or_insert((false, file)).0 |= kind.is_ours();
    }
    for (is_ours, file) in files.into_values() {
        writer.blob(data, file, is_ours, head.full)?;
    }
    if head.full {
        // What is being written may have its name no more when it is looked for.
        for path in
            below(&data.join("series"))?.into_iter().filter(|path| path.extension().is_none_or(|end| end != "new"))
        {
            writer.file(data, &path)?;
        }
    }
    writer.finish()
}

/// The tar that is being written.
struct Entries<W: Write> {
    tar: tar::Builder<W>,
    sums: Vec<Sum>,
    seconds: u64,
}

impl<W: Write> Entries<W> {
    fn json(&mut self, name: &str, what: &impl Serialize) -> Result<(), BackupError> {
        let bytes = serde_json::to_vec_pretty(what).expect("plain data with string keys");
        self.entry(name, bytes.len() as u64, bytes.as_slice()).map_err(BackupError::Write)
    }

    fn file(&mut self, data: &Path, path: &Path) -> Result<(), BackupError> {
        self.copy(&name_of(data, path), path)
    }

    /// A file of the data directory, as long as it is now: series grow while they are read.
    fn copy(&mut self, name: &str, path: &Path) -> Result<(), BackupError> {
        let file = File::open(path).map_err(BackupError::file("open", path))?;
        let length = file.metadata().map_err(BackupError::file("look at", path))?.len();
        self.entry(name, length, file).map_err(BackupError::file("copy", path))
    }

    /// The manifest if the bytes lie elsewhere; both in a full backup. Of a model's file that is only linked, as older programs left
    /// it, the bytes are in a full backup as well. A file that is gone is for a check to find, not for a backup.
    fn blob(&mut self, data: &Path, file: &FileManifest, is_ours: bool, full: bool) -> Result<(), BackupError> {
        let name = file.hash.to_string();
        let blobs = data.join("blobs");
        let bytes = blobs.join(&name[..2]).join(&name);
        let manifest = bytes.with_extension("json");
        let is_elsewhere = !bytes.exists();
        if !manifest.exists() || !(full || is_elsewhere) {
            return Ok(());
        }
        if !is_elsewhere {
            self.file(data, &bytes)?;
        } else if full
            && is_ours
            && let Ok(linked) = blob::whole_at(&blobs, file)
        {
            let place = |path: &Path| name_of(data, path);
            self.copy(&place(&bytes), &linked)?;
            let entry = blob::entry_of(file);
            return self.entry(&place(&manifest), entry.len() as u64, entry.as_slice()).map_err(BackupError::Write);
        }
        self.file(data, &manifest)
    }

    fn entry(&mut self, name: &str, length: u64, from: impl Read) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(length);
        header.set_mode(0o600);
        header.set_mtime(self.seconds);
        let mut hashed = Hashed { from: from.take(length), hasher: blake3::Hasher::new(), left: length };
        self.tar.append_data(&mut header, name, &mut hashed)?;
        if hashed.left > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        self.sums.push(Sum { path: name.to_owned(), hash: Hash(*hashed.hasher.finalize().as_bytes()) });
        Ok(())
    }

    fn finish(mut self) -> Result<(), BackupError> {
        let sums = std::mem::take(&mut self.sums);
        self.json("hashes.json", &sums)?;
        self.tar.into_inner().and_then(|mut out| out.flush()).map_err(BackupError::Write)
    }
}

fn name_of(data: &Path, path: &Path) -> String {
    path.strip_prefix(data).unwrap_or(path).to_string_lossy().into_owned()
}

struct Hashed<R> {
    from: io::Take<R>,
    hasher: blake3::Hasher,
    left: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.left -= read as u64;
        Ok(read)
    }
}

/// Every regular file below a folder, in order; a folder that is not there has none.
pub(super) fn below(folder: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(BackupError::file("list", &folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(BackupError::file("list", &folder))?;
            let kind = entry.file_type().map_err(BackupError::file("look at", &entry.path()))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.path().extension().is_none_or(|ending| ending != "aside") {
                files.push(entry.path());
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}
