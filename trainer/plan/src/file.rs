//! Small files that people name: regular ones, and no longer than they have a reason to be.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// The longest `config.json` that is read, in bytes. Real ones have a few thousand; the bound keeps a wrong file out of memory.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// The text of a file of at most `most` bytes.
///
/// # Errors
/// As [`read_file`]; and `InvalidData` where it is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let not_text = |error| io::Error::new(ErrorKind::InvalidData, format!("is not UTF-8: {error}"));
    String::from_utf8(read_file(path, most)?).map_err(not_text)
}

/// The bytes of a file of at most `most` bytes.
///
/// # Errors
/// `InvalidInput` where it is no regular file, `InvalidData` where it is longer; else what the disk says.
pub fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("is larger than {most} bytes")));
    }
    Ok(bytes)
}

/// Opening a pipe would wait for ever, so only regular files are opened.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "is not a regular file"));
    }
    File::open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_their_bound_are_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config.json");
        fs::write(&path, "four").expect("written");
        assert_eq!(read_text(&path, 4).expect("as long as it may be"), "four");
        let kind = |result: io::Result<String>| result.map_err(|error| error.kind());
        assert_eq!(kind(read_text(&path, 3)), Err(ErrorKind::InvalidData));
        fs::write(&path, b"\xff").expect("written");
        assert_eq!(kind(read_text(&path, 4)), Err(ErrorKind::InvalidData));
        assert_eq!(kind(read_text(dir.path(), 4)), Err(ErrorKind::InvalidInput), "a folder");
        assert_eq!(kind(read_text(Path::new("/dev/zero"), 4)), Err(ErrorKind::InvalidInput), "it has no end");
        assert_eq!(kind(read_text(&dir.path().join("none"), 4)), Err(ErrorKind::NotFound));
    }
}
