//! The CA is replaced under live sessions: who is told, who is let in by what, and what an agent of the version before notices.

use super::{frozen::HELLO, *};
use crate::record::{Node, NodeTrust};
use lorikeet_protocol::agent::Trusts;

#[tokio::test]
async fn an_agent_learns_of_the_next_ca_in_its_session_and_goes_on_under_it() {
    let world = World::new();
    let (identity, key) = world.node(40).await;
    let old = world.services.trust.now().current().der().to_vec();
    let mut control = world.trusting(&old, (&identity, &key)).await;
    assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)));
    control.say(trusts(&[&old], Some(&old))).await;
    // That stands in its row since it joined; the answer to what is said next shows that it was heard.
    control.say(FromAgent::Renew(request(&key))).await;
    assert!(matches!(control.hear().await, ToAgent::Renewed(_)));
    world.until_trust(identity.node, &[&old], Some(&old)).await;

    world.services.trust.begin().unwrap();
    let next = world.services.trust.now().issuing().der().to_vec();
    assert_eq!(control.hear().await, ToAgent::Trust(vec![next.clone(), old.clone()]));
    control.say(trusts(&[&next, &old], Some(&old))).await;
    control.say(FromAgent::Renew(request(&key))).await;
    let ToAgent::Renewed(certificate) = control.hear().await else { panic!("no certificate") };
    let renewed = Identity { certificate, ..identity.clone() };
    assert!(world.finish(false).await.unwrap_err().contains("its certificate is of the older authority"));
    control.say(trusts(&[&next, &old], Some(&next))).await;
    world.until_trust(identity.node, &[&next, &old], Some(&next)).await;

    world.finish(false).await.unwrap();
    // The session began under the older certificate.
    close_code(&control.connection).await;
    // The new certificate is let in, and the older one no longer, though its serial number is on record.
    let mut again = world.trusting(&next, (&renewed, &key)).await;
    assert!(matches!(again.hello(1).await, ToAgent::Welcome(_)));
    again.say(trusts(&[&next, &old], Some(&next))).await;
    assert_eq!(again.hear().await, ToAgent::Trust(vec![next.clone()]));
    refused(dial(world.link.address(), &next, ALPN_CONTROL, Some((&identity, &key))).await).await;
    assert!(dial(world.link.address(), &old, ALPN_CONTROL, Some((&renewed, &key))).await.is_err());
}

#[tokio::test]
async fn an_agent_that_was_away_is_told_after_its_welcome_and_never_before() {
    let world = World::new();
    let (identity, key) = world.node(41).await;
    let old = world.services.trust.now().current().der().to_vec();
    world.services.trust.begin().unwrap();
    let next = world.services.trust.now().issuing().der().to_vec();
    for said in [vec![&old], vec![]] {
        let mut control = world.trusting(&old, (&identity, &key)).await;
        assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)));
        let said: Vec<&[u8]> = said.iter().map(|der| der.as_slice()).collect();
        control.say(trusts(&said, None)).await;
        assert_eq!(control.hear().await, ToAgent::Trust(vec![next.clone(), old.clone()]));
    }
    let mut control = world.trusting(&next, (&identity, &key)).await;
    control.hello(1).await;
    control.say(trusts(&[&next, &old], Some(&old))).await;
    control.say(FromAgent::Renew(request(&key))).await;
    assert!(matches!(control.hear().await, ToAgent::Renewed(_)), "who knows it already is told nothing");
}

#[tokio::test]
async fn a_machine_that_joins_during_a_rotation_gets_the_next_ca_and_a_certificate_of_it() {
    let world = World::new();
    let old = world.services.trust.now().current().der().to_vec();
    world.services.trust.begin().unwrap();
    let next = world.services.trust.now().issuing().der().to_vec();
    let (identity, key) = world.node(42).await;
    assert_eq!(identity.ca, next);
    world.services.trust.finish(world.services.trust.now().issuing().hash()).unwrap();
    let mut control = world.trusting(&next, (&identity, &key)).await;
    assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)));
    assert_ne!(old, next);
}

#[tokio::test]
async fn an_agent_of_version_one_goes_on_through_a_rotation_and_is_named_before_it_is_cut_off() {
    let world = World::new();
    let (identity, key) = world.node(43).await;
    let old = world.services.trust.now().current().der().to_vec();
    let mut control = world.control((&identity, &key)).await;
    frozen::say(&mut control, &frozen::bytes(HELLO)).await;
    assert_eq!(frozen::hear(&mut control).await[..2], [1, 0]);
    world.services.trust.begin().unwrap();
    // Nothing that it cannot read: the next thing it hears is the answer to its renewal (7).
    control.say(FromAgent::Renew(request(&key))).await;
    let renewed = frozen::hear(&mut control).await;
    assert_eq!(renewed[..2], [1, 7], "{renewed:02x?}");
    // It knows the older CA alone, and comes back with either certificate.
    let ToAgent::Renewed(certificate) = lorikeet_protocol::codec::decode(&renewed).unwrap() else { unreachable!() };
    for identity in [identity.clone(), Identity { certificate, ..identity.clone() }] {
        let connection = dial(world.link.address(), &old, ALPN_CONTROL, Some((&identity, &key))).await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        let mut control = Control { connection, send, receive };
        frozen::say(&mut control, &frozen::bytes(HELLO)).await;
        assert_eq!(frozen::hear(&mut control).await[..2], [1, 0]);
        world.until_trust(identity.node, &[], None).await;
    }
    let refusal = world.finish(false).await.unwrap_err();
    assert!(refusal.contains("gpu-7") && refusal.contains("its agent is older"), "{refusal}");
    world.finish(true).await.unwrap();
    assert!(dial(world.link.address(), &old, ALPN_CONTROL, Some((&identity, &key))).await.is_err());
}

#[tokio::test]
async fn words_about_trust_have_no_place_in_the_conversation_of_version_one() {
    let world = World::new();
    let (identity, key) = world.node(44).await;
    let mut control = world.control((&identity, &key)).await;
    control.hello(1).await;
    control.say(trusts(&[], None)).await;
    assert_eq!(close_code(&control.connection).await, CloseCode::Misbehaved as u32);
}

impl World {
    /// A session of an agent that knows of trust, and trusts this CA alone.
    async fn trusting(&self, ca: &[u8], identity: (&Identity, &KeyPair)) -> Control {
        let connection = dial(self.link.address(), ca, ALPN_CONTROL_TRUST, Some(identity)).await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        Control { connection, send, receive }
    }

    /// As a person asks for it; the refusal in words.
    async fn finish(&self, force: bool) -> Result<(), String> {
        let context = driver::as_system("test");
        let finished = crate::rotation::finish(&self.services.driver, &self.services.trust, context, force).await;
        finished.map_err(|error| error.to_string())
    }

    /// Until the node's row says so.
    async fn until_trust(&self, node: NodeId, authorities: &[&[u8]], issuer: Option<&[u8]>) {
        let expected =
            NodeTrust { authorities: authorities.iter().map(|der| hash(der)).collect(), issuer: issuer.map(hash) };
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let row = self.services.driver.read(move |store| store.get::<Node>(&node.bytes())).await.unwrap().unwrap();
            if row.trust.as_ref() == Some(&expected) {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{:?}", row.trust);
            tokio::task::yield_now().await;
        }
    }
}

fn trusts(authorities: &[&[u8]], issuer: Option<&[u8]>) -> FromAgent {
    let authorities = authorities.iter().map(|der| hash(der)).collect();
    FromAgent::Trusts(Trusts { authorities, issuer: issuer.map(hash) })
}

fn hash(der: &[u8]) -> Hash {
    Hash(*blake3::hash(der).as_bytes())
}

/// By TLS itself; the client is done before the server has judged its certificate.
async fn refused(dialled: Result<Connection, ConnectionError>) {
    if let Ok(connection) = dialled {
        let reason = timeout(PATIENCE, connection.closed()).await.unwrap();
        assert!(!matches!(reason, ConnectionError::ApplicationClosed(_)), "{reason}");
    }
}
