//! Files for other nodes: a socket of its own, on which nodes of the cluster read chunks of what is in the cache.
//!
//! ```text
//! accept ─ handshake: a certificate of this cluster ─┬─ one request per stream: judged ─► chunk from the disk ─► paced ─► sent
//!   (retry when busy)                                └─ closed when it asks nothing any more, shows bad grants, or its certificate counts no longer
//! ```
//! Whoever reads has to show a [`Grant`](lorikeet_protocol::share::Grant) that the coordinator sealed for it with the key that only this node and the coordinator have
//! ([`Desk`]); nobody is asked about it. Everything is bounded, because this machine is here to train: what others read costs it at most
//! `share.bandwidth`, some connections and a little memory, and never its link to the coordinator, which is another socket.

mod desk;
mod door;
mod reading;

use super::identity::Shared;
use crate::cache::Cache;
pub(crate) use desk::Desk;
use door::{Door, Places, Reader};
use lorikeet_protocol::{file::CHUNK_BYTES, rate::Bucket};
use quinn::{Endpoint, Incoming, ServerConfig, VarInt};
use reading::Reading;
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
/// Chunks in memory for all readers together: 128 MiB, beside what QUIC keeps until it is acknowledged.
const CHUNKS: usize = 8;
/// A handshake and a request take a few round trips; slower is no node.
const PATIENCE: Duration = Duration::from_secs(10);
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

/// The socket and what is read through it.
pub(crate) struct Giving {
    endpoint: Endpoint,
    address: SocketAddr,
    shared: Arc<Serving>,
}

struct Serving {
    door: Door,
    places: Places,
    cache: Cache,
    desk: Desk,
    bucket: Mutex<Bucket>,
    started: Instant,
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
        let door = Door::new(identity)?;
        let failed = |source| GiveError::Bind { address: listen, source };
        let endpoint = Endpoint::server(ServerConfig::clone(&*door.config()?), listen).map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        let shared = Serving {
            door,
            places: Places::default(),
            cache,
            desk,
            // A chunk may leave at once.
            bucket: Mutex::new(Bucket::new(bandwidth, bandwidth.min(CHUNK_BYTES))),
            started: Instant::now(),
            chunks: Semaphore::new(CHUNKS),
        };
        Ok(Self { endpoint, address, shared: Arc::new(shared) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    #[cfg(test)]
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
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

async fn welcome(incoming: Incoming, shared: Arc<Serving>, handshake: OwnedSemaphorePermit) {
    let from = incoming.remote_address();
    let accepted = async {
        let config = shared.door.config().map_err(|error| super::chain(&error))?;
        let connecting = incoming.accept_with(config).map_err(|error| error.to_string())?;
        connecting.await.map_err(|error| error.to_string())
    };
    let connection = match timeout(PATIENCE, accepted).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%from, error, "a node that would read was not let in"),
        Err(_) => return tracing::debug!(%from, "a handshake took too long"),
    };
    drop(handshake);
    let reason = match Reader::of(&connection).map(|reader| (shared.places.enter(reader.node), reader)) {
        None => b"this needs the certificate of a node",
        Some((Err(why), _)) => why,
        Some((Ok(_place), reader)) => {
            Reading::new(&shared, &connection, reader).serve().await;
            &[]
        }
    };
    connection.close(VarInt::from_u32(0), reason);
}

impl Serving {
    /// Waits until so many bytes may leave.
    async fn pace(&self, bytes: u64) {
        let now = self.started.elapsed();
        let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, now);
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests;
