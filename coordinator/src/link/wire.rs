//! Frames on a QUIC stream.

use super::LinkError;
use lorikeet_protocol::codec::{self, HEADER_BYTES};
use quinn::{ReadExactError, RecvStream, SendStream};
use serde::{Serialize, de::DeserializeOwned};

/// The next message; `None`: the peer ended the stream between two messages.
pub(super) async fn read<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<Option<T>, LinkError> {
    let mut header = [0; HEADER_BYTES];
    match stream.read_exact(&mut header).await {
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        header => header.map_err(LinkError::Cut)?,
    }
    let mut body = vec![0; codec::body_length(header)?];
    stream.read_exact(&mut body).await.map_err(LinkError::Cut)?;
    Ok(Some(codec::decode(&body)?))
}

/// One message.
pub(super) async fn write<T: Serialize>(stream: &mut SendStream, message: &T) -> Result<(), LinkError> {
    // Ours, so this is a bug: said here, because the peer only sees a connection that ends.
    let frame = codec::encode(message)
        .inspect_err(|error| tracing::error!(error = error as &dyn std::error::Error, "a message cannot be sent"))
        .map_err(LinkError::Unsayable)?;
    stream.write_all(&frame).await.map_err(LinkError::Write)
}
