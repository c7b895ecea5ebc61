//! JSON lines with a bound: a line too long, broken or not UTF-8 is a fault of that line, and reading goes on behind it.

use std::io::{self, BufRead};
use std::ops::ControlFlow;

use super::{ItemOf, MAX_RECORD_BYTES, Sink};
use crate::{Fault, Json};

/// Reads every line into `item_of`. Packed data that breaks off is a fault behind the last line.
pub(crate) fn read(input: impl BufRead, sink: &mut Sink<'_>, item_of: ItemOf<'_>) -> io::Result<()> {
    let mut lines = BoundedLines::new(input);
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let fault = Fault::new(lines.number + 1, "$", format!("{error}; nothing behind it was read"));
                let _ended_anyway = sink.fault(fault, lines.bytes);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let number = line.number;
        let read = match line.value() {
            Ok(None) => continue,
            Ok(Some(value)) => item_of(&value, number, "$"),
            Err(fault) => Err(fault),
        };
        if sink.give(read, lines.bytes) == ControlFlow::Break(()) {
            return Ok(());
        }
    }
}

/// Lines of at most [`MAX_RECORD_BYTES`]; of a longer one only the length is learnt.
pub(crate) struct BoundedLines<R> {
    input: R,
    buffer: Vec<u8>,
    number: u64,
    /// Bytes read so far.
    pub(crate) bytes: u64,
}

/// One line without its end.
pub(crate) struct Line<'a> {
    /// From 1.
    pub(crate) number: u64,
    text: &'a [u8],
    /// Bytes in the file, which may be more than were kept.
    length: u64,
}

impl<R: BufRead> BoundedLines<R> {
    pub(crate) const fn new(input: R) -> BoundedLines<R> {
        BoundedLines { input, buffer: Vec::new(), number: 0, bytes: 0 }
    }

    pub(crate) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.buffer.clear();
        let mut length = 0;
        loop {
            let available = match self.input.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = available.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(available.len());
            let room = (MAX_RECORD_BYTES as usize).saturating_sub(self.buffer.len()).min(taken);
            self.buffer.extend_from_slice(&available[..room]);
            length += taken as u64;
            let (at_end_of_file, consumed) = (available.is_empty(), taken + usize::from(end.is_some()));
            self.input.consume(consumed);
            self.bytes += consumed as u64;
            if at_end_of_file && length == 0 {
                return Ok(None);
            }
            if at_end_of_file || end.is_some() {
                break;
            }
        }
        self.number += 1;
        Ok(Some(Line { number: self.number, text: self.trimmed(), length }))
    }

    /// A byte order mark at the very beginning is no part of the text.
    fn trimmed(&self) -> &[u8] {
        let text = &self.buffer[..];
        if self.number == 1 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) } else { text }
    }
}

impl Line<'_> {
    /// The JSON on the line; `None` when it is blank.
    pub(crate) fn value(&self) -> Result<Option<Json>, Fault> {
        let fault = |message: String| Fault::new(self.number, "$", message);
        if self.length > MAX_RECORD_BYTES {
            return Err(fault(format!("the line is {} bytes long, expected at most {MAX_RECORD_BYTES}", self.length)));
        }
        let text = std::str::from_utf8(self.text)
            .map_err(|error| fault(format!("invalid UTF-8 at byte {} of the line", error.valid_up_to())))?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        if let Some(position) = text.bytes().position(|byte| byte == 0) {
            return Err(fault(format!("a NUL byte stands at column {}, expected text", position + 1)));
        }
        serde_json::from_str(text).map(Some).map_err(|error| fault(broken(&error)))
    }
}

/// serde_json's words with the column; the line is the fault's own.
pub(crate) fn broken(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let words = text.split(" at line ").next().unwrap_or(&text);
    let words = match words {
        "recursion limit exceeded" => "lists and objects are nested deeper than 127 levels",
        "control character (\\u0000-\\u001F) found while parsing a string" => {
            "a control character stands in a string, expected it escaped"
        }
        words => words,
    };
    format!("broken JSON at column {}: {words}", error.column())
}
