//! Files for other nodes: a socket of its own, on which nodes of the cluster read chunks of what is in the cache.
//!
//! ```text
//! accept ─ handshake: a certificate of this cluster ─┬─ one request per stream: judged by its grant ─► chunk from the disk ─► paced ─► sent
//!   (retry when busy)                                └─ closed when it asks nothing any more
//! ```
//! Whoever reads has to show a [`Grant`] that the coordinator sealed for it with the key that only this node and the coordinator have
//! ([`Desk`]); nobody is asked about it. Everything is bounded, because this machine is here to train: what others read costs it at most
//! `share.bandwidth`, some connections and a little memory, and never its link to the coordinator, which is another socket.

use super::{identity::Shared, tls};
use crate::{cache::Cache, link::frame};
use lorikeet_protocol::{
    blob::Refusal,
    file::CHUNK_BYTES,
    id::{Hash, NodeId, UnixMillis},
    rate::Bucket,
    share::{Grant, GrantKey, ShareAnswer, ShareRequest},
};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt};
use rustls_pki_types::CertificateDer;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A handshake costs a signature, and holds memory: beyond half of these, addresses must prove themselves first.
const HANDSHAKES: usize = 16;
/// Nodes that read at the same time: each giver is one of four of a reader's, and a share of the bandwidth below this brings nobody far.
const READERS: usize = 32;
/// Chunks of one reader on their way: the next is read from the disk while one is sent.
const STREAMS: u32 = 2;
/// Chunks in memory for all readers together: 128 MiB.
const CHUNKS: usize = 8;
/// A request is a hundred bytes.
const REQUEST_WINDOW: u32 = 1 << 10;
/// A handshake and a request take a few round trips; slower is no node.
const PATIENCE: Duration = Duration::from_secs(10);
/// As long as a reader waits for a chunk.
const CHUNK_PATIENCE: Duration = Duration::from_secs(30);
/// A reader that has asked nothing for so long makes room for another; between two files it asks at once.
const UNUSED: Duration = Duration::from_secs(10);
/// A silent connection is over: three keep-alives of the reader were lost.
const IDLE: Duration = Duration::from_secs(15);
/// Goodbyes take a round trip.
const PARTING: Duration = Duration::from_millis(500);

/// Why files are not given.
#[derive(Debug, thiserror::Error)]
pub enum GiveError {
    /// The port is taken or the address not ours.
    #[error("listen for other nodes on {address} (UDP, share.listen)")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// TLS cannot begin.
    #[error(transparent)]
    Tls(#[from] super::TlsError),
}

/// What the coordinator said last: what seals grants for this node, and what time it is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desk(Arc<Mutex<Option<Told>>>);

#[derive(Debug, Clone, Copy)]
struct Told {
    key: GrantKey,
    time: UnixMillis,
    at: Instant,
}

impl Desk {
    /// It said so now.
    pub(super) fn told(&self, key: GrantKey, time: UnixMillis) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Told { key, time, at: Instant::now() });
    }

    /// Whether this reader may read what the grant names. Before the coordinator has said anything nobody may.
    pub(super) fn admits(&self, grant: &Grant, reader: NodeId) -> bool {
        let told = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.is_some_and(|told| {
            let passed = u64::try_from(told.at.elapsed().as_millis()).unwrap_or(u64::MAX);
            holds(grant, reader, &told.key, UnixMillis(told.time.0.saturating_add(passed)))
        })
    }
}

/// A grant counts for one reader, until its end, under this node's own seal.
fn holds(grant: &Grant, reader: NodeId, key: &GrantKey, now: UnixMillis) -> bool {
    let seal = blake3::keyed_hash(&key.0, &Grant::words(grant.reader, grant.file, grant.expires));
    // Compared in constant time.
    seal == blake3::Hash::from_bytes(grant.seal.0) && grant.reader == reader && now < grant.expires
}

/// The socket and what is read through it.
pub(crate) struct Giving {
    endpoint: Endpoint,
    address: SocketAddr,
    shared: Arc<Serving>,
}

struct Serving {
    identity: Shared,
    cache: Cache,
    desk: Desk,
    bucket: Mutex<Bucket>,
    started: Instant,
    readers: Semaphore,
    chunks: Semaphore,
}

impl Giving {
    /// Binds; nothing is accepted before [`run`](Self::run).
    pub(crate) fn bind(
        listen: SocketAddr,
        identity: Shared,
        cache: Cache,
        desk: Desk,
        bandwidth: u64,
    ) -> Result<Self, GiveError> {
        let config = server_config(&identity)?;
        let failed = |source| GiveError::Bind { address: listen, source };
        let endpoint = Endpoint::server(config, listen).map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        let shared = Serving {
            identity,
            cache,
            desk,
            // A chunk may leave at once.
            bucket: Mutex::new(Bucket::new(bandwidth, bandwidth.min(CHUNK_BYTES))),
            started: Instant::now(),
            readers: Semaphore::new(READERS),
            chunks: Semaphore::new(CHUNKS),
        };
        Ok(Self { endpoint, address, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Until cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let (handshakes, tasks) = (Arc::new(Semaphore::new(HANDSHAKES)), TaskTracker::new());
        loop {
            let incoming = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            let crowded = handshakes.available_permits() < HANDSHAKES / 2;
            if crowded && incoming.may_retry() && !incoming.remote_address_validated() {
                let _ = incoming.retry();
                continue;
            }
            match handshakes.clone().try_acquire_owned() {
                Ok(permit) => drop(tasks.spawn(welcome(incoming, Arc::clone(&self.shared), permit))),
                Err(_) => incoming.refuse(),
            }
        }
        tasks.close();
        self.endpoint.close(VarInt::from_u32(0), b"the agent is leaving");
        tasks.wait().await;
        let _ = timeout(PARTING, self.endpoint.wait_idle()).await;
    }
}

/// With the certificate of this moment: it is renewed every few days.
fn server_config(identity: &Shared) -> Result<ServerConfig, super::TlsError> {
    let identity = Arc::clone(&identity.read().unwrap_or_else(PoisonError::into_inner));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(u32::try_from(IDLE.as_millis()).expect("15 s fit")).into()))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(REQUEST_WINDOW))
        .receive_window(VarInt::from_u32(REQUEST_WINDOW * STREAMS))
        .send_window(CHUNK_BYTES)
        .datagram_receive_buffer_size(None);
    let mut config = ServerConfig::with_crypto(Arc::new(tls::between::giver(&identity)?));
    config.transport_config(Arc::new(transport)).max_incoming(HANDSHAKES);
    Ok(config)
}

async fn welcome(incoming: Incoming, shared: Arc<Serving>, handshake: OwnedSemaphorePermit) {
    let from = incoming.remote_address();
    let accepted = async {
        let config = server_config(&shared.identity).map_err(|error| super::chain(&error))?;
        let connecting = incoming.accept_with(Arc::new(config)).map_err(|error| error.to_string())?;
        connecting.await.map_err(|error| error.to_string())
    };
    let connection = match timeout(PATIENCE, accepted).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%from, error, "a node that would read was not let in"),
        Err(_) => return tracing::debug!(%from, "a handshake took too long"),
    };
    drop(handshake);
    let reason: &[u8] = match (reader_of(&connection), shared.readers.try_acquire()) {
        (None, _) => b"this needs the certificate of a node",
        (_, Err(_)) => b"too many read here; come back",
        (Some(reader), Ok(_place)) => {
            serve(&shared, &connection, reader).await;
            b""
        }
    };
    connection.close(VarInt::from_u32(0), reason);
}

fn reader_of(connection: &Connection) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    tls::between::named(chain.first()?)
}

async fn serve(shared: &Arc<Serving>, connection: &Connection, reader: NodeId) {
    // QUIC's own stream limit bounds these tasks.
    let streams = TaskTracker::new();
    loop {
        match timeout(UNUSED, connection.accept_bi()).await {
            Ok(Ok((send, receive))) => {
                let shared = Arc::clone(shared);
                streams.spawn(async move {
                    if timeout(CHUNK_PATIENCE, shared.answer(reader, send, receive)).await.is_err() {
                        tracing::debug!(%reader, "a node takes too long to read a chunk");
                    }
                });
            }
            Err(_) if !streams.is_empty() => {}
            Ok(Err(_)) | Err(_) => break,
        }
    }
    connection.close(VarInt::from_u32(0), b"");
    streams.close();
    streams.wait().await;
}

impl Serving {
    async fn answer(&self, reader: NodeId, mut send: SendStream, mut receive: RecvStream) {
        let Ok(Ok(ShareRequest { grant, chunk })) = timeout(PATIENCE, frame::read(&mut receive)).await else { return };
        // Held until the bytes are with QUIC, which bounds them by its window.
        let _place = self.chunks.acquire().await;
        let (answer, bytes) = match self.chunk(reader, &grant, chunk).await {
            Ok(bytes) => (ShareAnswer::Bytes(bytes.len() as u64), bytes),
            Err(refusal) => (ShareAnswer::Refused(refusal), Vec::new()),
        };
        self.pace(bytes.len()).await;
        if frame::write(&mut send, &answer).await.is_ok() && send.write_all(&bytes).await.is_ok() {
            let _ = send.finish();
            self.cache.gave(bytes.len() as u64);
            let _ = send.stopped().await;
        }
    }

    async fn chunk(&self, reader: NodeId, grant: &Grant, chunk: u32) -> Result<Vec<u8>, Refusal> {
        let file: Hash = grant.file;
        if !self.desk.admits(grant, reader) {
            tracing::debug!(%reader, %file, "a node may not read what it asks for");
            return Err(Refusal::NotYours);
        }
        self.cache.lend(file, chunk).await.ok_or(Refusal::Missing)
    }

    /// Waits until so many bytes may leave.
    async fn pace(&self, bytes: usize) {
        let now = self.started.elapsed();
        let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(bytes as u64, now);
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests;
