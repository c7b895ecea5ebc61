//! Writing tensors one at a time, so that a file does not take the memory of all of them: 32-bit floats whose bytes are made when
//! they are written, or slots that are filled as their bytes come.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, View};
use serde_json::{Map, Value, json};

/// A tensor whose numbers are asked for when it is written.
pub(crate) struct Numbers<'a> {
    /// Rows first.
    pub(crate) shape: Vec<usize>,
    /// As many as the shape says.
    pub(crate) numbers: Box<dyn Fn() -> Cow<'a, [f32]> + 'a>,
}

impl<'a> Numbers<'a> {
    /// Numbers that lie there already.
    pub(crate) fn of(shape: Vec<usize>, numbers: &'a [f32]) -> Numbers<'a> {
        Numbers { shape, numbers: Box::new(move || Cow::Borrowed(numbers)) }
    }
}

impl View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (self.numbers)().iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

/// Writes a file of tensors. `pytorch`: says so in the header, as transformers and PEFT want it.
pub(crate) fn write<S: AsRef<str> + Ord + Display, V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (S, V)>,
    pytorch: bool,
) -> io::Result<()> {
    let metadata = pytorch.then(|| [("format".to_owned(), "pt".to_owned())].into());
    // The library renames a temporary file that only we may read; this one is as readable as any other that we make.
    let mode = File::options().create(true).append(true).open(path)?.metadata()?.permissions();
    safetensors::serialize_to_file(tensors, metadata, path).map_err(io_error)?;
    std::fs::set_permissions(path, mode)
}

/// The disk's own words, where it was the disk: a full one has to stay one.
fn io_error(error: SafeTensorError) -> io::Error {
    if let SafeTensorError::IoError(error) = error { error } else { io::Error::other(error) }
}

/// A tensor of a file that is filled in any order.
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// Rows first.
    pub(crate) shape: Vec<usize>,
}

impl Slot {
    fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8) as u64
    }
}

/// A safetensors file whose header stands from the beginning and whose tensors are written each where it belongs, so that none has
/// to wait in memory for its turn.
pub(crate) struct Slots {
    file: File,
    /// Offset in the file and length.
    places: BTreeMap<String, (u64, u64)>,
}

impl Slots {
    /// Begins the file, with PyTorch's mark in its header. As the library does, the widest types come first: readers map the file
    /// and want their numbers aligned.
    pub(crate) fn create(path: &Path, mut slots: Vec<Slot>) -> io::Result<Slots> {
        slots.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
        let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
        let (mut places, mut end) = (BTreeMap::new(), 0);
        for slot in &slots {
            let begin = end;
            end += slot.bytes();
            let entry = json!({"dtype": slot.dtype, "shape": slot.shape, "data_offsets": [begin, end]});
            header.insert(slot.name.clone(), entry);
            places.insert(slot.name.clone(), (begin, end - begin));
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let data = 8 + header.len() as u64;
        places.values_mut().for_each(|(offset, _)| *offset += data);
        let file = File::create(path)?;
        file.write_all_at(&(header.len() as u64).to_le_bytes(), 0)?;
        file.write_all_at(&header, 8)?;
        Ok(Slots { file, places })
    }

    /// Writes one tensor.
    ///
    /// # Panics
    /// When there is no such slot, or it has another length.
    pub(crate) fn fill(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (offset, len) = self.places[name];
        assert_eq!(bytes.len() as u64, len, "{name} was announced with another length");
        self.file.write_all_at(bytes, offset)
    }

    /// Bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.places.values().map(|(_, len)| len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_one_that_the_library_makes_of_bytes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tensors");
        let numbers: Vec<f32> = (0..12).map(|i| i as f32 / 7.0).collect();
        let views = |part: usize| Numbers::of(vec![2, 3], &numbers[6 * part..6 * part + 6]);
        write(&path, [("b".to_owned(), views(0)), ("a".to_owned(), views(1))], true).expect("written");
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = |part: usize| {
            safetensors::tensor::TensorView::new(Dtype::F32, vec![2, 3], &bytes[24 * part..24 * part + 24])
                .expect("24 bytes")
        };
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let whole = safetensors::serialize([("b", view(0)), ("a", view(1))], Some(metadata)).expect("serialised");
        assert_eq!(std::fs::read(&path).expect("read"), whole);
    }

    #[test]
    fn a_file_is_as_readable_as_its_neighbours() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (path, neighbour) = (dir.path().join("tensors"), dir.path().join("config.json"));
        std::fs::write(&neighbour, "{}").expect("written");
        write(&path, [("a", Numbers::of(vec![1], &[1.0]))], true).expect("written");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions();
        assert_eq!(mode(&path), mode(&neighbour));
    }

    #[test]
    fn slots_that_are_filled_in_any_order_are_read_as_the_library_would_have_written_them() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("tensors");
        let slot = |name: &str, dtype, shape: &[usize]| Slot { name: name.into(), dtype, shape: shape.to_vec() };
        let all = vec![slot("odd", Dtype::U8, &[3]), slot("wide", Dtype::F32, &[2]), slot("none", Dtype::U8, &[])];
        let slots = Slots::create(&path, all).expect("created");
        assert_eq!(slots.bytes(), 12);
        for (name, bytes) in [("none", &[9][..]), ("odd", &[1, 2, 3]), ("wide", &[0, 0, 128, 63, 0, 0, 0, 64])] {
            slots.fill(name, bytes).expect("written");
        }
        let bytes = std::fs::read(&path).expect("read");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("sound");
        let wide = file.tensor("wide").expect("there");
        assert_eq!((wide.dtype(), wide.shape(), wide.data()), (Dtype::F32, &[2][..], &bytes[bytes.len() - 12..][..8]));
        assert_eq!((bytes.len() - 12) % 8, 0, "the data begin aligned");
        assert_eq!(file.tensor("odd").expect("there").data(), [1, 2, 3]);
        assert_eq!(file.tensor("none").expect("there").data(), [9]);
    }
}
