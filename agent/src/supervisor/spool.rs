//! An attempt's events on their way to the coordinator. The events file itself is the spool: this is only a place in it.

use super::tail::Tail;
use lorikeet_protocol::{
    agent::EventLines,
    id::{AttemptId, UnixMillis},
    worker::{EVENTS, EventLine, Level, WorkerEvent},
};
use serde::Deserialize;
use std::{
    collections::VecDeque,
    io,
    path::Path,
    time::{Duration, Instant},
};

/// Bytes of lines in one message.
const BATCH_BYTES: usize = 256 << 10;

/// A place in an events file.
#[derive(Debug)]
pub(crate) struct Spool {
    attempt: AttemptId,
    tail: Tail,
    read: VecDeque<Line>,
    /// Lines up to this `seq` are with the coordinator.
    through: u64,
    /// Lines up to this `seq` have left in this session.
    sent: u64,
    /// A place in the file before which every line is with the coordinator: where reading begins again.
    begin: u64,
    /// The last line of each message that has left and is not acknowledged: its `seq`, and the place before what was read with it.
    marks: VecDeque<(u64, u64)>,
    /// Since when lines that have left wait for a word that they are kept.
    waiting: Option<Instant>,
    /// Whether lines were not kept a moment ago: then one message at a time leaves, until one is.
    doubtful: bool,
}

/// A line that was read and has not left.
#[derive(Debug)]
struct Line {
    seq: u64,
    text: String,
    /// The place before what was read with it.
    from: u64,
}

/// What every line has.
#[derive(Deserialize)]
struct Head {
    seq: u64,
    time: UnixMillis,
}

impl Spool {
    /// At the beginning of the attempt's events.
    pub(crate) fn new(attempt: AttemptId, directory: &Path) -> Self {
        Self {
            attempt,
            tail: Tail::new(directory, EVENTS),
            read: VecDeque::new(),
            through: 0,
            sent: 0,
            begin: 0,
            marks: VecDeque::new(),
            waiting: None,
            doubtful: false,
        }
    }

    /// A new session: what is not acknowledged is sent again.
    pub(crate) fn rewind(&mut self, through: u64) {
        if through < self.through {
            // A coordinator that was set back: where it stands in the file is not known.
            self.begin = 0;
        }
        self.through = through;
        self.go_back();
        self.doubtful = false;
    }

    /// A new session that says nothing of this attempt: as far as it is known.
    pub(crate) fn rewind_to_acknowledged(&mut self) {
        self.rewind(self.through);
    }

    /// Lines that have left were not kept. They are sent again, and until some are kept, no more of them than one message: a
    /// coordinator whose disk is full would be sent the whole file again and again.
    pub(crate) fn retry(&mut self) {
        self.go_back();
        self.doubtful = true;
    }

    fn go_back(&mut self) {
        (self.sent, self.waiting) = (self.through, None);
        self.marks.clear();
        self.read.clear();
        self.tail.go_to(self.begin);
    }

    /// Lines up to this `seq` are with the coordinator.
    pub(crate) fn acknowledge(&mut self, through: u64) {
        if through > self.through {
            self.through = through;
            self.doubtful = false;
            self.waiting = (through < self.sent).then(Instant::now);
            while let Some((_, from)) = self.marks.pop_front_if(|(seq, _)| *seq <= through) {
                self.begin = from;
            }
        }
    }

    /// When what has left and is not acknowledged is sent again: a coordinator whose disk is full keeps no lines, and says nothing.
    pub(crate) fn retry_at(&self, after: Duration) -> Option<Instant> {
        self.waiting.map(|since| since + after)
    }

    /// The next message, if there are lines for one.
    pub(crate) fn next(&mut self) -> io::Result<Option<EventLines>> {
        if self.doubtful && self.waiting.is_some() {
            return Ok(None);
        }
        while self.read.iter().map(|line| line.text.len()).sum::<usize>() < BATCH_BYTES {
            let from = self.tail.place();
            let lines = self.tail.read()?;
            if lines.is_empty() {
                break;
            }
            let numbered = lines.into_iter().filter_map(numbered).filter(|(seq, _)| *seq > self.through);
            self.read.extend(numbered.map(|(seq, text)| Line { seq, text, from }));
        }
        Ok(self.batch())
    }

    fn batch(&mut self) -> Option<EventLines> {
        let (first, mut mark) = self.read.front().map(|line| (line.seq, (line.seq, line.from)))?;
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while let Some(Line { seq, text, from }) = self.read.front() {
            let follows = *seq == first + lines.len() as u64;
            if !follows || (!lines.is_empty() && bytes + text.len() > BATCH_BYTES) {
                break;
            }
            bytes += text.len();
            mark = (*seq, *from);
            lines.extend(self.read.pop_front().map(|line| line.text));
        }
        self.sent = mark.0;
        self.marks.push_back(mark);
        self.waiting.get_or_insert_with(Instant::now);
        Some(EventLines { attempt: self.attempt, first, lines })
    }
}

/// A line with its number. One that is too long for a message is replaced, for numbers have no gaps.
fn numbered(line: String) -> Option<(u64, String)> {
    let head: Head = serde_json::from_str(&line).ok()?;
    let line = if line.len() > BATCH_BYTES { placeholder(&head, line.len()) } else { line };
    Some((head.seq, line))
}

fn placeholder(head: &Head, length: usize) -> String {
    let message = format!("an event of {length} bytes is too long to be sent; it stands in events.jsonl on its node");
    let event = WorkerEvent::Log { level: Level::Warning, message };
    serde_json::to_string(&EventLine { seq: head.seq, time: head.time, event }).expect("a log line is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::id::{AttemptToken, JobId};

    #[test]
    fn lines_leave_in_order_without_gaps_and_again_after_a_rewind() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = spool(&folder, &[line(1, 10), line(2, 10), line(3, 10)]);
        assert_eq!(firsts(&mut spool), [(1, 3)]);
        spool.rewind(2);
        assert_eq!(firsts(&mut spool), [(3, 1)]);
        assert_eq!(firsts(&mut spool), []);
    }

    #[test]
    fn only_what_has_left_and_is_not_acknowledged_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = spool(&folder, &[line(1, 10), line(2, 10), line(3, 10)]);
        let waits = |spool: &Spool| spool.retry_at(Duration::ZERO).is_some();
        assert!(!waits(&spool), "nothing has left");
        assert_eq!(firsts(&mut spool), [(1, 3)]);
        for (through, left) in [(0, true), (2, true), (3, false)] {
            spool.acknowledge(through);
            assert_eq!(waits(&spool), left, "{through} of 3 are kept");
        }
    }

    #[test]
    fn lines_that_were_not_kept_leave_a_message_at_a_time_until_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<_> = (1..=6).map(|seq| line(seq, 100 << 10)).collect();
        let mut spool = spool(&folder, &lines);
        assert_eq!(firsts(&mut spool), [(1, 2), (3, 2), (5, 2)]);
        for _ in 0..2 {
            spool.retry();
            assert_eq!(firsts(&mut spool), [(1, 2)]);
        }
        spool.acknowledge(2);
        assert_eq!(firsts(&mut spool), [(3, 2), (5, 2)]);
    }

    #[test]
    fn what_is_acknowledged_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<_> = (1..=6).map(|seq| line(seq, 100 << 10)).collect();
        let mut spool = spool(&folder, &lines);
        assert_eq!(firsts(&mut spool), [(1, 2), (3, 2), (5, 2)]);
        spool.acknowledge(4);
        assert!(spool.begin > 2 * (100 << 10), "the place of the fourth line or shortly before: {}", spool.begin);
        spool.retry();
        assert_eq!(spool.tail.place(), spool.begin);
        assert_eq!(firsts(&mut spool), [(5, 2)]);
        // A coordinator that was set back gets everything, from the first line on.
        spool.rewind(0);
        assert_eq!(firsts(&mut spool), [(1, 2), (3, 2), (5, 2)]);
    }

    #[test]
    fn a_message_holds_at_most_256_kib() {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<_> = (1..=10).map(|seq| line(seq, 100 << 10)).collect();
        let mut spool = spool(&folder, &lines);
        assert_eq!(firsts(&mut spool), [(1, 2), (3, 2), (5, 2), (7, 2), (9, 2)]);
    }

    #[test]
    fn a_line_that_fits_no_message_is_named_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = spool(&folder, &[line(1, 10), line(2, 400 << 10), line(3, 10)]);
        let batch = spool.next().unwrap().unwrap();
        assert_eq!((batch.first, batch.lines.len()), (1, 3));
        let event: EventLine = serde_json::from_str(&batch.lines[1]).unwrap();
        assert!(matches!(event.event, WorkerEvent::Log { level: Level::Warning, .. }), "{event:?}");
    }

    #[test]
    fn what_is_no_event_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = spool(&folder, &["noise".into(), line(1, 1), "{}".into(), line(2, 1)]);
        assert_eq!(firsts(&mut spool), [(1, 2)]);
    }

    fn spool(folder: &tempfile::TempDir, lines: &[String]) -> Spool {
        std::fs::write(folder.path().join(EVENTS), lines.join("\n") + "\n").unwrap();
        let job = JobId(uuid::Uuid::from_u128(7));
        Spool::new(AttemptId { job, token: AttemptToken { generation: 1, number: 1 } }, folder.path())
    }

    fn line(seq: u64, length: usize) -> String {
        let event = WorkerEvent::Log { level: Level::Info, message: "x".repeat(length) };
        serde_json::to_string(&EventLine { seq, time: UnixMillis(1), event }).unwrap()
    }

    fn firsts(spool: &mut Spool) -> Vec<(u64, usize)> {
        let next = || spool.next().unwrap();
        std::iter::from_fn(next).map(|batch| (batch.first, batch.lines.len())).collect()
    }
}
