//! `events.jsonl`: append-only, one whole line per event, sequence numbers without gaps over all workers of the directory.
//!
//! A line counts once its newline stands there. What a crash left behind the last whole line is cut off before the first new one
//! is written, and numbers go on behind it. So a step that is trained again has a second line; readers take the later of two
//! lines for one step (both hold the same numbers, but for `time` and `seconds`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lorikeet_protocol::id::UnixMillis;
use lorikeet_protocol::worker::{EVENTS, EventLine, WorkerEvent};

/// The events file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {}: {source}", path.display())]
pub struct JournalError {
    verb: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl From<JournalError> for io::Error {
    fn from(error: JournalError) -> io::Error {
        io::Error::new(error.source.kind(), error)
    }
}

/// The events file of one attempt, open for more.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    len: u64,
    last: Option<EventLine>,
}

impl Journal {
    /// Opens the file, cuts off what is no whole line, and finds where the numbers stand.
    pub(crate) fn open(dir: &Path) -> Result<Journal, JournalError> {
        let path = dir.join(EVENTS);
        let fail = |verb, source| JournalError { verb, path: path.clone(), source };
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = opened.map_err(|source| fail("open", source))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(|source| fail("read", source))?;
        let (len, last) = whole(&text);
        let cut = file.set_len(len).and_then(|()| file.seek(SeekFrom::End(0)));
        cut.map_err(|source| fail("cut the torn end of", source))?;
        Ok(Journal { path, file, len, last })
    }

    /// The outcome, when the attempt has one: nothing may follow it.
    pub(crate) fn outcome(&self) -> Option<&WorkerEvent> {
        self.last.as_ref().map(|line| &line.event).filter(|event| event.is_outcome())
    }

    /// Writes one line. Checkpoints and outcomes are synced: others act on them.
    pub(crate) fn append(&mut self, event: WorkerEvent) -> Result<EventLine, JournalError> {
        assert!(self.outcome().is_none(), "nothing follows an outcome");
        let seq = self.last.as_ref().map_or(0, |line| line.seq) + 1;
        let line = EventLine { seq, time: now(), event };
        let mut text = serde_json::to_vec(&line).expect("events hold finite numbers and text");
        text.push(b'\n');
        let durable = line.event.is_outcome() || matches!(line.event, WorkerEvent::Checkpoint { .. });
        let written = self.file.write_all(&text).and_then(|()| if durable { self.file.sync_all() } else { Ok(()) });
        if let Err(source) = written {
            // half a line must not stand before the next one
            let _still_torn = self.file.set_len(self.len).and_then(|()| self.file.seek(SeekFrom::End(0)));
            return Err(JournalError { verb: "write", path: self.path.clone(), source });
        }
        self.len += text.len() as u64;
        self.last = Some(line.clone());
        Ok(line)
    }
}

/// How many bytes are whole lines, and the last of them.
fn whole(text: &[u8]) -> (u64, Option<EventLine>) {
    let mut end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    while end > 0 {
        let start = text[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        // after a power cut a file may end in blocks that were never written
        match serde_json::from_slice(&text[start..end]) {
            Ok(line) => return (end as u64, Some(line)),
            Err(_) => end = start,
        }
    }
    (0, None)
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::worker::Stage;

    #[test]
    fn numbers_go_on_behind_the_last_whole_line() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut journal = Journal::open(dir.path()).expect("opened");
        for _ in 0..3 {
            journal.append(stage()).expect("written");
        }
        drop(journal);
        let path = dir.path().join(EVENTS);
        for torn in [&b"{\"seq\":4,\"ti"[..], &b"\0\0\0\n"[..], &b"\0\0"[..]] {
            let mut file = OpenOptions::new().append(true).open(&path).expect("opened");
            file.write_all(torn).expect("written");
            Journal::open(dir.path()).expect("cut");
        }
        let mut journal = Journal::open(dir.path()).expect("opened again");
        assert_eq!(journal.append(stage()).expect("written").seq, 4);
        let text = std::fs::read_to_string(&path).expect("read");
        let seqs: Vec<u64> =
            text.lines().map(|line| serde_json::from_str::<EventLine>(line).expect("whole").seq).collect();
        assert_eq!(seqs, [1, 2, 3, 4]);
    }

    #[test]
    fn an_outcome_is_found_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut journal = Journal::open(dir.path()).expect("opened");
        let outcome = WorkerEvent::Finished { step: 3, files: vec![] };
        journal.append(outcome.clone()).expect("written");
        assert_eq!(Journal::open(dir.path()).expect("opened").outcome(), Some(&outcome));
    }

    fn stage() -> WorkerEvent {
        WorkerEvent::Stage { stage: Stage::Training }
    }
}
