//! Files that are whole or not there: written aside, synced, renamed, and the folder synced after.
//!
//! Every file the agent must find again after a power cut goes through here; the errors name the path.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// A file operation that failed, with the path and what was tried.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub struct DiskError {
    /// What was tried: `write`, `read`, …
    pub what: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub cause: io::Error,
}

impl DiskError {
    /// Whether the disk, or a quota or limit on it, is full.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(self.cause.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }

    /// Whether the path does not exist.
    pub fn is_missing(&self) -> bool {
        self.cause.kind() == io::ErrorKind::NotFound
    }
}

/// Puts path and purpose on an I/O error: `File::open(path).at("open", path)?`.
pub(crate) trait At<T> {
    /// See the trait.
    fn at(self, what: &'static str, path: &Path) -> Result<T, DiskError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, DiskError> {
        self.map_err(|cause| DiskError { what, path: path.to_owned(), cause })
    }
}

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// The agent's user alone: keys.
    Secret,
    /// What the umask says.
    Plain,
}

/// Replaces `path` by a file with these bytes, or leaves it as it was.
pub(crate) fn replace(path: &Path, bytes: &[u8], access: Access) -> Result<(), DiskError> {
    let aside = path.with_added_extension("aside");
    let mode = if access == Access::Secret { 0o600 } else { 0o644 };
    // A file left aside by a crash may have another mode; it is made anew.
    remove_file(&aside)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside).at("create", &aside)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).at("write", &aside)?;
    fs::rename(&aside, path).at("replace", path)?;
    sync_parent(path)
}

/// Whether the open file is still the one of that name.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let of = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match fs::metadata(path) {
        Ok(there) => Ok(of(there) == of(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a rename, a new file or a removal in the parent of `path` last.
pub(crate) fn sync_parent(path: &Path) -> Result<(), DiskError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|folder| folder.sync_all()).at("sync", parent)
}

/// Shows that new files last in a folder, before anything is promised that rests on it.
pub(crate) fn check_writable(folder: &Path) -> Result<(), DiskError> {
    let probe = folder.join(".writable");
    replace(&probe, b"", Access::Secret)?;
    remove_file(&probe)
}

/// A folder with all its parents, readable by the agent's user alone.
pub(crate) fn create_folder(path: &Path) -> Result<(), DiskError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).at("create the folder", path)
}

/// What is in the cache is shared: nobody writes to it again.
pub(crate) fn make_read_only(path: &Path) -> Result<(), DiskError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).at("protect", path)
}

/// Removes a file; that it is not there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

/// Removes a folder and what is in it; that it is not there is fine.
pub(crate) fn remove_folder(path: &Path) -> Result<(), DiskError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_a_secret_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        replace(&path, b"one", Access::Plain).unwrap();
        replace(&path, b"two", Access::Secret).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_error_names_the_path() {
        let error = replace(Path::new("/proc/nowhere/file"), b"", Access::Plain).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere/file"), "{error}");
    }
}
