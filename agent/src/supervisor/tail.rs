//! Follows a file of lines that somebody else appends to: whole lines only, each once. Where its name leads elsewhere there is no such file.

use crate::beneath::{self, For};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Bytes read at once; a longer line is read on until its end.
const READ_BYTES: u64 = 64 << 10;
/// A line without an end for this long is not one of ours; it is given up.
const LINE_BYTES: usize = 16 << 20;

/// A place in a growing file.
#[derive(Debug)]
pub(crate) struct Tail {
    directory: PathBuf,
    name: &'static str,
    file: Option<File>,
    /// Where the next unread byte is.
    offset: u64,
    /// The beginning of a line whose end is not there yet.
    partial: Vec<u8>,
}

impl Tail {
    /// From the beginning; the file need not exist yet.
    pub(crate) fn new(directory: &Path, name: &'static str) -> Self {
        Self { directory: directory.to_owned(), name, file: None, offset: 0, partial: Vec::new() }
    }

    /// On from a place that [`place`](Self::place) named.
    pub(crate) fn go_to(&mut self, place: u64) {
        self.offset = place;
        self.partial.clear();
    }

    /// Behind the last line that was read.
    pub(crate) fn place(&self) -> u64 {
        self.offset - self.partial.len() as u64
    }

    /// The whole lines that are there and were not read, some of them at least; empty when there are none.
    pub(crate) fn read(&mut self) -> io::Result<Vec<String>> {
        loop {
            let read = self.fill()?;
            let lines = self.take_lines(read);
            if !lines.is_empty() || read == 0 {
                return Ok(lines);
            }
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        if self.partial.len() > LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of more than 16 MiB"));
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => match beneath::open_file(&self.directory, Path::new(self.name), For::Reading) {
                Ok(file) => self.file.insert(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
                Err(error) => return Err(error),
            },
        };
        // A worker that starts again cuts a torn line off its file's end: what was read of it is no longer there.
        if file.metadata()?.len() < self.offset {
            self.offset -= self.partial.len() as u64;
            self.partial.clear();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.take(READ_BYTES).read_to_end(&mut self.partial)?;
        self.offset += read as u64;
        Ok(read)
    }

    /// What was there before the last bytes came has no end of a line in it.
    fn take_lines(&mut self, fresh: usize) -> Vec<String> {
        let known = self.partial.len() - fresh;
        let Some(end) = self.partial[known..].iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.partial.split_off(known + end + 1);
        let whole = std::mem::replace(&mut self.partial, rest);
        let lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_whole_lines_are_read_and_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut tail = Tail::new(folder.path(), "events.jsonl");
        assert!(tail.read().unwrap().is_empty(), "a file that is not there yet has no lines");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(tail.read().unwrap(), ["one"]);
        assert!(tail.read().unwrap().is_empty());
        file.write_all(b"o\nthree\n").unwrap();
        assert_eq!(tail.read().unwrap(), ["two", "three"]);
    }

    #[test]
    fn a_link_in_the_files_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("other"), "somebody else's\n").unwrap();
        std::os::unix::fs::symlink("other", folder.path().join("events.jsonl")).unwrap();
        let error = Tail::new(folder.path(), "events.jsonl").read().unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
    }

    #[test]
    fn a_torn_line_that_is_cut_off_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\ntorn").unwrap();
        let mut tail = Tail::new(folder.path(), "events.jsonl");
        assert_eq!(tail.read().unwrap(), ["one"]);
        assert!(tail.read().unwrap().is_empty());
        file.set_len(4).unwrap();
        assert!(tail.read().unwrap().is_empty());
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"two\n").unwrap();
        assert_eq!(tail.read().unwrap(), ["two"]);
    }

    #[test]
    fn a_line_without_an_end_is_given_up_and_no_more_of_it_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        std::fs::write(&path, vec![b'x'; 2 * LINE_BYTES]).unwrap();
        let mut tail = Tail::new(folder.path(), "events.jsonl");
        for _ in 0..3 {
            assert_eq!(tail.read().unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert!(tail.partial.len() <= LINE_BYTES + READ_BYTES as usize, "{}", tail.partial.len());
        }
    }

    #[test]
    fn long_files_come_in_pieces_without_losing_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let written: Vec<String> = (0..20_000).map(|i| format!("line {i}")).collect();
        std::fs::write(&path, written.join("\n") + "\n").unwrap();
        let mut tail = Tail::new(folder.path(), "events.jsonl");
        let mut read = Vec::new();
        loop {
            let lines = tail.read().unwrap();
            if lines.is_empty() {
                break;
            }
            read.extend(lines);
        }
        assert_eq!(read, written);
    }
}
