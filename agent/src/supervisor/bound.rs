//! A worker's own output on the disk: as much of it as a person reads, and never the whole disk.
//!
//! The worker holds the file open and appends to it, so it cannot be replaced: its end is written anew into the emptied file, and what the
//! worker writes in that moment may come a line too early or be lost. Events are not cut: their numbers have no gaps, and they wait there
//! for the coordinator. A worker that writes too many of them is stopped ([`Overgrown`](crate::host::News::Overgrown)).

use crate::beneath::{self, For};
use lorikeet_protocol::worker::LOG;
use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

/// Of a log that is cut, the share that stays: so it is not cut again at the next line.
const STAYS: u64 = 4;

/// Cuts a log that is longer than `limit`: its end stays, from the beginning of a line.
pub(super) fn cut_log(directory: &Path, limit: u64) -> io::Result<()> {
    let mut file = match beneath::open_file(directory, Path::new(LOG), For::Appending) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    if length <= limit {
        return Ok(());
    }
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(length - limit / STAYS))?;
    (&file).take(limit / STAYS).read_to_end(&mut end)?;
    let whole = end.iter().position(|byte| *byte == b'\n').map_or(0, |line_end| line_end + 1);
    let cut = length - (end.len() - whole) as u64;
    let note = format!("[{cut} bytes were cut here: a log of more than {limit} loses its beginning]\n");
    file.set_len(0)?;
    file.write_all(&[note.as_bytes(), &end[whole..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn a_log_beyond_its_limit_keeps_its_end_and_says_what_is_missing_and_its_writer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOG);
        cut_log(folder.path(), 1_000).unwrap();
        let mut writer = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let mut longest = 0;
        for number in 0..1_000 {
            writer.write_all(format!("line {number}\n").as_bytes()).unwrap();
            cut_log(folder.path(), 1_000).unwrap();
            longest = longest.max(path.metadata().unwrap().len());
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(longest <= 1_000 && text.starts_with('[') && text.contains("bytes were cut here"), "{longest}: {text}");
        assert!(text.ends_with("line 998\nline 999\n"), "{text}");
    }

    #[test]
    fn a_link_in_the_logs_place_leads_to_nothing_that_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        std::fs::write(&other, vec![b'x'; 2_000]).unwrap();
        std::os::unix::fs::symlink(&other, folder.path().join(LOG)).unwrap();
        assert!(cut_log(folder.path(), 1_000).is_err());
        assert_eq!(other.metadata().unwrap().len(), 2_000);
    }
}
