//! TensorBoard's event files: records of length and data, each with a masked CRC-32C, whose data are protocol buffers.
//!
//! ```text
//! record: length u64, crc(length) u32, data, crc(data) u32                       crc: ((c >> 15 | c << 17) + 0xa282ead8)
//! Event:   1 wall_time f64   2 step i64   3 file_version   5 summary   7 session_log
//! Summary: 1 value*          Value: 1 tag   2 simple_value f32   8 tensor   9 metadata
//! ```
//! Every start of a run has a file of its own. The first event behind the version says from which step the file counts, and
//! TensorBoard drops what an earlier file, whose run was lost, says of that step and later ones.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// One event file, open for more.
#[derive(Debug)]
pub(crate) struct EventFile {
    file: File,
}

impl EventFile {
    /// Begins a file in `dir`; what others say of `first_step` and later steps no longer counts.
    pub(crate) fn create(dir: &Path, first_step: u64) -> io::Result<EventFile> {
        fs::create_dir_all(dir)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // read in the order of their names: seconds, then what tells two starts within one apart
        let name = format!("events.out.tfevents.{:010}.{:09}.lorikeet", since.as_secs(), since.subsec_nanos());
        let mut events = EventFile { file: File::create_new(dir.join(name))? };
        events.write(0, |event| event.text(3, "brain.Event:2"))?;
        events.write(first_step, |event| event.message(7, |session| session.varint(1, 1)))?;
        Ok(events)
    }

    /// Numbers of one step, by name.
    pub(crate) fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> io::Result<()> {
        self.write(step, |event| {
            event.message(5, |summary| {
                for (tag, number) in scalars {
                    summary.message(1, |value| {
                        value.text(1, tag);
                        value.float(2, *number as f32);
                    });
                }
            });
        })
    }

    /// A text of one step.
    pub(crate) fn text(&mut self, step: u64, tag: &str, text: &str) -> io::Result<()> {
        const STRING: u64 = 7;
        self.write(step, |event| {
            event.message(5, |summary| {
                summary.message(1, |value| {
                    value.text(1, tag);
                    value.message(8, |tensor| {
                        tensor.varint(1, STRING);
                        tensor.message(2, |shape| shape.message(2, |dimension| dimension.varint(1, 1)));
                        tensor.text(8, text);
                    });
                    value.message(9, |metadata| metadata.message(1, |plugin| plugin.text(1, "text")));
                });
            });
        })
    }

    fn write(&mut self, step: u64, fill: impl FnOnce(&mut Message)) -> io::Result<()> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut event = Message::default();
        event.double(1, since.as_secs_f64());
        event.varint(2, step);
        fill(&mut event);
        self.file.write_all(&record(&event.bytes))
    }
}

/// A protocol buffer in the making.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn key(&mut self, field: u64, wire: u64) {
        self.number(field << 3 | wire);
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn varint(&mut self, field: u64, number: u64) {
        self.key(field, 0);
        self.number(number);
    }

    fn double(&mut self, field: u64, number: f64) {
        self.key(field, 1);
        self.bytes.extend(number.to_le_bytes());
    }

    fn float(&mut self, field: u64, number: f32) {
        self.key(field, 5);
        self.bytes.extend(number.to_le_bytes());
    }

    fn text(&mut self, field: u64, text: &str) {
        self.key(field, 2);
        self.number(text.len() as u64);
        self.bytes.extend(text.as_bytes());
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.key(field, 2);
        self.number(inner.bytes.len() as u64);
        self.bytes.extend(inner.bytes);
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let crc = |bytes: &[u8]| masked(crc32c(bytes)).to_le_bytes();
    [&length[..], &crc(&length), data, &crc(data)].concat()
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a step writes a few hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED: u32 = 0x82f6_3b78;
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ REVERSED } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis_and_masked_as_tensorflow_masks_it() {
        assert_eq!((crc32c(b"123456789"), crc32c(&[0; 32])), (0xe306_9283, 0x8a91_36aa));
        assert_eq!(masked(0xe306_9283), 0xc78a_b0e5);
    }

    #[test]
    fn an_event_has_the_bytes_tensorboard_reads() {
        let mut event = Message::default();
        event.double(1, 1.5);
        event.varint(2, 300);
        event.message(5, |summary| {
            summary.message(1, |value| {
                value.text(1, "loss");
                value.float(2, 2.0);
            });
        });
        let expected = b"\x09\0\0\0\0\0\0\xf8\x3f\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\x40";
        assert_eq!(event.bytes, expected);
        let record = record(&event.bytes);
        assert_eq!(record.len(), 8 + 4 + expected.len() + 4);
        assert_eq!(&record[..8], (expected.len() as u64).to_le_bytes());
    }

    #[test]
    fn every_start_has_a_file_of_its_own() {
        let folder = tempfile::tempdir().expect("a directory");
        for step in [1, 5] {
            let mut events = EventFile::create(folder.path(), step).expect("created");
            events.scalars(step, &[("train/loss", 1.0)]).expect("written");
            events.text(step, "sample/1", "so it is").expect("written");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 2);
    }
}
