//! Directories that are complete or not there: written aside, every file synced, renamed, the parent synced.
//!
//! Two kinds. A part of an attempt ([`StagedDir::create`]) lies where nobody else writes: it replaces what an earlier start left, its
//! aside included. A result ([`StagedDir::result`]) lies where a person said, among what is theirs: its aside has a name that nobody
//! else has, and nothing that stands at the place in the end is touched.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::TrainError;
use crate::event::FileRecord;

/// Written at a time; between two pieces somebody may want to leave.
const PIECE_BYTES: usize = 8 << 20;

/// A directory on its way to its name. Dropped before [`StagedDir::publish`], it leaves nothing.
pub(crate) struct StagedDir<'a> {
    aside: PathBuf,
    target: PathBuf,
    replaces: bool,
    abandon: &'a dyn Fn() -> bool,
}

impl<'a> StagedDir<'a> {
    /// Begins a part of an attempt that will stand at `target`, whatever stands there now; its parent is made. `abandon` is asked
    /// between files and pieces of them: once it says true, nothing more is written and every call ends with
    /// [`TrainError::Stopped`].
    pub(crate) fn create(target: &Path, abandon: &'a dyn Fn() -> bool) -> Result<StagedDir<'a>, TrainError> {
        let aside = target.with_file_name(format!(".{}.partial", name_of(target)?));
        remove(&aside)?;
        fs::create_dir_all(&aside).map_err(TrainError::io("create", &aside))?;
        Ok(StagedDir { aside, target: target.to_owned(), replaces: true, abandon })
    }

    /// Begins a result that will stand at `target`, if nothing but an empty directory stands there in the end.
    pub(crate) fn result(target: &Path, abandon: &'a dyn Fn() -> bool) -> Result<StagedDir<'a>, TrainError> {
        let prefix = format!(".{}.", name_of(target)?);
        let parent = parent(target);
        fs::create_dir_all(parent).map_err(TrainError::io("create", parent))?;
        let mut aside = tempfile::Builder::new();
        // what others may do in it the mask of the process says, as of every directory
        aside.prefix(&prefix).suffix(".partial").permissions(fs::Permissions::from_mode(0o777));
        let aside = aside.tempdir_in(parent).map_err(TrainError::io("write into", parent))?.keep();
        Ok(StagedDir { aside, target: target.to_owned(), replaces: false, abandon })
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

    /// Syncs every file and gives the directory its name; of a part of an attempt what stood there before is gone.
    pub(crate) fn publish(self) -> Result<(), TrainError> {
        for name in file_names(&self.aside)? {
            self.go_on()?;
            sync(&self.aside.join(name))?;
        }
        sync(&self.aside)?;
        self.go_on()?;
        if self.replaces {
            remove(&self.target)?;
        }
        // in one step, and only over nothing or an empty directory: the kernel refuses all else
        fs::rename(&self.aside, &self.target).map_err(TrainError::io("give its name to", &self.target))?;
        sync(parent(&self.target))
    }

    fn go_on(&self) -> Result<(), TrainError> {
        if (self.abandon)() { Err(TrainError::Stopped) } else { Ok(()) }
    }
}

impl Drop for StagedDir<'_> {
    fn drop(&mut self) {
        // after publishing nothing stands there any more; what cannot be removed is left for the next `create`, or for a person
        let _gone = fs::remove_dir_all(&self.aside);
    }
}

fn name_of(target: &Path) -> Result<String, TrainError> {
    let nameless = || std::io::Error::new(ErrorKind::InvalidInput, "expected a path that ends in the directory's name");
    let name = target.file_name().ok_or_else(nameless).map_err(TrainError::io("create", target))?;
    Ok(name.to_string_lossy().into_owned())
}

/// Where a path lies; of a bare name its parent is the empty path.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
    fn a_result_touches_nothing_that_came_meanwhile() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let target = parent.path().join("deep/model");
        let begin = |content: &[u8]| {
            let staged = StagedDir::result(&target, &|| false).expect("begun");
            staged.write("a", content).expect("written");
            staged
        };
        let [first, second] = [begin(b"1"), begin(b"2")];
        fs::create_dir(&target).expect("an empty directory is in nobody's way");
        first.publish().expect("published");
        let error = second.publish().expect_err("there is one already").to_string();
        assert!(error.starts_with("give its name to") && error.contains("deep/model"), "{error}");
        assert_eq!(fs::read(target.join("a")).expect("read"), b"1", "each had an aside of its own");
        assert_eq!(file_names(&parent.path().join("deep")).expect("read"), ["model"]);
        let usual = parent.path().join("usual");
        fs::create_dir(&usual).expect("created");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode();
        assert_eq!(mode(&target), mode(&usual));
    }

    #[test]
    fn a_path_without_a_name_of_its_own_is_refused() {
        for path in ["", "/", ".", "new/.."] {
            let refused = StagedDir::result(Path::new(path), &|| false).map(|_| ());
            assert!(refused.is_err(), "{path:?}");
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
