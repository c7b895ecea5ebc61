//! Hostile and clumsy peers at the door: datagrams that are none, handshakes that nobody ends, streams on which nothing is said, frames without end, a
//! node that never has enough. Whatever they do, an agent that works goes on being served, and what they cost has a bound.

use super::{
    work::{ask, offered, queued},
    *,
};
use crate::link::guest::{HELLOS, OF_ONE_NODE};
use lorikeet_protocol::{
    agent::{EventLines, Offer},
    share::{Announcement, Listens, Moved},
};
use std::net::UdpSocket;

/// What an agent may wait for an answer while others do their worst; its lease is 30 s.
const SERVED: Duration = Duration::from_secs(5);
/// What all of it may cost, the memory of these clients too.
const MEMORY: u64 = 256 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_handshakes_that_nobody_ends_cost_a_working_agent_nothing() {
    let world = World::new();
    let mut good = Good::new(&world).await;
    let (before, address) = (resident(), world.link.address());
    let noise = tokio::spawn(garbage(address, 50_000));
    // So many more than there are places for.
    let half_open = HalfOpen::start(&world, HANDSHAKES * 3);
    let mut most = 0;
    while !noise.is_finished() || half_open.passed() < HANDSHAKES * 3 {
        good.is_served().await;
        most = most.max(world.link.endpoint.open_connections());
    }
    assert!(most > HANDSHAKES / 4, "{most}: they have to be at the door");
    assert!(most <= HANDSHAKES + 8, "{most} connections are open");
    // Who answers at its address comes in, though half of the places are taken.
    let (identity, key) = world.node(2).await;
    let mut newcomer = world.control((&identity, &key)).await;
    assert!(matches!(newcomer.hello(1).await, ToAgent::Welcome(_)));
    let grown = resident().saturating_sub(before);
    assert!(grown < MEMORY, "{grown} bytes more");
    // Those that nobody ends are let go.
    until("the half-open ones are let go", || world.link.endpoint.open_connections() <= 8).await;
    good.is_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_on_which_nothing_is_said_are_let_go_and_hold_nobody_up() {
    let world = World::new();
    let mut good = Good::new(&world).await;
    let (identity, key) = world.node(2).await;
    let mut strangers = Vec::new();
    for _ in 0..JOINS + 8 {
        let connection = world.dial(ALPN_JOIN, None).await.unwrap();
        // Half of a length, and nothing more. Who was turned away meanwhile cannot say even that.
        if let Ok((mut send, _)) = connection.open_bi().await {
            let _ = send.write_all(&[1, 0]).await;
            strangers.push((connection, Some(send)));
        } else {
            strangers.push((connection, None));
        }
    }
    let busy = |(connection, _): &&(Connection, Option<SendStream>)| matches!(connection.close_reason(), Some(ConnectionError::ApplicationClosed(close)) if close.error_code == VarInt::from_u32(CloseCode::Busy as u32));
    until("those that are too many are told so", || strangers.iter().filter(busy).count() == 8).await;
    good.is_served().await;

    // A node may have four streams open for bytes: it opens them, and there is no fifth.
    let mut control = world.control((&identity, &key)).await;
    control.hello(1).await;
    let blob = world.dial(ALPN_BLOB, Some((&identity, &key))).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..BLOB_STREAMS {
        let (mut send, receive) = timeout(PATIENCE, blob.open_bi()).await.unwrap().unwrap();
        send.write_all(&[1]).await.unwrap();
        silent.push((send, receive));
    }
    assert!(timeout(Duration::from_millis(300), blob.open_bi()).await.is_err(), "there is no fifth");
    // On the control connection there is one, and no second.
    assert!(timeout(Duration::from_millis(300), control.connection.open_bi()).await.is_err());
    good.is_served().await;

    until("the silent strangers are let go", || {
        strangers.iter().all(|(connection, _)| connection.close_reason().is_some())
    })
    .await;
    for (send, _) in &mut silent {
        let stopped = timeout(PATIENCE, send.stopped()).await.expect("and the silent requests");
        assert!(matches!(stopped, Ok(Some(_))), "{stopped:?}");
    }
    // What the node itself keeps open, it has no more.
    drop(silent);
    assert!(matches!(timeout(PATIENCE, blob.open_bi()).await, Ok(Ok(_))));
    good.is_served().await;
    world.node(3).await;
}

#[tokio::test]
async fn frames_without_end_end_their_connection_and_nobody_elses() {
    let world = World::new();
    let mut good = Good::new(&world).await;
    let (identity, key) = world.node(2).await;
    let before = resident();
    for length in [u32::MAX, 1 << 30, (1 << 20) + 1] {
        let mut control = world.control((&identity, &key)).await;
        control.send.write_all(&length.to_le_bytes()).await.unwrap();
        close_code(&control.connection).await;
        let mut control = world.control((&identity, &key)).await;
        assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)));
        control.send.write_all(&length.to_le_bytes()).await.unwrap();
        close_code(&control.connection).await;
        good.is_served().await;
    }
    // One that announces the most there is, and brings it byte by byte.
    let connection = world.dial(ALPN_JOIN, None).await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    send.write_all(&(1_u32 << 20).to_le_bytes()).await.unwrap();
    let slowly = async {
        while send.write_all(&[1]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE * 2, slowly).await.expect("it is not waited for for ever");
    assert!(resident().saturating_sub(before) < MEMORY);
    good.is_served().await;
}

#[tokio::test]
async fn one_node_has_so_many_connections_and_hellos_and_the_others_theirs() {
    let world = World::new();
    let mut good = Good::new(&world).await;
    let (identity, key) = world.node(2).await;
    let mut control = world.control((&identity, &key)).await;
    control.hello(1).await;
    let said = || Announcement { listens: Listens::Nowhere, files: vec![], moved: Moved::default() };
    let mut open = Vec::new();
    for _ in 0..OF_ONE_NODE {
        let blob = world.dial(ALPN_BLOB_SHARE, Some((&identity, &key))).await.unwrap();
        assert!(matches!(ask(&blob, BlobRequest::Announce(said()), b"").await.0, BlobAnswer::Announced { .. }));
        open.push(blob);
    }
    let more = world.dial(ALPN_BLOB_SHARE, Some((&identity, &key))).await.unwrap();
    assert_eq!(close_code(&more).await, CloseCode::TooMany as u32);
    assert!(open.iter().all(|blob| blob.close_reason().is_none()), "those that are here stay");
    good.is_served().await;

    let (mut welcomed, began) = (0, std::time::Instant::now());
    loop {
        let mut control = world.control((&identity, &key)).await;
        let said = wire::write(&mut control.send, &FromAgent::Hello(Box::new(hello(1)))).await;
        if said.is_ok() && matches!(wire::read(&mut control.receive).await, Ok(Some(ToAgent::Welcome(_)))) {
            welcomed += 1;
            control.connection.close(VarInt::from_u32(0), b"");
            assert!(welcomed < 200, "nothing bounds them");
            continue;
        }
        let reason = timeout(PATIENCE, control.connection.closed()).await.unwrap();
        let ConnectionError::ApplicationClosed(close) = reason else { panic!("{reason}") };
        assert_eq!(close.error_code, VarInt::from_u32(CloseCode::TooMany as u32));
        if close.reason.starts_with(b"this node says hello too often") {
            break;
        }
    }
    let (per_second, burst) = HELLOS;
    // One was said before.
    let most = burst - 1 + (began.elapsed().as_secs() + 1) * per_second;
    assert!((burst - 1..=most).contains(&welcomed), "{welcomed} of {most}");
    good.is_served().await;
}

#[tokio::test]
async fn an_address_that_guesses_secrets_is_soon_not_heard_and_whoever_joined_before_works_on() {
    let world = World::new();
    let mut good = Good::new(&world).await;
    let mut answers = Vec::new();
    for n in 0..doormat::REFUSALS + 5 {
        answers.push(refusal(world.join([n as u8 + 100; 32], &new_key()).await));
    }
    assert!(answers[0].contains("unknown"), "{answers:?}");
    assert!(answers.last().unwrap().contains("wait a minute"), "{answers:?}");
    good.is_served().await;
}

/// An agent that trains, and is answered on both of its connections.
struct Good {
    control: Control,
    blob: Connection,
    offer: Offer,
    said: u64,
}

impl Good {
    async fn new(world: &World) -> Self {
        queued(world).await;
        let (control, blob, offer) = offered(world, 1).await;
        let mut good = Self { control, blob, offer, said: 0 };
        good.is_served().await;
        good
    }

    async fn is_served(&mut self) {
        let (attempt, file) = (self.offer.attempt, self.offer.dataset.manifest.hash);
        self.said += 1;
        let lines = EventLines { attempt, first: self.said, lines: vec!["{}".into()] };
        let served = async {
            self.control.say(FromAgent::Events(lines)).await;
            assert_eq!(self.control.hear().await, ToAgent::EventsAcknowledged { attempt, through: self.said });
            let fetched = ask(&self.blob, BlobRequest::Fetch { attempt, file, chunk: 0 }, b"").await;
            assert_eq!(fetched.0, BlobAnswer::Bytes(13));
        };
        timeout(SERVED, served).await.expect("who works is served whatever others do");
    }
}

/// Datagrams that are none of QUIC's, and some that look like the first of a connection.
async fn garbage(to: SocketAddr, count: usize) {
    let seed = crate::clock::now().0;
    eprintln!("garbage from seed {seed}");
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut random = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    for n in 0..count {
        let mut bytes = [0; 1_402];
        random.fill(&mut bytes);
        let length = 1 + usize::from(u16::from_le_bytes([bytes[1_400], bytes[1_401]])) % 1_400;
        if n % 2 == 0 {
            // A long header of version 1, eight bytes of either connection id, no token.
            let first = 0xc0 | bytes[0] & 3;
            bytes[..6].copy_from_slice(&[first, 0, 0, 0, 1, 8]);
            (bytes[14], bytes[23]) = (8, 0);
        }
        let _ = socket.send_to(&bytes[..if n % 2 == 0 { 1_200 } else { length }], to).await;
        if n % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// Clients whose first packets reach the coordinator and that never hear its answer.
struct HalfOpen {
    _endpoint: Endpoint,
    _connecting: Vec<quinn::Connecting>,
    passed: Arc<std::sync::atomic::AtomicUsize>,
    forwarding: JoinHandle<()>,
}

impl HalfOpen {
    fn start(world: &World, count: usize) -> Self {
        let between = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        between.set_nonblocking(true).unwrap();
        let (sink, to) = (between.local_addr().unwrap(), world.link.address());
        let config = client(world.services.trust.now().issuing().der(), vec![ALPN_JOIN.to_vec()], None);
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let connect = || endpoint.connect_with(config.clone(), sink, lorikeet_protocol::COORDINATOR_NAME).unwrap();
        let connecting = (0..count).map(|_| connect()).collect();
        let passed = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (forwarded, client) = (Arc::clone(&passed), endpoint.local_addr().unwrap().port());
        let forwarding = tokio::spawn(async move {
            let socket = tokio::net::UdpSocket::from_std(between).unwrap();
            let mut bytes = [0; 2_048];
            loop {
                let Ok((length, from)) = socket.recv_from(&mut bytes).await else { continue };
                // What the coordinator answers is dropped.
                if from.port() == client {
                    let _ = socket.send_to(&bytes[..length], to).await;
                    forwarded.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
        });
        Self { _endpoint: endpoint, _connecting: connecting, passed, forwarding }
    }

    fn passed(&self) -> usize {
        self.passed.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.forwarding.abort();
    }
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE * 3;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
