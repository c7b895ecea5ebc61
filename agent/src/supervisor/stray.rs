//! Workers of attempts of which nothing is recorded: they are gone before this agent offers their devices.
//!
//! A record that the disk has damaged is set aside, and whoever trains for it is followed by nobody, while the coordinator places the job
//! anew, perhaps on the same device. Who holds the lock of such a directory is asked to leave and to save nothing, for nobody would go on
//! from that, and is killed where it stays. The lock alone says that somebody is there, and `worker.json` who: where the lock is free
//! nobody is looked for, for the pid that stands there may be another's by now. A start waits for them for some seconds; whoever is there
//! still keeps the devices that its `spec.json` names out, and nothing else of the machine.

use super::group::{Group, Name};
use crate::{
    beneath::{self, For},
    disk::{self, Access, At, DiskError},
    link::chain,
};
use lorikeet_protocol::{
    id::{AttemptId, BootId, DeviceId},
    job::{Device, StopCause},
    worker::{HOLDER, Holder, LOCK, SPEC, STOP, StopRequest},
};
use rustix::process::Signal;
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fs::TryLockError,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A start takes no longer for them than this: the other workers of the machine wait for it.
const ASKED_FOR: Duration = Duration::from_secs(10);
const KILLED_FOR: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// Those that are there still.
#[derive(Debug, Default)]
pub(crate) struct Strays(Vec<Stray>);

impl Strays {
    /// Whoever holds a lock below `attempts` and belongs to none of these.
    pub(crate) fn find(attempts: &Path, known: &BTreeSet<AttemptId>, boot: BootId) -> Result<Self, DiskError> {
        let strays = unknown(attempts, known)?.into_iter().map(|directory| Stray::at(directory, boot));
        // The word first, so that one that is only starting, and holds nothing yet, finds it.
        Ok(Self(strays.inspect(Stray::leave_word).filter(Stray::is_held).collect()))
    }

    /// Asks them to leave, for no longer than `grace`, and kills them.
    pub(crate) async fn end(&mut self, grace: Duration) {
        let (began, grace) = (Instant::now(), grace.min(ASKED_FOR));
        for stray in &self.0 {
            let directory = stray.directory.display();
            tracing::error!(%directory, "a worker runs of whose attempt there is no record; it is stopped before its devices are offered");
        }
        while !self.0.is_empty() && began.elapsed() < grace + KILLED_FOR {
            self.press(began.elapsed() >= grace);
            tokio::time::sleep(POLL).await;
        }
        for stray in &self.0 {
            tracing::error!("its devices stay out until it is gone: {}", stray.why());
        }
    }

    /// Presses them once more, and takes the devices out on which they are.
    pub(crate) fn keep_out(&mut self, devices: &mut [Device]) {
        self.press(true);
        for stray in &self.0 {
            let on = stray.devices();
            for device in devices.iter_mut().filter(|device| on.as_ref().is_none_or(|on| on.contains(&device.id))) {
                device.usable = Err(stray.why());
            }
        }
    }

    fn press(&mut self, kills: bool) {
        self.0.retain_mut(|stray| !stray.is_gone(kills));
    }
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

/// Of a `spec.json`, whoever wrote it.
#[derive(Deserialize)]
struct Place {
    devices: Vec<DeviceId>,
}

/// An attempt directory of which nothing is known, and the boot in which a pid there means something.
#[derive(Debug)]
struct Stray {
    directory: PathBuf,
    boot: BootId,
    asked: bool,
    /// Whoever held the lock may be gone before others of its group are.
    group: Option<Group>,
}

impl Stray {
    fn at(directory: PathBuf, boot: BootId) -> Self {
        Self { directory, boot, asked: false, group: None }
    }

    fn leave_word(&self) {
        let (path, request) = (self.directory.join(STOP), StopRequest { save: false, cause: StopCause::Superseded });
        let json = serde_json::to_vec(&request).expect("plain data is JSON");
        if beneath::read(&self.directory, Path::new(STOP)).is_ok_and(|there| there == json) {
            return;
        }
        if let Err(error) = disk::replace(&path, &json, Access::Plain) {
            tracing::warn!("could not {}", chain(&error));
        }
    }

    /// Asks it once, or kills it; whether it is gone.
    fn is_gone(&mut self, kills: bool) -> bool {
        let holder = self.holder();
        self.group = holder.map(Group::around).or(self.group);
        let is_held = self.is_held();
        if is_held && !kills {
            self.asked = self.asked || holder.is_some_and(|holder| holder.tell(Signal::USR2));
            return false;
        }
        let left = self.group.and_then(Group::kill);
        let is_gone = !is_held && left.is_none();
        if is_gone {
            tracing::warn!(directory = %self.directory.display(), "that worker is gone; its files stay there");
        }
        is_gone
    }

    /// A lock that cannot be asked for holds nothing up: what is wrong with its disk is said.
    fn is_held(&self) -> bool {
        let path = self.directory.join(LOCK);
        let opened = beneath::open_file(&self.directory, Path::new(LOCK), For::Reading);
        let error = match opened.map(|file| file.try_lock()) {
            Ok(Ok(())) => return false,
            Ok(Err(TryLockError::WouldBlock)) => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            Ok(Err(TryLockError::Error(error))) | Err(error) => error,
        };
        tracing::warn!(path = %path.display(), %error, "nobody knows whether a worker holds this lock");
        false
    }

    /// The process that said it holds the lock, if it is still the one that has this pid.
    fn holder(&self) -> Option<Name> {
        let json = beneath::read(&self.directory, Path::new(HOLDER)).ok()?;
        let name = Name::of_holder(&serde_json::from_slice::<Holder>(&json).ok()?, self.boot)?;
        Name::of(name.pid).is_ok_and(|now| now == name).then_some(name)
    }

    /// On which devices it is; `None`: any of them.
    fn devices(&self) -> Option<Vec<DeviceId>> {
        let json = beneath::read(&self.directory, Path::new(SPEC)).ok()?;
        Some(serde_json::from_slice::<Place>(&json).ok()?.devices)
    }

    /// For people.
    fn why(&self) -> String {
        let who = self.holder().map_or_else(
            || format!("a process (its {HOLDER} does not say which, `lslocks` does)"),
            |name| format!("process {}", name.pid),
        );
        format!(
            "{who} holds {}, is of no attempt that this agent knows, and does not end",
            self.directory.join(LOCK).display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use lorikeet_protocol::job::DeviceKind;
    use std::{
        fs::File,
        os::unix::process::CommandExt,
        process::{Child, Command},
    };

    #[tokio::test]
    async fn a_process_that_holds_no_lock_is_left_alone_whoever_has_its_number() {
        let (folder, directory) = attempt();
        let mut bystander = sleeper();
        let holder = describe(&bystander);
        std::fs::write(directory.join(HOLDER), serde_json::to_vec(&holder).unwrap()).unwrap();
        File::create(directory.join(LOCK)).unwrap();
        assert!(find(&folder).0.is_empty());
        // Somebody holds the lock, and the number is of another by now.
        let lock = File::open(directory.join(LOCK)).unwrap();
        lock.try_lock().unwrap();
        let earlier = Holder { start_ticks: holder.start_ticks - 1, ..holder };
        std::fs::write(directory.join(HOLDER), serde_json::to_vec(&earlier).unwrap()).unwrap();
        let mut strays = find(&folder);
        strays.press(true);
        assert_eq!(strays.0.len(), 1);
        assert!(bystander.try_wait().unwrap().is_none(), "it was ended for another's lock");
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[tokio::test]
    async fn who_stays_keeps_its_devices_out_until_it_is_gone_and_no_others() {
        let (folder, directory) = attempt();
        let lock = File::create(directory.join(LOCK)).unwrap();
        lock.try_lock().unwrap();
        let mut strays = find(&folder);
        let mut out = |devices: Option<&[&str]>| {
            let spec = devices.map(|devices| serde_json::json!({ "devices": devices }).to_string());
            std::fs::write(directory.join(SPEC), spec.unwrap_or_default()).unwrap();
            let mut there = ["GPU-0", "GPU-1"].map(device);
            strays.keep_out(&mut there);
            there.map(|device| device.usable.err())
        };
        let [first, second] = out(Some(&["GPU-1"]));
        assert!(first.is_none() && second.is_some_and(|why| why.contains("lslocks") && why.contains("/lock")));
        assert!(out(None).iter().all(Option::is_some), "nobody knows on which it is");
        drop(lock);
        assert!(out(None).iter().all(Option::is_none));
    }

    #[test]
    fn who_comes_late_finds_that_it_shall_leave_and_save_nothing() {
        let (folder, directory) = attempt();
        std::fs::write(directory.join(STOP), r#"{"save":true,"cause":"superseded"}"#).unwrap();
        assert!(find(&folder).0.is_empty());
        let word: StopRequest = serde_json::from_slice(&std::fs::read(directory.join(STOP)).unwrap()).unwrap();
        assert!(!word.save, "nobody goes on from what it saves");
    }

    fn attempt() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("an attempt");
        std::fs::create_dir(&directory).unwrap();
        (folder, directory)
    }

    fn find(folder: &tempfile::TempDir) -> Strays {
        Strays::find(folder.path(), &BTreeSet::new(), clock::boot_id()).unwrap()
    }

    fn device(id: &str) -> Device {
        let kind = DeviceKind::Cuda { compute: (9, 0), driver: None };
        Device { id: DeviceId(id.into()), name: id.into(), kind, memory_bytes: 1, free_bytes: 1, usable: Ok(()) }
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").process_group(0).spawn().unwrap()
    }

    fn describe(child: &Child) -> Holder {
        let name = Name::of(child.id()).unwrap();
        Holder { pid: name.pid, start_ticks: name.start_ticks, boot: clock::boot_id() }
    }
}
