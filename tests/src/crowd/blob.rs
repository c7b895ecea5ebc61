//! A simulated agent's blob connection: what the product's agents say to bring a file, and a line that can be cut.

use super::{Member, session};
use lorikeet_protocol::{
    COORDINATOR_NAME,
    blob::{BlobAnswer, BlobRequest},
    file::FileManifest,
    id::{AttemptId, Hash},
};
use quinn::{Connection, Endpoint};
use std::net::SocketAddr;

/// While the member has a session.
#[derive(Debug)]
pub struct Bulk {
    connection: Connection,
    _socket: Endpoint,
}

impl Bulk {
    /// A connection of its own.
    ///
    /// # Errors
    /// What went wrong, for the person who measures.
    pub async fn dial(address: SocketAddr, member: &Member) -> Result<Self, String> {
        let socket = session::socket();
        let connecting = socket.connect_with(member.blob.clone(), address, COORDINATOR_NAME);
        let connection = connecting.map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())?;
        Ok(Self { connection, _socket: socket })
    }

    /// The chunks that are still wanted.
    ///
    /// # Errors
    /// As for `dial`; so is what follows.
    pub async fn offer(&self, attempt: AttemptId, manifest: FileManifest) -> Result<Vec<u32>, String> {
        let answer = self.ask(&BlobRequest::Offer { attempt, manifest }, &[]).await?;
        if let BlobAnswer::Wanted(chunks) = answer { Ok(chunks) } else { Err(format!("{answer:?}")) }
    }

    /// Brings one chunk; on success the coordinator has verified it.
    ///
    /// # Errors
    /// A refusal, or a line that broke.
    pub async fn put(&self, attempt: AttemptId, file: Hash, chunk: u32, bytes: &[u8]) -> Result<(), String> {
        self.stored(&BlobRequest::Put { attempt, file, chunk }, bytes).await
    }

    /// Every chunk is there: on success the file is durable.
    ///
    /// # Errors
    /// A refusal, or a line that broke.
    pub async fn finish(&self, attempt: AttemptId, file: Hash) -> Result<(), String> {
        self.stored(&BlobRequest::Finish { attempt, file }, &[]).await
    }

    /// The line is cut: what is under way is lost.
    pub fn cut(&self) {
        self.connection.close(0u32.into(), b"");
    }

    async fn stored(&self, request: &BlobRequest, bytes: &[u8]) -> Result<(), String> {
        let answer = self.ask(request, bytes).await?;
        if answer == BlobAnswer::Stored { Ok(()) } else { Err(format!("{answer:?}")) }
    }

    async fn ask(&self, request: &BlobRequest, bytes: &[u8]) -> Result<BlobAnswer, String> {
        let (mut send, mut receive) = self.connection.open_bi().await.map_err(|error| error.to_string())?;
        session::write(&mut send, request).await?;
        send.write_all(bytes).await.map_err(|error| error.to_string())?;
        let _ = send.finish();
        session::read(&mut receive).await
    }
}
