//! A coordinator for tests: the protocol's wire, a CA, a shelf of blobs, and no decision of its own.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names what it looks for")]

use super::frame;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use lorikeet_protocol::{
    ALPN_BLOB, ALPN_BLOB_SHARE, ALPN_CONTROL, ALPN_CONTROL_EXPEL, ALPN_CONTROL_METER, ALPN_CONTROL_TRUST, ALPN_JOIN,
    COORDINATOR_NAME,
    agent::{Farewell, FromAgent, Hello, ToAgent, Welcome},
    blob::{BlobAnswer, BlobRequest, Refusal},
    codec,
    file::{CHUNK_BYTES, FileManifest, NamedFile},
    id::{AttemptId, Hash, NodeId, UnixMillis},
    join::{Identity, JoinAnswer, JoinRequest, JoinTicket, PREFIX},
    share::{Announcement, Giver, GrantKey},
};
use quinn::{Connection, Endpoint, RecvStream, SendStream, crypto::rustls::QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use time::OffsetDateTime;
use tokio::sync::mpsc;

/// A CA and what it signs.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::from_ca_cert_der(&certificate, key).unwrap(), certificate }
    }

    pub(crate) fn hash(&self) -> Hash {
        Hash(*blake3::hash(&self.certificate).as_bytes())
    }

    /// For the node, from `from` to `to` seconds away from now.
    pub(crate) fn certify(&self, request: &[u8], from: i64, to: i64) -> Vec<u8> {
        self.certify_as(node(), request, from, to)
    }

    /// For any node.
    pub(crate) fn certify_as(&self, node: NodeId, request: &[u8], from: i64, to: i64) -> Vec<u8> {
        let request = CertificateSigningRequestParams::from_der(&request.into()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, node.to_string());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::now_utc() + time::Duration::seconds(from);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(to);
        params.use_authority_key_identifier_extension = true;
        params.signed_by(&request.public_key, &self.issuer).unwrap().der().to_vec()
    }

    fn server(&self, manner: &Manner) -> quinn::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec![manner.name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap())
            .with_single_cert(
                vec![own.der().clone(), self.certificate.clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let spoken = [ALPN_CONTROL, ALPN_BLOB_SHARE, ALPN_BLOB, ALPN_JOIN].map(<[u8]>::to_vec);
        config.alpn_protocols = spoken.to_vec();
        config.alpn_protocols.retain(|alpn| manner.shares || alpn != ALPN_BLOB_SHARE);
        if manner.knows_trust {
            config.alpn_protocols.insert(0, ALPN_CONTROL_TRUST.to_vec());
            config.alpn_protocols.insert(0, ALPN_CONTROL_EXPEL.to_vec());
        }
        if manner.meters {
            config.alpn_protocols.insert(0, ALPN_CONTROL_METER.to_vec());
        }
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()))
    }
}

/// Bytes by hash, and what was uploaded.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    pub(crate) files: BTreeMap<Hash, Vec<u8>>,
    staged: BTreeMap<Hash, (FileManifest, BTreeMap<u32, Vec<u8>>)>,
    /// Answered to this many requests before anything else.
    pub(crate) refuse: Vec<Refusal>,
    /// Every request, in words.
    pub(crate) asked: Vec<String>,
    /// What agents said of their caches.
    pub(crate) announced: Vec<Announcement>,
    /// Whom readers are sent to.
    pub(crate) givers: Vec<Giver>,
    /// What the clock says there.
    pub(crate) time: u64,
}

/// What every agent is told to judge grants by.
pub(crate) const KEY: GrantKey = GrantKey([21; 32]);

/// Listens and serves; control connections are handed to the test.
pub(crate) struct Coordinator {
    pub(crate) authority: Arc<Authority>,
    endpoint: Endpoint,
    pub(crate) shelf: Arc<Mutex<Shelf>>,
    peers: mpsc::Receiver<Peer>,
    /// Every join request that arrived.
    pub(crate) joins: Arc<Mutex<Vec<JoinRequest>>>,
    server: tokio::task::JoinHandle<()>,
}

/// An agent that said hello.
pub(crate) struct Peer {
    pub(crate) hello: Hello,
    pub(crate) connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

/// How the stand-in behaves.
#[derive(Clone)]
pub(crate) struct Manner {
    /// What its certificate is for.
    pub(crate) name: &'static str,
    /// Whether it has words about trust; one of the version before has not.
    pub(crate) knows_trust: bool,
    /// Whether it reads all that devices say of themselves, and so knows of everything before.
    pub(crate) meters: bool,
    /// What it says to a join instead of welcoming it.
    pub(crate) refuse_join: Option<&'static str>,
    /// Life of the certificates it gives, in seconds from now.
    pub(crate) life: (i64, i64),
    /// Whether it knows of other nodes' files: one of before does not.
    pub(crate) shares: bool,
}

impl Default for Manner {
    fn default() -> Self {
        let (knows_trust, meters) = (false, false);
        Self { name: COORDINATOR_NAME, knows_trust, meters, refuse_join: None, life: (-60, 86_400), shares: true }
    }
}

pub(crate) fn node() -> NodeId {
    NodeId(uuid::Uuid::from_u128(0xabc))
}

impl Coordinator {
    pub(crate) fn start() -> Self {
        Self::with(Arc::new(Authority::new()), Manner::default(), "127.0.0.1:0".parse().unwrap(), Shelf::default())
    }

    pub(crate) fn with(authority: Arc<Authority>, manner: Manner, address: SocketAddr, shelf: Shelf) -> Self {
        let endpoint = Endpoint::server(authority.server(&manner), address).unwrap();
        let shelf = Arc::new(Mutex::new(shelf));
        let joins = Arc::new(Mutex::new(Vec::new()));
        let (send, peers) = mpsc::channel(16);
        let serving = Serving {
            authority: Arc::clone(&authority),
            shelf: Arc::clone(&shelf),
            joins: Arc::clone(&joins),
            manner,
            peers: send,
        };
        let listening = endpoint.clone();
        let server = tokio::spawn(async move {
            while let Some(incoming) = listening.accept().await {
                tokio::spawn(serving.clone().serve(incoming));
            }
        });
        Self { authority, endpoint, shelf, peers, joins, server }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    pub(crate) fn join_string(&self) -> String {
        join_string(&self.address().to_string(), self.authority.hash())
    }

    /// The next agent that says hello.
    pub(crate) async fn peer(&mut self) -> Peer {
        within(self.peers.recv()).await.expect("the coordinator listens")
    }

    /// The next agent, welcomed.
    pub(crate) async fn welcomed(&mut self, welcome: impl FnOnce(&Hello) -> Welcome) -> Peer {
        let mut peer = self.peer().await;
        let welcome = welcome(&peer.hello);
        peer.say(ToAgent::Welcome(Box::new(welcome))).await;
        peer
    }

    pub(crate) fn shelve(&self, path: &str, bytes: &[u8]) -> NamedFile {
        let hash = |bytes: &[u8]| Hash(*blake3::hash(bytes).as_bytes());
        let chunks = bytes.chunks(CHUNK_BYTES as usize).map(hash).collect();
        let manifest = FileManifest { size: bytes.len() as u64, hash: hash(bytes), chunks };
        self.shelf.lock().unwrap().files.insert(manifest.hash, bytes.to_vec());
        NamedFile { path: path.into(), manifest }
    }

    /// Dies without a word, and frees the port.
    pub(crate) async fn stop(self) -> Arc<Authority> {
        let Self { authority, endpoint, server, .. } = self;
        server.abort();
        let address = endpoint.local_addr().unwrap();
        endpoint.close(0u32.into(), b"");
        endpoint.wait_idle().await;
        drop(endpoint);
        // The port is free once the last task that held a connection has ended.
        within(async {
            while std::net::UdpSocket::bind(address).is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        authority
    }
}

pub(crate) fn join_string(address: &str, ca_hash: Hash) -> String {
    let ticket = JoinTicket { address: address.into(), ca_hash, secret: [7; 32] };
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&codec::encode(&ticket).unwrap()[codec::HEADER_BYTES..]))
}

/// A welcome that adopts everything.
pub(crate) fn welcome(hello: &Hello) -> Welcome {
    Welcome {
        node: node(),
        session: 1,
        heartbeat: Duration::from_millis(100),
        last_report: 0,
        verdicts: hello.attempts.iter().map(|known| (known.id, lorikeet_protocol::agent::Verdict::Adopt)).collect(),
        events: vec![],
    }
}

impl Peer {
    pub(crate) async fn say(&mut self, message: ToAgent) {
        frame::write(&mut self.send, &message).await.unwrap();
    }

    pub(crate) async fn hear(&mut self) -> FromAgent {
        within(frame::read(&mut self.receive)).await.unwrap()
    }

    /// The next message that is not a heartbeat or about devices.
    pub(crate) async fn hear_news(&mut self) -> FromAgent {
        // Heartbeats go on for ever: the limit is on all of them together.
        within(async {
            loop {
                match frame::read(&mut self.receive).await.unwrap() {
                    FromAgent::Heartbeat | FromAgent::Devices(_) => {}
                    message => return message,
                }
            }
        })
        .await
    }

    /// Until the agent ends the session.
    pub(crate) async fn until_closed(&mut self) {
        within(async { while frame::read::<FromAgent>(&mut self.receive).await.is_ok() {} }).await;
    }

    pub(crate) async fn dismiss(mut self, farewell: Farewell) {
        self.say(ToAgent::Goodbye(farewell)).await;
        let _ = self.send.finish();
        let _ = within(self.send.stopped()).await;
    }
}

/// Nothing in a test takes longer.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("waited 20 s")
}

#[derive(Clone)]
struct Serving {
    authority: Arc<Authority>,
    shelf: Arc<Mutex<Shelf>>,
    joins: Arc<Mutex<Vec<JoinRequest>>>,
    manner: Manner,
    peers: mpsc::Sender<Peer>,
}

impl Serving {
    async fn serve(self, incoming: quinn::Incoming) {
        let Ok(connection) = incoming.await else { return };
        let data = connection.handshake_data().unwrap();
        let data = data.downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
        match data.protocol.as_deref() {
            Some(ALPN_JOIN) => self.join(&connection).await,
            Some(ALPN_CONTROL | ALPN_CONTROL_TRUST | ALPN_CONTROL_EXPEL | ALPN_CONTROL_METER) => {
                self.control(connection).await
            }
            Some(ALPN_BLOB | ALPN_BLOB_SHARE) => self.blobs(&connection).await,
            other => panic!("an ALPN of nobody: {other:?}"),
        }
    }

    async fn join(&self, connection: &Connection) {
        let Ok((mut send, mut receive)) = connection.accept_bi().await else { return };
        let request: JoinRequest = frame::read(&mut receive).await.unwrap();
        let (from, to) = self.manner.life;
        let answer = match self.manner.refuse_join {
            Some(reason) => JoinAnswer::Refused { reason: reason.into() },
            None => JoinAnswer::Joined(Identity {
                node: node(),
                certificate: self.authority.certify(&request.signing_request, from, to),
                ca: self.authority.certificate.to_vec(),
            }),
        };
        self.joins.lock().unwrap().push(request);
        frame::write(&mut send, &answer).await.unwrap();
        let _ = send.finish();
        let _ = connection.closed().await;
    }

    async fn control(&self, connection: Connection) {
        let Ok((mut send, mut receive)) = connection.accept_bi().await else { return };
        match frame::read(&mut receive).await {
            Ok(FromAgent::Hello(hello)) => {
                let _ = self.peers.send(Peer { hello: *hello, connection, send, receive }).await;
            }
            Ok(FromAgent::Renew(request)) => {
                let certificate = self.authority.certify(&request, -60, 86_400);
                frame::write(&mut send, &ToAgent::Renewed(certificate)).await.unwrap();
                let _ = connection.closed().await;
            }
            _ => {}
        }
    }

    async fn blobs(&self, connection: &Connection) {
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            let Ok(request) = frame::read(&mut receive).await else { continue };
            let Ok(bytes) = receive.read_to_end(CHUNK_BYTES as usize).await else { continue };
            let (answer, bytes) = self.shelf.lock().unwrap().answer(request, bytes);
            let _ = frame::write(&mut send, &answer).await;
            let _ = send.write_all(&bytes).await;
            let _ = send.finish();
        }
    }
}

impl Shelf {
    fn answer(&mut self, request: BlobRequest, bytes: Vec<u8>) -> (BlobAnswer, Vec<u8>) {
        self.asked.push(match &request {
            BlobRequest::Fetch { chunk, .. } => format!("fetch {chunk}"),
            BlobRequest::Offer { .. } => "offer".into(),
            BlobRequest::Put { chunk, .. } => format!("put {chunk}"),
            BlobRequest::Finish { .. } => "finish".into(),
            BlobRequest::Announce(said) => format!("announce {}", said.files.len()),
            BlobRequest::Givers { .. } => "givers".into(),
        });
        if let Some(refusal) = self.refuse.pop() {
            return (BlobAnswer::Refused(refusal), vec![]);
        }
        match request {
            BlobRequest::Fetch { file, chunk, .. } => match self.files.get(&file) {
                Some(whole) => {
                    let bytes = whole.chunks(CHUNK_BYTES as usize).nth(chunk as usize).unwrap_or(&[]).to_vec();
                    (BlobAnswer::Bytes(bytes.len() as u64), bytes)
                }
                None => (BlobAnswer::Refused(Refusal::NotYours), vec![]),
            },
            BlobRequest::Announce(said) => {
                self.announced.push(said);
                (BlobAnswer::Announced { key: KEY, time: UnixMillis(self.time) }, vec![])
            }
            BlobRequest::Givers { .. } => (BlobAnswer::Givers(self.givers.clone()), vec![]),
            BlobRequest::Offer { manifest, .. } if self.files.contains_key(&manifest.hash) => {
                (BlobAnswer::Wanted(vec![]), vec![])
            }
            BlobRequest::Offer { manifest, .. } => {
                let wanted = (0..manifest.chunks.len() as u32).collect();
                self.staged.insert(manifest.hash, (manifest, BTreeMap::new()));
                (BlobAnswer::Wanted(wanted), vec![])
            }
            BlobRequest::Put { file, chunk, .. } => {
                let (manifest, chunks) = self.staged.get_mut(&file).unwrap();
                if *blake3::hash(&bytes).as_bytes() != manifest.chunks[chunk as usize].0 {
                    return (BlobAnswer::Refused(Refusal::Corrupt), vec![]);
                }
                chunks.insert(chunk, bytes);
                (BlobAnswer::Stored, vec![])
            }
            BlobRequest::Finish { file, .. } => {
                let (manifest, chunks) = self.staged.remove(&file).unwrap();
                let whole: Vec<u8> = chunks.into_values().flatten().collect();
                assert_eq!(*blake3::hash(&whole).as_bytes(), manifest.hash.0);
                self.files.insert(file, whole);
                (BlobAnswer::Stored, vec![])
            }
        }
    }
}

/// An attempt for tests.
pub(crate) fn attempt(number: u32) -> AttemptId {
    let job = lorikeet_protocol::id::JobId(uuid::Uuid::from_u128(7));
    AttemptId { job, token: lorikeet_protocol::id::AttemptToken { generation: 1, number } }
}
