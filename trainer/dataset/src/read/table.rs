//! Parquet files: rows to JSON values, one column page at a time, without arrow.
//!
//! Absent and `null` are the same in a table, because every row has every column; so nested nulls are left out. A file that
//! lies about itself ends with a fault: the library checks much of what it reads and panics at some of the rest, and a panic
//! there is the file's doing, not ours.

mod page;

use std::collections::BTreeSet;
use std::io::{Read as _, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::Number;

use self::page::Checked;
use super::{ItemOf, Sink, open};
use crate::format::{EXPECTED, Shape};
use crate::guard::guarded;
use crate::{DatasetError, Fault, Json};

/// Said of pages at which the library ends its thread.
const CONTRADICTS: &str = "its pages do not hold what its headers say";

/// Rows whose columns are read ahead together.
const BATCH_ROWS: usize = 64;

/// Columns that some format reads; others, embeddings perhaps, stay on disk.
const COLUMNS: [&str; 20] = [
    "messages",
    "conversations",
    "tools",
    "system",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "text",
    "_meta",
    "id",
    "conversation_id",
    "turn_number",
    "conversation_metadata",
    "system_prompt",
    "conversation_history",
    "current_user_input",
    "target_response",
    "training_metadata",
];

/// The keys that a row will have.
pub(crate) fn shape(path: &Path) -> Result<Shape, DatasetError> {
    let reader = reader(path)?;
    let root = reader.metadata().file_metadata().schema();
    let fields = root.get_fields();
    let conversations = fields.iter().find(|field| field.name() == "conversations");
    Ok(Shape {
        names: fields.iter().map(|field| field.name().to_owned()).collect(),
        turn_names: conversations.map(|list| element_names(list)).unwrap_or_default(),
    })
}

/// Names of the members of a list's elements: below the group of the list and the repeated one inside.
fn element_names(list: &Type) -> Vec<String> {
    let mut group = list;
    while group.is_group() && group.get_fields().len() == 1 && group.get_fields()[0].is_group() {
        group = &group.get_fields()[0];
    }
    if !group.is_group() {
        return Vec::new();
    }
    group.get_fields().iter().map(|field| field.name().to_owned()).collect()
}

/// Reads every row into `item_of`, with its number from 1.
pub(crate) fn read(path: &Path, sink: &mut Sink<'_>, item_of: ItemOf<'_>) -> Result<(), DatasetError> {
    let reader = reader(path)?;
    let bytes = path.metadata().map_or(0, |metadata| metadata.len());
    let rows = reader.metadata().file_metadata().num_rows().max(0) as u64;
    let mut number = 0;
    let ended = |fault: Fault, sink: &mut Sink<'_>| {
        let _ended_anyway = sink.fault(fault, bytes);
        Ok(())
    };
    if let Err(fault) = check(&reader, data_bytes(path)?) {
        return ended(fault, sink);
    }
    let checked = Checked(&reader);
    let mut iter = match guarded(CONTRADICTS, || wanted_rows(&checked)) {
        Ok(iter) => iter,
        Err(words) => return ended(broken(1, &words), sink),
    };
    loop {
        number += 1;
        let row = match guarded(CONTRADICTS, || iter.next().transpose()) {
            Ok(Some(row)) => row,
            Ok(None) if number <= rows => {
                let words = format!("its footer counts {rows} rows, the data ends before row {number}");
                return ended(broken(number, &words), sink);
            }
            Ok(None) => return Ok(()),
            Err(words) => return ended(broken(number, &words), sink),
        };
        let read = value(row).map_err(|why| Fault::new(number, "$", why)).and_then(|json| item_of(&json, number, "$"));
        let taken = (u128::from(bytes) * u128::from(number) / u128::from(rows.max(1))) as u64;
        if sink.give(read, taken) == ControlFlow::Break(()) {
            return Ok(());
        }
    }
}

fn broken(row: u64, words: &str) -> Fault {
    Fault::new(row, "$", format!("the parquet data is broken: {words}; nothing behind it was read"))
}

fn reader(path: &Path) -> Result<SerializedFileReader<std::fs::File>, DatasetError> {
    let file = open(path)?;
    guarded(CONTRADICTS, || SerializedFileReader::new(file)).map_err(|words| DatasetError::UnknownFormat {
        path: path.to_owned(),
        found: format!("it begins as parquet, and its footer is broken: {words}"),
        expected: EXPECTED,
    })
}

/// Where the footer begins, by the length that stands in front of the last four bytes.
fn data_bytes(path: &Path) -> Result<u64, DatasetError> {
    let read = || -> std::io::Result<u64> {
        let mut file = std::fs::File::open(path)?;
        let end = file.seek(SeekFrom::End(-8))?;
        let mut length = [0; 4];
        file.read_exact(&mut length)?;
        Ok(end.saturating_sub(u32::from_le_bytes(length).into()))
    };
    read().map_err(|source| DatasetError::Read { path: path.to_owned(), source })
}

/// What the footer says against what lies before it, and the compression against what this program reads.
fn check(reader: &SerializedFileReader<std::fs::File>, data_bytes: u64) -> Result<(), Fault> {
    for (index, group) in reader.metadata().row_groups().iter().enumerate() {
        for column in group.columns() {
            let path = format!("$.{}", column.column_path().string());
            let readable = matches!(
                column.compression(),
                Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_)
            );
            if !readable {
                let found = column.compression();
                let message = format!("is compressed with {found}, expected none, SNAPPY, GZIP or ZSTD");
                return Err(Fault::new(1, path, message));
            }
            let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
            let (start, length) = (u64::try_from(start), u64::try_from(column.compressed_size()));
            let end = start.ok().zip(length.ok()).and_then(|(start, length)| start.checked_add(length));
            if end.is_none_or(|end| end > data_bytes) || column.num_values() < 0 || group.num_rows() < 0 {
                let message = format!(
                    "the parquet footer places row group {index} of it outside the {data_bytes} bytes before it"
                );
                return Err(Fault::new(1, path, message));
            }
        }
    }
    Ok(())
}

/// An iterator over the columns that are read.
fn wanted_rows<'a>(reader: &'a Checked<'a>) -> Result<RowIter<'a>, ParquetError> {
    let root = reader.metadata().file_metadata().schema();
    let wanted: BTreeSet<&str> = COLUMNS.into_iter().collect();
    let fields = root.get_fields().iter().filter(|field| wanted.contains(field.name())).cloned().collect();
    let projection = Type::group_type_builder(root.name()).with_fields(fields).build()?;
    Ok(RowIter::from_file(Some(projection), reader)?.with_batch_size(BATCH_ROWS))
}

/// A row as an object; a null of a column stays.
fn value(row: Row) -> Result<Json, String> {
    let members = row.into_columns().into_iter().map(|(name, field)| json(&field).map(|json| (name, json)));
    members.collect::<Result<_, _>>().map(Json::Object)
}

fn json(field: &Field) -> Result<Json, String> {
    let whole = |number: i64| Json::Number(number.into());
    let real = |number: f64| Number::from_f64(number).map_or(Json::Null, Json::Number);
    Ok(match field {
        Field::Null => Json::Null,
        Field::Bool(flag) => Json::Bool(*flag),
        Field::Byte(number) => whole((*number).into()),
        Field::Short(number) => whole((*number).into()),
        Field::Int(number) => whole((*number).into()),
        Field::Long(number) => whole(*number),
        Field::UByte(number) => whole((*number).into()),
        Field::UShort(number) => whole((*number).into()),
        Field::UInt(number) => whole((*number).into()),
        Field::ULong(number) => Json::Number((*number).into()),
        Field::Float16(number) => real(f64::from(*number)),
        Field::Float(number) => real(f64::from(*number)),
        Field::Double(number) => real(*number),
        Field::Str(text) => Json::String(text.clone()),
        Field::Bytes(bytes) => Json::String(
            std::str::from_utf8(bytes.data()).map_err(|_| "a column holds bytes that are no UTF-8 text")?.to_owned(),
        ),
        Field::Group(row) => group(row)?,
        Field::ListInternal(list) => Json::List(list.elements().iter().map(json).collect::<Result<_, _>>()?),
        Field::MapInternal(map) => map_of(map.entries())?,
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => Json::String(field.to_string()),
    })
}

fn group(row: &Row) -> Result<Json, String> {
    let mut members = Vec::new();
    for (name, field) in row.get_column_iter().filter(|(_, field)| !matches!(field, Field::Null)) {
        members.push((name.clone(), json(field)?));
    }
    Ok(Json::Object(members))
}

fn map_of(entries: &[(Field, Field)]) -> Result<Json, String> {
    let mut members = Vec::new();
    for (key, field) in entries.iter().filter(|(_, field)| !matches!(field, Field::Null)) {
        let name = json(key)?;
        let name = name.as_str().ok_or("a map has keys that are no text")?;
        members.push((name.to_owned(), json(field)?));
    }
    Ok(Json::Object(members))
}
