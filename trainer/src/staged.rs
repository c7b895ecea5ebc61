//! Directories that are complete or not there: written aside, every file synced, renamed, the parent synced.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::TrainError;
use crate::event::FileRecord;

/// A directory on its way to its name. Dropped before [`StagedDir::publish`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct StagedDir {
    aside: PathBuf,
    target: PathBuf,
}

impl StagedDir {
    /// Begins a directory that will stand at `target`; its parent is made.
    pub(crate) fn create(target: &Path) -> Result<StagedDir, TrainError> {
        let name = target.file_name().expect("a directory to be published has a name").to_string_lossy();
        let aside = target.with_file_name(format!(".{name}.partial"));
        remove(&aside)?;
        fs::create_dir_all(&aside).map_err(TrainError::io("create", &aside))?;
        Ok(StagedDir { aside, target: target.to_owned() })
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.aside
    }

    /// Writes one file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let path = self.aside.join(name);
        fs::write(&path, bytes).map_err(TrainError::io("write", &path))
    }

    /// The files so far, by name.
    pub(crate) fn records(&self) -> Result<Vec<FileRecord>, TrainError> {
        let mut records = Vec::new();
        for name in file_names(&self.aside)? {
            records.push(record(&self.aside, &name)?);
        }
        Ok(records)
    }

    /// Syncs every file and gives the directory its name; what stood there before is gone.
    pub(crate) fn publish(self) -> Result<(), TrainError> {
        for name in file_names(&self.aside)? {
            sync(&self.aside.join(name))?;
        }
        sync(&self.aside)?;
        remove(&self.target)?;
        fs::rename(&self.aside, &self.target).map_err(TrainError::io("rename", &self.aside))?;
        sync(self.target.parent().expect("it was created inside one"))
    }
}

impl Drop for StagedDir {
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
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(TrainError::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Names of the entries of a directory, sorted; empty when there is none.
pub(crate) fn file_names(dir: &Path) -> Result<Vec<String>, TrainError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
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
        let staged = StagedDir::create(&target).expect("created");
        staged.write("a", b"1").expect("written");
        drop(staged);
        assert!(!target.exists() && file_names(&parent.path().join("deep")).expect("read").is_empty());
        for content in [b"2", b"3"] {
            let staged = StagedDir::create(&target).expect("created");
            staged.write("a", content).expect("written");
            assert_eq!(staged.records().expect("hashed")[0].size, 1);
            staged.publish().expect("published");
            assert_eq!(fs::read(target.join("a")).expect("read"), content);
        }
    }
}
