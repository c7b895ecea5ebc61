//! The blob conversation: chunks of files, one request per stream, so that bulk never stands in the way of heartbeats.
//!
//! Each request is judged anew: the certificate must have a session, and the driver must say that the attempt is this node's
//! and names the file. An answer of bytes or a put is one chunk, compared with its hash on either side.

use super::{
    BLOB_STREAMS, BLOB_WINDOW, CloseCode, LinkError, PATIENCE, Shared, peer::LAST_WORDS, rate::Rate, share,
    tls::NodeCertificate, wire,
};
use crate::blob::{BlobError, Limit};
use lorikeet_protocol::{
    blob::{BlobAnswer, BlobRequest, Refusal},
    file::FileManifest,
    id::{AttemptId, Hash},
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// A chunk on a line of 1 Mbit/s takes 134 s.
const CHUNK_PATIENCE: Duration = Duration::from_secs(300);

pub(super) async fn serve(
    shared: &Arc<Shared>,
    connection: &Connection,
    certificate: NodeCertificate,
    shares: bool,
) -> Result<(), LinkError> {
    if !shared.admitted.holds(&certificate) {
        connection.close(VarInt::from_u32(CloseCode::Busy as u32), b"say hello on the control connection first");
        return Ok(());
    }
    connection.set_receive_window(VarInt::from_u32(BLOB_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(BLOB_STREAMS));
    // QUIC's own stream limit bounds these tasks.
    let streams = TaskTracker::new();
    let mut rate = Rate::default();
    let dismissed = shared.admitted.dismissed(&certificate, LAST_WORDS);
    tokio::pin!(dismissed);
    let ended = loop {
        let stream = tokio::select! {
            biased;
            () = shared.cancel.cancelled() => break Ok(()),
            () = &mut dismissed => break Ok(()),
            stream = connection.accept_bi() => stream,
        };
        match stream {
            Err(error) => break Err(error.into()),
            Ok((send, receive)) => {
                tokio::time::sleep(rate.request()).await;
                let (shared, certificate, from) =
                    (Arc::clone(shared), certificate.clone(), connection.remote_address());
                let exchange = Exchange { shared, certificate, shares, from, send, receive };
                streams.spawn(exchange.run());
            }
        }
    };
    streams.close();
    // The connection is gone or closes behind us: what is left ends by itself, on its next read or write.
    connection.close(VarInt::from_u32(CloseCode::Done as u32), b"");
    streams.wait().await;
    ended
}

struct Exchange {
    shared: Arc<Shared>,
    certificate: NodeCertificate,
    /// Whether this conversation is the one that speaks of other nodes' files.
    shares: bool,
    from: SocketAddr,
    send: SendStream,
    receive: RecvStream,
}

/// An answer and the bytes behind it.
pub(super) type Reply = (BlobAnswer, Vec<u8>);

impl Exchange {
    async fn run(mut self) {
        if let Err(error) =
            timeout(CHUNK_PATIENCE, self.serve()).await.map_err(LinkError::Slow).and_then(|served| served)
        {
            tracing::debug!(node = %self.certificate.node, %error, "a request for bytes was not served");
        }
    }

    async fn serve(&mut self) -> Result<(), LinkError> {
        let asked = timeout(PATIENCE, wire::read::<BlobRequest>(&mut self.receive)).await??;
        let request = asked.ok_or(LinkError::Misbehaved("it asked nothing"))?;
        let (answer, bytes) = match self.answer(request).await? {
            Ok(reply) => reply,
            Err(refusal) => (BlobAnswer::Refused(refusal), Vec::new()),
        };
        let (answer, bytes) = match self.shared.outgoing.wait(bytes.len()) {
            Some(wait) => {
                tokio::time::sleep(wait).await;
                (answer, bytes)
            }
            None => (BlobAnswer::Refused(Refusal::Busy), Vec::new()),
        };
        wire::write(&mut self.send, &answer).await?;
        self.send.write_all(&bytes).await.map_err(LinkError::Write)?;
        let _ = self.send.finish();
        let _ = self.send.stopped().await;
        Ok(())
    }

    async fn answer(&mut self, request: BlobRequest) -> Result<Result<Reply, Refusal>, LinkError> {
        let Some(session) = self.shared.admitted.number(&self.certificate) else { return Ok(Err(Refusal::Busy)) };
        self.shared.beat(self.certificate.node).await;
        Ok(match request {
            BlobRequest::Fetch { attempt, file, chunk } => self.fetch(attempt, file, chunk).await,
            BlobRequest::Offer { attempt, manifest } => self.offer(attempt, manifest).await,
            BlobRequest::Put { attempt, file, chunk } => self.put(attempt, file, chunk).await?,
            BlobRequest::Finish { attempt, file } => self.finish(attempt, file).await,
            BlobRequest::Announce(_) | BlobRequest::Givers { .. } if !self.shares => {
                return Err(LinkError::Misbehaved("it asks for what lorikeet-blob/1 has not"));
            }
            BlobRequest::Announce(said) => {
                Ok(share::announce(&self.shared, self.certificate.node, session, self.from, said).await?)
            }
            BlobRequest::Givers { attempt, file } => {
                share::givers(&self.shared, self.certificate.node, self.from, attempt, file).await
            }
        })
    }

    async fn fetch(&self, attempt: AttemptId, file: Hash, chunk: u32) -> Result<Reply, Refusal> {
        let services = &self.shared.services;
        if !services.may_fetch(self.certificate.node, attempt, file).await {
            return Err(Refusal::NotYours);
        }
        if self.shared.outgoing.is_full() {
            return Err(Refusal::Busy);
        }
        match services.blobs.chunk(file, chunk).await {
            Ok(bytes) => Ok((BlobAnswer::Bytes(bytes.len() as u64), bytes)),
            Err(error) => {
                if matches!(error, BlobError::Changed { .. } | BlobError::Refused { .. }) {
                    services.mark_changed(file).await;
                }
                Err(refusal(error))
            }
        }
    }

    async fn offer(&self, attempt: AttemptId, manifest: FileManifest) -> Result<Reply, Refusal> {
        self.check_upload(attempt).await?;
        let services = &self.shared.services;
        let limit = Limit(services.attempt_limit);
        let wanted = match services.may_fetch(self.certificate.node, attempt, manifest.hash).await {
            true => services.blobs.offer_own(attempt, manifest, limit).await,
            false => services.blobs.offer(attempt, manifest, limit).await,
        };
        let wanted = wanted.map_err(refusal)?;
        Ok((BlobAnswer::Wanted(wanted), Vec::new()))
    }

    async fn put(&mut self, attempt: AttemptId, file: Hash, chunk: u32) -> Result<Result<Reply, Refusal>, LinkError> {
        if let Err(refusal) = self.check_upload(attempt).await {
            return Ok(Err(refusal));
        }
        let blobs = &self.shared.services.blobs;
        let length = match blobs.chunk_length(attempt, file, chunk) {
            Ok(length) => length,
            Err(error) => return Ok(Err(refusal(error))),
        };
        let mut bytes = vec![0; usize::try_from(length).expect("a chunk is 16 MiB at most")];
        self.receive.read_exact(&mut bytes).await.map_err(LinkError::Cut)?;
        self.shared.beat(self.certificate.node).await;
        let stored = blobs.put_chunk(attempt, file, chunk, bytes).await.map_err(refusal);
        Ok(stored.map(|()| (BlobAnswer::Stored, Vec::new())))
    }

    async fn finish(&self, attempt: AttemptId, file: Hash) -> Result<Reply, Refusal> {
        self.check_upload(attempt).await?;
        self.shared.services.blobs.finish(attempt, file).await.map_err(refusal)?;
        Ok((BlobAnswer::Stored, Vec::new()))
    }

    async fn check_upload(&self, attempt: AttemptId) -> Result<(), Refusal> {
        let allowed = self.shared.services.may_upload(self.certificate.node, attempt).await;
        if allowed { Ok(()) } else { Err(Refusal::NotYours) }
    }
}

fn refusal(error: BlobError) -> Refusal {
    let refusal = match &error {
        BlobError::Missing { .. } => Refusal::Missing,
        BlobError::Changed { .. }
        | BlobError::Refused { .. }
        | BlobError::Corrupt { .. }
        | BlobError::Inconsistent { .. } => Refusal::Corrupt,
        BlobError::NoSpace { .. } => Refusal::NoSpace,
        BlobError::TooLarge { .. } | BlobError::TooMany { .. } => Refusal::TooLarge,
        BlobError::Disk { .. } | BlobError::Incomplete { .. } | BlobError::Busy { .. } | BlobError::Closed => {
            Refusal::Busy
        }
    };
    tracing::warn!(error = &error as &dyn std::error::Error, "a request for bytes was refused");
    refusal
}
