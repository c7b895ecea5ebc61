//! Writing tensors of 32-bit floats: their bytes are made when they are written, one tensor at a time, so that saving a state does
//! not take it a second and a third time.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use safetensors::tensor::{Dtype, View};

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

/// Writes a file of them. `pytorch`: says so in the header, as transformers and PEFT want it.
pub(crate) fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Numbers<'a>)>,
    pytorch: bool,
) -> io::Result<()> {
    let metadata = pytorch.then(|| [("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize_to_file(tensors, metadata, path).map_err(|error| {
        // a full disk has to stay one
        if let safetensors::SafeTensorError::IoError(error) = error { error } else { io::Error::other(error) }
    })
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
}
