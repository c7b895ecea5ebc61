//! Who comes in: nodes whose certificate counts at this moment. This node's own is renewed every few days, and a rotation changes the CAs
//! that it trusts; what is prepared from them is prepared once for each.

use super::super::{
    TlsError,
    identity::{Identity, Shared},
    tls,
};
use lorikeet_protocol::{file::CHUNK_BYTES, id::NodeId};
use quinn::{Connection, ServerConfig, TransportConfig, VarInt};
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Connections at the same time: each giver is one of four of a reader's, and a share of the bandwidth below this brings nobody far.
const READERS: usize = 32;
/// Of one node: one that it uses, and one whose end has not been heard of yet.
const OF_ONE_NODE: usize = 2;
/// Chunks of one reader on their way: the next is read from the disk while one is sent.
const STREAMS: u32 = 2;
/// A request is a hundred bytes.
const REQUEST_WINDOW: u32 = 1 << 10;
/// What QUIC keeps of a connection until it is acknowledged: 100 MiB a second over 40 ms. For all readers together 128 MiB.
const SEND_WINDOW: u64 = CHUNK_BYTES / 4;
/// A node's ClientHello with its certificate is 2 KiB; the default of 16 would only hold what nobody of ours sends.
const CRYPTO_BUFFER: usize = 8 << 10;
/// Bytes of packets that one handshake may send before it is looked at: a ClientHello with post-quantum keys takes two packets.
const BUFFER_PER_HANDSHAKE: u64 = 32 << 10;
/// The same for all of them: as if each of the sixteen had sent all that it may.
const BUFFER_OF_HANDSHAKES: u64 = BUFFER_PER_HANDSHAKE * super::HANDSHAKES as u64;
/// Who comes back to prove its address does so at once.
const RETRY_LIFETIME: Duration = Duration::from_secs(15);
/// A silent connection is over: three keep-alives of the reader were lost.
const IDLE: Duration = Duration::from_secs(15);

/// TLS and QUIC under one identity, and the judge of readers.
pub(super) struct Door {
    identity: Shared,
    prepared: Mutex<Prepared>,
}

#[derive(Clone)]
struct Prepared {
    of: Arc<Identity>,
    config: Arc<ServerConfig>,
    nodes: Arc<dyn ClientCertVerifier>,
}

impl Door {
    pub(super) fn new(identity: Shared) -> Result<Self, TlsError> {
        let prepared = prepare(current(&identity))?;
        Ok(Self { identity, prepared: Mutex::new(prepared) })
    }

    /// Whom a connection that begins now is shown, and who is let in.
    pub(super) fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        Ok(self.now()?.config)
    }

    /// Whether a connection that stands would be let in again.
    pub(super) fn lets_in(&self, certificate: &CertificateDer<'_>) -> bool {
        let judged = |now: Prepared| now.nodes.verify_client_cert(certificate, &[], UnixTime::now()).is_ok();
        self.now().is_ok_and(judged)
    }

    fn now(&self) -> Result<Prepared, TlsError> {
        let identity = current(&self.identity);
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&prepared.of, &identity) {
            *prepared = prepare(identity)?;
        }
        Ok(prepared.clone())
    }
}

fn current(identity: &Shared) -> Arc<Identity> {
    Arc::clone(&identity.read().unwrap_or_else(PoisonError::into_inner))
}

fn prepare(of: Arc<Identity>) -> Result<Prepared, TlsError> {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(u32::try_from(IDLE.as_millis()).expect("15 s fit")).into()))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(REQUEST_WINDOW))
        .receive_window(VarInt::from_u32(REQUEST_WINDOW * STREAMS))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        // Nothing is said in datagrams here.
        .datagram_send_buffer_size(0)
        .crypto_buffer_size(CRYPTO_BUFFER);
    let nodes = tls::between::of_the_cluster(&of)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls::between::giver(&of, Arc::clone(&nodes))?));
    config.transport_config(Arc::new(transport));
    // What waits for our attention beyond these is dropped by quinn; the reader tries again.
    config
        .max_incoming(super::HANDSHAKES)
        .incoming_buffer_size(BUFFER_PER_HANDSHAKE)
        .incoming_buffer_size_total(BUFFER_OF_HANDSHAKES)
        .retry_token_lifetime(RETRY_LIFETIME)
        // A node whose router changes its port goes on: its certificate stays the same.
        .migration(true);
    Ok(Prepared { of, config: Arc::new(config), nodes })
}

/// Who has come in.
pub(super) struct Reader {
    pub(super) node: NodeId,
    pub(super) certificate: CertificateDer<'static>,
}

impl Reader {
    pub(super) fn of(connection: &Connection) -> Option<Self> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        let certificate = chain.first()?.clone();
        Some(Self { node: tls::between::named(&certificate)?, certificate })
    }
}

/// Places for readers.
#[derive(Default)]
pub(super) struct Places(Mutex<BTreeMap<NodeId, usize>>);

/// One of them, as long as this lives.
pub(super) struct Place<'a> {
    places: &'a Places,
    node: NodeId,
}

impl Places {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Or why there is none.
    pub(super) fn enter(&self, node: NodeId) -> Result<Place<'_>, &'static [u8]> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.get(&node).is_some_and(|of_it| *of_it >= OF_ONE_NODE) {
            return Err(b"this node reads here already");
        }
        if taken.values().sum::<usize>() >= READERS {
            return Err(b"too many read here; come back");
        }
        *taken.entry(node).or_default() += 1;
        Ok(Place { places: self, node })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_it) = taken.get_mut(&self.node) {
            *of_it -= 1;
        }
        taken.retain(|_, of_it| *of_it > 0);
    }
}
