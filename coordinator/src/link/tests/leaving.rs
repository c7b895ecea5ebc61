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
    let context =
        Context { actor: Actor::System, request: RequestId(Uuid::now_v7()), from: "test".into(), idempotency: None };
    world.services.driver.command(context, Command::RevokeNode { id: identity.node }).await.unwrap();
    // Nothing is read: the goodbye waits in the stream.
    let gone = async { tokio::join!(control.connection.closed(), blob.closed()) };
    timeout(SOON, gone).await.expect("both connections are closed in time");
    let mut again = world.control((&identity, &key)).await;
    assert_eq!(again.hello(1).await, ToAgent::Goodbye(Farewell::Revoked));
    let blob = world.dial(ALPN_BLOB, Some((&identity, &key))).await.unwrap();
    assert_eq!(close_code(&blob).await, CloseCode::Busy as u32);
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
