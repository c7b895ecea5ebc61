//! The file format of a segment, and reading it.
//!
//! ```text
//! "LKSEG\0\0\x01"                                   8 bytes
//! record*   u32 payload length, 8 bytes of BLAKE3(payload), payload
//! payload   u64 first seq, u32 count, count × (u32 length, UTF-8 bytes)       numbers little-endian
//! ```
//!
//! A record that is short, longer than an honest one, or does not match its checksum ends the segment: what follows was
//! never acknowledged, or is damaged, and cannot be told apart from noise. That something follows is told to who reads.

use super::{Line, Missing, Part, SeriesError, marks::Marks};
use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// What every segment begins with.
pub(super) const MAGIC: &[u8; 8] = b"LKSEG\0\0\x01";
/// How the name of a segment ends of which no line can be read.
pub(super) const TORN: &str = ".torn";
/// Length and checksum in front of a payload.
const RECORD_HEADER: usize = 12;
/// One record holds one message of the link, which is at most 1 MiB; its lengths add twice that at most, and what is joined once (`felt.rs`).
const MAX_PAYLOAD: usize = 4 << 20;

/// The name of the segment that begins with `seq`: sorted names are sorted segments.
pub(super) fn name(seq: u64) -> String {
    format!("{seq:020}.seg")
}

/// A folder's segments with their first `seq`, in order.
pub(super) fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, SeriesError> {
    numbered(folder, ".seg")
}

/// Segments of which no line can be read, put aside so that others may begin with the same line.
pub(super) fn list_torn(folder: &Path) -> Result<Vec<(u64, PathBuf)>, SeriesError> {
    numbered(folder, TORN)
}

fn numbered(folder: &Path, ending: &str) -> Result<Vec<(u64, PathBuf)>, SeriesError> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(SeriesError::disk("list", folder))?,
    };
    let mut segments: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let first = path.file_name()?.to_str()?.strip_suffix(ending)?.parse().ok()?;
            Some((first, path))
        })
        .collect();
    segments.sort_unstable();
    Ok(segments)
}

/// A record as it lies in the file.
pub(super) fn record(first: u64, lines: &[String]) -> Vec<u8> {
    let length: usize = lines.iter().map(|line| line.len() + 4).sum();
    let mut record = Vec::with_capacity(RECORD_HEADER + 12 + length);
    record.extend([0; RECORD_HEADER]);
    record.extend(first.to_le_bytes());
    record.extend(u32::try_from(lines.len()).expect("a message of 1 MiB holds fewer lines").to_le_bytes());
    for line in lines {
        record.extend(u32::try_from(line.len()).expect("a line fits a message of 1 MiB").to_le_bytes());
        record.extend(line.as_bytes());
    }
    let payload = u32::try_from(record.len() - RECORD_HEADER).expect("a message of 1 MiB");
    record[..4].copy_from_slice(&payload.to_le_bytes());
    let checksum = blake3::hash(&record[RECORD_HEADER..]);
    record[4..RECORD_HEADER].copy_from_slice(&checksum.as_bytes()[..8]);
    record
}

/// What a segment holds whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Bytes up to the end of the last good record; less than 8: not even a beginning.
    pub(super) bytes: u64,
    /// The last line's `seq`; `None`: no line.
    pub(super) last: Option<u64>,
}

/// How far a segment is good.
pub(super) fn extent(path: &Path) -> Result<Extent, SeriesError> {
    let mut extent = Extent { bytes: 0, last: None };
    let Some(mut records) = Records::open(path).map_err(SeriesError::disk("read", path))? else { return Ok(extent) };
    extent.bytes = MAGIC.len() as u64;
    while let Some(record) = records.next().map_err(SeriesError::disk("read", path))? {
        extent.bytes += record.bytes;
        extent.last = Some(record.first + record.lines.len() as u64 - 1);
    }
    Ok(extent)
}

/// What says how far an attempt is whose last lines are not kept: a segment of one empty line, the last that was here.
pub(super) fn number(through: u64) -> Vec<u8> {
    [MAGIC.as_slice(), &record(through, &[String::new()])].concat()
}

/// Which lines of an attempt: those with `after < seq <= through`, at most `limit` of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) after: u64,
    pub(super) through: u64,
    /// Whether there was something behind `through`.
    pub(super) is_torn: bool,
    pub(super) limit: usize,
}

/// Reads them, from the last record before them whose place is known.
pub(super) fn read_folder<T>(
    folder: &Path,
    wanted: Wanted,
    marks: &Marks,
    make: impl Fn(Line) -> T,
) -> Result<Part<T>, SeriesError> {
    let segments = list(folder)?;
    // The last segment that begins at or before the line behind `after`.
    let start = segments.partition_point(|(first, _)| *first <= wanted.after + 1).saturating_sub(1);
    let segments = &segments[start.min(segments.len())..];
    let (mut lines, mut missing) = (Vec::new(), Vec::new());
    // The first line of an attempt is kept, or a word in its place.
    if let Some((first, _)) = segments.first().filter(|(first, _)| start == 0 && *first > wanted.after + 1) {
        missing.push(Missing { from: wanted.after + 1, through: Some(first - 1) });
    }
    // The last line that was read, and up to where lines were read or are missing.
    let (mut last, mut passed) = (wanted.after, wanted.after);
    for (number, (first, path)) in segments.iter().enumerate() {
        let seen = read_segment(path, wanted, marks, &make, &mut lines).unwrap_or_else(|error| {
            // What the disk does not give is missing, and the rest is not.
            tracing::warn!(path = %path.display(), %error, "lines cannot be read");
            Seen { last: 0, is_whole: false }
        });
        last = last.max(seen.last);
        passed = passed.max(seen.last);
        if lines.len() == wanted.limit {
            return Ok(Part { lines, missing });
        }
        // Numbers that are left out without a tear were not to be kept (`shed`).
        let next = segments.get(number + 1).filter(|_| !seen.is_whole);
        let from = passed.max(first.saturating_sub(1)) + 1;
        if let Some((next, _)) = next.filter(|(next, _)| from < *next) {
            missing.push(Missing { from, through: Some(next - 1) });
            passed = next - 1;
        }
    }
    // Without any segment the job was removed a moment ago.
    if !segments.is_empty() && (passed < wanted.through || wanted.is_torn) {
        missing.push(Missing { from: passed + 1, through: (!wanted.is_torn).then_some(wanted.through) });
    }
    // What is missing behind them the next reading tells, if nothing has come in its place.
    missing.retain(|missing| lines.is_empty() || missing.from < last);
    Ok(Part { lines, missing })
}

/// All lines of one segment.
pub(super) fn read_one(path: &Path) -> Result<Vec<Line>, SeriesError> {
    let wanted = Wanted { after: 0, through: u64::MAX, is_torn: false, limit: usize::MAX };
    let mut lines = Vec::new();
    read_segment(path, wanted, &Marks::default(), &|line| line, &mut lines).map_err(SeriesError::disk("read", path))?;
    Ok(lines)
}

/// What came of reading a segment.
struct Seen {
    /// The last wanted line; 0: none.
    last: u64,
    /// Whether it was read to the end of the file.
    is_whole: bool,
}

fn read_segment<T>(
    path: &Path,
    wanted: Wanted,
    marks: &Marks,
    make: &impl Fn(Line) -> T,
    lines: &mut Vec<T>,
) -> io::Result<Seen> {
    let mut seen = Seen { last: 0, is_whole: false };
    let Some(mut records) = Records::open(path)? else { return Ok(seen) };
    if let Some(offset) = marks.before(path, wanted.after + 1) {
        records.skip_to(offset)?;
    }
    let mut offset = records.offset;
    while let Some(record) = records.next()? {
        // Beyond what is synced a record may still be cut and written anew.
        if record.first <= wanted.through {
            marks.put(path, record.first, offset);
        }
        offset = records.offset;
        let numbered = (record.first..).zip(record.lines).map(|(seq, text)| Line { seq, text });
        let fitting = numbered.filter(|line| line.seq > wanted.after && line.seq <= wanted.through);
        for line in fitting.take(wanted.limit - lines.len()) {
            seen.last = line.seq;
            lines.push(make(line));
        }
        if lines.len() == wanted.limit {
            return Ok(seen);
        }
    }
    seen.is_whole = path.metadata()?.len() == offset;
    Ok(seen)
}

/// A record as it was read.
struct Record {
    first: u64,
    lines: Vec<String>,
    bytes: u64,
}

struct Records {
    file: BufReader<File>,
    /// Where the next record begins.
    offset: u64,
}

impl Records {
    /// `None`: the file does not begin like a segment.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let mut file = BufReader::with_capacity(1 << 18, File::open(path)?);
        let mut magic = [0; MAGIC.len()];
        let whole = fill(&mut file, &mut magic)? && magic == *MAGIC;
        Ok(whole.then_some(Self { file, offset: MAGIC.len() as u64 }))
    }

    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        self.offset = self.file.seek(SeekFrom::Start(offset))?;
        Ok(())
    }

    /// The next good record.
    fn next(&mut self) -> io::Result<Option<Record>> {
        let mut header = [0; RECORD_HEADER];
        if !fill(&mut self.file, &mut header)? {
            return Ok(None);
        }
        let (length, checksum) = header.split_at(4);
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        if length > MAX_PAYLOAD {
            return Ok(None);
        }
        let mut payload = vec![0; length];
        let whole = fill(&mut self.file, &mut payload)? && blake3::hash(&payload).as_bytes()[..8] == *checksum;
        let record = if whole { decode(&payload) } else { None };
        self.offset += record.as_ref().map_or(0, |record| record.bytes);
        Ok(record)
    }
}

fn decode(payload: &[u8]) -> Option<Record> {
    let (first, rest) = payload.split_first_chunk()?;
    let (count, mut rest) = rest.split_first_chunk()?;
    let mut lines = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (length, tail) = rest.split_first_chunk()?;
        let (line, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        lines.push(String::from_utf8(line.to_vec()).ok()?);
        rest = tail;
    }
    let (first, bytes) = (u64::from_le_bytes(*first), (RECORD_HEADER + payload.len()) as u64);
    // Numbers begin with 1, and no attempt comes near their end.
    let is_numbered = (1..=u64::MAX / 2).contains(&first);
    (rest.is_empty() && !lines.is_empty() && is_numbered).then_some(Record { first, lines, bytes })
}

/// Fills the buffer; false: the file ends before.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
