//! Files that are not ours: base models, which stay where they are. Each is opened once, and judged by what was opened.
//!
//! A directory under a base root may hold symbolic links – caches of model hubs are made of them – and whoever filled it chose
//! where they lead. So a file counts by where it really lies: below one of the roots, and a regular file. It is looked at through a
//! handle that reads nothing (`O_PATH`), and that very file is opened then: a link that is changed in between changes nothing,
//! and a pipe is never waited for.

use super::{BlobError, Blobs, disk};
use rustix::fs::{FileType, Mode, OFlags};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

const LEADS_OUT: &str = "it leads out of the directories for base models";
const NOT_REGULAR: &str = "it is not a regular file";

/// Where such files may lie.
#[derive(Debug, Default)]
pub(super) struct Roots(Vec<PathBuf>);

impl Roots {
    pub(super) fn new(roots: &[PathBuf]) -> Self {
        Self(roots.to_vec())
    }

    /// The file, if it is one and lies below a root, whatever links led to it.
    pub(super) fn open(&self, path: &Path) -> Result<File, BlobError> {
        let failed = |error: rustix::io::Errno| BlobError::disk("open", path)(error.into());
        let handle = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let refused = |why| BlobError::Refused { path: path.to_owned(), why };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&handle).map_err(failed)?.st_mode);
        let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle));
        let place = std::fs::read_link(&name).map_err(BlobError::disk("find", path))?;
        if !self.hold(&place) {
            return Err(refused(LEADS_OUT));
        }
        if kind != FileType::RegularFile {
            return Err(refused(NOT_REGULAR));
        }
        File::open(&name).map_err(BlobError::disk("open", path))
    }

    /// Both sides without links. A root may be mounted later than the coordinator starts, so it is looked up each time.
    fn hold(&self, place: &Path) -> bool {
        self.0.iter().any(|root| root.canonicalize().is_ok_and(|root| place.starts_with(root)))
    }

    /// The entries of a base's directory that must not be read, by name. What leads nowhere is nobody's business here: if it is
    /// needed, it is missing.
    pub(super) fn strays(&self, directory: &Path) -> Result<Vec<(String, &'static str)>, BlobError> {
        let mut strays = Vec::new();
        for path in disk::list(directory)? {
            let Ok(meta) = path.metadata() else { continue };
            if let Err(BlobError::Refused { why, .. }) = self.open(&path)
                && (why == LEADS_OUT || !meta.is_dir())
            {
                strays.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), why));
            }
        }
        strays.sort();
        Ok(strays)
    }
}

impl Blobs {
    /// The entries of a base's directory that lead out of the base roots or are no regular files, each with what is wrong.
    pub async fn strays(&self, directory: &Path) -> Result<Vec<(String, &'static str)>, BlobError> {
        let directory = directory.to_owned();
        self.work(move |inner| inner.roots.strays(&directory)).await
    }
}

/// What a read that found no file is: `None`, unless it failed for another reason.
pub(super) fn if_there(opened: Result<File, BlobError>) -> Result<Option<File>, BlobError> {
    match opened {
        Err(BlobError::Disk { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}
