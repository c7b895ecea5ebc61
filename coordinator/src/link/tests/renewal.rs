//! When a certificate is renewed, and what one that has expired is still good for.

use super::*;

#[tokio::test]
async fn a_certificate_is_renewed_over_the_live_link() {
    let world = World::new();
    let (identity, key) = world.node(7).await;
    let mut control = world.control((&identity, &key)).await;
    control.hello(1).await;
    control.say(FromAgent::Renew(request(&key))).await;
    let ToAgent::Renewed(certificate) = control.hear().await else { panic!("no certificate") };
    let renewed = Identity { certificate, ..identity };
    let mut control = world.control((&renewed, &key)).await;
    assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)));
}

#[tokio::test]
async fn a_node_that_renews_without_end_is_told_to_come_back_later() {
    let world = World::new();
    let (identity, key) = world.node(13).await;
    let mut answered = 0;
    // Each on a connection of its own; a renewal a second is answered, so it takes more than five.
    for _ in 0..60 {
        let mut control = world.control((&identity, &key)).await;
        control.say(FromAgent::Renew(request(&key))).await;
        if close_code(&control.connection).await == CloseCode::TooMany as u32 {
            break;
        }
        answered += 1;
    }
    assert!((5..60).contains(&answered), "{answered}");
    let mut control = world.control((&identity, &key)).await;
    assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)), "what else it says is heard");
}

#[tokio::test]
async fn an_expired_certificate_may_renew_and_nothing_else() {
    // One second: the shortest that a certificate, which knows no fractions, can be.
    let world = World::with_ttl(Duration::from_secs(1));
    let (identity, key) = world.node(8).await;
    let deadline = std::time::Instant::now() + PATIENCE;
    while !world.identify(&identity.certificate).expired {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut control = world.control((&identity, &key)).await;
    control.say(FromAgent::Hello(Box::new(hello(1)))).await;
    assert_eq!(close_code(&control.connection).await, CloseCode::Misbehaved as u32);
    let blob = world.dial(ALPN_BLOB, Some((&identity, &key))).await.unwrap();
    assert_eq!(close_code(&blob).await, CloseCode::NoCertificate as u32);
    let mut control = world.control((&identity, &key)).await;
    control.say(FromAgent::Renew(request(&key))).await;
    let ToAgent::Renewed(certificate) = control.hear().await else { panic!("no certificate") };
    assert_eq!(world.identify(&certificate).node, identity.node);
}

#[tokio::test]
async fn a_certificate_of_any_length_is_renewed_in_its_middle_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path()).unwrap();
    for hours in [1, 12, 24, 7 * 24] {
        let ttl = Duration::from_secs(hours * 3_600);
        let issued = authority.certify(NodeId(Uuid::nil()), &request(&new_key()), ttl).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued.certificate).unwrap();
        let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let left = from.midpoint(to) - now;
        assert!(from < now && left > (hours * 3_600 / 3) as i64, "{hours} h: {left} s until it is renewed");
    }
}
