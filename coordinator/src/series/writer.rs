//! The thread that writes: batches of requests in, one sync per touched file, then the answers.

use super::{
    Followers, Limits, SeriesError, folder,
    segment::{self, MAGIC},
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
/// Files held open between batches; beyond that all are closed and opened again when needed.
const OPEN_FILES: usize = 256;

/// Where an answer goes.
pub(super) type Reply = oneshot::Sender<Result<Held, SeriesError>>;

/// What is here of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    /// The `seq` up to which everything is on disk.
    pub(super) through: u64,
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
    open: HashMap<AttemptId, Log>,
}

impl Writer {
    pub(super) fn new(root: PathBuf, limits: Limits, followers: Arc<Followers>) -> Self {
        let (space, shed) = (Space::new(&root, limits.keep_free), Shed::new(root.clone(), limits));
        Self { root, space, shed, followers, open: HashMap::new() }
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
        if self.open.len() > OPEN_FILES {
            self.open.clear();
        }
    }

    fn append(&mut self, lines: &EventLines) -> Result<(), SeriesError> {
        // Lines go before records do: their senders have them still.
        self.space.check(lines.lines.iter().map(|line| line.len() as u64).sum())?;
        let kept = self.shed.judge(lines.attempt.job)?;
        let written = self.log(lines.attempt)?.append(lines.first, &lines.lines, kept);
        if written.is_err() {
            // What the file holds now is not known: it is read again before the next write.
            self.open.remove(&lines.attempt);
        }
        self.shed.took(lines.attempt.job, written?);
        Ok(())
    }

    fn remove(&mut self, job: JobId) -> Result<(), SeriesError> {
        self.open.retain(|attempt, _| attempt.job != job);
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
        match self.open.entry(attempt) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(Log::open(folder(&self.root, attempt))?)),
        }
    }

    /// Syncs what was written; a log whose sync failed is closed, and its new lines are not acknowledged.
    fn sync(&mut self) -> HashMap<AttemptId, SeriesError> {
        let mut failures = HashMap::new();
        for (attempt, log) in self.open.iter_mut().filter(|(_, log)| log.written != log.synced) {
            match log.sync() {
                Ok(()) => self.followers.wake(attempt.job),
                Err(error) => {
                    failures.insert(*attempt, error);
                }
            }
        }
        self.open.retain(|attempt, _| !failures.contains_key(attempt));
        failures
    }
}

/// How far a log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// The last line's `seq`.
    through: u64,
    /// Length of the last segment, as far as nothing of it is written anew.
    bytes: u64,
}

/// One attempt's last segment, open for writing.
struct Log {
    folder: PathBuf,
    segment: Option<(PathBuf, File)>,
    written: Mark,
    synced: Mark,
    /// Whether it was said that lines are missing.
    told: bool,
    /// Whether something behind the last line cannot be read, and nothing has come in its place.
    is_torn: bool,
    /// Where the last record begins, if it is nothing but a number.
    bare: Option<u64>,
}

impl Log {
    /// Behind the last whole line. What is torn there, or damaged, is left as it lies: a new segment begins behind it.
    fn open(folder: PathBuf) -> Result<Self, SeriesError> {
        let (mut mark, mut segment) = (Mark { through: 0, bytes: 0 }, None);
        let (mut told, mut is_torn, mut bare) = (false, false, None);
        for (_, path) in segment::list(&folder)?.into_iter().rev() {
            let (extent, length) = (segment::extent(&path)?, length(&path)?);
            let Some(through) = extent.last else {
                put_aside(&path, length)?;
                continue;
            };
            mark = Mark { through, bytes: extent.bytes };
            is_torn = length > extent.bytes;
            told = extent.last_lines.last().is_some_and(|line| shed::is_told(line));
            let file = synced(&path)?;
            if is_torn {
                tracing::warn!(path = %path.display(), bytes = length - extent.bytes, "lines at its end cannot be read");
            } else {
                bare = shed::is_bare(&extent.last_lines).then_some(extent.last_record);
                segment = Some((path, file));
            }
            break;
        }
        let aside = segment::list_torn(&folder)?;
        is_torn |= aside.last().is_some_and(|(first, _)| *first > mark.through);
        Ok(Self { folder, segment, written: mark, synced: mark, told, is_torn, bare })
    }

    fn held(&self) -> Held {
        Held { through: self.synced.through, is_torn: self.is_torn }
    }

    /// Writes what is new and kept, and says by how many bytes it grew; lines behind a gap are left for the sender to repeat.
    fn append(&mut self, first: u64, lines: &[String], kept: Kept) -> Result<u64, SeriesError> {
        let next = self.written.through + 1;
        let known = usize::try_from(next.saturating_sub(first)).unwrap_or(usize::MAX);
        let fresh = lines.get(known..).unwrap_or_default();
        if first > next || first == 0 || fresh.is_empty() {
            return Ok(0);
        }
        let mut bytes = 0;
        for (first, run) in shed::sift(next, fresh, kept, &mut self.told) {
            bytes += self.write(first, &run)?;
        }
        self.written.through += fresh.len() as u64;
        self.is_torn = false;
        Ok(bytes)
    }

    /// A number alone takes the place of the one before it, or whoever writes on without end would fill the disk with numbers. Torn by a crash it
    /// leaves the last line that was kept, and the next session of its sender begins behind that.
    fn write(&mut self, first: u64, run: &[String]) -> Result<u64, SeriesError> {
        let (record, is_bare) = (segment::record(first, run), shed::is_bare(run));
        if let (Some(place), Some((path, file)), true) = (self.bare, &mut self.segment, is_bare) {
            self.synced.bytes = self.synced.bytes.min(place);
            let written = file.seek(SeekFrom::Start(place)).and_then(|_| file.write_all(&record));
            return written.map(|()| 0).map_err(SeriesError::disk("write", path));
        }
        let (path, file) = self.segment_for(first)?;
        let written = file.write_all(&record).map_err(SeriesError::disk("write", path));
        if let (Err(_), Some((_, file))) = (&written, &self.segment) {
            // Half a record is ours to take back; a disk that is full has no room for it.
            let _ = file.set_len(self.written.bytes);
        }
        written?;
        self.bare = is_bare.then_some(self.written.bytes);
        self.written.bytes += record.len() as u64;
        Ok(record.len() as u64)
    }

    /// The segment to write to; a new one when the last is full.
    fn segment_for(&mut self, next: u64) -> Result<&mut (PathBuf, File), SeriesError> {
        if self.segment.is_some() && self.written.bytes >= SEGMENT_BYTES {
            self.sync()?;
            self.segment = None;
        }
        if self.segment.is_none() {
            self.segment = Some(create(&self.folder, next)?);
            self.written.bytes = MAGIC.len() as u64;
        }
        Ok(self.segment.as_mut().expect("made above"))
    }

    fn sync(&mut self) -> Result<(), SeriesError> {
        let Some((path, file)) = &self.segment else { return Ok(()) };
        if let Err(error) = file.sync_data() {
            // The kernel forgets a failed write-back: without the cut, a later sync would vouch for pages that never reached the disk.
            let _ = file.set_len(self.synced.bytes);
            return Err(SeriesError::disk("sync", path)(error));
        }
        self.synced = self.written;
        Ok(())
    }
}

fn length(path: &Path) -> Result<u64, SeriesError> {
    Ok(path.metadata().map_err(SeriesError::disk("look at", path))?.len())
}

/// A segment without a whole line makes room for another of its name. One that never had any goes.
fn put_aside(path: &Path, length: u64) -> Result<(), SeriesError> {
    if length <= MAGIC.len() as u64 {
        return std::fs::remove_file(path).map_err(SeriesError::disk("remove", path));
    }
    let aside = path.with_extension(segment::TORN.trim_start_matches('.'));
    tracing::warn!(path = %aside.display(), bytes = length, "none of its lines can be read");
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
