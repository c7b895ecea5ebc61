//! The thread that writes: batches of requests in, one sync per touched file, then the answers.

use super::{
    Followers, Limits, SeriesError, folder,
    marks::Marks,
    segment::{self, Extent, MAGIC},
    shed::{self, Kept, Shed},
};
use crate::space::Space;
use lorikeet_protocol::{
    agent::EventLines,
    id::{AttemptId, JobId},
};
use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::{mpsc, oneshot};

/// A full segment is closed; a torn tail then costs a scan of at most this much.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Requests written before a sync: the first of them waits for the last.
const BATCH: usize = 64;
/// How far an attempt is whose last lines are not kept.
const THROUGH: &str = "through";
/// Files held open between batches; beyond that those that were not used for longest are closed, and opened again when needed.
const OPEN_FILES: usize = 256;
/// Attempts of which it is remembered how far they are, so that nothing is read to go on behind their last line: more than write at one
/// time. Beyond that those that nobody asked for longest are forgotten, and looked at again when needed.
const KNOWN: usize = 4_096;

/// Where an answer goes.
pub(super) type Reply = oneshot::Sender<Result<Held, SeriesError>>;

/// What is here of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    /// The `seq` up to which everything is here, on disk or not to be kept.
    pub(super) through: u64,
    /// The last line that is kept.
    pub(super) kept: u64,
    /// Whether there was something behind it that cannot be read, and nothing has come in its place.
    pub(super) is_torn: bool,
}

/// What is asked of the thread.
#[derive(Debug)]
pub(super) enum Request {
    Append {
        lines: EventLines,
        reply: Reply,
    },
    Look {
        attempt: AttemptId,
        reply: Reply,
    },
    /// Everything of a job goes; answered with nothing.
    Remove {
        job: JobId,
        reply: Reply,
    },
}

/// What the thread owns.
pub(super) struct Writer {
    root: PathBuf,
    space: Space,
    shed: Shed,
    followers: Arc<Followers>,
    marks: Arc<Marks>,
    logs: HashMap<AttemptId, Log>,
    /// Batches so far: by that it is known which log was used last.
    batches: u64,
    /// How often an attempt's files were read to find out how far it is.
    #[cfg(test)]
    scans: usize,
}

impl Writer {
    pub(super) fn new(root: PathBuf, limits: Limits, followers: Arc<Followers>, marks: Arc<Marks>) -> Self {
        let (space, shed) = (Space::new(&root, limits.keep_free), Shed::new(root.clone(), limits));
        Self {
            root,
            space,
            shed,
            followers,
            marks,
            logs: HashMap::new(),
            batches: 0,
            #[cfg(test)]
            scans: 0,
        }
    }

    /// Until the last handle is gone.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(request) = requests.try_recv()
            {
                batch.push(request);
            }
            self.serve(batch);
        }
    }

    fn serve(&mut self, batch: Vec<Request>) {
        self.batches += 1;
        let mut waiting = Vec::new();
        for request in batch {
            let (attempt, reply, written) = match request {
                Request::Remove { job, reply } => {
                    let _ = reply.send(self.remove(job).map(|()| Held::default()));
                    continue;
                }
                Request::Append { lines, reply } => (lines.attempt, reply, self.append(&lines)),
                Request::Look { attempt, reply } => (attempt, reply, self.log(attempt).map(|_| ())),
            };
            waiting.push((attempt, reply, written));
        }
        let failures = self.sync();
        for (attempt, reply, written) in waiting {
            let failed = failures.get(&attempt).cloned();
            let answer = failed.map_or(written, Err).and_then(|()| Ok(self.log(attempt)?.held()));
            // Whoever asked may have gone; the lines stay.
            let _ = reply.send(answer);
        }
        self.rest();
    }

    fn append(&mut self, lines: &EventLines) -> Result<(), SeriesError> {
        // Lines go before records do: their senders have them still.
        self.space.check(lines.lines.iter().map(|line| line.len() as u64).sum())?;
        let kept = self.shed.judge(lines.attempt.job)?;
        let written = self.log_to_write(lines.attempt)?.append(lines.first, &lines.lines, kept);
        if written.is_err() {
            // What the file holds now is not known: it is read again before the next write.
            self.logs.remove(&lines.attempt);
        }
        self.shed.took(lines.attempt.job, written?);
        Ok(())
    }

    fn remove(&mut self, job: JobId) -> Result<(), SeriesError> {
        self.logs.retain(|attempt, _| attempt.job != job);
        self.shed.forget(job)?;
        let folder = self.root.join(job.to_string());
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                self.shed.recount();
                Err(SeriesError::disk("remove", &folder)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn log(&mut self, attempt: AttemptId) -> Result<&mut Log, SeriesError> {
        use std::collections::hash_map::Entry;
        let log = match self.logs.entry(attempt) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                #[cfg(test)]
                {
                    self.scans += 1;
                }
                place.insert(Log::open(folder(&self.root, attempt), &self.marks)?)
            }
        };
        log.used = self.batches;
        Ok(log)
    }

    /// The same, with its file open. One that is not as it was left is looked at again.
    fn log_to_write(&mut self, attempt: AttemptId) -> Result<&mut Log, SeriesError> {
        if !self.log(attempt)?.wake() {
            self.logs.remove(&attempt);
        }
        self.log(attempt)
    }

    /// Closes the files that were not used for longest, and forgets the logs, each as far as there are too many. By now all is synced.
    fn rest(&mut self) {
        if self.logs.len() <= OPEN_FILES {
            return;
        }
        let open = self.logs.iter().filter(|(_, log)| log.is_awake());
        for attempt in surplus(open, OPEN_FILES) {
            self.logs.get_mut(&attempt).into_iter().for_each(Log::close);
        }
        for attempt in surplus(self.logs.iter(), KNOWN) {
            self.logs.remove(&attempt);
        }
    }

    /// Syncs what was written; a log whose sync failed is closed, and its new lines are not acknowledged.
    fn sync(&mut self) -> HashMap<AttemptId, SeriesError> {
        let mut failures = HashMap::new();
        for (attempt, log) in self.logs.iter_mut().filter(|(_, log)| log.written != log.synced) {
            match log.sync() {
                Ok(()) => self.followers.wake(attempt.job),
                Err(error) => {
                    failures.insert(*attempt, error);
                }
            }
        }
        self.logs.retain(|attempt, _| !failures.contains_key(attempt));
        failures
    }
}

/// All but the newest so many.
fn surplus<'a>(logs: impl Iterator<Item = (&'a AttemptId, &'a Log)>, most: usize) -> Vec<AttemptId> {
    let mut used: Vec<(u64, AttemptId)> = logs.map(|(attempt, log)| (log.used, *attempt)).collect();
    used.sort_unstable();
    used.truncate(used.len().saturating_sub(most));
    used.into_iter().map(|(_, attempt)| attempt).collect()
}

/// How far a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Mark {
    /// The last line's `seq`.
    through: u64,
    /// That of the last one that is kept.
    kept: u64,
    /// Length of the last segment.
    bytes: u64,
}

/// How far one attempt is, and its last segment.
struct Log {
    folder: PathBuf,
    segment: Option<Segment>,
    written: Mark,
    synced: Mark,
    /// Whether it was said that lines are missing.
    told: bool,
    /// Whether something behind the last line cannot be read, and nothing has come in its place.
    is_torn: bool,
    /// In which batch.
    used: u64,
}

/// A segment that is written on. Its file is closed while there are too many others.
struct Segment {
    path: PathBuf,
    file: Option<File>,
}

impl Log {
    /// Behind the last whole line. What is torn there, or damaged, is left as it lies: a new segment begins behind it.
    fn open(folder: PathBuf, marks: &Marks) -> Result<Self, SeriesError> {
        let (mut mark, mut segment, mut is_torn) = (Mark::default(), None, false);
        for (_, path) in segment::list(&folder)?.into_iter().rev() {
            let length = length(&path)?;
            let (extent, unread) = match segment::extent(&path) {
                Ok(extent) => (extent, None),
                // The disk does not give it: what it held is as lost as if it were damaged, and the rest of the attempt is not.
                Err(error) => (Extent { bytes: 0, last: None }, Some(error)),
            };
            let Some(kept) = extent.last else {
                put_aside(&path, length, unread)?;
                marks.forget(&path);
                continue;
            };
            mark = Mark { through: kept, kept, bytes: extent.bytes };
            is_torn = length > extent.bytes;
            let file = synced(&path)?;
            if is_torn {
                tracing::warn!(path = %path.display(), bytes = length - extent.bytes, "lines at its end cannot be read");
            } else {
                segment = Some(Segment { path, file: Some(file) });
            }
            break;
        }
        let aside = segment::list_torn(&folder)?;
        is_torn |= aside.last().is_some_and(|(first, _)| *first > mark.through);
        let number = number(&folder.join(THROUGH));
        mark.through = mark.through.max(number.unwrap_or(0));
        Ok(Self { folder, segment, written: mark, synced: mark, told: number.is_some(), is_torn, used: 0 })
    }

    /// Opens the file again if it was closed; false: it is not as it was left.
    fn wake(&mut self) -> bool {
        let Some(Segment { path, file: file @ None }) = &mut self.segment else { return true };
        *file = reopened(path, self.written.bytes);
        file.is_some()
    }

    fn is_awake(&self) -> bool {
        self.segment.as_ref().is_some_and(|segment| segment.file.is_some())
    }

    /// Only once all of it is synced.
    fn close(&mut self) {
        let is_synced = self.written == self.synced;
        self.segment.iter_mut().filter(|_| is_synced).for_each(|segment| segment.file = None);
    }

    fn held(&self) -> Held {
        Held { through: self.synced.through, kept: self.synced.kept, is_torn: self.is_torn }
    }

    /// Writes what is new and kept, and says how many bytes that took; lines behind a gap are left for the sender to repeat.
    fn append(&mut self, first: u64, lines: &[String], kept: Kept) -> Result<u64, SeriesError> {
        let next = self.written.through + 1;
        let known = usize::try_from(next.saturating_sub(first)).unwrap_or(usize::MAX);
        let fresh = lines.get(known..).unwrap_or_default();
        if first > next || first == 0 || fresh.is_empty() {
            return Ok(0);
        }
        let mut bytes = 0;
        for (first, run) in shed::sift(next, fresh, kept, &mut self.told) {
            let record = segment::record(first, &run);
            let (path, mut file, length) = self.segment_for(first)?;
            let written = file.write_all(&record).map_err(SeriesError::disk("write", path));
            if written.is_err() {
                // Half a record is ours to take back; a disk that is full has no room for it.
                let _ = file.set_len(length);
            }
            written?;
            self.written.kept = first + run.len() as u64 - 1;
            self.written.bytes += record.len() as u64;
            bytes += record.len() as u64;
        }
        self.written.through += fresh.len() as u64;
        self.is_torn = false;
        Ok(bytes)
    }

    /// The segment to write to, and its length; a new one when the last is full.
    fn segment_for(&mut self, next: u64) -> Result<(&Path, &File, u64), SeriesError> {
        if self.segment.is_some() && self.written.bytes >= SEGMENT_BYTES {
            self.sync()?;
            self.segment = None;
        }
        if self.segment.is_none() {
            let (path, file) = create(&self.folder, next)?;
            self.segment = Some(Segment { path, file: Some(file) });
            (self.written.bytes, self.synced.bytes) = (MAGIC.len() as u64, MAGIC.len() as u64);
        }
        let Segment { path, file } = self.segment.as_ref().expect("made above");
        Ok((path, file.as_ref().expect("whoever writes has opened it"), self.written.bytes))
    }

    fn sync(&mut self) -> Result<(), SeriesError> {
        if self.written.kept != self.synced.kept
            && let Some(Segment { path, file: Some(file) }) = &self.segment
            && let Err(error) = file.sync_data()
        {
            // The kernel forgets a failed write-back: without the cut, a later sync would vouch for pages that never reached the disk.
            let _ = file.set_len(self.synced.bytes);
            return Err(SeriesError::disk("sync", path)(error));
        }
        if self.written.through > self.written.kept {
            keep_number(&self.folder, self.written.through)?;
        }
        self.synced = self.written;
        Ok(())
    }
}

/// One that cannot be read is as good as none: its lines come again.
fn number(path: &Path) -> Option<u64> {
    let extent = segment::extent(path).inspect_err(|error| {
        if path.exists() {
            tracing::warn!(path = %path.display(), error = error as &dyn std::error::Error, "how far an attempt is cannot be read");
        }
    });
    extent.ok().and_then(|extent| extent.last)
}

/// How far the attempt is, of which no line says it. The number before it stays until this one is durable.
fn keep_number(folder: &Path, through: u64) -> Result<(), SeriesError> {
    let (path, new) = (folder.join(THROUGH), folder.join(format!("{THROUGH}.new")));
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(&segment::number(through))?;
        file.sync_data()
    });
    written.map_err(SeriesError::disk("write", &new))?;
    std::fs::rename(&new, &path).map_err(SeriesError::disk("rename", &new))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(SeriesError::disk("sync", folder))
}

fn length(path: &Path) -> Result<u64, SeriesError> {
    Ok(path.metadata().map_err(SeriesError::disk("look at", path))?.len())
}

/// A segment without a whole line makes room for another of its name; of several such the newest stays. One that never had any goes.
fn put_aside(path: &Path, length: u64, unread: Option<SeriesError>) -> Result<(), SeriesError> {
    if length <= MAGIC.len() as u64 && unread.is_none() {
        return std::fs::remove_file(path).map_err(SeriesError::disk("remove", path));
    }
    let aside = path.with_extension(segment::TORN.trim_start_matches('.'));
    let error = unread.as_ref().map(|error| error as &dyn std::error::Error);
    tracing::warn!(path = %aside.display(), bytes = length, error, "none of its lines can be read");
    std::fs::rename(path, &aside).map_err(SeriesError::disk("rename", path))
}

/// A segment to write on. Whoever wrote it may not have come to sync it, and what is read here is vouched for.
fn synced(path: &Path) -> Result<File, SeriesError> {
    let mut file = OpenOptions::new().write(true).open(path).map_err(SeriesError::disk("open", path))?;
    file.sync_all().map_err(SeriesError::disk("sync", path))?;
    sync_names(path)?;
    file.seek(SeekFrom::End(0)).map_err(SeriesError::disk("seek", path))?;
    Ok(file)
}

/// A segment that was closed at this length, synced and whole; `None`: it is another now.
fn reopened(path: &Path, length: u64) -> Option<File> {
    let mut file = OpenOptions::new().write(true).open(path).ok()?;
    (file.seek(SeekFrom::End(0)).ok()? == length).then_some(file)
}

/// Makes a segment whose name is durable before anything in it is acknowledged.
fn create(folder: &Path, first: u64) -> Result<(PathBuf, File), SeriesError> {
    let path = folder.join(segment::name(first));
    std::fs::create_dir_all(folder).map_err(SeriesError::disk("make", folder))?;
    let mut file = File::create(&path).map_err(SeriesError::disk("make", &path))?;
    file.write_all(MAGIC).map_err(SeriesError::disk("write", &path))?;
    sync_names(&path)?;
    Ok((path, file))
}

/// A segment's name in its attempt's folder, that one's in its job's, and that one's in the root: each may be new.
fn sync_names(segment: &Path) -> Result<(), SeriesError> {
    let folders = segment.ancestors().skip(1).take(3);
    folders.into_iter().try_for_each(|folder| {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(SeriesError::disk("sync", folder))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::id::{AttemptToken, JobId};

    fn attempt(number: u32) -> AttemptId {
        AttemptId { job: JobId(uuid::Uuid::from_u128(7)), token: AttemptToken { generation: 1, number } }
    }

    /// Keeps one line of each attempt in turn, a batch each, and answers up to where each is here.
    fn append(writer: &mut Writer, attempts: u32, seq: u64) -> Vec<u64> {
        let one = |number| {
            let (reply, mut answer) = oneshot::channel();
            let lines = EventLines { attempt: attempt(number), first: seq, lines: vec!["{}".into()] };
            writer.serve(vec![Request::Append { lines, reply }]);
            answer.try_recv().unwrap().unwrap().through
        };
        (1..=attempts).map(one).collect()
    }

    fn writer(root: &Path) -> Writer {
        Writer::new(root.to_owned(), Limits::default(), Arc::default(), Arc::default())
    }

    #[test]
    fn more_attempts_than_files_may_be_open_write_on_and_nothing_is_read_for_that() {
        let root = tempfile::tempdir().unwrap();
        let (mut writer, attempts) = (writer(root.path()), OPEN_FILES as u32 + 44);
        for seq in 1..=3 {
            assert_eq!(append(&mut writer, attempts, seq), vec![seq; attempts as usize]);
            assert_eq!(writer.logs.values().filter(|log| log.is_awake()).count(), OPEN_FILES);
        }
        assert_eq!(writer.scans, attempts as usize, "each was looked at once, when its first line came");
        let last: Vec<_> = (45..=attempts).map(attempt).collect();
        assert!(last.iter().all(|attempt| writer.logs[attempt].is_awake()), "those that wrote last");
    }

    #[test]
    fn a_closed_file_that_somebody_changed_is_looked_at_again() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = writer(root.path());
        let attempts = OPEN_FILES as u32 + 1;
        append(&mut writer, attempts, 1);
        let path = folder(root.path(), attempt(1)).join(segment::name(1));
        assert!(!writer.logs[&attempt(1)].is_awake());
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"torn").unwrap();
        assert_eq!(append(&mut writer, 1, 2), [2]);
        assert_eq!(writer.scans, attempts as usize + 1);
        assert_eq!(segment::list(path.parent().unwrap()).unwrap().len(), 2, "what is torn is left as it lies");
    }
}
