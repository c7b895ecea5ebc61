//! Bytes to message and back: the only file that names bincode.
//!
//! A frame is a little-endian `u32` length, a version byte and the encoded message; the length counts the version byte and the
//! message. Nothing is allocated for a length above [`MAX_FRAME_BYTES`], and no decoded value may ask for more memory than that.
//! `docs/wire.md` has the layout in full.

use serde::{Serialize, de::DeserializeOwned};

/// The longest frame body. The largest honest messages are an offer of a 200-shard base model (about 200 KiB) and a batch of
/// log lines (cut at 256 KiB by the agent).
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Bytes of the length in front of a frame's body.
pub const HEADER_BYTES: usize = 4;

/// Why bytes are not a message, or a message not bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A length that no honest peer sends.
    #[error("read a frame: its length is {found} bytes, the limit is {MAX_FRAME_BYTES}")]
    TooLong {
        /// Bytes announced or produced.
        found: usize,
    },
    /// A frame without even a version byte.
    #[error("read a frame: it is empty")]
    Empty,
    /// The peer speaks another version inside this ALPN.
    #[error("read a frame: its version is {found}, expected {expected}")]
    Version {
        /// The version byte.
        found: u8,
        /// Ours.
        expected: u8,
    },
    /// The body does not decode.
    #[error("decode a message")]
    Decode(#[source] bincode::error::DecodeError),
    /// Whole message read, bytes left over.
    #[error("decode a message: {0} bytes are left after its end")]
    Trailing(usize),
    /// The value cannot be encoded.
    #[error("encode a message")]
    Encode(#[source] bincode::error::EncodeError),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_FRAME_BYTES>()
}

/// A whole frame, header included.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut frame = vec![0, 0, 0, 0, crate::VERSION];
    bincode::serde::encode_into_std_write(message, &mut frame, config()).map_err(CodecError::Encode)?;
    let body = frame.len() - HEADER_BYTES;
    let length =
        u32::try_from(body).ok().filter(|_| body <= MAX_FRAME_BYTES).ok_or(CodecError::TooLong { found: body })?;
    frame[..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Whether a peer would take it: a list of many short texts needs more memory than bytes, and the reader counts both.
pub fn fits<T: Serialize + DeserializeOwned>(message: &T) -> bool {
    encode(message).is_ok_and(|frame| decode::<T>(&frame[HEADER_BYTES..]).is_ok())
}

/// How many bytes follow a header, if an honest peer could have meant it.
pub fn body_length(header: [u8; HEADER_BYTES]) -> Result<usize, CodecError> {
    let found = u32::from_le_bytes(header) as usize;
    if found > MAX_FRAME_BYTES { Err(CodecError::TooLong { found }) } else { Ok(found) }
}

/// The message in a frame's body (what follows the header): version byte, message, nothing after it.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    let (&version, message) = body.split_first().ok_or(CodecError::Empty)?;
    if version != crate::VERSION {
        return Err(CodecError::Version { found: version, expected: crate::VERSION });
    }
    let (value, read) = bincode::serde::decode_from_slice(message, config()).map_err(CodecError::Decode)?;
    if read == message.len() { Ok(value) } else { Err(CodecError::Trailing(message.len() - read)) }
}
