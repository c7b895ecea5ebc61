//! Which CAs a node trusts: how it follows a rotation, and what a disk that fails or a crash leaves.

use super::*;
use lorikeet_protocol::agent::Trusts;

#[tokio::test]
async fn the_next_ca_is_kept_before_it_is_said_and_the_node_goes_on_under_it() {
    let (folder, mut coordinator) = joined_with(Manner { knows_trust: true, ..Manner::default() }).await;
    let (old, next) = (coordinator.authority.certificate.to_vec(), Arc::new(Authority::new()));
    let mut link = Running::start(folder.path());
    let mut peer = link.welcomed(&mut coordinator).await;
    let said = |authorities: &[Hash], issuer| Trusts { authorities: authorities.to_vec(), issuer: Some(issuer) };
    let (old_hash, next_hash) = (coordinator.authority.hash(), next.hash());
    assert_eq!(peer.hear_news().await, FromAgent::Trusts(said(&[old_hash], old_hash)));

    peer.say(ToAgent::Trust(vec![next.certificate.to_vec(), old])).await;
    assert_eq!(peer.hear_news().await, FromAgent::Trusts(said(&[next_hash, old_hash], old_hash)));
    // Said, so a power cut leaves it there.
    assert_eq!(Identity::load(folder.path()).unwrap().authorities.len(), 2);
    let FromAgent::Renew(request) = peer.hear_news().await else { panic!("its certificate is of the older one") };
    peer.say(ToAgent::Renewed(next.certify(&request, -60, 86_400))).await;
    assert_eq!(peer.hear_news().await, FromAgent::Trusts(said(&[next_hash, old_hash], next_hash)));
    peer.say(ToAgent::Trust(vec![next.certificate.to_vec()])).await;
    assert_eq!(peer.hear_news().await, FromAgent::Trusts(said(&[next_hash], next_hash)));
    assert!(!folder.path().join("ca.next.crt").exists());

    // One that has forgotten the older CA: both sides let each other in.
    let address = coordinator.address();
    drop(peer);
    coordinator.stop().await;
    let manner = Manner { knows_trust: true, ..Manner::default() };
    let mut again = Coordinator::with(next, manner, address, Shelf::default());
    let mut peer = link.welcomed(&mut again).await;
    assert_eq!(peer.hear_news().await, FromAgent::Trusts(said(&[next_hash], next_hash)));
}

#[tokio::test]
async fn a_coordinator_of_the_version_before_hears_nothing_of_trust() {
    let (folder, mut coordinator) = joined().await;
    let identity = Identity::load(folder.path()).unwrap();
    // As a rotation under a newer coordinator left it.
    identity.trust(&[coordinator.authority.certificate.to_vec(), Authority::new().certificate.to_vec()]).unwrap();
    let mut link = Running::start(folder.path());
    let mut peer = link.welcomed(&mut coordinator).await;
    for _ in 0..3 {
        assert_eq!(peer.hear().await, FromAgent::Heartbeat);
    }
}

#[tokio::test]
async fn a_coordinator_of_the_older_ca_is_not_believed_once_the_next_one_is_known() {
    let (folder, mut coordinator) = joined_with(Manner { knows_trust: true, ..Manner::default() }).await;
    let identity = Identity::load(folder.path()).unwrap();
    // Somebody has the key of the older one: it must not say whom to trust.
    identity.trust(&[Authority::new().certificate.to_vec(), coordinator.authority.certificate.to_vec()]).unwrap();
    let mut link = Running::start(folder.path());
    let state = tokio::select! {
        state = link.until_lost() => state,
        _ = coordinator.peer() => panic!("it was believed"),
    };
    assert!(matches!(&state, LinkState::Refused { why } if why.contains("not of the CA")), "{state:?}");
}

#[tokio::test]
async fn a_ca_that_the_disk_did_not_keep_is_tried_again_until_it_does() {
    let (folder, mut coordinator) = joined_with(Manner { knows_trust: true, ..Manner::default() }).await;
    let (old, next) = (coordinator.authority.certificate.clone(), Arc::new(Authority::new()));
    let mut link = Running::start_with(folder.path(), Timers { ask_again: Duration::from_millis(50), ..timers() });
    let mut peer = link.welcomed(&mut coordinator).await;
    assert!(matches!(peer.hear_news().await, FromAgent::Trusts(_)));
    let blocks = folder.path().join("ca.crt.aside");
    std::fs::create_dir(&blocks).unwrap();
    peer.say(ToAgent::Trust(vec![next.certificate.to_vec(), old.to_vec()])).await;
    // A word that is said behind it and answered shows that it was heard.
    let again =
        coordinator.authority.certify(&Identity::load(folder.path()).unwrap().signing_request().unwrap(), -60, 86_400);
    peer.say(ToAgent::Renewed(again.clone())).await;
    until(|| std::fs::read(folder.path().join("node.crt")).unwrap() == again).await;
    assert_eq!(Identity::load(folder.path()).unwrap().authorities, [old]);
    std::fs::remove_dir(&blocks).unwrap();
    until(|| folder.path().join("ca.next.crt").exists()).await;
    loop {
        match peer.hear_news().await {
            FromAgent::Trusts(said) if said.authorities.first() == Some(&next.hash()) => break,
            FromAgent::Trusts(_) => {}
            other => panic!("it says what it keeps, not {other:?}"),
        }
    }
}

#[tokio::test]
async fn two_cas_that_follow_two_others_leave_the_one_in_common_whatever_fails() {
    let (folder, coordinator) = joined().await;
    let [b, c] = [(); 2].map(|()| Authority::new().certificate);
    let identity = Identity::load(folder.path()).unwrap();
    let identity = identity.trust(&[b.to_vec(), coordinator.authority.certificate.to_vec()]).unwrap();
    for file in ["ca.crt", "ca.next.crt"] {
        let blocks = folder.path().join(format!("{file}.aside"));
        std::fs::create_dir(&blocks).unwrap();
        identity.trust(&[c.to_vec(), b.to_vec()]).unwrap_err();
        // Which vouches for the one that signs now.
        assert_eq!(Identity::load(folder.path()).unwrap().authorities[0], b, "{file} cannot be written");
        std::fs::remove_dir(&blocks).unwrap();
    }
    assert_eq!(identity.trust(&[c.to_vec(), b.to_vec()]).unwrap().authorities, [c, b]);
}

#[tokio::test]
async fn authorities_that_cannot_be_trusted_change_nothing() {
    let (folder, coordinator) = joined().await;
    let identity = Identity::load(folder.path()).unwrap();
    let ca = || Authority::new().certificate.to_vec();
    for bad in [vec![], vec![vec![0x30, 0x82]], vec![ca(), b"none".to_vec()], vec![ca(), ca(), ca()]] {
        let error = identity.trust(&bad).unwrap_err();
        assert!(matches!(error, IdentityError::Authority { .. }), "{error:?}");
        let trusted = Identity::load(folder.path()).unwrap().authorities;
        assert_eq!(trusted, std::slice::from_ref(&coordinator.authority.certificate));
    }
}

#[tokio::test]
async fn a_change_of_trust_cut_off_at_any_step_leaves_what_both_sides_need() {
    let (folder, coordinator) = joined().await;
    let (old, next) = (coordinator.authority.certificate.clone(), Authority::new().certificate);
    let at = |name: &str| folder.path().join(name);
    let trusted = || Identity::load(folder.path()).unwrap().authorities;
    // Added: the next one is there first.
    std::fs::write(at("ca.next.crt"), &next).unwrap();
    assert_eq!(trusted(), [next.clone(), old.clone()]);
    Identity::load(folder.path()).unwrap().trust(&[next.to_vec(), old.to_vec()]).unwrap();
    assert_eq!(trusted(), [next.clone(), old]);
    // Forgotten: the next one takes the place of the older, and is there twice for a moment.
    std::fs::write(at("ca.crt"), &next).unwrap();
    assert_eq!(trusted(), std::slice::from_ref(&next));
    Identity::load(folder.path()).unwrap().trust(&[next.to_vec()]).unwrap();
    assert!(trusted() == [next] && !at("ca.next.crt").exists());
}
