//! Reports, kept on disk until the coordinator has acknowledged them.
//!
//! One file, `reports.log`:
//! ```text
//! "LKO1"  base: u64                      the number before the first entry; survives the last entry
//! entry*: report (a protocol frame)  check: first 8 bytes of the frame's BLAKE3
//! ```
//! A report gets its number when it is pushed and leaves only after [`Outbox::commit`] synced it, so a number never means two
//! things: an entry torn by a crash was never sent, and its number is free. One that the disk has damaged looks the same and takes those behind
//! it along; the next welcome says how far the coordinator is, and of which attempts it waits for an end that is nowhere. A [`Progress`](ReportBody::Progress) that never left
//! in this session or before this agent is replaced in memory by a newer one under the same number; if a crash brings the older one back, that
//! is harmless, for the coordinator applies each number once.

use crate::{
    beneath::{self, For},
    disk::{self, Access, At, DiskError},
};
use lorikeet_protocol::{
    agent::{Report, ReportBody},
    codec,
    id::{AttemptId, UnixMillis},
};
use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

const REPORTS: &str = "reports.log";
const MAGIC: &[u8; 4] = b"LKO1";
const HEADER_BYTES: usize = 12;
const CHECK_BYTES: usize = 8;
/// A file longer than this is written anew when most of it is acknowledged entries.
const COMPACT_BYTES: u64 = 1 << 20;

/// The queue of reports.
#[derive(Debug)]
pub(crate) struct Outbox {
    path: PathBuf,
    file: File,
    /// Bytes of the file that are whole entries.
    length: u64,
    /// Of these, bytes of entries that have left the queue, within what a newer progress in the place of an older one changes.
    dead: u64,
    /// Encoded since the last commit.
    unwritten: Vec<u8>,
    /// The highest number acknowledged, or the one before the first entry.
    base: u64,
    /// What is not acknowledged, numbers `base + 1` onwards.
    queue: VecDeque<Report>,
    /// Attempts of which an acknowledged report has left the queue, until the answer that names them.
    gone: Vec<AttemptId>,
    /// The number before the next to leave.
    sent: u64,
    /// The highest number that left in this session, or before this agent: it may be applied, and means what it said.
    left: u64,
    /// The highest number that is synced; nothing above it may leave.
    synced: u64,
}

impl Outbox {
    /// Opens the outbox in `folder`, or begins one. A torn tail is cut off.
    pub(crate) fn open(folder: &Path) -> Result<Self, DiskError> {
        disk::create_folder(folder)?;
        let path = folder.join(REPORTS);
        let mut bytes = Vec::new();
        match beneath::open_file(folder, Path::new(REPORTS), For::Reading) {
            Ok(mut file) => drop(file.read_to_end(&mut bytes).at("read", &path)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at("read", &path),
        }
        let (base, queue, length) = parse(&bytes).unwrap_or_else(|| {
            if !bytes.is_empty() {
                tracing::warn!(path = %path.display(), "the outbox has no readable head; it begins anew");
            }
            (0, VecDeque::new(), 0)
        });
        if length == 0 {
            disk::replace(&path, &header(0), Access::Plain)?;
        }
        let length = length.max(HEADER_BYTES as u64);
        let mut file = OpenOptions::new().read(true).write(true).open(&path).at("open", &path)?;
        let cut = file.metadata().at("read", &path)?.len().saturating_sub(length);
        if cut > 0 {
            tracing::warn!(path = %path.display(), cut, "the outbox ends in bytes that are no whole report, and they are cut off: a crash tore the last report before it was sent, or the disk has damaged some, which are lost");
            file.set_len(length).and_then(|()| file.sync_all()).at("cut", &path)?;
        }
        file.seek(SeekFrom::Start(length)).at("seek in", &path)?;
        let synced = base + queue.len() as u64;
        let (unwritten, gone) = (Vec::new(), Vec::new());
        // An earlier agent may have sent all of it: acknowledged entries stay in the file until it is written anew.
        Ok(Self { path, file, length, dead: 0, unwritten, base, queue, gone, sent: base, left: synced, synced })
    }

    /// Reports through this one are the coordinator's, and no longer here.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.base
    }

    /// The number of the newest report.
    pub(crate) fn last(&self) -> u64 {
        self.base + self.queue.len() as u64
    }

    /// Queues a report; it is safe after [`commit`](Self::commit).
    pub(crate) fn push(&mut self, attempt: AttemptId, time: UnixMillis, body: ReportBody) {
        if matches!(body, ReportBody::Progress(_)) && self.replace_progress(attempt, time, &body) {
            return;
        }
        let report = Report { number: self.last() + 1, attempt, time, body };
        match entry(&report) {
            Ok(bytes) => self.unwritten.extend_from_slice(&bytes),
            // Offers are bounded by the frame size, and so is what is said of an end.
            Err(error) => {
                tracing::error!(%attempt, %error, "a report is too long to be sent and is dropped");
                return;
            }
        }
        self.queue.push_back(report);
    }

    /// Makes every pushed report last.
    pub(crate) fn commit(&mut self) -> Result<(), DiskError> {
        if !self.unwritten.is_empty() {
            // What is written to a file that was taken away, or replaced, is lost with the descriptor, without a word.
            if !disk::is_at(&self.file, &self.path).at("look at", &self.path)? {
                return self.compact();
            }
            self.append().at("append to", &self.path)?;
            self.length += self.unwritten.len() as u64;
            self.unwritten.clear();
        }
        self.synced = self.last();
        Ok(())
    }

    /// The next report to send, without taking it.
    pub(crate) fn next(&self) -> Option<&Report> {
        if self.sent >= self.synced { None } else { self.queue.get((self.sent - self.base) as usize) }
    }

    /// The report that [`next`](Self::next) showed has left.
    pub(crate) fn sent(&mut self) {
        self.sent = (self.sent + 1).min(self.synced);
        self.left = self.left.max(self.sent);
    }

    /// Whether something that has left in this session is not acknowledged.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.sent > self.base
    }

    /// Everything that is not acknowledged leaves again.
    pub(crate) fn rewind(&mut self) {
        self.sent = self.base;
    }

    /// A new session begins: the coordinator has applied reports up to `last_report`. Numbers go on behind what either side knows.
    /// Answers the attempts of which nothing waits any more.
    pub(crate) fn resume(&mut self, last_report: u64) -> Result<Vec<AttemptId>, DiskError> {
        self.commit()?;
        self.drop_through(last_report);
        if last_report > self.last() {
            tracing::warn!(
                last_report,
                ours = self.last(),
                "the coordinator knows more reports of this node than the node does"
            );
            let ours = std::mem::replace(&mut self.base, last_report);
            if let Err(error) = self.compact() {
                self.base = ours;
                return Err(error);
            }
        }
        self.rewind();
        // What an earlier session left unsaid is not listened to any more.
        self.left = self.base;
        Ok(self.delivered())
    }

    /// Forgets reports up to `through`; answers the attempts of which nothing waits any more.
    pub(crate) fn acknowledge(&mut self, through: u64) -> Vec<AttemptId> {
        self.drop_through(through);
        let is_most_dead = self.dead > self.length / 2;
        if is_most_dead && (self.length > COMPACT_BYTES || (self.queue.is_empty() && self.length > COMPACT_BYTES / 16))
        {
            // A longer file than need be is no reason to keep anybody waiting; the next acknowledgement tries again.
            self.compact().unwrap_or_else(|error| tracing::warn!("could not {}", crate::link::chain(&error)));
        }
        self.delivered()
    }

    fn drop_through(&mut self, through: u64) {
        while self.base < through.min(self.synced) {
            if let Some(report) = self.queue.pop_front() {
                self.dead += entry(&report).map_or(0, |bytes| bytes.len() as u64);
                self.gone.push(report.attempt);
            }
            self.base += 1;
        }
        self.sent = self.sent.max(self.base);
    }

    fn delivered(&mut self) -> Vec<AttemptId> {
        let mut gone = std::mem::take(&mut self.gone);
        gone.sort_unstable();
        gone.dedup();
        gone.retain(|attempt| !self.queue.iter().any(|report| report.attempt == *attempt));
        gone
    }

    /// The reports that wait, oldest first.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Report> {
        self.queue.iter()
    }

    /// The first that tells an evaluation says after which step it was, and stays: a sweep judges by every one. So what waits while nobody
    /// listens grows by one entry with each evaluation, and with nothing else of a training's course.
    fn replace_progress(&mut self, attempt: AttemptId, time: UnixMillis, body: &ReportBody) -> bool {
        let left = self.left.saturating_sub(self.base) as usize;
        let mut of_attempt = self.queue.iter_mut().skip(left).rev().filter(|report| report.attempt == attempt);
        let Some(old) = of_attempt.next() else { return false };
        let Some(told) = evaluation(&old.body) else { return false };
        let is_told_before = of_attempt.next().is_some_and(|before| evaluation(&before.body) == Some(told));
        if told.is_some() && !is_told_before {
            return false;
        }
        (old.body, old.time) = (body.clone(), time);
        true
    }

    fn append(&mut self) -> std::io::Result<()> {
        // After a failed write the file may hold half an entry: the next one begins where the last whole one ended.
        self.file.seek(SeekFrom::Start(self.length))?;
        self.file.write_all(&self.unwritten)?;
        self.file.sync_data()
    }

    fn compact(&mut self) -> Result<(), DiskError> {
        let mut bytes = header(self.base).to_vec();
        for report in &self.queue {
            bytes.extend(entry(report).unwrap_or_default());
        }
        disk::replace(&self.path, &bytes, Access::Plain)?;
        self.file = OpenOptions::new().read(true).write(true).open(&self.path).at("open", &self.path)?;
        (self.length, self.dead) = (bytes.len() as u64, 0);
        self.unwritten.clear();
        self.synced = self.last();
        Ok(())
    }
}

/// Of a progress: which evaluation it tells, if any.
fn evaluation(body: &ReportBody) -> Option<Option<u64>> {
    let ReportBody::Progress(progress) = body else { return None };
    Some(progress.validation_loss.map(f64::to_bits))
}

fn header(base: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4..].copy_from_slice(&base.to_le_bytes());
    bytes
}

fn entry(report: &Report) -> Result<Vec<u8>, codec::CodecError> {
    let mut bytes = codec::encode(report)?;
    let check = blake3::hash(&bytes);
    bytes.extend_from_slice(&check.as_bytes()[..CHECK_BYTES]);
    Ok(bytes)
}

/// Base, reports and the length of what is whole; `None` where not even the head is.
pub(crate) fn parse(bytes: &[u8]) -> Option<(u64, VecDeque<Report>, u64)> {
    let (head, mut rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let base = head.strip_prefix(MAGIC).and_then(|base| base.try_into().ok()).map(u64::from_le_bytes)?;
    // No node comes so far: a head that says so is none of ours, and numbers would end in the middle of a report.
    if base > u64::MAX / 2 {
        return None;
    }
    let mut queue = VecDeque::new();
    while let Some((report, behind)) = parse_entry(rest) {
        if report.number != base + queue.len() as u64 + 1 {
            break;
        }
        queue.push_back(report);
        rest = behind;
    }
    Some((base, queue, (bytes.len() - rest.len()) as u64))
}

fn parse_entry(bytes: &[u8]) -> Option<(Report, &[u8])> {
    let body = codec::body_length(*bytes.first_chunk()?).ok()?;
    let (frame, rest) = bytes.split_at_checked(codec::HEADER_BYTES + body)?;
    let (check, rest) = rest.split_first_chunk::<CHECK_BYTES>()?;
    let whole = blake3::hash(frame).as_bytes()[..CHECK_BYTES] == *check;
    let report = whole.then(|| codec::decode(&frame[codec::HEADER_BYTES..]).ok()).flatten()?;
    Some((report, rest))
}

#[cfg(test)]
mod tests;
