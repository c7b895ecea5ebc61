//! The attempt directory of `lorikeet train`: new, begun before, or somebody else's. It is held before its spec is read or written, so
//! that of two trainings that begin at once one is told of the other.

use crate::{commands::dataset::measure, failure::Failure, file};
use lorikeet_protocol::worker::{ADAPTER, EVENTS, EventLine, HOLDER, LOCK, SPEC, Spec, WorkerEvent, WrittenFile};
use lorikeet_trainer::weights_fingerprint;
use lorikeet_worker::{Hold, HoldError};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

/// A spec on its way to its name.
const ASIDE: &str = "spec.json.new";
/// What a start that got no further leaves behind: on a full disk, say.
const BARE: [&str; 4] = [LOCK, HOLDER, "worker.json.partial", ASIDE];

/// An attempt directory whose spec is ours.
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes it, or goes on with one whose spec says the same. What an earlier start told last, if it was no success, is taken
    /// back: the attempt goes on. A training that never made a step holds nothing that another could spoil, and makes room.
    pub(super) fn open(path: &Path, spec: &Spec) -> Result<(Self, Hold), Failure> {
        let directory = Self { path: path.to_owned() };
        fs::create_dir_all(path).map_err(|error| Failure::file("create", path, &error))?;
        // before the lock, which is a file as well, is made among somebody's own
        directory.is_ours_or_bare()?;
        holds_only_files(path)?;
        let hold = Hold::take(path).map_err(|error| match error {
            HoldError::Held { .. } => Failure::mistake(format!("another process trains in {}", path.display())),
            HoldError::Io { .. } => Failure::mistake(error),
        })?;
        match directory.spec()? {
            Some(known) if same(&known, spec) => {
                directory.take_back()?;
                // It goes on as it is asked for now.
                if known != *spec {
                    directory.write(spec)?;
                }
            }
            Some(_) if directory.is_blank() => directory.begin_anew(spec)?,
            Some(known) => return Err(another(path, &known, spec)),
            None => directory.write(spec)?,
        }
        Ok((directory, hold))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The files of its adapter, if it has come to one.
    pub(super) fn finished(&self) -> Option<Vec<WrittenFile>> {
        match self.last() {
            Some(WorkerEvent::Finished { files, .. }) => Some(files),
            _ => None,
        }
    }

    /// Whether what a finished training wrote is still there as it was, and what it was trained on as well: only then is its result
    /// that of the command.
    pub(super) fn check(&self, spec: &Spec, files: &[WrittenFile]) -> Result<(), Failure> {
        let differs = |path: &Path, what: &str| {
            let failure = Failure::mistake(format!("{} {what}", path.display()));
            Err(failure.hint("name another --out, or take that directory away to train anew"))
        };
        for file in files {
            let path = self.path.join(ADAPTER).join(&file.path);
            if !path.exists() {
                return differs(&path, "is gone, and the training that wrote it is finished");
            }
            if measure(&path)? != (file.size, file.hash) {
                return differs(&path, "is not what the finished training wrote");
            }
        }
        let path = self.path.join(ADAPTER).join("metadata.json");
        let made_of: Value =
            fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let of_base = made_of["base_weights"].as_str();
        if of_base.is_some_and(|known| weights_fingerprint(&spec.base, &|| false).is_ok_and(|found| found != known)) {
            let trained =
                format!("has not the weights that the finished training in {} began with", self.path.display());
            return differs(&spec.base, &trained);
        }
        let data = [("file_hash", Some(&spec.dataset)), ("validation_file_hash", spec.validation.as_ref())];
        for (key, file) in data.into_iter().filter_map(|(key, file)| Some((key, file?))) {
            // one of an older version does not say it
            let known = made_of["dataset"][key].as_str().filter(|hash| !hash.is_empty());
            if known.is_some_and(|known| measure(file).is_ok_and(|(_, hash)| hash.to_string() != known)) {
                let trained = format!("is not what the finished training in {} was made of", self.path.display());
                return differs(file, &trained);
            }
        }
        Ok(())
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

    fn is_ours_or_bare(&self) -> Result<(), Failure> {
        let entries = fs::read_dir(&self.path).map_err(|error| Failure::file("read", &self.path, &error))?;
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        if names.iter().all(|name| BARE.iter().any(|bare| name == bare)) || names.iter().any(|name| name == SPEC) {
            return Ok(());
        }
        Err(Failure::mistake(format!("{} is neither empty nor a training", self.path.display())))
    }

    /// Whether it certainly ended before its first step: what cannot be read may be one.
    fn is_blank(&self) -> bool {
        let text = match fs::read(self.path.join(EVENTS)) {
            Ok(text) => text,
            Err(error) => return error.kind() == ErrorKind::NotFound,
        };
        let before_a_step = |line: &[u8]| {
            serde_json::from_slice::<EventLine>(line).is_ok_and(|line| match line.event {
                WorkerEvent::Step(_) | WorkerEvent::Checkpoint { .. } | WorkerEvent::Finished { .. } => false,
                WorkerEvent::Stage { .. }
                | WorkerEvent::Plan(_)
                | WorkerEvent::Log { .. }
                | WorkerEvent::Eval { .. }
                | WorkerEvent::Sample { .. }
                | WorkerEvent::Stopped { .. }
                | WorkerEvent::Failed { .. } => true,
            })
        };
        text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")).all(before_a_step)
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
        let aside = self.path.join(ASIDE);
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

/// What is neither file nor folder would be opened for ever, or read without end.
fn holds_only_files(folder: &Path) -> Result<(), Failure> {
    let entries = match fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
        Ok(entries) => entries,
        // another training takes checkpoints away; of that one the lock tells
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::file("read", folder, &error)),
    };
    for entry in entries {
        let path = entry.path();
        // a link is what it leads to; of one that leads nowhere, or of what is gone by now, nothing is read
        let Ok(kind) = fs::metadata(&path).map(|there| there.file_type()) else { continue };
        if kind.is_dir() && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            holds_only_files(&path)?;
        } else if !kind.is_file() && !kind.is_dir() {
            let what = file::kind(kind);
            return Err(Failure::mistake(format!("{} is {what}, no file of a training", path.display())));
        }
    }
    Ok(())
}

/// Threads, the device on which it goes on and the place of its tokens are no part of what a training is. The last lies in its directory,
/// which may have been moved.
fn same(known: &Spec, wanted: &Spec) -> bool {
    let what = |spec: &Spec| Spec { threads: None, devices: Vec::new(), cache: PathBuf::new(), ..spec.clone() };
    what(known) == what(wanted)
}

/// What is asked for is not what was begun.
fn another(path: &Path, known: &Spec, wanted: &Spec) -> Failure {
    let value = |spec: &Spec| serde_json::to_value(spec).unwrap_or_default();
    let mut differences = Vec::new();
    differ("", &value(known), &value(wanted), &mut differences);
    differences.retain(|line| !["threads ", "devices ", "cache "].iter().any(|place| line.starts_with(place)));
    let listed = differences.iter().map(|line| format!("\n  {line}")).collect::<String>();
    let message = format!("{} holds a training with other settings or files:{listed}", path.display());
    Failure::mistake(message).hint("name another --out, or ask for what it was begun with, and it goes on")
}

/// Every leaf that is not the same, by the key of a job file where it is one of it.
fn differ(place: &str, known: &Value, wanted: &Value, lines: &mut Vec<String>) {
    match (known, wanted) {
        _ if known == wanted => {}
        (Value::Object(known), Value::Object(wanted)) => {
            for (key, value) in wanted {
                let inner = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                differ(&inner, known.get(key).unwrap_or(&Value::Null), value, lines);
            }
        }
        _ => {
            let key = place.trim_start_matches("job.").trim_start_matches("task.Train.");
            lines.push(format!("{key} is {wanted}, was {known}"));
        }
    }
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
        let moved = Spec { cache: "/moved/cache".into(), ..spec(8) };
        let (directory, hold) = Directory::open(&path, &moved).unwrap();
        assert_eq!(directory.spec().unwrap(), Some(moved), "it goes on as it is asked for now");
        drop(hold);
        write(&path, &[WorkerEvent::Finished { step: 1, files: vec![] }]);
        let refused = Directory::open(&path, &Spec { base: "/c".into(), ..spec(16) }).err().unwrap();
        assert_eq!(refused.kind.exit_code(), 2);
        let (_, differences) = refused.message.split_once(":\n").unwrap();
        assert_eq!(differences, "  base is \"/c\", was \"/b\"\n  lora.rank is 16, was 8");
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("thesis.txt"), "").unwrap();
        assert_eq!(Directory::open(&other, &spec(8)).err().unwrap().kind.exit_code(), 2, "not ours to write into");
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1, "nor to lock");
    }

    #[test]
    fn a_pipe_in_a_files_place_is_named_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        drop(Directory::open(&path, &spec(8)).unwrap());
        for name in [LOCK, HOLDER, SPEC, EVENTS, "metrics.jsonl", "checkpoints/step-00000001/manifest.json"] {
            let place = path.join(name);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            let before = fs::read(&place).ok();
            let _ = fs::remove_file(&place);
            rustix::fs::mknodat(rustix::fs::CWD, &place, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
            let refused = Directory::open(&path, &spec(8)).err().unwrap();
            assert_eq!(refused.message, format!("{} is a pipe, no file of a training", place.display()));
            fs::remove_file(&place).unwrap();
            before.into_iter().for_each(|text| fs::write(&place, text).unwrap());
        }
        Directory::open(&path, &spec(8)).unwrap();
    }

    #[test]
    fn a_folder_that_another_training_takes_away_meanwhile_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        holds_only_files(&folder.path().join("checkpoints/step-00000001")).unwrap();
    }

    #[test]
    fn what_a_full_disk_left_of_a_start_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        BARE.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        let (directory, _hold) = Directory::open(folder.path(), &spec(8)).unwrap();
        assert_eq!(directory.spec().unwrap(), Some(spec(8)));
        assert!(!folder.path().join(ASIDE).exists());
    }

    #[test]
    fn of_two_that_begin_at_once_one_is_told_of_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let begin =
            |rank| Directory::open(&path, &spec(rank)).map(|(directory, hold)| (directory.spec().unwrap(), hold));
        let (ours, other) = std::thread::scope(|scope| {
            let other = scope.spawn(|| begin(16));
            (begin(8), other.join().unwrap())
        });
        let began = [(8, ours), (16, other)].map(|(rank, began)| match began {
            Ok((found, hold)) => {
                assert_eq!(found, Some(spec(rank)), "what stands there is what it asked for");
                Some(hold)
            }
            Err(failure) => {
                assert!(failure.message.contains("another process trains in"), "{failure}");
                None
            }
        });
        assert_eq!(began.iter().flatten().count(), 1);
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
        let (directory, _hold) = Directory::open(&path, &spec(16)).unwrap();
        assert_eq!((directory.spec().unwrap(), directory.events()), (Some(spec(16)), vec![]));
    }

    #[test]
    fn a_training_whose_events_cannot_be_understood_is_not_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        drop(Directory::open(&path, &spec(8)).unwrap());
        fs::write(path.join(EVENTS), "{\"seq\": 1, \"time\": 0, \"type\": \"of a later version\"}\n").unwrap();
        assert_eq!(Directory::open(&path, &spec(16)).err().unwrap().kind.exit_code(), 2);
        fs::write(path.join(EVENTS), "{\"seq\": 1, \"ti").unwrap();
        Directory::open(&path, &spec(16)).unwrap();
    }

    #[test]
    fn a_stop_is_taken_back_and_a_success_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let (directory, _) = Directory::open(&path, &spec(8)).unwrap();
        let stage = WorkerEvent::Stage { stage: Stage::Data };
        let stopped = WorkerEvent::Stopped { step: 3, checkpoint: None, cause: StopCause::Signal };
        write(&path, &[stage.clone(), stopped]);
        Directory::open(&path, &spec(8)).unwrap();
        assert_eq!(directory.last(), Some(stage.clone()));
        write(&path, &[stage, WorkerEvent::Finished { step: 3, files: vec![] }]);
        assert!(Directory::open(&path, &spec(8)).unwrap().0.finished().is_some());
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
