//! One end of the wire between two ranks: frames of a tag, a length and that many bytes, over a socket pair of one machine.
//!
//! Both ends are the same program, started by itself, so there is no version; numbers go as they lie in memory, little-endian. A
//! length is still checked before memory is taken for it.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The gradient of the largest model that is trained whole, and then some.
const MOST_BYTES: u64 = 1 << 38;

const JSON: u8 = 1;
const NUMBERS: u8 = 2;
const SUMS: u8 = 3;
const REFUSED: u8 = 4;
const FAILED: u8 = 5;
const UNDO: u8 = 6;

/// One end.
#[derive(Debug)]
pub(crate) struct Wire {
    reads: BufReader<UnixStream>,
}

/// What is said.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// A word in JSON.
    Json(Vec<u8>),
    /// Numbers alone.
    Numbers(Vec<f32>),
    /// Gradients and losses.
    Sums(Sums),
    /// Memory was refused.
    Refused {
        /// For what.
        what: String,
        /// How much.
        bytes: u64,
    },
    /// It cannot take part any longer.
    Failed(String),
    /// There are no sums: the step is as if it had not begun.
    Undo,
}

impl Frame {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Frame::Json(_) => "a word",
            Frame::Numbers(_) => "numbers",
            Frame::Sums(_) => "sums",
            Frame::Refused { .. } => "that memory was refused",
            Frame::Failed(_) => "that it failed",
            Frame::Undo => "that there are no sums",
        }
    }
}

/// The losses of every run, then their gradients one behind the other.
#[derive(Debug, PartialEq)]
pub(super) struct Sums {
    losses: Vec<f64>,
    grads: Vec<f32>,
}

impl Sums {
    /// Adds them.
    pub(super) fn add_to(self, grads: &mut [&mut [f32]], losses: &mut [f64]) -> Result<(), String> {
        self.over(grads, losses, |sum, part| *sum += part, |sum, part| *sum += part)
    }

    /// Puts them in the place of what is there.
    pub(super) fn replace(self, grads: &mut [&mut [f32]], losses: &mut [f64]) -> Result<(), String> {
        self.over(grads, losses, |own, sum| *own = sum, |own, sum| *own = sum)
    }

    fn over(
        self,
        grads: &mut [&mut [f32]],
        losses: &mut [f64],
        of_grads: impl Fn(&mut f32, f32),
        of_losses: impl Fn(&mut f64, f64),
    ) -> Result<(), String> {
        let expected = (losses.len(), grads.iter().map(|grads| grads.len()).sum::<usize>());
        if (self.losses.len(), self.grads.len()) != expected {
            let (losses, grads) = (self.losses.len(), self.grads.len());
            return Err(format!("it has {losses} losses and {grads} gradients, expected {expected:?}"));
        }
        losses.iter_mut().zip(self.losses).for_each(|(own, other)| of_losses(own, other));
        let own = grads.iter_mut().flat_map(|grads| grads.iter_mut());
        own.zip(self.grads).for_each(|(own, other)| of_grads(own, other));
        Ok(())
    }
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Wire {
        Wire { reads: BufReader::new(stream) }
    }

    pub(super) fn send_json(&mut self, word: &impl Serialize) -> Result<(), String> {
        self.send_bytes(JSON, [serde_json::to_vec(word).map_err(|error| error.to_string())?.as_slice()])
    }

    pub(super) fn send_numbers(&mut self, numbers: &[f32]) -> Result<(), String> {
        self.send_bytes(NUMBERS, [bytes_of(numbers).as_slice()])
    }

    pub(super) fn send_sums(&mut self, grads: &[&mut [f32]], losses: &[f64]) -> Result<(), String> {
        let head = (losses.len() as u64).to_le_bytes();
        let losses: Vec<u8> = losses.iter().flat_map(|loss| loss.to_le_bytes()).collect();
        let grads: Vec<Vec<u8>> = grads.iter().map(|grads| bytes_of(grads)).collect();
        let parts = [head.as_slice(), &losses].into_iter().chain(grads.iter().map(Vec::as_slice));
        self.send_bytes(SUMS, parts.collect::<Vec<_>>())
    }

    pub(super) fn send(&mut self, frame: &Frame) -> Result<(), String> {
        match frame {
            Frame::Json(text) => self.send_bytes(JSON, [text.as_slice()]),
            Frame::Numbers(numbers) => self.send_numbers(numbers),
            Frame::Sums(Sums { losses, grads }) => self.send_sums(&[&mut grads.clone()], losses),
            Frame::Refused { what, bytes } => self.send_bytes(REFUSED, [&bytes.to_le_bytes(), what.as_bytes()]),
            Frame::Failed(why) => self.send_bytes(FAILED, [why.as_bytes()]),
            Frame::Undo => self.send_bytes(UNDO, []),
        }
    }

    fn send_bytes<'a>(&mut self, tag: u8, parts: impl IntoIterator<Item = &'a [u8]>) -> Result<(), String> {
        let parts: Vec<&[u8]> = parts.into_iter().collect();
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let mut stream = self.reads.get_ref();
        let head = [&[tag], length.to_le_bytes().as_slice()].concat();
        let mut all = std::iter::once(head.as_slice()).chain(parts);
        all.try_for_each(|part| stream.write_all(part)).map_err(|error| format!("its wire ended: {error}"))
    }

    /// The next frame; `None`: the other end has left.
    pub(super) fn receive(&mut self) -> Result<Option<Frame>, String> {
        let (mut tag, mut length) = ([0], [0; 8]);
        match self.reads.read_exact(&mut tag).and_then(|()| self.reads.read_exact(&mut length)) {
            Err(error) if [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset].contains(&error.kind()) => {
                return Ok(None);
            }
            read => read.map_err(|error| format!("its wire broke: {error}"))?,
        }
        let length = u64::from_le_bytes(length);
        if length > MOST_BYTES {
            return Err(format!("it announced {length} bytes, expected {MOST_BYTES} at most"));
        }
        let mut bytes = vec![0; length as usize];
        match self.reads.read_exact(&mut bytes) {
            Err(_) => Ok(None),
            Ok(()) => parse(tag[0], bytes).map(Some),
        }
    }

    pub(super) fn receive_json<T: DeserializeOwned>(&mut self) -> Result<Option<T>, String> {
        match self.receive()? {
            None => Ok(None),
            Some(Frame::Json(text)) => serde_json::from_slice(&text).map(Some).map_err(|error| error.to_string()),
            Some(other) => Err(format!("it said {}, expected a word", other.name())),
        }
    }

    pub(super) fn receive_numbers(&mut self) -> Result<Vec<f32>, String> {
        match self.receive()? {
            Some(Frame::Numbers(numbers)) => Ok(numbers),
            Some(other) => Err(format!("it said {}, expected numbers", other.name())),
            None => Err("its wire ended before its numbers".into()),
        }
    }
}

fn parse(tag: u8, bytes: Vec<u8>) -> Result<Frame, String> {
    let short = || format!("a frame of {} bytes is too short", bytes.len());
    match tag {
        JSON => Ok(Frame::Json(bytes)),
        NUMBERS => Ok(Frame::Numbers(numbers_of(&bytes))),
        SUMS => {
            let (count, rest) = bytes.split_first_chunk().ok_or_else(short)?;
            let count = usize::try_from(u64::from_le_bytes(*count)).ok().and_then(|count| count.checked_mul(8));
            let (losses, grads) = count.and_then(|count| rest.split_at_checked(count)).ok_or_else(short)?;
            let losses = losses.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
            Ok(Frame::Sums(Sums { losses, grads: numbers_of(grads) }))
        }
        REFUSED => {
            let (count, what) = bytes.split_first_chunk().ok_or_else(short)?;
            let what = String::from_utf8_lossy(what).into_owned();
            Ok(Frame::Refused { what, bytes: u64::from_le_bytes(*count) })
        }
        FAILED => Ok(Frame::Failed(String::from_utf8_lossy(&bytes).into_owned())),
        UNDO => Ok(Frame::Undo),
        other => Err(format!("it said something of kind {other}, which there is not")),
    }
}

fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn numbers_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_arrives() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let (mut here, mut there) = (Wire::new(here), Wire::new(there));
        let sums = || Sums { losses: vec![0.1 + 0.2, f64::NAN], grads: vec![f32::MIN_POSITIVE, -0.0, f32::INFINITY] };
        for frame in [
            Frame::Json(b"{}".to_vec()),
            Frame::Numbers(vec![1.5, f32::MAX]),
            Frame::Sums(sums()),
            Frame::Refused { what: "activations".into(), bytes: 7 },
            Frame::Failed("why".into()),
            Frame::Undo,
        ] {
            here.send(&frame).expect("sent");
            let came = there.receive().expect("received").expect("a frame");
            // NaN is not equal to itself; its text is
            assert_eq!(format!("{came:?}"), format!("{frame:?}"));
        }
        drop(here);
        assert_eq!(there.receive(), Ok(None), "who leaves is no error");
    }

    #[test]
    fn what_makes_no_sense_is_said_and_takes_no_memory() {
        for (bytes, said) in [
            (vec![JSON, 255, 255, 255, 255, 255, 255, 255, 255], "announced"),
            (vec![9, 0, 0, 0, 0, 0, 0, 0, 0], "kind 9"),
            (vec![SUMS, 1, 0, 0, 0, 0, 0, 0, 0, 1], "too short"),
            (vec![REFUSED, 0, 0, 0, 0, 0, 0, 0, 0], "too short"),
        ] {
            let (mut here, there) = UnixStream::pair().expect("a pair");
            here.write_all(&bytes).expect("sent");
            let error = Wire::new(there).receive().expect_err("nonsense");
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn sums_of_another_shape_are_refused() {
        let sums = Sums { losses: vec![1.0], grads: vec![1.0, 2.0] };
        let error = sums.add_to(&mut [&mut [0.0][..]], &mut [0.0]).expect_err("too many");
        assert!(error.contains("1 losses and 2 gradients"), "{error}");
    }
}
