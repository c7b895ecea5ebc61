//! One end of the wire between two ranks: frames of a tag, a length and that many bytes, over a socket pair of one machine.
//!
//! Both ends are the same program, started by itself, so there is no version; numbers go as they lie in memory, little-endian, a
//! piece at a time, so that a wire holds no copy of a gradient. Nobody waits deaf: a wire looks up ten times a second, and whoever
//! was told to stop leaves.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::FailureClass;

/// How long a wire waits before it looks up.
const LOOK: Duration = Duration::from_millis(100);
/// A word is small; numbers have a length that both ends know.
const LONGEST_WORD: u64 = 1 << 24;
/// Bytes of numbers that are copied at a time.
const PIECE: usize = 1 << 16;

const WORD: u8 = 1;
const NUMBERS: u8 = 2;
const SUMS: u8 = 3;
const REFUSED: u8 = 4;
const FAILED: u8 = 5;
const UNDO: u8 = 6;

/// Asked while a wire waits: whether to give up.
pub(super) type Stop<'a> = &'a dyn Fn() -> bool;

/// Why a wire gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// This end was told to stop.
    #[error("this end was told to stop")]
    Stopped,
    /// The other end has left.
    #[error("it has left")]
    Left,
    /// The system's trouble.
    #[error("its wire broke: {0}")]
    Broke(io::Error),
    /// Something that makes no sense here.
    #[error("it said {found}, expected {expected}")]
    Unexpected {
        /// What was to come.
        expected: &'static str,
        /// What came.
        found: String,
    },
}

/// Memory that was refused, as the other end says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refused {
    /// For what.
    pub(super) what: String,
    /// How much at once.
    pub(super) bytes: u64,
}

/// Why the other end cannot take part any longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failed {
    /// Whose doing it is.
    pub(super) class: FailureClass,
    /// In words.
    pub(super) why: String,
}

/// What comes where sums were to come.
#[derive(Debug, PartialEq)]
pub(super) enum Reply {
    /// They came, and are in their place.
    Sums,
    /// Memory was refused.
    Refused(Refused),
    /// It cannot take part any longer.
    Failed(Failed),
    /// There are no sums: the step is as if it had not begun.
    Undo,
}

/// What becomes of numbers that come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// They are added to what is there.
    Add,
    /// They take its place.
    Replace,
}

/// One end.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: UnixStream,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Wire {
        for limited in [stream.set_read_timeout(Some(LOOK)), stream.set_write_timeout(Some(LOOK))] {
            limited.expect("a tenth of a second is a time, and a socket has timeouts");
        }
        Wire { stream }
    }

    pub(super) fn send_word(&mut self, word: &impl Serialize, stop: Stop<'_>) -> Result<(), WireError> {
        self.send_json(WORD, word, stop)
    }

    pub(super) fn send_refused(&mut self, refused: &Refused, stop: Stop<'_>) -> Result<(), WireError> {
        self.send_json(REFUSED, refused, stop)
    }

    pub(super) fn send_failed(&mut self, failed: &Failed, stop: Stop<'_>) -> Result<(), WireError> {
        self.send_json(FAILED, failed, stop)
    }

    pub(super) fn send_undo(&mut self, stop: Stop<'_>) -> Result<(), WireError> {
        self.send_head(UNDO, 0, stop)
    }

    pub(super) fn send_numbers(&mut self, numbers: &[f32], stop: Stop<'_>) -> Result<(), WireError> {
        self.send_head(NUMBERS, 4 * numbers.len() as u64, stop)?;
        self.write_numbers(numbers, stop)
    }

    /// The losses of every run, then their gradients.
    pub(super) fn send_sums(&mut self, grads: &[&mut [f32]], losses: &[f64], stop: Stop<'_>) -> Result<(), WireError> {
        self.send_head(SUMS, sums_bytes(grads, losses), stop)?;
        let losses: Vec<u8> = losses.iter().flat_map(|loss| loss.to_le_bytes()).collect();
        self.write(&losses, stop)?;
        grads.iter().try_for_each(|grads| self.write_numbers(grads, stop))
    }

    pub(super) fn receive_word<T: DeserializeOwned>(&mut self, stop: Stop<'_>) -> Result<T, WireError> {
        match self.receive_head(stop)? {
            (WORD, length) => self.read_json(length, stop),
            (tag, _) => Err(unexpected("a word", name(tag))),
        }
    }

    pub(super) fn receive_numbers(&mut self, numbers: &mut [f32], stop: Stop<'_>) -> Result<(), WireError> {
        let expected = 4 * numbers.len() as u64;
        match self.receive_head(stop)? {
            (NUMBERS, length) if length == expected => self.read_numbers(numbers, Put::Replace, stop),
            (NUMBERS, length) => Err(unexpected("numbers of its run", format!("{length} bytes of {expected}"))),
            (tag, _) => Err(unexpected("numbers", name(tag))),
        }
    }

    /// Sums of the given shape, put into it; or what was said instead.
    pub(super) fn receive_sums(
        &mut self,
        grads: &mut [&mut [f32]],
        losses: &mut [f64],
        put: Put,
        stop: Stop<'_>,
    ) -> Result<Reply, WireError> {
        let expected = sums_bytes(grads, losses);
        match self.receive_head(stop)? {
            (SUMS, length) if length == expected => {
                for loss in losses {
                    let mut bytes = [0; 8];
                    self.read(&mut bytes, stop)?;
                    let came = f64::from_le_bytes(bytes);
                    *loss = if put == Put::Add { *loss + came } else { came };
                }
                grads.iter_mut().try_for_each(|grads| self.read_numbers(grads, put, stop))?;
                Ok(Reply::Sums)
            }
            (SUMS, length) => Err(unexpected("sums of its run", format!("{length} bytes of {expected}"))),
            (REFUSED, length) => self.read_json(length, stop).map(Reply::Refused),
            (FAILED, length) => self.read_json(length, stop).map(Reply::Failed),
            (UNDO, 0) => Ok(Reply::Undo),
            (tag, _) => Err(unexpected("sums", name(tag))),
        }
    }

    /// Whether something lies here that nobody has read yet, be it that the other end has left.
    pub(super) fn has_news(&self) -> bool {
        self.is_in(PollFlags::IN)
    }

    /// Whether the other end has left, whatever it said before.
    pub(super) fn is_left(&self) -> bool {
        self.is_in(PollFlags::empty())
    }

    /// Whether one of these is so, or the other end has left: a system tells that unasked.
    fn is_in(&self, flags: PollFlags) -> bool {
        let mut polled = [PollFd::new(&self.stream, flags)];
        // one that fails was interrupted, and is done again soon
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|changed| changed > 0)
    }

    /// What the other end said last, if that is why it left.
    pub(super) fn last_word(&mut self) -> Option<Failed> {
        match self.receive_head(&|| true) {
            Ok((FAILED, length)) => self.read_json(length, &|| true).ok(),
            _ => None,
        }
    }

    fn send_json(&mut self, tag: u8, word: &impl Serialize, stop: Stop<'_>) -> Result<(), WireError> {
        let text = serde_json::to_vec(word).expect("plain data is JSON");
        self.send_head(tag, text.len() as u64, stop)?;
        self.write(&text, stop)
    }

    fn send_head(&mut self, tag: u8, length: u64, stop: Stop<'_>) -> Result<(), WireError> {
        self.write(&[&[tag], length.to_le_bytes().as_slice()].concat(), stop)
    }

    fn write_numbers(&mut self, numbers: &[f32], stop: Stop<'_>) -> Result<(), WireError> {
        let mut bytes = Vec::with_capacity(PIECE);
        numbers.chunks(PIECE / 4).try_for_each(|piece| {
            bytes.clear();
            bytes.extend(piece.iter().flat_map(|number| number.to_le_bytes()));
            self.write(&bytes, stop)
        })
    }

    fn write(&mut self, mut bytes: &[u8], stop: Stop<'_>) -> Result<(), WireError> {
        while !bytes.is_empty() {
            let written = self.stream.write(bytes);
            bytes = &bytes[moved(written, stop)?..];
        }
        Ok(())
    }

    fn receive_head(&mut self, stop: Stop<'_>) -> Result<(u8, u64), WireError> {
        let (mut tag, mut length) = ([0], [0; 8]);
        self.read(&mut tag, stop)?;
        self.read(&mut length, stop)?;
        Ok((tag[0], u64::from_le_bytes(length)))
    }

    fn read_json<T: DeserializeOwned>(&mut self, length: u64, stop: Stop<'_>) -> Result<T, WireError> {
        if length > LONGEST_WORD {
            return Err(unexpected("a word", format!("one of {length} bytes")));
        }
        let mut text = vec![0; length as usize];
        self.read(&mut text, stop)?;
        serde_json::from_slice(&text).map_err(|error| unexpected("a word", error.to_string()))
    }

    fn read_numbers(&mut self, numbers: &mut [f32], put: Put, stop: Stop<'_>) -> Result<(), WireError> {
        let mut bytes = vec![0; PIECE.min(4 * numbers.len())];
        numbers.chunks_mut(PIECE / 4).try_for_each(|piece| {
            let bytes = &mut bytes[..4 * piece.len()];
            self.read(bytes, stop)?;
            for (number, bytes) in piece.iter_mut().zip(bytes.as_chunks().0) {
                let came = f32::from_le_bytes(*bytes);
                *number = if put == Put::Add { *number + came } else { came };
            }
            Ok(())
        })
    }

    fn read(&mut self, mut into: &mut [u8], stop: Stop<'_>) -> Result<(), WireError> {
        while !into.is_empty() {
            let read = self.stream.read(into);
            let moved = moved(read, stop)?;
            into = &mut into[moved..];
        }
        Ok(())
    }
}

/// How many bytes went through; none, where it is to be tried again.
fn moved(result: io::Result<usize>, stop: Stop<'_>) -> Result<usize, WireError> {
    let error = match result {
        Ok(0) => return Err(WireError::Left),
        Ok(count) => return Ok(count),
        Err(error) => error,
    };
    let is = |kinds: &[ErrorKind]| kinds.contains(&error.kind());
    let is_look = is(&[ErrorKind::WouldBlock, ErrorKind::TimedOut]);
    if is_look && stop() {
        Err(WireError::Stopped)
    } else if is_look || is(&[ErrorKind::Interrupted]) {
        Ok(0)
    } else if is(&[ErrorKind::BrokenPipe, ErrorKind::ConnectionReset]) {
        Err(WireError::Left)
    } else {
        Err(WireError::Broke(error))
    }
}

fn sums_bytes(grads: &[&mut [f32]], losses: &[f64]) -> u64 {
    8 * losses.len() as u64 + grads.iter().map(|grads| 4 * grads.len() as u64).sum::<u64>()
}

fn unexpected(expected: &'static str, found: impl Into<String>) -> WireError {
    WireError::Unexpected { expected, found: found.into() }
}

fn name(tag: u8) -> &'static str {
    match tag {
        WORD => "a word",
        NUMBERS => "numbers",
        SUMS => "sums",
        REFUSED => "that memory was refused",
        FAILED => "that it failed",
        UNDO => "that there are no sums",
        _ => "something of a kind that there is not",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const GO_ON: Stop<'static> = &|| false;

    fn pair() -> (Wire, Wire) {
        let (here, there) = UnixStream::pair().expect("a pair");
        (Wire::new(here), Wire::new(there))
    }

    #[test]
    fn what_is_sent_is_what_arrives() {
        let (mut here, mut there) = pair();
        let numbers = [f32::MIN_POSITIVE, -0.0, f32::INFINITY, 1.5];
        here.send_word(&vec![1, 2], GO_ON).expect("sent");
        here.send_numbers(&numbers, GO_ON).expect("sent");
        here.send_refused(&Refused { what: "activations".into(), bytes: 7 }, GO_ON).expect("sent");
        here.send_undo(GO_ON).expect("sent");
        here.send_failed(&Failed { class: FailureClass::Base, why: "it is gone".into() }, GO_ON).expect("sent");
        drop(here);
        assert_eq!(there.receive_word::<Vec<u32>>(GO_ON).expect("a word"), [1, 2]);
        let mut came = [0.0; 4];
        there.receive_numbers(&mut came, GO_ON).expect("numbers");
        assert_eq!(came.map(f32::to_bits), numbers.map(f32::to_bits));
        let mut next = || there.receive_sums(&mut [], &mut [], Put::Add, GO_ON);
        assert_eq!(next().expect("a reply"), Reply::Refused(Refused { what: "activations".into(), bytes: 7 }));
        assert_eq!(next().expect("a reply"), Reply::Undo);
        let failed = Failed { class: FailureClass::Base, why: "it is gone".into() };
        assert_eq!(next().expect("a reply"), Reply::Failed(failed));
        assert!(matches!(next(), Err(WireError::Left)));
    }

    #[test]
    fn sums_longer_than_a_piece_are_added_where_they_belong() {
        let (mut here, mut there) = pair();
        let len = PIECE / 4 + 3;
        let sent = thread::spawn(move || {
            let (mut one, mut two) = ((0..len).map(|i| i as f32).collect::<Vec<_>>(), vec![0.5]);
            here.send_sums(&[&mut one, &mut two], &[0.1 + 0.2, f64::NAN], GO_ON)
        });
        let (mut one, mut two, mut losses) = (vec![1.0; len], vec![1.0], [1.0, 1.0]);
        let reply = there.receive_sums(&mut [&mut one, &mut two], &mut losses, Put::Add, GO_ON);
        assert_eq!(reply.expect("sums"), Reply::Sums);
        sent.join().expect("no panic").expect("sent");
        assert!(one.iter().enumerate().all(|(i, x)| *x == i as f32 + 1.0) && two == [1.5]);
        assert!(losses[0] == 1.0 + (0.1 + 0.2) && losses[1].is_nan());
    }

    #[test]
    fn what_makes_no_sense_is_said_and_takes_no_memory() {
        let huge = [255; 8];
        for (bytes, said) in [
            ([[WORD].as_slice(), &huge].concat(), "one of 18446744073709551615 bytes"),
            ([[9].as_slice(), &[0; 8]].concat(), "a kind that there is not"),
            ([[NUMBERS].as_slice(), &[0; 8]].concat(), "numbers, expected a word"),
        ] {
            let (mut here, mut there) = pair();
            here.write(&bytes, GO_ON).expect("sent");
            let error = there.receive_word::<u32>(GO_ON).expect_err("nonsense").to_string();
            assert!(error.contains(said), "{error}");
        }
        let (mut here, mut there) = pair();
        here.send_sums(&[&mut [1.0, 2.0]], &[1.0], GO_ON).expect("sent");
        let error = there.receive_sums(&mut [&mut [0.0]], &mut [0.0], Put::Add, GO_ON).expect_err("too many");
        assert!(error.to_string().contains("16 bytes of 12"), "{error}");
    }

    #[test]
    fn an_end_that_left_is_seen_behind_what_it_said() {
        let (mut here, mut there) = pair();
        assert!(!there.has_news() && !there.is_left());
        here.send_word(&1, GO_ON).expect("sent");
        assert!(there.has_news() && !there.is_left());
        drop(here);
        assert!(there.has_news() && there.is_left());
        assert_eq!(there.receive_word::<u32>(GO_ON).expect("a word"), 1);
        assert!(there.has_news() && there.is_left());
    }

    #[test]
    fn nobody_waits_deaf() {
        let (mut here, mut there) = pair();
        let waits = thread::spawn(move || there.receive_word::<u32>(&|| true));
        assert!(matches!(waits.join().expect("no panic"), Err(WireError::Stopped)));
        let full = vec![0.0; 1 << 22];
        assert!(here.send_numbers(&full, GO_ON).is_err(), "nobody is there to read them");
    }
}
