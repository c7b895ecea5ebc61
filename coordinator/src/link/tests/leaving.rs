//! Who is sent away is gone within seconds, and a session lives no longer than its certificate.

use super::*;

/// What a revocation is promised to take.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_revoked_node_is_cut_off_within_five_seconds_though_it_takes_no_word() {
    let world = World::new();
    let (identity, key) = world.node(20).await;
    let mut control = world.control((&identity, &key)).await;
    control.hello(1).await;
    let blob = world.dial(ALPN_BLOB, Some((&identity, &key))).await.unwrap();
    world.revoke(identity.node).await;
    // Nothing is read: the goodbye waits in the stream.
    let gone = async { tokio::join!(control.connection.closed(), blob.closed()) };
    timeout(SOON, gone).await.expect("both connections are closed in time");
    let mut again = world.control((&identity, &key)).await;
    assert_eq!(again.hello(1).await, ToAgent::Goodbye(Farewell::Revoked));
    let blob = world.dial(ALPN_BLOB, Some((&identity, &key))).await.unwrap();
    assert_eq!(close_code(&blob).await, CloseCode::Busy as u32);
}

#[tokio::test]
async fn a_revoked_node_gets_in_by_no_certificate_and_no_join_string_that_it_has() {
    let world = World::new();
    let (used, unused) = (world.invite(24, 60_000).await, world.invite(25, 60_000).await);
    let key = new_key();
    let JoinAnswer::Joined(identity) = world.join(used, &key).await else { panic!("it joins") };
    let mut control = world.control((&identity, &key)).await;
    assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)));
    world.revoke(identity.node).await;
    for (secret, key) in [(used, &key), (unused, &key), (unused, &new_key())] {
        let refused = refusal(world.join(secret, key).await);
        assert!(refused.contains("new join string"), "{refused}");
    }
    let mut control = world.control((&identity, &key)).await;
    control.say(FromAgent::Renew(request(&key))).await;
    assert_eq!(control.hear().await, ToAgent::Goodbye(Farewell::Misbehaved));
    // Even one that a renewal under way brings.
    let late = world.services.trust.now().certify(identity.node, &request(&key), Duration::from_secs(60)).unwrap();
    world.services.record_certificate(identity.node, late.serial, None).await.unwrap_err();
    let late = Identity { certificate: late.certificate, ..identity };
    let mut control = world.control((&late, &key)).await;
    assert_eq!(control.hello(1).await, ToAgent::Goodbye(Farewell::Revoked));
    let admitted = world.invite(26, 60_000).await;
    assert!(matches!(world.join(admitted, &new_key()).await, JoinAnswer::Joined(_)), "an administrator lets it in");
}

#[tokio::test]
async fn a_revocation_is_told_to_who_has_a_word_for_it_and_to_nobody_else() {
    let world = World::new();
    let ((gone, _), (newer, key), (older, older_key)) =
        (world.node(27).await, world.node(28).await, world.node(29).await);
    let connection = world.dial(ALPN_CONTROL_EXPEL, Some((&newer, &key))).await.unwrap();
    let (send, receive) = connection.open_bi().await.unwrap();
    let mut newer = Control { connection, send, receive };
    newer.hello(1).await;
    let mut older = world.control((&older, &older_key)).await;
    older.hello(2).await;
    world.revoke(gone.node).await;
    assert_eq!(newer.hear().await, ToAgent::Expelled(gone.node));
    // Something that is answered, behind it.
    older.say(FromAgent::Renew(request(&older_key))).await;
    assert!(matches!(older.hear().await, ToAgent::Renewed(_)));
}

#[tokio::test]
async fn who_has_said_nothing_delays_no_shutdown() {
    let world = World::new();
    let (identity, key) = world.node(23).await;
    let stranger = world.dial(ALPN_JOIN, None).await.unwrap();
    let node = world.dial(ALPN_CONTROL, Some((&identity, &key))).await.unwrap();
    let began = std::time::Instant::now();
    world.link.shutdown(PATIENCE).await;
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    for silent in [stranger, node] {
        timeout(SOON, silent.closed()).await.expect("it is told");
    }
}

#[tokio::test]
async fn a_session_ends_with_its_certificate_unless_that_was_renewed() {
    let world = World::with_ttl(Duration::from_secs(2));
    let ((lazy, lazy_key), (good, good_key)) = (world.node(21).await, world.node(22).await);
    let mut lazy = world.control((&lazy, &lazy_key)).await;
    lazy.hello(1).await;
    let mut good = world.control((&good, &good_key)).await;
    good.hello(2).await;
    let started = std::time::Instant::now();
    // As an agent does, at half of its life and ever again.
    let renewing = async {
        for _ in 0..4 {
            good.say(FromAgent::Renew(request(&good_key))).await;
            assert!(matches!(good.hear().await, ToAgent::Renewed(_)));
            let closed = timeout(Duration::from_millis(900), good.connection.closed()).await;
            assert!(closed.is_err(), "what was renewed in time goes on: {closed:?}");
        }
    };
    let (reason, ()) = tokio::join!(lazy.connection.closed(), renewing);
    assert!(matches!(reason, ConnectionError::ApplicationClosed(_)), "{reason}");
    assert!(started.elapsed() > Duration::from_secs(3), "the good one outlived two certificates");
    assert!(good.connection.close_reason().is_none());
}

impl World {
    pub(super) async fn revoke(&self, id: NodeId) {
        self.services.driver.command(driver::as_system("test"), Command::RevokeNode { id }).await.unwrap();
    }
}
