//! Whole messages over a QUIC stream.

use lorikeet_protocol::codec::{self, CodecError, HEADER_BYTES};
use serde::{Serialize, de::DeserializeOwned};

/// Why no message came or went.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The bytes are no message of ours.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The stream ended or broke.
    #[error("read a message")]
    Read(#[from] quinn::ReadExactError),
    /// The stream broke.
    #[error("write a message")]
    Write(#[from] quinn::WriteError),
}

/// The next message. Not safe to cancel in the middle: give it a task of its own.
pub(super) async fn read<T: DeserializeOwned>(stream: &mut quinn::RecvStream) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let mut body = vec![0; codec::body_length(header)?];
    stream.read_exact(&mut body).await?;
    Ok(codec::decode(&body)?)
}

/// Sends one message.
pub(super) async fn write<T: Serialize>(stream: &mut quinn::SendStream, message: &T) -> Result<(), FrameError> {
    stream.write_all(&codec::encode(message)?).await?;
    Ok(())
}
