//! Files that people name on the command line: regular ones, for a pipe or a device would be read for ever. A short text comes from a
//! pipe as well, if somebody writes it.

use crate::failure::Failure;
use rustix::fs::OFlags;
use std::{
    fs::{File, FileType},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
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

/// The text of a file, or of a pipe like that of `<(pass show …)`, that has no reason to be longer than `most` bytes.
pub(crate) fn text(doing: &str, path: &Path, most: u64) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::file(doing, path, &error);
    let is_pipe = path.metadata().is_ok_and(|found| found.file_type().is_fifo());
    let file = if is_pipe { open_pipe(path).map_err(failed)? } else { open(doing, path)? };
    let mut text = String::new();
    file.take(most + 1).read_to_string(&mut text).map_err(failed)?;
    if is_pipe && text.is_empty() {
        return Err(Failure::mistake(format!("{doing} {}: it is a pipe that nobody writes", path.display())));
    }
    if text.len() as u64 > most {
        return Err(Failure::mistake(format!("{doing} {}: it has more than {most} bytes", path.display())));
    }
    Ok(text)
}

/// Waits for no writer to come: where there is none, the pipe ends at once. One that is there is waited for.
fn open_pipe(path: &Path) -> io::Result<File> {
    let pipe = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    rustix::fs::fcntl_setfl(&pipe, OFlags::empty())?;
    Ok(pipe)
}
