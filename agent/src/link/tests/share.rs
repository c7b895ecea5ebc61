//! What an agent and its coordinator say of other nodes' files.

use super::{
    announce::Announcer,
    blob::Announced,
    give::Desk,
    stand_in::{KEY, within},
    *,
};
use crate::{cache::Cache, config};
use lorikeet_protocol::share::{Announcement, Grant, Listens};

fn cache(folder: &Path) -> Cache {
    Cache::open(&folder.join("cache"), &config::Cache::default()).unwrap()
}

fn giver() -> Giver {
    let node = NodeId(uuid::Uuid::from_u128(9));
    let grant = Grant { reader: node, file: Hash([1; 32]), expires: UnixMillis(9), seal: Hash([2; 32]) };
    Giver { node, address: "127.0.0.1:9".parse().unwrap(), grant }
}

async fn announcements(coordinator: &Coordinator, count: usize) -> Vec<Announcement> {
    until(|| coordinator.shelf.lock().unwrap().announced.len() >= count).await;
    coordinator.shelf.lock().unwrap().announced.clone()
}

#[tokio::test]
async fn what_is_in_the_cache_is_said_after_each_welcome_and_when_it_changes() {
    let (folder, mut coordinator) = joined().await;
    coordinator.shelf.lock().unwrap().time = 1_000_000;
    let (cache, desk) = (cache(folder.path()), Desk::default());
    let file = Hash(*blake3::hash(b"abc").as_bytes());
    cache.hold(file, b"abc");
    let mut link = Running::start(folder.path());
    let (blobs, state, listens) = (link.blobs.clone(), link.state.clone(), Listens::Port(7172));
    let announcer = Announcer { blobs, cache: cache.clone(), desk: desk.clone(), listens, reads: false, state };
    tokio::spawn(announcer.run(link.cancel.clone()));
    let peer = link.welcomed(&mut coordinator).await;
    let said = announcements(&coordinator, 1).await;
    assert_eq!(said[0], Announcement { listens, files: vec![file], moved: cache.moved() });
    let reader = NodeId(uuid::Uuid::from_u128(5));
    let leave = |expires| {
        let seal = blake3::keyed_hash(&KEY.0, &Grant::words(reader, file, expires));
        Grant { reader, file, expires, seal: Hash(*seal.as_bytes()) }
    };
    until(|| desk.admits(&leave(UnixMillis(1_060_000)), reader)).await;
    assert!(!desk.admits(&leave(UnixMillis(1_000_000)), reader), "by the coordinator's clock, not by ours");
    cache.shed(1);
    let said = announcements(&coordinator, 2).await;
    assert!(said[1].files.is_empty());
    drop(peer);
    let (address, authority) = (coordinator.address(), coordinator.stop().await);
    assert!(matches!(link.news().await, News::Lost));
    let mut again = Coordinator::with(authority, Manner::default(), address, Shelf::default());
    let _peer = link.welcomed(&mut again).await;
    assert!(announcements(&again, 1).await[0].files.is_empty());
}

#[tokio::test]
async fn a_node_that_neither_gives_nor_reads_says_nothing() {
    let (folder, mut coordinator) = joined().await;
    let mut link = Running::start(folder.path());
    let _peer = link.welcomed(&mut coordinator).await;
    let (blobs, state, cache) = (link.blobs.clone(), link.state.clone(), cache(folder.path()));
    let (desk, listens) = (Desk::default(), Listens::Nowhere);
    let announcer = |reads| {
        let (blobs, cache, desk, state) = (blobs.clone(), cache.clone(), desk.clone(), state.clone());
        Announcer { blobs, cache, desk, listens, reads, state }
    };
    let quiet = tokio::spawn(announcer(false).run(link.cancel.clone()));
    tokio::spawn(announcer(true).run(link.cancel.clone()));
    assert_eq!(announcements(&coordinator, 1).await.len(), 1, "of the one that reads");
    assert!(!quiet.is_finished(), "what ends is taken for what died");
    link.cancel.cancel();
    within(quiet).await.unwrap();
}

#[tokio::test]
async fn a_coordinator_of_before_is_asked_for_nothing_that_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = with(Arc::new(Authority::new()), Manner { shares: false, ..Manner::default() });
    join(&coordinator.join_string(), folder.path()).await.unwrap();
    let mut link = Running::start(folder.path());
    let _peer = link.welcomed(&mut coordinator).await;
    let file = coordinator.shelve("a", b"abc");
    let blobs = link.blobs.clone().with_nodes();
    let said = Announcement { listens: Listens::Nowhere, files: vec![], moved: Default::default() };
    assert_eq!(within(blobs.announce(said)).await, Announced::Unwanted);
    assert_eq!(within(blobs.givers(attempt(1), file.manifest.hash)).await, []);
    assert_eq!(within(blobs.chunk(attempt(1), file.manifest.hash, 0)).await.unwrap(), b"abc");
    assert_eq!(coordinator.shelf.lock().unwrap().asked, ["fetch 0"]);
}

#[tokio::test]
async fn who_else_has_a_file_is_asked_only_where_other_nodes_are_wanted() {
    let (folder, mut coordinator) = joined().await;
    coordinator.shelf.lock().unwrap().givers = vec![giver()];
    let mut link = Running::start(folder.path());
    let _peer = link.welcomed(&mut coordinator).await;
    assert_eq!(within(link.blobs.givers(attempt(1), Hash([1; 32]))).await, []);
    assert!(coordinator.shelf.lock().unwrap().asked.is_empty());
    let blobs = link.blobs.clone().with_nodes();
    assert_eq!(within(blobs.givers(attempt(1), Hash([1; 32]))).await, [giver()]);
    coordinator.shelf.lock().unwrap().refuse = vec![Refusal::NotYours];
    assert_eq!(within(blobs.givers(attempt(1), Hash([1; 32]))).await, [], "the fetch itself will say so");
}
