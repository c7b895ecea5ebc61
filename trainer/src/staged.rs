//! Directories that are complete or not there: written aside, every file synced, renamed, the parent synced.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::TrainError;
use crate::event::FileRecord;

/// Written at a time; between two pieces somebody may want to leave.
const PIECE_BYTES: usize = 8 << 20;

/// A directory on its way to its name. Dropped before [`StagedDir::publish`], it leaves nothing.
pub(crate) struct StagedDir<'a> {
    aside: PathBuf,
    target: PathBuf,
    abandon: &'a dyn Fn() -> bool,
}

impl<'a> StagedDir<'a> {
    /// Begins a directory that will stand at `target`; its parent is made. `abandon` is asked between files and pieces of
    /// them: once it says true, nothing more is written and every call ends with [`TrainError::Stopped`].
    pub(crate) fn create(target: &Path, abandon: &'a dyn Fn() -> bool) -> Result<StagedDir<'a>, TrainError> {
        let nameless =
            || std::io::Error::new(ErrorKind::InvalidInput, "expected a path that ends in the directory's name");
        let name = target.file_name().ok_or_else(nameless).map_err(TrainError::io("create", target))?.to_string_lossy();
        let aside = target.with_file_name(format!(".{name}.partial"));
        remove(&aside)?;
        fs::create_dir_all(&aside).map_err(TrainError::io("create", &aside))?;
        Ok(StagedDir { aside, target: target.to_owned(), abandon })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.aside
    }

    /// Writes one file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let path = self.aside.join(name);
        let mut file = File::create(&path).map_err(TrainError::io("create", &path))?;
        for piece in bytes.chunks(PIECE_BYTES) {
            self.go_on()?;
            file.write_all(piece).map_err(TrainError::io("write", &path))?;
        }
        Ok(())
    }

    /// The files so far, by name.
    pub(crate) fn records(&self) -> Result<Vec<FileRecord>, TrainError> {
        let mut records = Vec::new();
        for name in file_names(&self.aside)? {
            self.go_on()?;
            records.push(record(&self.aside, &name)?);
        }
        Ok(records)
    }

    /// Syncs every file and gives the directory its name; what stood there before is gone.
    pub(crate) fn publish(self) -> Result<(), TrainError> {
        for name in file_names(&self.aside)? {
            self.go_on()?;
            sync(&self.aside.join(name))?;
        }
        sync(&self.aside)?;
        self.go_on()?;
        remove(&self.target)?;
        fs::rename(&self.aside, &self.target).map_err(TrainError::io("rename", &self.aside))?;
        // of a bare name the parent is the empty path
        let parent = self.target.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync(parent.unwrap_or(Path::new(".")))
    }

    fn go_on(&self) -> Result<(), TrainError> {
        if (self.abandon)() { Err(TrainError::Stopped) } else { Ok(()) }
    }
}

impl Drop for StagedDir<'_> {
    fn drop(&mut self) {
        // after publishing nothing stands there any more; what cannot be removed is removed by the next `create`
        let _gone = fs::remove_dir_all(&self.aside);
    }
}

/// Size and hash of one file.
pub(crate) fn record(dir: &Path, name: &str) -> Result<FileRecord, TrainError> {
    let path = dir.join(name);
    let mut hasher = blake3::Hasher::new();
    let hashed = File::open(&path).and_then(|file| hasher.update_reader(file).map(|_| ()));
    hashed.map_err(TrainError::io("read", &path))?;
    Ok(FileRecord { path: name.to_owned(), size: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
}

/// Removes a directory; one that is not there is fine.
pub(crate) fn remove(dir: &Path) -> Result<(), TrainError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(TrainError::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Names of the entries of a directory, sorted; empty when there is none.
pub(crate) fn file_names(dir: &Path) -> Result<Vec<String>, TrainError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainError::io("read", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(TrainError::io("read", dir))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn sync(path: &Path) -> Result<(), TrainError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(TrainError::io("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_there_whole_or_not_at_all() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let target = parent.path().join("deep/adapter");
        let staged = StagedDir::create(&target, &|| false).expect("created");
        staged.write("a", b"1").expect("written");
        drop(staged);
        assert!(!target.exists() && file_names(&parent.path().join("deep")).expect("read").is_empty());
        for content in [b"2", b"3"] {
            let staged = StagedDir::create(&target, &|| false).expect("created");
            staged.write("a", content).expect("written");
            assert_eq!(staged.records().expect("hashed")[0].size, 1);
            staged.publish().expect("published");
            assert_eq!(fs::read(target.join("a")).expect("read"), content);
        }
    }

    #[test]
    fn a_path_without_a_name_of_its_own_is_refused() {
        for path in ["", "/", ".", "new/.."] {
            let refused = StagedDir::create(Path::new(path), &|| false).map(|_| ());
            assert!(refused.is_err_and(|error| error.class() == crate::FailureClass::Io), "{path:?}");
        }
    }

    #[test]
    fn whoever_leaves_in_the_middle_leaves_what_stood_there_before() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let target = parent.path().join("adapter");
        let before = StagedDir::create(&target, &|| false).expect("created");
        before.write("a", b"before").expect("written");
        before.publish().expect("published");
        let asked = std::cell::Cell::new(0);
        let abandon = || {
            asked.set(asked.get() + 1);
            asked.get() > 2
        };
        let staged = StagedDir::create(&target, &abandon).expect("created");
        let large = vec![0; 3 * PIECE_BYTES];
        assert!(matches!(staged.write("a", &large), Err(TrainError::Stopped)));
        assert!(matches!(staged.publish(), Err(TrainError::Stopped)));
        assert_eq!(fs::read(target.join("a")).expect("read"), b"before");
        assert_eq!(file_names(parent.path()).expect("read"), ["adapter"]);
    }
}
