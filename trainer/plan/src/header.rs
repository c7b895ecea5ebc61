//! The header of a safetensors file, read with suspicion: a header that lies about places or sizes is refused whole.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// The format's own limit on a header.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The number format of a tensor on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names are the format's own")]
pub enum WeightDtype {
    Bool,
    U8,
    I8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
    F16,
    Bf16,
    F32,
    F64,
}

impl WeightDtype {
    /// Bytes of one number.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// Whether a frozen weight may be stored so.
    pub const fn is_trainable_base(self) -> bool {
        matches!(self, Self::F32 | Self::Bf16 | Self::F16)
    }

    /// As the header spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::I64 => "I64",
            Self::U64 => "U64",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F32 => "F32",
            Self::F64 => "F64",
        }
    }
}

/// One tensor as its header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Number format.
    pub dtype: WeightDtype,
    /// Shape, rows first.
    pub shape: Vec<usize>,
    /// Bytes, counted from the end of the header.
    pub data: Range<u64>,
}

/// A whole header; its tensors fill the file without hole or overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Tensors by name.
    pub tensors: BTreeMap<String, HeaderTensor>,
}

/// Reads the JSON of a header that stands before `data_bytes` bytes of data. The error is a fragment that says what lies.
pub fn parse_header(json: &[u8], data_bytes: u64) -> Result<Header, String> {
    let entries: Entries =
        serde_json::from_slice(json).map_err(|error| format!("the header is not a safetensors header: {error}"))?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries.0 {
        let tensor = place(entry).map_err(|reason| format!("tensor {name:?} {reason}"))?;
        tensors.insert(name, tensor);
    }
    check_cover(&tensors, data_bytes)?;
    Ok(Header { tensors })
}

#[derive(Deserialize)]
#[serde(expecting = "an object with dtype, shape and data_offsets")]
struct Entry {
    dtype: WeightDtype,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

fn place(entry: Entry) -> Result<HeaderTensor, String> {
    let (start, end) = entry.data_offsets;
    let held = end.checked_sub(start).ok_or_else(|| format!("ends at {end}, before it begins at {start}"))?;
    let wanted = entry.shape.iter().try_fold(entry.dtype.bytes(), |bytes, n| bytes.checked_mul(*n as u64));
    if wanted != Some(held) {
        let (shape, dtype) = (&entry.shape, entry.dtype.name());
        return Err(format!("of shape {shape:?} in {dtype} cannot take the {held} bytes its offsets give it"));
    }
    Ok(HeaderTensor { dtype: entry.dtype, shape: entry.shape, data: start..end })
}

/// Sorted by place, each tensor begins where the one before ended, and the last ends with the file.
fn check_cover(tensors: &BTreeMap<String, HeaderTensor>, data_bytes: u64) -> Result<(), String> {
    let mut places: Vec<_> = tensors.iter().map(|(name, tensor)| (tensor.data.start, tensor.data.end, name)).collect();
    places.sort_unstable();
    let mut reached = 0;
    for (start, end, name) in places {
        if start != reached {
            return Err(format!("tensor {name:?} begins at byte {start} of the data, expected {reached}"));
        }
        reached = end;
    }
    if reached == data_bytes {
        return Ok(());
    }
    Err(format!("the header describes {reached} bytes of data, the file holds {data_bytes}"))
}

/// Header entries in file order; serde's own maps would let a repeated name pass.
struct Entries(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>()?;
                        continue;
                    }
                    let entry = map.next_value()?;
                    if entries.contains_key(&name) {
                        return Err(A::Error::custom(format!("tensor {name:?} stands twice")));
                    }
                    entries.insert(name, entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}
