//! The lock on an attempt directory, and `worker.json`, which says who holds it.
//!
//! The lock is `flock` on the file `lock`: the kernel frees it when the process ends, however it ends. The file itself stays.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lorikeet_protocol::id::BootId;
use lorikeet_protocol::worker::{HOLDER, Holder, LOCK};

/// A directory cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Somebody else does.
    #[error("lock {}: another worker holds it", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A lock held. Freed when dropped, or when the process dies.
#[derive(Debug)]
pub struct Hold {
    dir: PathBuf,
    _lock: File,
}

impl Hold {
    /// Takes the lock, without waiting, and says who took it.
    pub fn take(dir: &Path) -> Result<Hold, HoldError> {
        let path = dir.join(LOCK);
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = opened.map_err(io_error("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(HoldError::Held { path }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
        }
        write_holder(dir)?;
        Ok(Hold { dir: dir.to_owned(), _lock: lock })
    }

    /// The directory that is held.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Written aside, synced and renamed: a reader sees the old holder or the new one, after a power cut too.
fn write_holder(dir: &Path) -> Result<(), HoldError> {
    let path = dir.join(HOLDER);
    let holder = holder().map_err(io_error("describe the holder of", &path))?;
    let text = serde_json::to_vec(&holder).expect("plain data is JSON");
    let aside = dir.join(format!("{HOLDER}.partial"));
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&aside, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(io_error("write", &path))
}

fn holder() -> io::Result<Holder> {
    let stat = procfs::process::Process::myself().and_then(|me| me.stat()).map_err(io::Error::other)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot = uuid::Uuid::try_parse(boot.trim()).map_err(io::Error::other)?;
    Ok(Holder { pid: std::process::id(), start_ticks: stat.starttime, boot: BootId(boot) })
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HoldError {
    let path = path.to_owned();
    move |source| HoldError::Io { verb, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_turned_away_until_the_first_is_gone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = Hold::take(dir.path()).expect("free");
        assert!(matches!(Hold::take(dir.path()), Err(HoldError::Held { .. })));
        let text = fs::read_to_string(dir.path().join(HOLDER)).expect("written");
        let holder: Holder = serde_json::from_str(&text).expect("JSON");
        assert_eq!(holder.pid, std::process::id());
        drop(first);
        Hold::take(dir.path()).expect("free again");
    }
}
