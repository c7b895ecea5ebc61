//! Files that people name on the command line: regular ones, for a pipe or a device would be read for ever.

use crate::failure::Failure;
use std::{
    fs::{File, FileType},
    io::{self, Read},
    os::unix::fs::FileTypeExt,
    path::Path,
};

/// A file that has an end.
pub(crate) fn open(doing: &str, path: &Path) -> Result<File, Failure> {
    let failed = |error: io::Error| Failure::file(doing, path, &error);
    let found = path.metadata().map_err(failed)?.file_type();
    if !found.is_file() {
        let found = kind(found);
        return Err(Failure::mistake(format!("{doing} {}: it is not a regular file but {found}", path.display())));
    }
    File::open(path).map_err(failed)
}

/// What lies in a regular file's place.
pub(crate) fn kind(found: FileType) -> &'static str {
    if found.is_dir() {
        "a directory"
    } else if found.is_fifo() {
        "a pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// The text of a file that has no reason to be longer than `most` bytes.
pub(crate) fn text(doing: &str, path: &Path, most: u64) -> Result<String, Failure> {
    let mut text = String::new();
    let read = open(doing, path)?.take(most + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::file(doing, path, &error))?;
    if text.len() as u64 > most {
        return Err(Failure::mistake(format!("{doing} {}: it has more than {most} bytes", path.display())));
    }
    Ok(text)
}
