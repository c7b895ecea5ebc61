//! Who is let in, over real QUIC on loopback: joining, sessions, renewals, blobs. The agent here is a few lines of quinn.

mod flood;
mod frozen;
mod leaving;
mod renewal;
mod rotation;
mod share;
mod telemetry;
mod thief;
mod work;

use super::{
    tls::{Authority, NodeCertificate},
    *,
};
use crate::{
    access::{Actor, Context},
    cluster::{
        Timers,
        command::{Answer, Command, Query},
    },
    driver::Driver,
    store::Store,
};
use lorikeet_protocol::{
    agent::{Farewell, FromAgent, Hello, Telemetry, ToAgent, Trusts},
    blob::{BlobAnswer, BlobRequest, Refusal},
    codec,
    file::FileManifest,
    id::{AttemptId, AttemptToken, BootId, DeviceId, Hash, JobId, NodeId, RequestId, UnixMillis},
    join::{Identity, JoinAnswer, JoinRequest},
};
use quinn::{ClientConfig, RecvStream, SendStream, crypto::rustls::QuicClientConfig};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::RootCertStore;
use rustls_pki_types::PrivateKeyDer;
use std::{
    net::Ipv4Addr,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{runtime::Runtime, task::JoinHandle};
use uuid::Uuid;

struct World {
    folder: tempfile::TempDir,
    link: Link,
    services: Services,
    stop: CancellationToken,
    driver: JoinHandle<Result<(), driver::DriverError>>,
}

impl World {
    fn new() -> Self {
        Self::with_ttl(Duration::from_secs(3600))
    }

    fn with_ttl(certificate_ttl: Duration) -> Self {
        Self::open((Ipv4Addr::LOCALHOST, 0).into(), None, certificate_ttl)
    }

    /// From a backup that was taken a moment ago.
    fn restored() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.redb")).unwrap();
        let at = crate::clock::now();
        store.mark_restored(7, crate::cluster::Restored { taken: at, at }).unwrap();
        drop(store);
        Self::open_in(folder, (Ipv4Addr::LOCALHOST, 0).into(), None, Duration::from_secs(3600), None)
    }

    fn open(listen: SocketAddr, trust: Option<Trust>, certificate_ttl: Duration) -> Self {
        Self::open_in(tempfile::tempdir().unwrap(), listen, trust, certificate_ttl, None)
    }

    /// So many bytes of files leave in a second.
    fn narrow(bandwidth: u64) -> Self {
        let (folder, listen) = (tempfile::tempdir().unwrap(), (Ipv4Addr::LOCALHOST, 0).into());
        Self::open_in(folder, listen, None, Duration::from_secs(3600), Some(bandwidth))
    }

    fn open_in(
        folder: tempfile::TempDir,
        listen: SocketAddr,
        trust: Option<Trust>,
        certificate_ttl: Duration,
        bandwidth: Option<u64>,
    ) -> Self {
        let at = |name: &str| folder.path().join(name);
        let stop = CancellationToken::new();
        let store = Store::open(&at("state.redb")).unwrap();
        let driver = Driver::start(store, Timers::default(), stop.clone()).unwrap();
        let (series, _thread) = Series::open(&at("series"), crate::series::Limits::default()).unwrap();
        let services = Services {
            driver: driver.handle.clone(),
            blobs: Blobs::open(&at("blobs"), &at("staging"), &[], 0).unwrap(),
            series,
            trust: trust.unwrap_or_else(|| Trust::open(&at("ca")).unwrap()),
            share_key: crate::secret::open(&at("share.key")).unwrap(),
            certificate_ttl,
            attempt_limit: 1 << 20,
            telemetry: Newest::default(),
            bandwidth,
        };
        let link = Link::bind(listen, services.clone()).unwrap();
        Self { folder, link, services, stop, driver: driver.task }
    }

    /// A secret that works for `ttl` milliseconds; negative: that no longer works.
    async fn invite(&self, seed: u8, ttl: i64) -> [u8; 32] {
        let secret = [seed; 32];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let hash = Hash(*blake3::hash(&secret).as_bytes());
        let command = Command::CreateJoinSecret { hash, expires: UnixMillis((now + ttl) as u64) };
        let context = Context {
            actor: Actor::System,
            request: RequestId(Uuid::now_v7()),
            from: "test".into(),
            idempotency: None,
        };
        self.services.driver.command(context, command).await.unwrap();
        secret
    }

    async fn dial(&self, alpn: &[u8], identity: Option<(&Identity, &KeyPair)>) -> Result<Connection, ConnectionError> {
        dial(self.link.address(), self.services.trust.now().issuing().der(), alpn, identity).await
    }

    async fn join(&self, secret: [u8; 32], key: &KeyPair) -> JoinAnswer {
        let connection = self.dial(ALPN_JOIN, None).await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let request = JoinRequest { secret, signing_request: request(key), name: "machine".into() };
        wire::write(&mut send, &request).await.unwrap();
        wire::read(&mut receive).await.unwrap().unwrap()
    }

    async fn node(&self, seed: u8) -> (Identity, KeyPair) {
        let secret = self.invite(seed, 60_000).await;
        let key = new_key();
        match self.join(secret, &key).await {
            JoinAnswer::Joined(identity) => (identity, key),
            JoinAnswer::Refused { reason } => panic!("{reason}"),
        }
    }

    fn identify(&self, certificate: &[u8]) -> NodeCertificate {
        tls::identify(&self.services.trust.now(), &CertificateDer::from(certificate)).unwrap()
    }

    async fn control(&self, identity: (&Identity, &KeyPair)) -> Control {
        self.control_in(ALPN_CONTROL, identity).await
    }

    async fn control_in(&self, conversation: &[u8], identity: (&Identity, &KeyPair)) -> Control {
        let connection = self.dial(conversation, Some(identity)).await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        Control { connection, send, receive }
    }
}

/// One control conversation.
struct Control {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

impl Control {
    async fn say(&mut self, message: FromAgent) {
        wire::write(&mut self.send, &message).await.unwrap();
    }

    async fn hear(&mut self) -> ToAgent {
        timeout(PATIENCE, wire::read(&mut self.receive)).await.unwrap().unwrap().unwrap()
    }

    async fn hello(&mut self, instance: u128) -> ToAgent {
        self.say(FromAgent::Hello(Box::new(hello(instance)))).await;
        self.hear().await
    }
}

fn hello(instance: u128) -> Hello {
    Hello {
        boot: BootId(Uuid::from_u128(1)),
        instance: BootId(Uuid::from_u128(instance)),
        version: "test".into(),
        name: "machine".into(),
        labels: Default::default(),
        devices: vec![],
        attempts: vec![],
        cached: vec![],
        acknowledged: 0,
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn request(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

async fn dial(
    address: SocketAddr,
    ca: &[u8],
    alpn: &[u8],
    identity: Option<(&Identity, &KeyPair)>,
) -> Result<Connection, ConnectionError> {
    dial_any(address, ca, vec![alpn.to_vec()], identity).await
}

/// Offers several conversations.
async fn dial_any(
    address: SocketAddr,
    ca: &[u8],
    alpns: Vec<Vec<u8>>,
    identity: Option<(&Identity, &KeyPair)>,
) -> Result<Connection, ConnectionError> {
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connecting = endpoint.connect_with(client(ca, alpns, identity), address, lorikeet_protocol::COORDINATOR_NAME);
    timeout(PATIENCE, connecting.unwrap()).await.unwrap()
}

/// Who trusts this CA.
fn client(ca: &[u8], alpns: Vec<Vec<u8>>, identity: Option<(&Identity, &KeyPair)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.to_vec())).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(tls::provider()).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = config.unwrap().with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some((identity, key)) => {
            let chain = vec![CertificateDer::from(identity.certificate.clone())];
            config.with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap()
        }
    };
    config.alpn_protocols = alpns;
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

fn refusal(answer: JoinAnswer) -> String {
    match answer {
        JoinAnswer::Refused { reason } => reason,
        JoinAnswer::Joined(identity) => panic!("{} joined", identity.node),
    }
}

/// Why the other side closed.
async fn close_code(connection: &Connection) -> u32 {
    let reason = timeout(PATIENCE, connection.closed()).await.unwrap();
    let ConnectionError::ApplicationClosed(close) = reason else { panic!("{reason}") };
    u32::try_from(close.error_code.into_inner()).unwrap()
}

#[tokio::test]
async fn the_same_key_may_ask_again_and_no_other_may() {
    let world = World::new();
    let secret = world.invite(1, 60_000).await;
    let key = new_key();
    let (JoinAnswer::Joined(first), JoinAnswer::Joined(again)) =
        (world.join(secret, &key).await, world.join(secret, &key).await)
    else {
        panic!("the answer was lost, the machine asks again")
    };
    assert_eq!(first.node, again.node);
    assert_eq!(first.ca, world.services.trust.now().issuing().der());
    let refused = refusal(world.join(secret, &new_key()).await);
    assert!(refused.contains("another key"), "{refused}");
}

#[tokio::test]
async fn an_unknown_and_an_expired_secret_are_refused_with_the_reason() {
    let world = World::new();
    let unknown = refusal(world.join([9; 32], &new_key()).await);
    assert!(unknown.contains("unknown"), "{unknown}");
    let expired = world.invite(2, -1_000).await;
    let expired = refusal(world.join(expired, &new_key()).await);
    assert!(expired.contains("expired"), "{expired}");
}

#[tokio::test]
async fn a_request_that_nobody_signed_is_refused_and_the_secret_still_works() {
    let world = World::new();
    let secret = world.invite(3, 60_000).await;
    let key = new_key();
    let connection = world.dial(ALPN_JOIN, None).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let mut forged = request(&key);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let question = JoinRequest { secret, signing_request: forged, name: "machine".into() };
    wire::write(&mut send, &question).await.unwrap();
    refusal(wire::read(&mut receive).await.unwrap().unwrap());
    assert!(matches!(world.join(secret, &key).await, JoinAnswer::Joined(_)));
}

#[tokio::test]
async fn the_chain_shows_the_ca_whose_hash_join_strings_carry() {
    let world = World::new();
    let connection = world.dial(ALPN_JOIN, None).await.unwrap();
    let chain = connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
    assert_eq!(Hash(*blake3::hash(&chain[1]).as_bytes()), world.services.trust.now().issuing().hash());
    let other = Authority::open(&world.folder.path().join("other")).unwrap();
    assert_ne!(other.hash(), world.services.trust.now().issuing().hash());
    let refused = dial(world.link.address(), other.der(), ALPN_JOIN, None).await;
    assert!(refused.is_err(), "an agent that pins another CA must not get through");
}

#[tokio::test]
async fn control_and_blob_need_the_certificate_of_a_node_of_this_ca() {
    let world = World::new();
    for alpn in [ALPN_CONTROL, ALPN_BLOB] {
        let connection = world.dial(alpn, None).await.unwrap();
        assert_eq!(close_code(&connection).await, CloseCode::NoCertificate as u32);
    }
    let other = Authority::open(&world.folder.path().join("other")).unwrap();
    let (node, key) = (NodeId(Uuid::from_u128(5)), new_key());
    let issued = other.certify(node, &request(&key), Duration::from_secs(60)).unwrap();
    let stranger = Identity { node, certificate: issued.certificate, ca: other.der().to_vec() };
    // In TLS 1.3 the client is done before the server has judged its certificate.
    if let Ok(connection) = world.dial(ALPN_CONTROL, Some((&stranger, &key))).await {
        let reason = timeout(PATIENCE, connection.closed()).await.unwrap();
        assert!(!matches!(reason, ConnectionError::ApplicationClosed(_)), "TLS itself must refuse it: {reason}");
    }
}

#[tokio::test]
async fn a_hello_is_welcomed_and_a_second_session_supersedes_the_first() {
    let world = World::new();
    let (identity, key) = world.node(4).await;
    let mut first = world.control((&identity, &key)).await;
    let ToAgent::Welcome(welcome) = first.hello(1).await else { panic!("no welcome") };
    assert_eq!((welcome.node, welcome.session), (identity.node, 1));
    let mut second = world.control((&identity, &key)).await;
    assert!(matches!(second.hello(1).await, ToAgent::Welcome(welcome) if welcome.session == 2));
    assert_eq!(first.hear().await, ToAgent::Goodbye(Farewell::Superseded));
    close_code(&first.connection).await;
}

#[tokio::test]
async fn two_machines_under_one_identity_are_both_kept_out() {
    let world = World::new();
    let (identity, key) = world.node(5).await;
    for (instance, welcome) in [(1, true), (2, true), (1, false)] {
        let mut control = world.control((&identity, &key)).await;
        let answer = control.hello(instance).await;
        assert_eq!(matches!(answer, ToAgent::Welcome(_)), welcome, "{instance}: {answer:?}");
    }
}

#[tokio::test]
async fn a_certificate_nobody_recorded_is_turned_away() {
    let world = World::new();
    let (identity, key) = world.node(6).await;
    let issued = world.services.trust.now().certify(identity.node, &request(&key), Duration::from_secs(60)).unwrap();
    let unrecorded = Identity { certificate: issued.certificate, ..identity };
    let mut control = world.control((&unrecorded, &key)).await;
    assert_eq!(control.hello(1).await, ToAgent::Goodbye(Farewell::Revoked));
}

#[tokio::test]
async fn bytes_need_a_session_and_an_attempt_of_ones_own() {
    let world = World::new();
    let (identity, key) = world.node(9).await;
    let early = world.dial(ALPN_BLOB, Some((&identity, &key))).await.unwrap();
    assert_eq!(close_code(&early).await, CloseCode::Busy as u32);

    let mut control = world.control((&identity, &key)).await;
    control.hello(1).await;
    let blob = world.dial(ALPN_BLOB, Some((&identity, &key))).await.unwrap();
    let attempt = AttemptId { job: JobId(Uuid::from_u128(3)), token: AttemptToken { generation: 1, number: 1 } };
    let file = Hash([7; 32]);
    let manifest = FileManifest { size: 0, hash: file, chunks: vec![] };
    for request in [
        BlobRequest::Fetch { attempt, file, chunk: 0 },
        BlobRequest::Offer { attempt, manifest },
        BlobRequest::Put { attempt, file, chunk: 0 },
        BlobRequest::Finish { attempt, file },
    ] {
        let (mut send, mut receive) = blob.open_bi().await.unwrap();
        wire::write(&mut send, &request).await.unwrap();
        let answer: BlobAnswer = timeout(PATIENCE, wire::read(&mut receive)).await.unwrap().unwrap().unwrap();
        assert_eq!(answer, BlobAnswer::Refused(Refusal::NotYours), "{request:?}");
    }
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_is_closed() {
    let world = World::new();
    let (identity, key) = world.node(10).await;
    let mut control = world.control((&identity, &key)).await;
    control.say(FromAgent::Heartbeat).await;
    assert_eq!(close_code(&control.connection).await, CloseCode::Misbehaved as u32);
    let mut control = world.control((&identity, &key)).await;
    control.send.write_all(&[0xff; 64]).await.unwrap();
    close_code(&control.connection).await;
}

#[tokio::test]
async fn a_node_that_talks_nonsense_in_every_session_is_kept_out() {
    let world = World::new();
    let (identity, key) = world.node(12).await;
    for session in 0..5 {
        let mut control = world.control((&identity, &key)).await;
        assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)), "session {session}");
        match session % 3 {
            0 => control.say(FromAgent::Hello(Box::new(hello(1)))).await,
            1 => control.send.write_all(&[0xff; 64]).await.unwrap(),
            _ => control.say(FromAgent::Trusts(Trusts { authorities: vec![], issuer: None })).await,
        }
        close_code(&control.connection).await;
    }
    let mut control = world.control((&identity, &key)).await;
    assert_eq!(control.hello(1).await, ToAgent::Goodbye(Farewell::Misbehaved));
    let node = world.services.driver.query(Actor::System, Query::Nodes).await.unwrap();
    let Answer::Nodes(nodes) = node else { panic!("{node:?}") };
    let why = nodes.into_iter().find(|node| node.record.id == identity.node).unwrap().record.quarantine;
    assert!(why.as_deref().is_some_and(|why| why.starts_with("5 of its sessions")), "{why:?}");
}

#[tokio::test]
async fn the_ca_is_made_once_and_its_key_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let first = Authority::open(folder.path()).unwrap();
    let second = Authority::open(folder.path()).unwrap();
    assert_eq!(first.hash(), second.hash());
    let key = folder.path().join("ca.key");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::remove_file(&key).unwrap();
    let error = Authority::open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("ca.key"), "{error}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let world = World::new();
    let address = world.link.address();
    let error = Link::bind(address, world.services.clone()).err().unwrap().to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn going_down_tells_the_agents_to_come_back() {
    let world = World::new();
    let (identity, key) = world.node(11).await;
    let mut control = world.control((&identity, &key)).await;
    control.hello(1).await;
    let World { link, stop, driver, folder: _folder, .. } = world;
    let down = tokio::spawn(link.shutdown(PATIENCE));
    assert_eq!(control.hear().await, ToAgent::Goodbye(Farewell::ShuttingDown));
    drop(control);
    down.await.unwrap();
    stop.cancel();
    driver.await.unwrap().unwrap();
}

#[test]
fn a_connection_of_a_killed_coordinator_ends_at_its_first_packet_to_the_next_one() {
    let (doomed, runtime) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let former = doomed.block_on(async { World::new() });
    let (address, trust) = (former.link.address(), former.services.trust.clone());
    let mut control = runtime.block_on(async {
        let (identity, key) = former.node(1).await;
        let mut control = former.control((&identity, &key)).await;
        assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)));
        control
    });
    // As after a SIGKILL: every task of it is gone in the middle of things, and nobody said goodbye.
    doomed.shutdown_timeout(PATIENCE);
    drop(former);
    runtime.block_on(async {
        let _next = World::open(address, Some(trust), Duration::from_secs(3600));
        control.say(FromAgent::Heartbeat).await;
        let ended = timeout(IDLE / 3, control.connection.closed()).await.expect("no reset came");
        assert!(matches!(ended, ConnectionError::Reset), "{ended}");
    });
}
