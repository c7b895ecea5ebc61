//! The link to the agents: QUIC, one endpoint, three conversations told apart by their ALPN.
//!
//! ```text
//!                       ┌─ join      no certificate needed; one question, one answer          link/join.rs
//! accept ─ handshake ───┼─ control   certificate of a node; one session, both ways            link/peer.rs
//!   (retry when busy)   └─ blob      certificate of a node; one request per stream            link/{blob,share}.rs
//! ```
//!
//! It owns the endpoint and a task per connection, all in one tracker that [`Link::shutdown`] awaits. It decides nothing: what
//! changes state goes to the driver, bytes to `blob` and `series`. Nobody else imports quinn.

mod admitted;
mod ask;
mod blob;
mod check;
mod complaints;
mod doormat;
mod guest;
mod join;
mod peer;
mod rate;
mod reset;
mod share;
pub mod telemetry;
pub mod tls;
pub mod trust;
mod wire;

use crate::{blob::Blobs, driver, series::Series};
use admitted::Admitted;
use doormat::Doormat;
use guest::{Guests, Purpose};
use lorikeet_protocol::{
    ALPN_BLOB, ALPN_BLOB_SHARE, ALPN_CONTROL, ALPN_CONTROL_EXPEL, ALPN_CONTROL_METER, ALPN_CONTROL_TRUST, ALPN_JOIN,
    agent::FromAgent, codec::CodecError, id::NodeId,
};
use quinn::{
    Connection, ConnectionError, Endpoint, IdleTimeout, Incoming, ReadExactError, ServerConfig, TokioRuntime,
    TransportConfig, VarInt, WriteError, crypto::rustls::HandshakeData,
};
use rate::Outgoing;
use rustls_pki_types::CertificateDer;
use share::Sealer;
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use telemetry::Newest;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{error::Elapsed, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use trust::Trust;

/// A silent connection is over: three keep-alives were lost.
const IDLE: Duration = Duration::from_secs(15);
/// Below the 30 s after which home routers forget a UDP flow.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A handshake and a first message take a few round trips; slower is no agent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Handshakes cost a signature each (13 µs) and hold memory: beyond half of these, addresses must prove themselves first.
const HANDSHAKES: usize = 256;
/// Each of a thousand nodes keeps two, for control and for blobs; and after a break of the net all of them come back while their older two
/// are not yet known to be over (`IDLE`). Who has shown no certificate takes none of these.
const CONNECTIONS: usize = 4096;
/// Strangers that are joining at once; each is gone after `PATIENCE`.
const JOINS: usize = 64;
/// Chunks on their way per agent; also what its requests may occupy of our memory (times 16 MiB).
const BLOB_STREAMS: u32 = 4;
/// A frame is at most 1 MiB; one more may be on its way while it is read.
const CONTROL_WINDOW: u32 = 2 << 20;
/// A chunk of 16 MiB at once fills a link of 10 Gbit/s and 10 ms.
const BLOB_WINDOW: u32 = 16 << 20;
/// Telemetry is at most 1,100 bytes per device; losing some is fine.
const DATAGRAM_BUFFER: usize = 64 << 10;
/// Our own ClientHello with a certificate is 2 KiB; the default of 16 would only hold what nobody of ours sends.
const CRYPTO_BUFFER: usize = 8 << 10;
/// Bytes of packets that one handshake may send before it is looked at: a ClientHello with post-quantum keys takes two packets.
const BUFFER_PER_HANDSHAKE: u64 = 32 << 10;
/// The same for all of them.
const BUFFER_OF_HANDSHAKES: u64 = 8 << 20;
/// Who comes back to prove its address does so at once.
const RETRY_LIFETIME: Duration = Duration::from_secs(15);

/// Why a connection was closed by us, in QUIC's own field.
#[derive(Debug, Clone, Copy)]
enum CloseCode {
    Done = 0,
    Misbehaved = 1,
    NoCertificate = 2,
    Busy = 3,
    /// Of one node, not of all.
    TooMany = 4,
}

/// Why the link does not work, or no longer with this peer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The port is taken or the address not ours.
    #[error("listen for agents on {address} (UDP)")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of the CA.
    #[error("{what} {path}", path = path.display())]
    Disk {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A key, a certificate or a request for one.
    #[error("{what}: {why}")]
    Certificate {
        /// What was tried.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The CA's files are read for a backup, or changed by another.
    #[error(
        "change the certificate authority: its files are in use at this moment, by a backup or another change; try again"
    )]
    Held,
    /// TLS refused its configuration.
    #[error("prepare TLS")]
    Tls(#[source] rustls::Error),
    /// The connection broke.
    #[error("hear from a peer")]
    Broken(#[from] ConnectionError),
    /// The stream broke inside a message.
    #[error("read a message")]
    Cut(#[source] ReadExactError),
    /// The stream does not take more.
    #[error("send a message")]
    Write(#[source] WriteError),
    /// Bytes that are no message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// What we have to say fits no message: a bug of ours.
    #[error("send a message")]
    Unsayable(#[source] CodecError),
    /// A message that has no place here.
    #[error("talk with a peer: {0}")]
    Misbehaved(&'static str),
    /// Too slow.
    #[error("talk with a peer: nothing came within {PATIENCE:?}")]
    Slow(#[from] Elapsed),
    /// It had said nothing yet.
    #[error("talk with a peer: the coordinator is shutting down")]
    Leaving,
}

impl LinkError {
    fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Disk { what, path, source }
    }

    fn certificate(what: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |error| Self::Certificate { what, why: error.to_string() }
    }
}

/// Whom the link asks, and what it hands bytes to.
#[derive(Clone)]
pub struct Services {
    /// Decisions.
    pub driver: driver::Handle,
    /// Files.
    pub blobs: Blobs,
    /// Lines.
    pub series: Series,
    /// Signatures, and who is let in.
    pub trust: Trust,
    /// What the keys that seal leave to read from nodes are drawn from.
    pub share_key: [u8; 32],
    /// How long a node's certificate is valid.
    pub certificate_ttl: Duration,
    /// What an attempt may have staged.
    pub attempt_limit: u64,
    /// What the devices say of themselves.
    pub telemetry: Newest,
    /// Bytes of files that leave for all agents together, in a second; without it as many as the line takes.
    pub bandwidth: Option<u64>,
}

/// The endpoint and its tasks.
pub struct Link {
    endpoint: Endpoint,
    address: SocketAddr,
    tasks: TaskTracker,
    cancel: CancellationToken,
    accepting: JoinHandle<()>,
}

/// What all connections share.
struct Shared {
    services: Services,
    admitted: Admitted,
    guests: Guests,
    doormat: Doormat,
    cancel: CancellationToken,
    connections: Semaphore,
    joins: Semaphore,
    outgoing: Outgoing,
    sealer: Sealer,
}

impl Shared {
    /// What a peer says or does first: it has `PATIENCE` for it, and no shutdown waits for who is silent.
    async fn first<T>(&self, said: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(LinkError::Leaving),
            said = timeout(PATIENCE, said) => said?,
        }
    }

    /// Any traffic of a node's renews its lease.
    async fn beat(&self, node: NodeId) {
        if let Some(session) = self.admitted.beat(node) {
            self.services.heard(node, session, FromAgent::Heartbeat).await;
        }
    }
}

/// What the kernel may hold for the one socket that all agents speak to. When a thousand of them speak at once, its own 200 KB lose
/// one packet in fifteen, and each of those is a wait until it is sent again.
const SOCKET_BYTES: usize = 8 << 20;

/// As much of it as `net.core.rmem_max` and `net.core.wmem_max` allow.
fn hold_more(socket: &UdpSocket) {
    let socket = socket2::SockRef::from(socket);
    let set = socket.set_recv_buffer_size(SOCKET_BYTES).and_then(|()| socket.set_send_buffer_size(SOCKET_BYTES));
    if let Err(error) = set {
        tracing::warn!(%error, "the link's socket holds no more than by default");
    }
}

impl Link {
    /// Binds and begins to accept.
    pub fn bind(listen: SocketAddr, services: Services) -> Result<Self, LinkError> {
        let failed = |source| LinkError::Bind { address: listen, source };
        let socket = UdpSocket::bind(listen).map_err(failed)?;
        hold_more(&socket);
        let server = server_config(&services.trust)?;
        let common = reset::endpoint_config(services.trust.now().current());
        let endpoint = Endpoint::new(common, Some(server), socket, Arc::new(TokioRuntime)).map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        let (tasks, cancel, bandwidth) = (TaskTracker::new(), CancellationToken::new(), services.bandwidth);
        let shared = Arc::new(Shared {
            sealer: Sealer(services.share_key),
            services,
            admitted: Admitted::default(),
            guests: Guests::default(),
            doormat: Doormat::default(),
            cancel: cancel.clone(),
            connections: Semaphore::new(CONNECTIONS),
            joins: Semaphore::new(JOINS),
            outgoing: Outgoing::new(bandwidth),
        });
        let accepting = tokio::spawn(accept(endpoint.clone(), shared, tasks.clone()));
        Ok(Self { endpoint, address, tasks, cancel, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Until nobody is accepted any more, which is right only in a shutdown.
    pub async fn ended(&mut self) {
        let _ = (&mut self.accepting).await;
    }

    /// Accepts nobody any more, lets sessions end, and cuts what has not ended in time.
    pub async fn shutdown(self, within: Duration) {
        self.cancel.cancel();
        self.tasks.close();
        if timeout(within, self.tasks.wait()).await.is_err() {
            tracing::warn!("connections were cut: they did not end in {within:?}");
        }
        self.endpoint.close(VarInt::from_u32(CloseCode::Done as u32), b"the coordinator is shutting down");
        // What was said last is on its way; a peer that is gone is not waited for.
        let _ = timeout(Duration::from_millis(500), self.endpoint.wait_idle()).await;
    }
}

fn server_config(trust: &Trust) -> Result<ServerConfig, LinkError> {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE).expect("15 s fit a QUIC integer")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        // One stream for join and control; blob connections are given more once they are known.
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(CONTROL_WINDOW))
        .receive_window(VarInt::from_u32(CONTROL_WINDOW))
        .send_window(u64::from(BLOB_WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .crypto_buffer_size(CRYPTO_BUFFER);
    let mut config = ServerConfig::with_crypto(Arc::new(trust.link()?));
    config.transport_config(Arc::new(transport));
    // What waits for our attention beyond these is dropped by quinn; the peer tries again.
    config
        .max_incoming(HANDSHAKES)
        .incoming_buffer_size(BUFFER_PER_HANDSHAKE)
        .incoming_buffer_size_total(BUFFER_OF_HANDSHAKES)
        .retry_token_lifetime(RETRY_LIFETIME)
        // A laptop changes its network, a router its port: the certificate stays the same.
        .migration(true);
    Ok(config)
}

async fn accept(endpoint: Endpoint, shared: Arc<Shared>, tasks: TaskTracker) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let incoming = tokio::select! {
            biased;
            () = shared.cancel.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let crowded = handshakes.available_permits() < HANDSHAKES / 2;
        if crowded && incoming.may_retry() && !incoming.remote_address_validated() {
            // Only a peer that receives at its address comes back with the token.
            let _ = incoming.retry();
            continue;
        }
        match handshakes.clone().try_acquire_owned() {
            Ok(permit) => drop(tasks.spawn(welcome(incoming, Arc::clone(&shared), permit))),
            Err(_) => incoming.refuse(),
        }
    }
}

/// One connection, from its handshake to its end.
async fn welcome(incoming: Incoming, shared: Arc<Shared>, handshake: OwnedSemaphorePermit) {
    let from = incoming.remote_address();
    let connection = match shared.first(async { Ok(incoming.accept()?.await?) }).await {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%from, error = &error as &dyn std::error::Error, "a handshake failed"),
    };
    drop(handshake);
    let served = serve(&shared, &connection).await;
    let (code, reason) = match &served {
        Ok(()) => (CloseCode::Done, ""),
        Err(LinkError::Misbehaved(why)) => (CloseCode::Misbehaved, *why),
        Err(LinkError::Leaving) => (CloseCode::Done, "the coordinator is shutting down"),
        Err(_) => (CloseCode::Done, "the connection broke"),
    };
    if let Err(error) = served {
        tracing::debug!(%from, %error, "a connection ended");
    }
    connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
}

async fn serve(shared: &Arc<Shared>, connection: &Connection) -> Result<(), LinkError> {
    let certificate = || tls::identify(&shared.services.trust.now(), chain(connection).first()?);
    let protocol = alpn(connection);
    let places = if protocol.as_deref() == Some(ALPN_JOIN) { &shared.joins } else { &shared.connections };
    let Ok(_place) = places.try_acquire() else {
        connection.close(VarInt::from_u32(CloseCode::Busy as u32), b"too many are here; come back");
        return Ok(());
    };
    match protocol.as_deref() {
        Some(protocol) if protocol == ALPN_JOIN => join::serve(shared, connection).await,
        Some(protocol @ (ALPN_CONTROL | ALPN_CONTROL_TRUST | ALPN_CONTROL_EXPEL | ALPN_CONTROL_METER)) => {
            match certificate() {
                Some(certificate) => {
                    let Some(_place) = shared.guests.enter(&certificate, Purpose::Control) else {
                        return crowd(connection);
                    };
                    peer::serve(shared, connection, certificate, peer::Words::of(protocol)).await
                }
                None => turn_away(connection),
            }
        }
        Some(protocol) if [ALPN_BLOB, ALPN_BLOB_SHARE].contains(&protocol) => {
            match certificate().filter(|found| !found.expired) {
                Some(certificate) => {
                    let Some(_place) = shared.guests.enter(&certificate, Purpose::Blobs) else {
                        return crowd(connection);
                    };
                    let shares = protocol == ALPN_BLOB_SHARE;
                    blob::serve(shared, connection, certificate, shares).await
                }
                None => turn_away(connection),
            }
        }
        _ => Err(LinkError::Misbehaved("it asked for no conversation of ours")),
    }
}

fn turn_away(connection: &Connection) -> Result<(), LinkError> {
    let reason = b"this conversation needs the certificate of a node";
    connection.close(VarInt::from_u32(CloseCode::NoCertificate as u32), reason);
    Ok(())
}

/// One node has as many connections of this kind as one may have.
fn crowd(connection: &Connection) -> Result<(), LinkError> {
    let reason = b"this node has too many connections open; come back when their ends were heard of";
    connection.close(VarInt::from_u32(CloseCode::TooMany as u32), reason);
    Ok(())
}

fn alpn(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

/// What a peer showed; nothing, if it showed none.
fn chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let shown = connection.peer_identity().and_then(|shown| shown.downcast().ok());
    shown.map(|shown| *shown).unwrap_or_default()
}

/// Whether this is a signing request: for the tests that look at every decoder.
#[doc(hidden)]
pub fn read_signing_request(der: &[u8]) -> Result<(), LinkError> {
    tls::read_request(der).map(drop)
}

#[cfg(test)]
mod tests;
