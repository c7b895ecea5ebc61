//! The attempt directory of `lorikeet train`: new, begun before, or somebody else's.

use crate::failure::Failure;
use lorikeet_protocol::worker::{EVENTS, EventLine, LOCK, SPEC, Spec, WorkerEvent};
use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

/// An attempt directory whose spec is ours.
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes it, or goes on with one whose spec says the same. What an earlier start told last, if it was no success, is taken
    /// back: the attempt goes on. A training that never made a step holds nothing that another could spoil, and makes room.
    pub(super) fn open(path: &Path, spec: &Spec) -> Result<Self, Failure> {
        let directory = Self { path: path.to_owned() };
        match directory.spec()? {
            Some(known) if same(&known, spec) => directory.take_back()?,
            Some(_) if directory.is_blank() => directory.begin_anew(spec)?,
            Some(_) => {
                return Err(Failure::mistake(format!(
                    "{} holds a training with other settings or files",
                    path.display()
                ))
                .hint("name another --out, or repeat the settings of its spec.json"));
            }
            None => directory.make(spec)?,
        }
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its adapter is there.
    pub(super) fn is_finished(&self) -> bool {
        matches!(self.last(), Some(WorkerEvent::Finished { .. }))
    }

    /// The last thing told.
    pub(super) fn last(&self) -> Option<WorkerEvent> {
        self.events().pop().map(|line| line.event)
    }

    /// Everything told so far; a torn line at the end is not yet told.
    pub(super) fn events(&self) -> Vec<EventLine> {
        let text = fs::read(self.path.join(EVENTS)).unwrap_or_default();
        text.split_inclusive(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    fn spec(&self) -> Result<Option<Spec>, Failure> {
        let path = self.path.join(SPEC);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::file("read", &path, &error)),
        };
        let spec = serde_json::from_slice(&text);
        spec.map(Some).map_err(|error| Failure::mistake(format!("read {}: {error}", path.display())))
    }

    fn make(&self, spec: &Spec) -> Result<(), Failure> {
        fs::create_dir_all(&self.path).map_err(|error| Failure::file("create", &self.path, &error))?;
        let mut entries = fs::read_dir(&self.path).map_err(|error| Failure::file("read", &self.path, &error))?;
        if entries.next().is_some() {
            return Err(Failure::mistake(format!("{} is neither empty nor a training", self.path.display())));
        }
        self.write(spec)
    }

    /// Whether it ended before its first step, and nobody works in it.
    fn is_blank(&self) -> bool {
        let made = |line: &EventLine| {
            matches!(line.event, WorkerEvent::Step(_) | WorkerEvent::Checkpoint { .. } | WorkerEvent::Finished { .. })
        };
        let lock = File::options().write(true).open(self.path.join(LOCK));
        let is_free = lock.map_or_else(|error| error.kind() == ErrorKind::NotFound, |lock| lock.try_lock().is_ok());
        is_free && !self.events().iter().any(made)
    }

    fn begin_anew(&self, spec: &Spec) -> Result<(), Failure> {
        let events = self.path.join(EVENTS);
        match fs::remove_file(&events) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Failure::file("remove", &events, &error)),
            _ => {}
        }
        self.write(spec)
    }

    fn write(&self, spec: &Spec) -> Result<(), Failure> {
        let aside = self.path.join("spec.json.new");
        let write = || {
            let mut file = File::create(&aside)?;
            file.write_all(&serde_json::to_vec_pretty(spec)?)?;
            file.sync_all()?;
            fs::rename(&aside, self.path.join(SPEC))
        };
        write().map_err(|error| Failure::file("write", &aside, &error))
    }

    /// Cuts off a last line that says stopped or failed, so that numbers go on where the work does.
    fn take_back(&self) -> Result<(), Failure> {
        let unfinished = matches!(self.last(), Some(WorkerEvent::Stopped { .. } | WorkerEvent::Failed { .. }));
        if !unfinished {
            return Ok(());
        }
        let path = self.path.join(EVENTS);
        let cut = || {
            let text = fs::read(&path)?;
            let before =
                text.iter().rev().skip(1).position(|&byte| byte == b'\n').map_or(0, |back| text.len() - 1 - back);
            let file = File::options().write(true).open(&path)?;
            file.set_len(before as u64)?;
            file.sync_all()
        };
        cut().map_err(|error| Failure::file("write", &path, &error))
    }
}

/// Threads change no number, so they may differ.
fn same(known: &Spec, wanted: &Spec) -> bool {
    Spec { threads: None, ..known.clone() } == Spec { threads: None, ..wanted.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_api::{JobFile, Presets};
    use lorikeet_protocol::{id::UnixMillis, job::StopCause, worker::Stage};

    #[test]
    fn the_same_training_goes_on_and_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        Directory::open(&path, &spec(8)).unwrap();
        Directory::open(&path, &Spec { threads: Some(3), ..spec(8) }).unwrap();
        write(&path, &[WorkerEvent::Finished { step: 1, files: vec![] }]);
        assert_eq!(Directory::open(&path, &spec(16)).err().unwrap().kind.exit_code(), 2);
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("thesis.txt"), "").unwrap();
        assert_eq!(Directory::open(&other, &spec(8)).err().unwrap().kind.exit_code(), 2, "not ours to write into");
    }

    #[test]
    fn a_training_that_never_made_a_step_makes_room_unless_somebody_is_at_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        Directory::open(&path, &spec(8)).unwrap();
        write(&path, &[WorkerEvent::Stage { stage: Stage::Data }]);
        let lock = File::create(path.join(LOCK)).unwrap();
        lock.lock().unwrap();
        assert_eq!(Directory::open(&path, &spec(16)).err().unwrap().kind.exit_code(), 2, "it may be about to");
        drop(lock);
        let directory = Directory::open(&path, &spec(16)).unwrap();
        assert_eq!((directory.spec().unwrap(), directory.events()), (Some(spec(16)), vec![]));
    }

    #[test]
    fn a_stop_is_taken_back_and_a_success_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let directory = Directory::open(&path, &spec(8)).unwrap();
        let stage = WorkerEvent::Stage { stage: Stage::Data };
        let stopped = WorkerEvent::Stopped { step: 3, checkpoint: None, cause: StopCause::Signal };
        write(&path, &[stage.clone(), stopped]);
        Directory::open(&path, &spec(8)).unwrap();
        assert_eq!(directory.last(), Some(stage.clone()));
        write(&path, &[stage, WorkerEvent::Finished { step: 3, files: vec![] }]);
        assert!(Directory::open(&path, &spec(8)).unwrap().is_finished());
    }

    fn write(path: &Path, events: &[WorkerEvent]) {
        let line = |(index, event): (usize, &WorkerEvent)| {
            let line = EventLine { seq: index as u64 + 1, time: UnixMillis(0), event: event.clone() };
            serde_json::to_string(&line).unwrap() + "\n"
        };
        fs::write(path.join(EVENTS), events.iter().enumerate().map(line).collect::<String>()).unwrap();
    }

    fn spec(rank: i64) -> Spec {
        let mut job = JobFile::new("b", "d");
        job.lora.rank = Some(rank);
        Spec {
            attempt: None,
            job: job.resolve(&Presets::embedded()).unwrap(),
            base: "/b".into(),
            dataset: "/d".into(),
            validation: None,
            init_adapter: None,
            cache: "/c".into(),
            devices: vec![],
            threads: None,
        }
    }
}
