//! The file: facts by name, then where each tensor lies, then the tensors. Version 3, little-endian.
//!
//! ```text
//! "GGUF"  3u32  tensors u64  facts u64
//! fact:   name, type u32, value                        a text is its length u64 and its bytes; an array is type, length, items
//! tensor: name, dimensions u32, each u64 (the fastest first), type u32, offset u64 from the beginning of the data
//! padding to 32, then the data, every tensor padded to 32
//! ```

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::TrainError;
use crate::merged::narrowed;
use crate::ops::widen::Stored;
use crate::staged::parent;

use super::Written;

const ALIGNMENT: usize = 32;

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
}

impl Type {
    /// As the tensor table says it.
    const fn number(self) -> u32 {
        match self {
            Type::F32 => 0,
            Type::F16 => 1,
            Type::Bf16 => 30,
        }
    }

    /// As `general.file_type` says what most tensors are.
    pub(super) const fn file_type(self) -> u32 {
        match self {
            Type::F32 => 0,
            Type::F16 => 1,
            Type::Bf16 => 32,
        }
    }

    const fn stored(self) -> Stored {
        match self {
            Type::F32 => Stored::F32,
            Type::F16 => Stored::F16,
            Type::Bf16 => Stored::Bf16,
        }
    }
}

impl From<Stored> for Type {
    fn from(stored: Stored) -> Type {
        match stored {
            Stored::F32 => Type::F32,
            Stored::F16 => Type::F16,
            Stored::Bf16 => Type::Bf16,
        }
    }
}

/// A fact.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fact {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
}

impl From<&str> for Fact {
    fn from(text: &str) -> Fact {
        Fact::Text(text.to_owned())
    }
}

impl From<usize> for Fact {
    /// Sizes of a model are far below 2³²; a config with larger ones is refused where it is read.
    fn from(number: usize) -> Fact {
        Fact::U32(u32::try_from(number).expect("sizes are bounded where configs are read"))
    }
}

/// A tensor's name, shape (rows first, as everywhere but in the file) and type.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) stored: Type,
}

impl Tensor {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.stored.stored().bytes()
    }
}

/// Writes the file aside and gives it its name when it is whole and nothing else has that name. `numbers` makes the tensors one by
/// one.
pub(super) fn write(
    path: &Path,
    facts: &[(String, Fact)],
    tensors: &[Tensor],
    numbers: &mut dyn FnMut(usize) -> Result<Vec<f32>, TrainError>,
) -> Result<Written, TrainError> {
    let (folder, name) = (parent(path), path.file_name().unwrap_or_default().to_string_lossy());
    let prefix = format!(".{name}.");
    let mut aside = tempfile::Builder::new();
    // who may read it the mask of the process says, as of every file
    aside.prefix(&prefix).suffix(".partial").permissions(fs::Permissions::from_mode(0o666));
    let aside = aside.tempfile_in(folder).map_err(TrainError::io("write into", folder))?;
    let bytes = write_aside(aside.path(), aside.as_file(), facts, tensors, numbers)?;
    aside.persist_noclobber(path).map_err(|error| TrainError::io("give its name to", path)(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(TrainError::io("sync", folder))?;
    Ok(Written { bytes, tensors: tensors.len() })
}

fn write_aside(
    path: &Path,
    file: &File,
    facts: &[(String, Fact)],
    tensors: &[Tensor],
    numbers: &mut dyn FnMut(usize) -> Result<Vec<f32>, TrainError>,
) -> Result<u64, TrainError> {
    let io = || TrainError::io("write", path);
    let mut file = BufWriter::new(file);
    let head = head(facts, tensors);
    file.write_all(&head).map_err(io())?;
    let mut bytes = head.len() as u64;
    for (index, tensor) in tensors.iter().enumerate() {
        let numbers = numbers(index)?;
        let mut data = narrowed(&numbers, tensor.stored.stored()).ok_or_else(|| beyond(path, tensor))?;
        assert_eq!(data.len(), tensor.bytes(), "as many numbers as the shape says");
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        file.write_all(&data).map_err(io())?;
        bytes += data.len() as u64;
    }
    let file = file.into_inner().map_err(|error| io()(error.into_error()))?;
    file.sync_all().map_err(TrainError::io("sync", path))?;
    Ok(bytes)
}

fn beyond(path: &Path, tensor: &Tensor) -> TrainError {
    let reason = format!("{} has numbers beyond {:?}; a wider type holds them", tensor.name, tensor.stored);
    TrainError::Adapter { path: path.to_owned(), reason }
}

/// Everything before the data, padded.
fn head(facts: &[(String, Fact)], tensors: &[Tensor]) -> Vec<u8> {
    let mut head = b"GGUF".to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((facts.len() as u64).to_le_bytes());
    for (name, fact) in facts {
        push_text(&mut head, name);
        push_fact(&mut head, fact);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        push_text(&mut head, &tensor.name);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|n| head.extend((*n as u64).to_le_bytes()));
        head.extend(tensor.stored.number().to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT) as u64;
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    head
}

fn push_fact(to: &mut Vec<u8>, fact: &Fact) {
    const U32: u32 = 4;
    const I32: u32 = 5;
    const F32: u32 = 6;
    const BOOL: u32 = 7;
    const TEXT: u32 = 8;
    const ARRAY: u32 = 9;
    let array = |to: &mut Vec<u8>, of: u32, len: usize| {
        [ARRAY, of].iter().for_each(|number| to.extend(number.to_le_bytes()));
        to.extend((len as u64).to_le_bytes());
    };
    match fact {
        Fact::U32(number) => [U32, *number].iter().for_each(|number| to.extend(number.to_le_bytes())),
        Fact::F32(number) => {
            to.extend(F32.to_le_bytes());
            to.extend(number.to_le_bytes());
        }
        Fact::Bool(flag) => {
            to.extend(BOOL.to_le_bytes());
            to.push(u8::from(*flag));
        }
        Fact::Text(text) => {
            to.extend(TEXT.to_le_bytes());
            push_text(to, text);
        }
        Fact::Texts(texts) => {
            array(to, TEXT, texts.len());
            texts.iter().for_each(|text| push_text(to, text));
        }
        Fact::F32s(numbers) => {
            array(to, F32, numbers.len());
            numbers.iter().for_each(|number| to.extend(number.to_le_bytes()));
        }
        Fact::I32s(numbers) => {
            array(to, I32, numbers.len());
            numbers.iter().for_each(|number| to.extend(number.to_le_bytes()));
        }
    }
}

fn push_text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_version_three_byte_for_byte() {
        let facts = [("a".to_owned(), Fact::U32(7)), ("b".to_owned(), Fact::Texts(vec!["xy".into()]))];
        let tensor = |name: &str, shape: &[usize], stored| Tensor { name: name.into(), shape: shape.to_vec(), stored };
        let tensors = [tensor("t", &[3, 1], Type::F16), tensor("u", &[2], Type::F32)];
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("f.gguf");
        let written = write(&path, &facts, &tensors, &mut |index| Ok(vec![1.0; [3, 2][index]])).expect("written");
        let bytes = fs::read(&path).expect("read");
        let mut expected = b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        expected.extend(b"\x01\0\0\0\0\0\0\0a\x04\0\0\0\x07\0\0\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0b\x09\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0xy");
        expected.extend(b"\x01\0\0\0\0\0\0\0t\x02\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0u\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\0");
        expected.resize(expected.len().next_multiple_of(32), 0);
        expected.extend(b"\0\x3c\0\x3c\0\x3c");
        expected.resize(expected.len().next_multiple_of(32), 0);
        expected.extend(b"\0\0\x80\x3f\0\0\x80\x3f");
        expected.resize(expected.len().next_multiple_of(32), 0);
        assert_eq!(bytes, expected);
        assert_eq!(written, Written { bytes: expected.len() as u64, tensors: 2 });
    }

    #[test]
    fn a_number_that_does_not_fit_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a directory");
        let tensors = [Tensor { name: "t".into(), shape: vec![1], stored: Type::F16 }];
        let error = write(&folder.path().join("f.gguf"), &[], &tensors, &mut |_| Ok(vec![1e6])).expect_err("refused");
        assert!(error.to_string().contains("t has numbers beyond F16"), "{error}");
        assert!(fs::read_dir(folder.path()).expect("read").next().is_none());
    }

    #[test]
    fn a_file_that_came_meanwhile_stays() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("f.gguf");
        let tensors = [Tensor { name: "t".into(), shape: vec![1], stored: Type::F32 }];
        let error = write(&path, &[], &tensors, &mut |_| {
            fs::write(&path, "somebody's").expect("written");
            Ok(vec![1.0])
        });
        let error = error.expect_err("it has a name of its own").to_string();
        assert!(error.contains("give its name to") && error.contains("f.gguf"), "{error}");
        assert_eq!(fs::read(&path).expect("read"), b"somebody's");
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 1, "and nothing else is left");
    }
}
