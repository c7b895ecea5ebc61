//! Workers of attempts of which nothing is recorded: they are gone before this agent offers a device.
//!
//! A record that the disk has damaged is set aside, and whoever trains for it is followed by nobody, while the coordinator places the job
//! anew, perhaps on the same device. Who holds the lock of such a directory is asked to leave and to save nothing, for nobody would go on
//! from that, and is killed where it stays. The lock alone says that somebody is there, and `worker.json` who: where the lock is free
//! nobody is looked for, for the pid that stands there may be another's by now.

use super::group::{Group, Name};
use crate::{
    config,
    disk::{self, Access, At, DiskError},
    link::chain,
};
use lorikeet_protocol::{
    id::{AttemptId, BootId},
    job::StopCause,
    worker::{HOLDER, Holder, LOCK, STOP, StopRequest},
};
use rustix::process::Signal;
use std::{
    collections::BTreeSet,
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Who is still there after being killed for so long cannot be killed.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Why workers that nobody knows are still there.
#[derive(Debug, thiserror::Error)]
pub enum StrayError {
    /// Their directories.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// One of them does not go, or does not say who it is.
    #[error("end the worker that holds {}, of whose attempt there is no record: {why}", lock.display())]
    Stays {
        /// What it holds.
        lock: PathBuf,
        /// For people.
        why: String,
    },
}

/// Ends whoever holds a lock below `attempts` and belongs to none of these.
pub(crate) async fn end_all(
    attempts: &Path,
    known: &BTreeSet<AttemptId>,
    config: &config::Worker,
    boot: BootId,
) -> Result<(), StrayError> {
    let strays = unknown(attempts, known)?;
    let ends = strays.into_iter().map(|directory| Stray { directory, boot }.end(config, STUCK_AFTER));
    futures_util::future::try_join_all(ends).await.map(drop)
}

fn unknown(attempts: &Path, known: &BTreeSet<AttemptId>) -> Result<Vec<PathBuf>, DiskError> {
    let entries = match std::fs::read_dir(attempts) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("list", attempts)?,
    };
    let known: BTreeSet<_> = known.iter().map(|id| attempts.join(id.to_string())).collect();
    let paths = entries.map(|entry| Ok(entry.at("list", attempts)?.path()));
    let unknown =
        |path: &Result<PathBuf, DiskError>| !path.as_ref().is_ok_and(|path| known.contains(path) || !path.is_dir());
    paths.filter(unknown).collect()
}

/// An attempt directory of which nothing is known, and the boot in which a pid there means something.
struct Stray {
    directory: PathBuf,
    boot: BootId,
}

impl Stray {
    async fn end(self, config: &config::Worker, stuck_after: Duration) -> Result<(), StrayError> {
        // First, so that one that is only starting, and holds nothing yet, finds it.
        self.leave_word();
        if !self.is_held()? {
            return Ok(());
        }
        tracing::error!(
            directory = %self.directory.display(),
            "a worker runs of whose attempt there is no record; it is stopped before any device is offered"
        );
        let (began, mut asked, mut group) = (Instant::now(), false, None);
        loop {
            let holder = self.holder();
            group = holder.map(Group::around).or(group);
            let (held, late) = (self.is_held()?, began.elapsed() >= config.discard_grace);
            if held && !late {
                asked = asked || holder.is_some_and(|holder| holder.tell(Signal::USR2));
            } else {
                let left = group.and_then(Group::kill);
                if !held && left.is_none() {
                    tracing::warn!(directory = %self.directory.display(), "that worker is gone; its files stay there");
                    return Ok(());
                }
                if began.elapsed() >= config.discard_grace + stuck_after {
                    return Err(self.stays(left));
                }
            }
            tokio::time::sleep(config.poll).await;
        }
    }

    fn leave_word(&self) {
        let (path, request) = (self.directory.join(STOP), StopRequest { save: false, cause: StopCause::Superseded });
        let json = serde_json::to_vec(&request).expect("plain data is JSON");
        if !path.exists()
            && let Err(error) = disk::replace(&path, &json, Access::Plain)
        {
            tracing::warn!("could not {}", chain(&error));
        }
    }

    fn is_held(&self) -> Result<bool, DiskError> {
        let path = self.directory.join(LOCK);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file.at("open", &path)?,
        };
        match file.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error).at("lock", &path),
        }
    }

    /// The process that said it holds the lock, if it is still the one that has this pid.
    fn holder(&self) -> Option<Name> {
        let json = std::fs::read(self.directory.join(HOLDER)).ok()?;
        let name = Name::of_holder(&serde_json::from_slice::<Holder>(&json).ok()?, self.boot)?;
        Name::of(name.pid).is_ok_and(|now| now == name).then_some(name)
    }

    fn stays(&self, left: Option<Name>) -> StrayError {
        let why = match left {
            Some(Name { pid, .. }) => format!("process {pid} cannot be killed"),
            None => format!("its {HOLDER} does not say which process it is"),
        };
        StrayError::Stays { lock: self.directory.join(LOCK), why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::{
        os::unix::process::CommandExt,
        process::{Child, Command},
    };

    #[tokio::test]
    async fn a_process_that_holds_no_lock_is_left_alone_whoever_has_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let mut bystander = sleeper();
        let holder = describe(&bystander);
        std::fs::write(folder.path().join(HOLDER), serde_json::to_vec(&holder).unwrap()).unwrap();
        File::create(folder.path().join(LOCK)).unwrap();
        stray(&folder).end(&quick(), Duration::ZERO).await.unwrap();
        assert!(bystander.try_wait().unwrap().is_none(), "it was ended for a number in a file");
        // Somebody holds the lock, and the number is of another by now.
        let lock = File::open(folder.path().join(LOCK)).unwrap();
        lock.try_lock().unwrap();
        let earlier = Holder { start_ticks: holder.start_ticks - 1, ..holder };
        std::fs::write(folder.path().join(HOLDER), serde_json::to_vec(&earlier).unwrap()).unwrap();
        let error = stray(&folder).end(&quick(), Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.contains("does not say which process it is") && error.contains("lock"), "{error}");
        assert!(bystander.try_wait().unwrap().is_none(), "it was ended for another's lock");
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[tokio::test]
    async fn who_comes_late_finds_that_it_shall_leave() {
        let folder = tempfile::tempdir().unwrap();
        stray(&folder).end(&quick(), Duration::ZERO).await.unwrap();
        let word: StopRequest = serde_json::from_slice(&std::fs::read(folder.path().join(STOP)).unwrap()).unwrap();
        assert!(!word.save, "nobody goes on from what it saves");
    }

    fn stray(folder: &tempfile::TempDir) -> Stray {
        Stray { directory: folder.path().to_owned(), boot: clock::boot_id() }
    }

    fn quick() -> config::Worker {
        let short = Duration::from_millis(1);
        config::Worker { discard_grace: short, poll: short, ..config::Worker::default() }
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").process_group(0).spawn().unwrap()
    }

    fn describe(child: &Child) -> Holder {
        let name = Name::of(child.id()).unwrap();
        Holder { pid: name.pid, start_ticks: name.start_ticks, boot: clock::boot_id() }
    }
}
