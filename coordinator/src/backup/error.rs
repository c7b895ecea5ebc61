//! Why there is no backup, or none that can be restored.

use crate::store::StoreError;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file of the data directory, or the backup itself.
    #[error("{what} {path}", path = path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The store in it, or of the data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Whoever takes the backup takes no more.
    #[error("write the backup")]
    Write(#[source] io::Error),
    /// The file is no backup, or not a whole one.
    #[error("read the backup {path}: {found}; nothing was restored", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// There is something that a restore must not overwrite.
    #[error("restore into {data}: {found}", data = data.display())]
    Occupied {
        /// Which directory.
        data: PathBuf,
        /// What is there, and what to do.
        found: String,
    },
}

impl BackupError {
    pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}
