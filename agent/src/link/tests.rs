//! The link against the stand-in coordinator, over real sockets on loopback.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names what it looks for")]

mod share;
mod trust;

use super::{
    blob::{Blobs, Source},
    stand_in::{Authority, Coordinator, Manner, Peer, Shelf, attempt, join_string, node, welcome, within},
    *,
};
use lorikeet_protocol::{
    agent::{Ended, Metered, ReportBody, former},
    blob::Refusal,
    file::CHUNK_BYTES,
    id::{BootId, DeviceId, Hash, UnixMillis},
};
use std::{os::unix::fs::PermissionsExt, path::Path};

#[tokio::test]
async fn a_join_keeps_a_private_identity() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    assert_eq!(join(&coordinator.join_string(), folder.path()).await.unwrap(), node());
    let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("node.key"), 0o600);
    let identity = Identity::load(folder.path()).unwrap();
    assert_eq!(identity.address, coordinator.address().to_string());
    assert_eq!(coordinator.joins.lock().unwrap()[0].name, "test");
}

#[tokio::test]
async fn a_wrong_ca_is_named_and_learns_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    let expected = Hash([1; 32]);
    let error = join(&join_string(&coordinator.address().to_string(), expected), folder.path()).await.unwrap_err();
    let JoinError::WrongCa { expected: said, found, .. } = &error else { panic!("{error:?}") };
    assert_eq!((*said, *found), (expected, coordinator.authority.hash()));
    assert!(coordinator.joins.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_right_ca_for_another_name_is_not_the_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let manner = Manner { name: "somebody.else", ..Manner::default() };
    let coordinator = with(Arc::new(Authority::new()), manner);
    let error = join(&coordinator.join_string(), folder.path()).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable { .. }), "{error:?}");
    assert!(coordinator.joins.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_refused_join_says_why_and_can_be_repeated_with_the_same_key() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::new());
    let manner = Manner { refuse_join: Some("the secret has expired"), ..Manner::default() };
    let refusing = with(Arc::clone(&authority), manner);
    let error = join(&refusing.join_string(), folder.path()).await.unwrap_err();
    assert!(error.to_string().contains("the secret has expired"), "{error}");
    assert!(matches!(Identity::load(folder.path()), Err(IdentityError::NotJoined(_))));
    let key = std::fs::read(folder.path().join("node.key")).unwrap();
    let willing = with(authority, Manner::default());
    join(&willing.join_string(), folder.path()).await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("node.key")).unwrap(), key);
}

#[tokio::test]
async fn a_node_does_not_join_twice() {
    let (folder, coordinator) = joined().await;
    let error = join(&coordinator.join_string(), folder.path()).await.unwrap_err();
    assert!(error.to_string().contains("already holds"), "{error}");
    assert_eq!(coordinator.joins.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_folder_that_keeps_nothing_costs_no_join_string() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start();
    // The key is there from an earlier try; nothing new can be made.
    join(&join_string("127.0.0.1:9", Hash([1; 32])), folder.path()).await.unwrap_err();
    std::fs::create_dir(folder.path().join(".writable.aside")).unwrap();
    let error = join(&coordinator.join_string(), folder.path()).await.unwrap_err();
    assert!(matches!(error, JoinError::Identity(IdentityError::Disk(_))), "{error:?}");
    assert_eq!(coordinator.joins.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn text_that_is_no_join_string_is_refused_before_anything_happens() {
    let folder = tempfile::tempdir().unwrap();
    for text in ["", "LK1.", "LK1.!!!", "LK9.AAAA", "hello", "LK1.AQID"] {
        let error = join(text, folder.path()).await.unwrap_err();
        assert!(matches!(error, JoinError::Malformed(_)), "{text}: {error:?}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_coordinator_that_is_not_there_is_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let error = join(&join_string("127.0.0.1:9", Hash([1; 32])), folder.path()).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}

#[tokio::test]
async fn a_session_begins_with_a_hello_and_heartbeats_follow() {
    let (folder, mut coordinator) = joined().await;
    let mut link = Running::start(folder.path());
    let mut peer = link.welcomed(&mut coordinator).await;
    assert_eq!(peer.hello.name, "test");
    assert_eq!(peer.hear().await, FromAgent::Heartbeat);
    assert_eq!(peer.hear().await, FromAgent::Heartbeat);
    assert_eq!(*link.state.borrow(), LinkState::Up { node: node(), session: 1 });
}

#[tokio::test]
async fn a_driver_that_takes_no_turns_does_not_look_alive() {
    let (folder, mut coordinator) = joined().await;
    let retry = Duration::from_millis(1_500);
    let mut link = Running::start_with(folder.path(), Timers { report_retry: retry, ..timers() });
    let mut peer = link.welcomed(&mut coordinator).await;
    let began = std::time::Instant::now();
    while began.elapsed() < 2 * retry {
        link.pulse.beat();
        assert_eq!(peer.hear().await, FromAgent::Heartbeat);
    }
    let state = link.until_lost().await;
    assert!(
        matches!(&state, LinkState::Down { why: Some(why) } if why.contains("nothing can be reported")),
        "{state:?}"
    );
}

#[tokio::test]
async fn messages_go_both_ways_and_telemetry_beside_them() {
    let (folder, mut coordinator) = joined().await;
    let mut link = Running::start(folder.path());
    let mut peer = link.welcomed(&mut coordinator).await;
    link.session().outgoing.send(FromAgent::Accepted(attempt(1))).await.unwrap();
    assert_eq!(peer.hear_news().await, FromAgent::Accepted(attempt(1)));
    peer.say(ToAgent::Forget(attempt(2))).await;
    assert!(matches!(link.news().await, News::Heard(ToAgent::Forget(id)) if id == attempt(2)));
    link.session().telemetry(&telemetry());
    let datagram = within(peer.connection.read_datagram()).await.unwrap();
    let former = former::Telemetry::from(&telemetry());
    assert_eq!(codec::decode::<former::Telemetry>(&datagram).unwrap(), former, "one of before reads what it knows");
}

#[tokio::test]
async fn a_coordinator_of_now_hears_all_that_a_device_says() {
    let (folder, mut coordinator) = joined_with(Manner { meters: true, ..Manner::default() }).await;
    let mut link = Running::start(folder.path());
    let peer = link.welcomed(&mut coordinator).await;
    link.session().telemetry(&telemetry());
    let datagram = within(peer.connection.read_datagram()).await.unwrap();
    assert_eq!(codec::decode::<Telemetry>(&datagram).unwrap(), telemetry());
}

#[tokio::test]
async fn an_end_with_its_energy_is_said_as_the_other_side_reads_it() {
    let metered = || Metered {
        ended: Ended {
            outcome: lorikeet_protocol::job::Outcome::Ok,
            class: None,
            message: None,
            step: 1,
            held: Duration::ZERO,
            files: vec![],
            summary: None,
            last_event: 0,
        },
        energy_joules: 5,
    };
    let report = |body| FromAgent::Report(Report { number: 1, attempt: attempt(1), time: UnixMillis(1), body });
    for (meters, heard) in [(true, ReportBody::Metered(metered())), (false, ReportBody::Ended(metered().ended))] {
        let (folder, mut coordinator) = joined_with(Manner { meters, ..Manner::default() }).await;
        let mut link = Running::start(folder.path());
        let mut peer = link.welcomed(&mut coordinator).await;
        link.session().outgoing.send(report(ReportBody::Metered(metered()))).await.unwrap();
        let mut said = peer.hear_news().await;
        while matches!(said, FromAgent::Trusts(_)) {
            said = peer.hear_news().await;
        }
        assert_eq!(said, report(heard));
    }
}

fn telemetry() -> Telemetry {
    Telemetry { sm_clock_mhz: Some(1_755), ..Telemetry::new(DeviceId::cpu(), UnixMillis(1), 1, 2) }
}

#[tokio::test]
async fn a_lost_coordinator_is_dialled_until_it_is_back() {
    let (folder, mut coordinator) = joined().await;
    let address = coordinator.address();
    let mut link = Running::start(folder.path());
    link.welcomed(&mut coordinator).await;
    let authority = coordinator.stop().await;
    assert!(matches!(link.news().await, News::Lost));
    let mut again = Coordinator::with(authority, Manner::default(), address, Shelf::default());
    link.welcomed(&mut again).await;
}

#[tokio::test]
async fn a_link_whose_driver_leaves_ends_without_a_complaint() {
    let (folder, mut coordinator) = joined().await;
    let mut link = Running::start(folder.path());
    let _peer = link.welcomed(&mut coordinator).await;
    link.session = None;
    link.news.close();
    // The sender goes with the link.
    within(async { while link.state.changed().await.is_ok() {} }).await;
    assert_eq!(*link.state.borrow(), LinkState::Up { node: node(), session: 1 });
}

#[tokio::test]
async fn a_goodbye_ends_the_session_and_is_told_in_words() {
    let (folder, mut coordinator) = joined().await;
    let mut link = Running::start(folder.path());
    let peer = link.welcomed(&mut coordinator).await;
    peer.dismiss(Farewell::Revoked).await;
    assert!(matches!(link.news().await, News::Lost));
    let state = link.state.borrow().clone();
    assert!(matches!(&state, LinkState::Refused { why } if why.contains("revoked")), "{state:?}");
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_in_clear_words() {
    let (folder, coordinator) = joined().await;
    let address = coordinator.address();
    coordinator.stop().await;
    // The same address, another CA: we do not trust it.
    let _other = Coordinator::with(Arc::new(Authority::new()), Manner::default(), address, Shelf::default());
    let mut link = Running::start(folder.path());
    assert!(matches!(link.until_lost().await, LinkState::Refused { why } if why.contains("not of the CA")));
}

#[tokio::test]
async fn a_coordinator_that_refuses_our_certificate_is_named() {
    let (folder, mut coordinator) = joined().await;
    // A certificate that this coordinator's CA did not sign, for our own key.
    let request = Identity::load(folder.path()).unwrap().signing_request().unwrap();
    std::fs::write(folder.path().join("node.crt"), Authority::new().certify(&request, -60, 86_400)).unwrap();
    let mut link = Running::start(folder.path());
    let state = tokio::select! {
        state = link.until_lost() => state,
        _ = coordinator.peer() => panic!("it was let in"),
    };
    assert!(
        matches!(&state, LinkState::Refused { why } if why.contains("refuses this node's certificate")),
        "{state:?}"
    );
}

#[tokio::test]
async fn a_certificate_past_half_its_life_is_renewed_over_the_session() {
    let (folder, mut coordinator) = joined_for((-100, 60)).await;
    let before = std::fs::read(folder.path().join("node.crt")).unwrap();
    let mut link = Running::start(folder.path());
    let mut peer = link.welcomed(&mut coordinator).await;
    let FromAgent::Renew(request) = peer.hear_news().await else { panic!("expected a renewal") };
    let renewed = coordinator.authority.certify(&request, -60, 86_400);
    peer.say(ToAgent::Renewed(renewed.clone())).await;
    until(|| std::fs::read(folder.path().join("node.crt")).unwrap() != before).await;
    assert_eq!(std::fs::read(folder.path().join("node.crt")).unwrap(), renewed);
}

#[tokio::test]
async fn a_machine_whose_clock_is_years_ahead_is_given_one_certificate_and_goes_on() {
    let (folder, mut coordinator) = joined_for((-100, 60)).await;
    let mut link = Running::start_with(folder.path(), Timers { ask_again: Duration::from_millis(10), ..timers() });
    let mut peer = link.welcomed(&mut coordinator).await;
    let FromAgent::Renew(request) = peer.hear_news().await else { panic!("expected a renewal") };
    // Given now, and by the clock here it ran out a year ago.
    let (from, to) = (-373 * 86_400, -366 * 86_400);
    let renewed = coordinator.authority.certify(&request, from, to);
    peer.say(ToAgent::Renewed(renewed.clone())).await;
    until(|| std::fs::read(folder.path().join("node.crt")).unwrap() == renewed).await;
    // One that was asked for before it was kept may be on its way.
    while peer.hear().await != FromAgent::Heartbeat {}
    for _ in 0..5 {
        assert_eq!(peer.hear().await, FromAgent::Heartbeat, "it is asked for no other");
    }
    let identity = Identity::load(folder.path()).unwrap();
    assert!(!identity.is_fresh(), "the next life of the agent asks");
    let now = Duration::from_millis(crate::clock::wall().0);
    let identity = identity.renew(renewed).unwrap();
    let said = identity.clock_off(now).unwrap();
    assert!(identity.is_fresh() && said.starts_with("the clock of this machine is off by 1year"), "{said}");
}

#[tokio::test]
async fn a_renewed_certificate_for_another_key_is_not_kept() {
    let (folder, _coordinator) = joined().await;
    let identity = Identity::load(folder.path()).unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&other).unwrap().der().to_vec();
    let error = identity.renew(Authority::new().certify(&request, -60, 60)).unwrap_err();
    assert!(error.to_string().contains("not for this node's key"), "{error}");
}

#[tokio::test]
async fn chunks_are_fetched_and_put_over_their_own_connection() {
    let (folder, mut coordinator) = joined().await;
    let mut link = Running::start(folder.path());
    let _peer = link.welcomed(&mut coordinator).await;
    let content = vec![5; CHUNK_BYTES as usize + 3];
    let file = coordinator.shelve("a", &content);
    assert_eq!(link.blobs.chunk(attempt(1), file.manifest.hash, 1).await.unwrap(), [5, 5, 5]);
    assert_eq!(link.blobs.chunk(attempt(1), Hash([9; 32]), 0).await.unwrap_err(), Refusal::NotYours);
    assert!(link.blobs.offer(attempt(1), file.manifest.clone()).await.unwrap().is_empty());

    let mut new = file.manifest.clone();
    let bytes = b"new bytes";
    new.hash = Hash(*blake3::hash(bytes).as_bytes());
    (new.size, new.chunks) = (9, vec![new.hash]);
    assert_eq!(link.blobs.offer(attempt(1), new.clone()).await.unwrap(), [0]);
    link.blobs.put(attempt(1), new.hash, 0, bytes).await.unwrap();
    link.blobs.finish(attempt(1), new.hash).await.unwrap();
    assert_eq!(coordinator.shelf.lock().unwrap().files[&new.hash], bytes);
}

#[tokio::test]
async fn a_busy_or_full_coordinator_is_asked_again() {
    let (folder, mut coordinator) = joined().await;
    let mut link = Running::start(folder.path());
    let _peer = link.welcomed(&mut coordinator).await;
    let file = coordinator.shelve("a", b"abc");
    coordinator.shelf.lock().unwrap().refuse = vec![Refusal::Busy, Refusal::NoSpace, Refusal::Busy];
    assert_eq!(link.blobs.chunk(attempt(1), file.manifest.hash, 0).await.unwrap(), b"abc");
    assert_eq!(coordinator.shelf.lock().unwrap().asked.len(), 4);
}

#[tokio::test]
async fn a_fetch_begun_before_there_is_a_session_waits_for_it() {
    let (folder, mut coordinator) = joined().await;
    let file = coordinator.shelve("a", b"abc");
    let mut link = Running::start(folder.path());
    let blobs = link.blobs.clone();
    let fetch = tokio::spawn(async move { blobs.chunk(attempt(1), file.manifest.hash, 0).await });
    let _peer = link.welcomed(&mut coordinator).await;
    assert_eq!(within(fetch).await.unwrap().unwrap(), b"abc");
}

#[tokio::test]
async fn a_certificate_that_ran_out_is_renewed_before_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    // TLS of this stand-in lets no expired certificate in; the real one does, for a renewal. What is tested is the word said first.
    let coordinator = with(Arc::new(Authority::new()), Manner { life: (-100, -10), ..Manner::default() });
    join(&coordinator.join_string(), folder.path()).await.unwrap();
    let mut link = Running::start(folder.path());
    assert!(matches!(link.until_lost().await, LinkState::Refused { .. } | LinkState::Down { .. }));
    assert!(link.hellos == 0, "a hello was said with a certificate that had run out");
}

fn timers() -> Timers {
    Timers {
        connect_timeout: Duration::from_secs(2),
        keep_alive: Duration::from_millis(200),
        idle_timeout: Duration::from_secs(2),
        backoff_first: Duration::from_millis(10),
        backoff_longest: Duration::from_millis(100),
        report_retry: Duration::from_secs(30),
        ask_again: Duration::from_secs(60),
    }
}

async fn join(text: &str, folder: &Path) -> Result<NodeId, JoinError> {
    within(super::join::join(text, "test", folder, &timers())).await
}

fn with(authority: Arc<Authority>, manner: Manner) -> Coordinator {
    Coordinator::with(authority, manner, "127.0.0.1:0".parse().unwrap(), Shelf::default())
}

async fn joined() -> (tempfile::TempDir, Coordinator) {
    joined_for(Manner::default().life).await
}

async fn joined_for(life: (i64, i64)) -> (tempfile::TempDir, Coordinator) {
    joined_with(Manner { life, ..Manner::default() }).await
}

async fn joined_with(manner: Manner) -> (tempfile::TempDir, Coordinator) {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = with(Arc::new(Authority::new()), manner);
    join(&coordinator.join_string(), folder.path()).await.unwrap();
    (folder, coordinator)
}

async fn until(holds: impl Fn() -> bool) {
    within(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A link whose driver is the test.
struct Running {
    news: mpsc::Receiver<News>,
    state: watch::Receiver<LinkState>,
    pulse: Pulse,
    blobs: Blobs,
    session: Option<Session>,
    hellos: usize,
    cancel: CancellationToken,
}

impl Running {
    fn start(folder: &Path) -> Self {
        Self::start_with(folder, timers())
    }

    fn start_with(folder: &Path, timers: Timers) -> Self {
        let caller = Caller::new(Identity::load(folder).unwrap(), None, timers).unwrap();
        let (send, news) = mpsc::channel(16);
        let (state, watched) = watch::channel(LinkState::Down { why: None });
        let blobs = Blobs::new(caller.clone(), watched.clone());
        let cancel = CancellationToken::new();
        let pulse = Pulse::default();
        tokio::spawn(Link { caller, news: send, state, pulse: pulse.clone() }.run(cancel.clone()));
        Self { news, state: watched, pulse, blobs, session: None, hellos: 0, cancel }
    }

    /// The next news; hellos are answered on the way.
    async fn news(&mut self) -> News {
        loop {
            match within(self.news.recv()).await.expect("the link lives") {
                News::Dialled(answer) => {
                    self.hellos += 1;
                    let _ = answer.send(hello());
                }
                other => return other,
            }
        }
    }

    async fn welcomed(&mut self, coordinator: &mut Coordinator) -> Peer {
        let (peer, news) = futures_util::future::join(coordinator.welcomed(welcome), async {
            loop {
                if let News::Welcomed(_, session) = self.news().await {
                    return session;
                }
            }
        })
        .await;
        self.session = Some(news);
        peer
    }

    fn session(&self) -> &Session {
        self.session.as_ref().expect("welcomed")
    }

    async fn until_lost(&mut self) -> LinkState {
        while !matches!(self.news().await, News::Lost) {}
        self.state.borrow().clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn hello() -> Hello {
    Hello {
        boot: BootId(uuid::Uuid::from_u128(1)),
        instance: BootId(uuid::Uuid::from_u128(2)),
        version: "0".into(),
        name: "test".into(),
        labels: Default::default(),
        devices: vec![],
        attempts: vec![],
        cached: vec![],
        acknowledged: 0,
    }
}
