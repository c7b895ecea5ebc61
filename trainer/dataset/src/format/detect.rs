//! Which format a file is, from the keys of its first record.
//!
//! A first line that is broken does not hide the format: then the first lines that are whole decide. What is recognised is
//! always said; what is not, or is two things at once, is an error with the keys that were found.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, BufRead, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::shape::Verdict;
use super::{EXPECTED, Format, Layout, Shape, ambiguous};
use crate::DatasetError;
use crate::read::{BoundedLines, Container, container, open_text, table_shape};

/// How far the first record is followed; a record that is longer is refused anyway, a full file is known long before.
const SNIFF_BYTES: u64 = 64 << 20;
/// Lines tried when the first one is broken.
const TRIED_LINES: usize = 100;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Detected {
    pub(crate) format: Format,
    pub(crate) layout: Layout,
}

/// Looks at the beginning of a file.
pub(crate) fn detect(path: &Path) -> Result<Detected, DatasetError> {
    let unknown = |found: String| DatasetError::UnknownFormat { path: path.to_owned(), found, expected: EXPECTED };
    if container(path)? == Container::Parquet {
        let shape = table_shape(path)?;
        return decide(&shape, Layout::Rows).map_err(|found| unknown(format!("in its columns, {found}")));
    }
    let mut input = open_text(path)?;
    let first = match first_byte(&mut input) {
        Ok(first) => first,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(unknown(error.to_string())),
        Err(source) => return Err(DatasetError::Read { path: path.to_owned(), source }),
    };
    let sniffed = match first {
        None => return Err(unknown("the file is empty".into())),
        Some(b'[') => sniff(input, Layout::List, |json, seen| json.deserialize_seq(FirstElement(seen))),
        Some(b'{') => sniff(input, Layout::Lines, |json, seen| json.deserialize_map(Keys(seen))),
        Some(other) => return Err(unknown(format!("it begins with {}, not with a JSON object", shown(other)))),
    };
    if sniffed.is_empty {
        return Err(unknown("it holds no record".into()));
    }
    let (shape, layout) = if sniffed.is_whole || first == Some(b'[') {
        (sniffed.shape, sniffed.layout)
    } else {
        (first_whole_line(path)?.unwrap_or(sniffed.shape), Layout::Lines)
    };
    decide(&shape, layout).map_err(unknown)
}

fn decide(shape: &Shape, layout: Layout) -> Result<Detected, String> {
    match shape.verdict() {
        Verdict::BrightrunDocument if layout == Layout::Lines || layout == Layout::Objects => {
            Ok(Detected { format: Format::BrightrunLoraV4, layout: Layout::Document })
        }
        Verdict::Record { format, .. } => Ok(Detected { format, layout }),
        Verdict::Ambiguous(formats) => Err(ambiguous(shape, &formats)),
        Verdict::BrightrunDocument | Verdict::Unknown if shape.names.is_empty() => {
            Err("its first record has no keys".into())
        }
        Verdict::BrightrunDocument | Verdict::Unknown => {
            Err(format!("its first record has the keys {}", shape.shown()))
        }
    }
}

/// Skips a byte order mark and blanks; the first byte stays unread.
fn first_byte(input: &mut impl BufRead) -> io::Result<Option<u8>> {
    let start = input.fill_buf()?;
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is UTF-16 text, expected UTF-8"));
    }
    if start.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() {
            return Ok(None);
        }
        match available.iter().position(|byte| !byte.is_ascii_whitespace()) {
            Some(position) => {
                let byte = available[position];
                input.consume(position);
                return Ok(Some(byte));
            }
            None => {
                let length = available.len();
                input.consume(length);
            }
        }
    }
}

/// The first line that is a JSON object of a known shape.
fn first_whole_line(path: &Path) -> Result<Option<Shape>, DatasetError> {
    let mut lines = BoundedLines::new(open_text(path)?);
    let mut other = None;
    for _ in 0..TRIED_LINES {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) if error.kind() == io::ErrorKind::InvalidData && other.is_none() => {
                let (path, found) = (path.to_owned(), error.to_string());
                return Err(DatasetError::UnknownFormat { path, found, expected: EXPECTED });
            }
            // what is broken here is broken again, and said, when the file is read
            Err(_) => break,
        };
        let Ok(Some(value)) = line.value() else { continue };
        let shape = Shape::of(&value);
        match shape.verdict() {
            Verdict::Unknown => other = other.or(Some(shape).filter(|shape| !shape.names.is_empty())),
            Verdict::Record { .. } | Verdict::BrightrunDocument | Verdict::Ambiguous(_) => return Ok(Some(shape)),
        }
    }
    Ok(other)
}

fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("{:?}", char::from(byte)) } else { format!("byte 0x{byte:02x}") }
}

/// What following the first record came to.
struct Sniffed {
    shape: Shape,
    /// Its end was seen, or nothing behind could change the verdict.
    is_whole: bool,
    /// It is a list of nothing.
    is_empty: bool,
    layout: Layout,
}

#[derive(Default)]
struct Seen {
    shape: RefCell<Shape>,
    decided: Cell<bool>,
    is_empty: Cell<bool>,
}

type Json<R> = serde_json::Deserializer<serde_json::de::IoRead<R>>;

/// Follows the first record to its end, or until it is decided.
fn sniff<R: Read>(
    input: R,
    layout: Layout,
    read: impl FnOnce(&mut Json<WatchedLines<'_, R>>, &Seen) -> Result<(), serde_json::Error>,
) -> Sniffed {
    let (seen, lines) = (Seen::default(), Cell::new(0));
    let watched = WatchedLines { input: input.take(SNIFF_BYTES), lines: &lines };
    let ended = read(&mut serde_json::Deserializer::from_reader(watched), &seen);
    let over_lines = layout == Layout::Lines && lines.get() > 0;
    Sniffed {
        is_whole: ended.is_ok() || seen.decided.get(),
        is_empty: seen.is_empty.get(),
        shape: seen.shape.into_inner(),
        layout: if over_lines { Layout::Objects } else { layout },
    }
}

/// Counts the line ends that go by.
struct WatchedLines<'a, R> {
    input: io::Take<R>,
    lines: &'a Cell<u64>,
}

impl<R: Read> Read for WatchedLines<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        let ends = buffer[..count].iter().filter(|byte| **byte == b'\n').count();
        self.lines.set(self.lines.get() + ends as u64);
        Ok(count)
    }
}

/// The keys of the first object of a file.
struct Keys<'a>(&'a Seen);

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let is_list = name == "conversations";
            self.0.shape.borrow_mut().names.push(name);
            if is_list {
                map.next_value_seed(Turns(self.0))?;
            }
            if self.0.shape.borrow().is_brightrun_document() {
                self.0.decided.set(true);
                return Err(A::Error::custom("decided"));
            }
            if !is_list {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The list called `conversations`: the keys of its first element, which decide at once if they are a full brightrun file's.
struct Turns<'a>(&'a Seen);

impl<'de> DeserializeSeed<'de> for Turns<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Turns<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let first = RefCell::new(Shape::default());
        let ended = seq.next_element_seed(Names(&first));
        self.0.shape.borrow_mut().turn_names = first.into_inner().names;
        ended?;
        if self.0.shape.borrow().is_brightrun_document() {
            self.0.decided.set(true);
            return Err(A::Error::custom("decided"));
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// The keys of one object, its values passed over.
struct Names<'a>(&'a RefCell<Shape>);

impl<'de> DeserializeSeed<'de> for Names<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Names<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let decided = name == "training_pairs" || name == "conversation_metadata";
            self.0.borrow_mut().names.push(name);
            if decided {
                return Err(A::Error::custom("decided"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// The shape of a list's first element; the rest of the list is passed over.
struct FirstElement<'a>(&'a Seen);

impl<'de> Visitor<'de> for FirstElement<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        match seq.next_element::<crate::Json>()? {
            Some(element) => *self.0.shape.borrow_mut() = Shape::of(&element),
            None => self.0.is_empty.set(true),
        }
        Err(A::Error::custom("decided"))
    }
}
