//! Leave to read from another node, over real QUIC: asked for by one agent, sealed for another.

use super::{
    work::{ask, offered, queued},
    *,
};
use lorikeet_protocol::{
    ALPN_BLOB_SHARE,
    share::{Announcement, Giver, Grant, GrantKey, Listens, Moved},
};

/// A node that says what it has; its control connection keeps it there.
async fn announced(world: &World, seed: u8, listens: Listens, files: Vec<Hash>) -> (Control, NodeId, GrantKey) {
    let (identity, key) = world.node(seed).await;
    let mut control = world.control((&identity, &key)).await;
    assert!(matches!(control.hello(9).await, ToAgent::Welcome(_)));
    let blob = world.dial(ALPN_BLOB_SHARE, Some((&identity, &key))).await.unwrap();
    let said = Announcement { listens, files, moved: Moved { to_nodes: 5, ..Moved::default() } };
    let (answer, _) = ask(&blob, BlobRequest::Announce(said), b"").await;
    let BlobAnswer::Announced { key, time } = answer else { panic!("{answer:?}") };
    assert!(time.0.abs_diff(crate::clock::now().0) < 60_000);
    (control, identity.node, key)
}

async fn givers(blob: &Connection, attempt: AttemptId, file: Hash) -> Result<Vec<Giver>, Refusal> {
    let (answer, _) = ask(blob, BlobRequest::Givers { attempt, file }, b"").await;
    if let BlobAnswer::Refused(refusal) = answer {
        return Err(refusal);
    }
    let BlobAnswer::Givers(givers) = answer else { panic!("{answer:?}") };
    Ok(givers)
}

#[tokio::test]
async fn a_grant_names_reader_file_and_end_and_only_its_giver_can_judge_it() {
    let world = World::new();
    queued(&world).await;
    let (_reader, blob, offer) = offered(&world, 1).await;
    let file = offer.base[0].manifest.hash;
    assert_eq!(givers(&blob, offer.attempt, file).await, Ok(vec![]), "nobody has said anything");
    let (_first, first, first_key) = announced(&world, 2, Listens::Port(7172), vec![file]).await;
    let far = "192.0.2.7:7172".parse().unwrap();
    let (_second, second, second_key) = announced(&world, 3, Listens::At(far), vec![file]).await;
    announced(&world, 4, Listens::Nowhere, vec![file]).await;
    let mut named = givers(&blob, offer.attempt, file).await.unwrap();
    named.sort_by_key(|giver| giver.address.port() == 7172 && giver.address != far);
    assert_eq!(named.iter().map(|giver| giver.node).collect::<Vec<_>>(), [second, first]);
    assert_eq!(named[0].address, far);
    assert_eq!(named[1].address, (Ipv4Addr::LOCALHOST, 7172).into(), "where the coordinator sees it");
    for (giver, key, other) in [(&named[0], second_key, first_key), (&named[1], first_key, second_key)] {
        let Grant { reader, file: of, expires, seal } = giver.grant;
        let sealed = |key: GrantKey| Hash(*blake3::keyed_hash(&key.0, &Grant::words(reader, of, expires)).as_bytes());
        assert!(seal == sealed(key) && seal != sealed(other), "sealed for its giver alone");
        let left = expires.0.saturating_sub(crate::clock::now().0);
        assert!(of == file && (60_000..=120_000).contains(&left), "{left}");
    }
}

#[tokio::test]
async fn who_may_not_fetch_a_file_hears_of_no_giver() {
    let world = World::new();
    queued(&world).await;
    let (_reader, blob, offer) = offered(&world, 1).await;
    let (foreign, file) = (Hash([9; 32]), offer.base[0].manifest.hash);
    let (_giver, ..) = announced(&world, 2, Listens::Port(7172), vec![file, foreign]).await;
    assert_eq!(givers(&blob, offer.attempt, foreign).await, Err(Refusal::NotYours));
    let (identity, key) = world.node(3).await;
    let mut control = world.control((&identity, &key)).await;
    control.hello(2).await;
    let stranger = world.dial(ALPN_BLOB_SHARE, Some((&identity, &key))).await.unwrap();
    assert_eq!(givers(&stranger, offer.attempt, file).await, Err(Refusal::NotYours));
}

#[tokio::test]
async fn an_announcement_that_cannot_be_is_not_heard() {
    let world = World::new();
    queued(&world).await;
    let (_reader, reader, offer) = offered(&world, 1).await;
    let file = offer.base[0].manifest.hash;
    let (identity, key) = world.node(2).await;
    let mut control = world.control((&identity, &key)).await;
    control.hello(2).await;
    let blob = world.dial(ALPN_BLOB_SHARE, Some((&identity, &key))).await.unwrap();
    let at = |text: &str| Listens::At(text.parse().unwrap());
    let several =
        [at("224.0.0.1:7172"), at("255.255.255.255:7172"), at("[ff02::1]:7172"), at("[::ffff:224.0.0.1]:7172")];
    for listens in [Listens::Port(0), at("0.0.0.0:7172"), at("[::]:7172"), at("192.0.2.7:0")].into_iter().chain(several)
    {
        let said = Announcement { listens, files: vec![file], moved: Moved::default() };
        let (mut send, mut receive) = blob.open_bi().await.unwrap();
        wire::write(&mut send, &BlobRequest::Announce(said)).await.unwrap();
        let answer = timeout(PATIENCE, wire::read::<BlobAnswer>(&mut receive)).await.unwrap();
        assert!(!matches!(answer, Ok(Some(_))), "{listens:?}: {answer:?}");
    }
    assert_eq!(givers(&reader, offer.attempt, file).await, Ok(vec![]));
}

#[tokio::test]
async fn an_agent_that_offers_both_names_is_answered_in_the_newer() {
    let world = World::new();
    let (identity, key) = world.node(1).await;
    let mut control = world.control((&identity, &key)).await;
    control.hello(1).await;
    let offered = [ALPN_BLOB.to_vec(), ALPN_BLOB_SHARE.to_vec()];
    let address = world.link.address();
    let both =
        dial_any(address, world.services.trust.now().current().der(), offered.to_vec(), Some((&identity, &key))).await;
    assert_eq!(alpn(&both.unwrap()).as_deref(), Some(ALPN_BLOB_SHARE));
    let before = world.dial(ALPN_BLOB, Some((&identity, &key))).await.unwrap();
    assert_eq!(alpn(&before).as_deref(), Some(ALPN_BLOB));
}

#[tokio::test]
async fn in_the_conversation_of_before_nothing_is_said_of_other_nodes_files() {
    let world = World::new();
    queued(&world).await;
    let (_reader, blob, offer) = offered(&world, 1).await;
    let (attempt, file) = (offer.attempt, offer.base[0].manifest.hash);
    assert_eq!(givers(&blob, attempt, file).await, Ok(vec![]));
    let (identity, key) = world.node(2).await;
    let mut control = world.control((&identity, &key)).await;
    control.hello(2).await;
    let before = world.dial(ALPN_BLOB, Some((&identity, &key))).await.unwrap();
    let said = Announcement { listens: Listens::Port(7172), files: vec![file], moved: Moved::default() };
    for request in [BlobRequest::Announce(said), BlobRequest::Givers { attempt, file }] {
        let (mut send, mut receive) = before.open_bi().await.unwrap();
        wire::write(&mut send, &request).await.unwrap();
        let answer = timeout(PATIENCE, wire::read::<BlobAnswer>(&mut receive)).await.unwrap();
        assert!(!matches!(answer, Ok(Some(_))), "{request:?}: {answer:?}");
    }
    assert_eq!(givers(&blob, attempt, file).await, Ok(vec![]));
}

#[tokio::test]
async fn who_has_the_key_of_a_certificate_authority_can_seal_nothing() {
    let world = World::new();
    let (_first, node, key) = announced(&world, 2, Listens::Port(7172), vec![]).await;
    let trust = world.services.trust.clone();
    trust.begin().unwrap();
    trust.finish(trust.now().issuing().hash()).unwrap();
    // Of the same authority, with another secret; and of the same secret, under the next authority.
    let other = Sealer(crate::secret::open(&world.folder.path().join("other.key")).unwrap());
    let same = Sealer(crate::secret::open(&world.folder.path().join("share.key")).unwrap());
    assert!(other.key(node) != key && same.key(node) == key);
}
