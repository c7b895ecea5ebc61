//! What a file is packed in, seen from its first bytes, and the text inside.
//!
//! Broken gzip is the file's fault and comes out as [`io::ErrorKind::InvalidData`]; what the disk says stays what it is.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

use crate::DatasetError;

const BUFFER_BYTES: usize = 1 << 18;

/// What a file is packed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    /// Nothing: text.
    Plain,
    /// gzip, of one member or several.
    Gzip,
    /// A table of columns.
    Parquet,
}

/// Looks at the first bytes.
pub(crate) fn container(path: &Path) -> Result<Container, DatasetError> {
    let mut start = [0; 4];
    let failed = |source| DatasetError::Read { path: path.to_owned(), source };
    let mut file = open(path)?.take(4);
    let mut length = 0;
    loop {
        match file.read(&mut start[length..]).map_err(failed)? {
            0 => break,
            count => length += count,
        }
    }
    Ok(match &start[..length] {
        [0x1f, 0x8b, ..] => Container::Gzip,
        b"PAR1" => Container::Parquet,
        _ => Container::Plain,
    })
}

/// A regular file; opening a pipe would wait for ever.
pub(crate) fn open(path: &Path) -> Result<File, DatasetError> {
    let failed = |source| DatasetError::Read { path: path.to_owned(), source };
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")));
    }
    File::open(path).map_err(failed)
}

/// The text of a file, unpacked on the way.
pub(crate) struct Text {
    input: Box<dyn BufRead>,
    taken: Arc<AtomicU64>,
}

impl Text {
    /// A meter of the bytes taken from the file itself, packed as they are.
    pub(crate) fn meter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.taken)
    }
}

/// Opens a file's text.
pub(crate) fn open_text(path: &Path) -> Result<Text, DatasetError> {
    let packed = container(path)? == Container::Gzip;
    let taken = Arc::new(AtomicU64::new(0));
    let file = BufReader::with_capacity(BUFFER_BYTES, Metered { file: open(path)?, taken: Arc::clone(&taken) });
    let input: Box<dyn BufRead> = if packed {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, Gzip { data: MultiGzDecoder::new(file), has_text: false }))
    } else {
        Box::new(file)
    };
    Ok(Text { input, taken })
}

impl Read for Text {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl BufRead for Text {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
    }
}

struct Metered {
    file: File,
    taken: Arc<AtomicU64>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

struct Gzip {
    data: MultiGzDecoder<BufReader<Metered>>,
    /// A member was read: what is broken from now on stands behind it.
    has_text: bool,
}

impl Read for Gzip {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.data.read(buffer).map_err(|error| {
            let kind = error.kind();
            if error.raw_os_error().is_some() || kind == io::ErrorKind::Interrupted {
                return error;
            }
            if kind == io::ErrorKind::UnexpectedEof {
                return broken("the gzip data ends before its end; is the file whole?");
            }
            // flate2 has no kind for it; a wrong checksum comes as the same one
            if self.has_text && error.to_string() == "invalid gzip header" {
                return broken("something that is not gzip stands behind the gzip data");
            }
            broken(&format!("the gzip data is broken: {error}"))
        })?;
        self.has_text |= read > 0;
        Ok(read)
    }
}

fn broken(words: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}
