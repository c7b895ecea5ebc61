//! Nodes that give and read, over real sockets on loopback; the test is the coordinator that seals.

mod scene;

use super::*;
use crate::{
    cache::CacheError,
    config,
    link::{
        Caller, Timers,
        blob::Source,
        identity::{Identity, Key},
        stand_in::{Authority, KEY, attempt, within},
        take::{Lines, TakeError, exchange},
    },
};
use futures_util::FutureExt;
use lorikeet_protocol::{
    blob::Refusal,
    file::FileManifest,
    id::{AttemptId, Hash, NodeId, UnixMillis},
    share::{Giver, Grant, GrantKey, Moved},
};
use quinn::Connection;
use scene::*;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const CHUNK: usize = CHUNK_BYTES as usize;
/// By the coordinator's clock of these tests.
const NOW: UnixMillis = UnixMillis(1_000_000);
const SOON: UnixMillis = UnixMillis(1_060_000);

#[tokio::test]
async fn who_has_leave_reads_chunks_and_what_is_not_there_is_missing() {
    let cluster = Authority::new();
    let (giver, reader) = (Node::new(&cluster, 1), Node::new(&cluster, 2));
    let file = File::new(1, CHUNK + 3);
    giver.hold(&file, &file.bytes);
    let named = giver.start().leave(&reader, &file);
    assert!(reader.take(&named, 0).await.unwrap() == file.bytes[..CHUNK]);
    assert!(reader.take(&named, 1).await.unwrap() == file.bytes[CHUNK..]);
    for chunk in [2, u32::MAX] {
        assert_eq!(refusal(reader.take(&named, chunk).await), Refusal::Missing, "there is no such chunk");
    }
    // Counted when it was acknowledged.
    until(|| giver.cache.moved() == Moved { to_nodes: CHUNK_BYTES + 3, ..Moved::default() }).await;
    assert_eq!(giver.cache.shed(1), CHUNK_BYTES + 3, "what others read is not in use");
    assert_eq!(refusal(reader.take(&named, 0).await), Refusal::Missing, "evicted");
}

#[tokio::test]
async fn without_leave_of_its_own_that_still_holds_nobody_reads() {
    let cluster = Authority::new();
    let (giver, reader, other) = (Node::new(&cluster, 1), Node::new(&cluster, 2), Node::new(&cluster, 3));
    let (file, another) = (File::new(1, 10), File::new(2, 10));
    giver.hold(&file, &file.bytes);
    giver.hold(&another, &another.bytes);
    let running = giver.start();
    let good = running.leave(&reader, &file);
    assert!(reader.take(&good, 0).await.unwrap() == file.bytes);
    let forged = |grant: Grant| Giver { grant, ..good };
    let sealed = |reader, file, expires, key| forged(seal(reader, file, expires, key));
    for (why, named) in [
        ("none", forged(Grant { seal: Hash([0; 32]), ..good.grant })),
        ("another reader's", running.leave(&other, &file)),
        ("its own name on another reader's", forged(Grant { reader: reader.id, ..running.leave(&other, &file).grant })),
        ("another file under this seal", forged(Grant { file: another.manifest.hash, ..good.grant })),
        ("expired", sealed(reader.id, file.manifest.hash, NOW, KEY)),
        ("prolonged", forged(Grant { expires: UnixMillis(u64::MAX), ..good.grant })),
        ("sealed for another giver", sealed(reader.id, file.manifest.hash, SOON, GrantKey([9; 32]))),
    ] {
        let connection = reader.dial(&named).await;
        assert_eq!(refusal(ask(&connection, &named).await), Refusal::NotYours, "{why}");
    }
    assert_eq!(refusal(other.take(&good, 0).await), Refusal::NotYours, "shown by another node");
    assert!(reader.take(&good, 0).await.unwrap() == file.bytes, "nobody is shut out for it");
}

#[tokio::test]
async fn before_the_coordinator_has_said_anything_nobody_reads() {
    let cluster = Authority::new();
    let (giver, reader) = (Node::new(&cluster, 1), Node::new(&cluster, 2));
    let file = File::new(1, 10);
    giver.hold(&file, &file.bytes);
    let running = giver.start_untold();
    assert_eq!(refusal(reader.take(&running.leave(&reader, &file), 0).await), Refusal::NotYours);
    giver.desk.told(KEY, NOW);
    assert!(reader.take(&running.leave(&reader, &file), 0).await.is_ok());
    // Its clock goes on between two words of the coordinator.
    giver.desk.told(KEY, SOON);
    assert_eq!(refusal(reader.take(&running.leave(&reader, &file), 0).await), Refusal::NotYours);
}

#[tokio::test]
async fn nodes_of_another_cluster_and_nodes_that_are_somebody_else_are_not_talked_to() {
    let (cluster, foreign) = (Authority::new(), Authority::new());
    let (giver, reader, stranger) = (Node::new(&cluster, 1), Node::new(&cluster, 2), Node::new(&foreign, 2));
    let file = File::new(1, 10);
    giver.hold(&file, &file.bytes);
    let running = giver.start();
    let named = running.leave(&reader, &file);
    let error = stranger.take(&named, 0).await.unwrap_err();
    assert!(matches!(error, TakeError::Dial(_)), "a reader trusts its own CA only: {error:?}");
    // The giver judges too: a reader that trusts anybody gets no further.
    let trusting = stranger.with_ca_of(&reader);
    let error = trusting.take(&named, 0).await.unwrap_err();
    assert!(!matches!(error, TakeError::Refused(_)), "{error:?}");
    let expired = Node::with_life(&cluster, 2, (-100, -10));
    assert!(!matches!(expired.take(&named, 0).await, Ok(_) | Err(TakeError::Refused(_))));
    let elsewhere = Giver { node: NodeId(uuid::Uuid::from_u128(3)), ..named };
    let error = reader.take(&elsewhere, 0).await.unwrap_err();
    assert!(matches!(error, TakeError::Dial(_)), "another node answers: {error:?}");
    assert_eq!(giver.cache.moved().to_nodes, 0);
    assert!(reader.take(&named, 0).await.is_ok());
}

#[tokio::test]
async fn two_nodes_and_the_coordinator_bring_a_file_between_them() {
    let cluster = Authority::new();
    let [first, second, reader] = [1, 2, 3].map(|n| Node::new(&cluster, n));
    let file = File::new(1, 12 * CHUNK + 5);
    first.hold(&file, &file.bytes);
    second.hold(&file, &file.bytes);
    let (one, two) = (first.start(), second.start());
    let source = reader.source(&file, vec![one.leave(&reader, &file), two.leave(&reader, &file)]);
    // A coordinator that is busy with others.
    source.held.store(1, Relaxed);
    let most = async {
        while reader.cache.moved().from_nodes < 7 * CHUNK_BYTES {
            tokio::task::yield_now().await;
        }
        source.held.store(0, Relaxed);
    };
    let got = futures_util::future::join(reader.cache.get(&source, attempt(1), &file.manifest), most);
    let pin = within(got).await.0.unwrap();
    assert!(std::fs::read(pin.path()).unwrap() == file.bytes);
    let moved = reader.cache.moved();
    assert_eq!(moved.from_coordinator + moved.from_nodes, file.manifest.size, "nothing came twice");
    assert_eq!(moved.from_coordinator, source.coordinator.load(Relaxed));
    assert!(moved.from_coordinator < file.manifest.size / 2, "{moved:?}");
    let given = || [&first, &second].map(|node| node.cache.moved().to_nodes);
    until(|| given().iter().all(|bytes| *bytes > 0) && given().iter().sum::<u64>() == moved.from_nodes).await;
    assert_eq!(reader.cache.hashes(9), [file.manifest.hash], "and now it can give it itself");
}

#[tokio::test]
async fn a_node_that_lies_is_asked_for_no_more_and_its_chunks_come_from_elsewhere() {
    let cluster = Authority::new();
    let [liar, honest, reader] = [1, 2, 3].map(|n| Node::new(&cluster, n));
    let file = File::new(1, 8 * CHUNK);
    let mut wrong = file.bytes.clone();
    wrong.iter_mut().step_by(1 << 20).for_each(|byte| *byte ^= 1);
    liar.hold(&file, &wrong);
    honest.hold(&file, &file.bytes);
    let (one, two) = (liar.start(), honest.start());
    let source = reader.source(&file, vec![one.leave(&reader, &file), two.leave(&reader, &file)]);
    let pin = within(reader.cache.get(&source, attempt(1), &file.manifest)).await.unwrap();
    assert!(std::fs::read(pin.path()).unwrap() == file.bytes);
    until(|| liar.cache.moved().to_nodes > 0).await;
    let lies = liar.cache.moved().to_nodes / CHUNK_BYTES;
    assert!(lies <= 2, "it was asked for {lies} chunks: what was under way when it was found out, and no more");
    let moved = reader.cache.moved();
    assert_eq!(moved.from_coordinator + moved.from_nodes, file.manifest.size, "a lie counts as nothing that came");
}

#[tokio::test]
async fn a_node_that_dies_in_the_middle_costs_only_what_was_on_its_way() {
    let cluster = Authority::new();
    let [giver, reader] = [1, 2].map(|n| Node::new(&cluster, n));
    let file = File::new(1, 12 * CHUNK);
    giver.hold(&file, &file.bytes);
    let running = giver.start();
    let source = reader.source(&file, vec![running.leave(&reader, &file)]);
    // The coordinator brings nothing while the node lives, so that it is the node's death that everything waits for.
    source.held.store(1, Relaxed);
    let dies = async {
        within(async {
            while reader.cache.moved().from_nodes == 0 {
                tokio::task::yield_now().await
            }
        })
        .await;
        running.stop().await;
        source.held.store(0, Relaxed);
    };
    let (pin, ()) =
        within(futures_util::future::join(reader.cache.get(&source, attempt(1), &file.manifest), dies)).await;
    assert!(std::fs::read(pin.unwrap().path()).unwrap() == file.bytes);
    let moved = reader.cache.moved();
    assert!(moved.from_nodes > 0 && moved.from_coordinator > 0, "{moved:?}");
    assert_eq!(moved.from_coordinator + moved.from_nodes, file.manifest.size, "what had come was kept");
}

#[tokio::test]
async fn a_coordinator_that_refuses_is_believed_whatever_nodes_would_give() {
    let cluster = Authority::new();
    let [giver, reader] = [1, 2].map(|n| Node::new(&cluster, n));
    let file = File::new(1, 3 * CHUNK);
    giver.hold(&file, &file.bytes);
    let running = giver.start();
    let mut source = reader.source(&file, vec![running.leave(&reader, &file)]);
    source.refusal = Some(Refusal::NotYours);
    let error = within(reader.cache.get(&source, attempt(1), &file.manifest)).await.unwrap_err();
    assert!(matches!(error, CacheError::Refused { refusal: Refusal::NotYours, .. }), "{error}");
}

#[tokio::test]
async fn who_has_no_leave_is_told_so_at_once_and_soon_not_listened_to() {
    let cluster = Authority::new();
    let giver = Node::new(&cluster, 1);
    let file = File::new(1, 1_000);
    giver.hold(&file, &file.bytes);
    // Every chunk that may be in memory is, and waits its time.
    let running = giver.start_at(1);
    let readers: Vec<_> = (2..6).map(|n| Node::new(&cluster, n)).collect();
    let waiting = readers.iter().flat_map(|reader| [(reader, running.leave(reader, &file)); 2]);
    let waiting = futures_util::future::join_all(
        waiting.map(async |(reader, named)| reader.lines.take(&reader.caller, &named, 0).await),
    );
    let refused = async {
        until(|| running.shared.chunks.available_permits() == 0).await;
        let reader = Node::new(&cluster, 9);
        let named = Giver { grant: running.leave(&readers[0], &file).grant, ..running.leave(&reader, &file) };
        let connection = reader.dial(&named).await;
        for _ in 0..3 {
            assert_eq!(refusal(ask(&connection, &named).await), Refusal::NotYours);
        }
        let reason = within(connection.closed()).await.to_string();
        assert!(reason.contains("none of these grants holds"), "{reason}");
    };
    tokio::select! {
        _ = waiting => panic!("they wait for longer than this test"),
        () = refused => {}
    }
}

#[tokio::test]
async fn one_node_takes_two_places_and_leaves_the_others_theirs() {
    let cluster = Authority::new();
    let [giver, reader, other] = [1, 2, 3].map(|n| Node::new(&cluster, n));
    let file = File::new(1, 10);
    giver.hold(&file, &file.bytes);
    let running = giver.start();
    let named = running.leave(&reader, &file);
    let (first, second) = (reader.dial(&named).await, reader.dial(&named).await);
    for connection in [&first, &second] {
        assert!(ask(connection, &named).await.unwrap() == file.bytes);
    }
    let reason = within(reader.dial(&named).await.closed()).await.to_string();
    assert!(reason.contains("this node reads here already"), "{reason}");
    assert!(other.take(&running.leave(&other, &file), 0).await.unwrap() == file.bytes);
    first.close(0u32.into(), b"");
    within(async { while ask(&reader.dial(&named).await, &named).await.is_err() {} }).await;
}

#[tokio::test]
async fn handshakes_that_nobody_ends_leave_readers_their_way() {
    let cluster = Authority::new();
    let [giver, reader, other] = [1, 2, 3].map(|n| Node::new(&cluster, n));
    let file = File::new(1, 10);
    giver.hold(&file, &file.bytes);
    let running = giver.start();
    let named = running.leave(&reader, &file);
    // First packets get through to the giver, and none of its answers back.
    let between = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let behind = Giver { address: between.local_addr().unwrap(), ..running.leave(&other, &file) };
    let (passed, count) = (AtomicU64::new(0), 4 * HANDSHAKES as u64);
    let forwarding = async {
        let mut bytes = [0; 2_048];
        loop {
            let Ok((length, from)) = between.recv_from(&mut bytes).await else { continue };
            if from != running.address {
                let _ = between.send_to(&bytes[..length], running.address).await;
                passed.fetch_add(1, Relaxed);
            }
        }
    };
    let knocks = (0..count).map(|_| other.caller.dial_giver(&behind, Duration::from_secs(5)));
    let reading = async {
        until(|| passed.load(Relaxed) >= count).await;
        assert!(reader.take(&named, 0).await.unwrap() == file.bytes);
    };
    let knocking = async {
        futures_util::future::join_all(knocks).await;
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = forwarding => unreachable!("it has no end"),
        () = knocking => unreachable!("it has no end"),
        () = reading => {}
    }
}

#[tokio::test]
async fn a_node_that_is_sent_away_neither_reads_nor_is_read_from_any_more() {
    let cluster = Authority::new();
    let [giver, reader, other] = [1, 2, 3].map(|n| Node::new(&cluster, n));
    let file = File::new(1, 10);
    giver.hold(&file, &file.bytes);
    let running = giver.start();
    let (named, of_other) = (running.leave(&reader, &file), running.leave(&other, &file));
    let connection = reader.dial(&named).await;
    assert!(ask(&connection, &named).await.unwrap() == file.bytes);
    giver.caller.expel(reader.id).await;
    let reason = within(connection.closed()).await.to_string();
    assert!(reason.contains("sent away"), "a connection that stands: {reason}");
    assert!(reader.take(&named, 0).await.is_err(), "another one, with leave that has not run out");
    // Of a giver that is sent away its readers are told as well.
    assert!(other.take(&of_other, 0).await.unwrap() == file.bytes, "others read on");
    other.caller.expel(giver.id).await;
    until(|| running.shared.places.is_empty()).await;
    assert!(matches!(other.take(&of_other, 0).await, Err(TakeError::Expelled)));
}

#[tokio::test]
async fn a_connection_ends_with_its_readers_certificate() {
    let cluster = Authority::new();
    let (giver, reader) = (Node::new(&cluster, 1), Node::with_life(&cluster, 2, (-60, 3)));
    let file = File::new(1, 10);
    giver.hold(&file, &file.bytes);
    let named = giver.start().leave(&reader, &file);
    let connection = reader.dial(&named).await;
    assert!(ask(&connection, &named).await.unwrap() == file.bytes);
    within(async { while ask(&connection, &named).await.is_ok() {} }).await;
    assert!(connection.close_reason().is_some());
}

#[tokio::test]
async fn a_connection_outlives_a_rotation_only_under_a_certificate_that_still_counts() {
    let (old, next) = (Authority::new(), Authority::new());
    let [giver, reader, slow] = [1, 2, 3].map(|n| Node::new(&old, n));
    let file = File::new(1, 10);
    giver.hold(&file, &file.bytes);
    let running = giver.start();
    let (named, to_slow) = (running.leave(&reader, &file), running.leave(&slow, &file));
    let (connection, of_slow) = (reader.dial(&named).await, slow.dial(&to_slow).await);
    // Both trust both; the giver still shows the older one's certificate, the reader the next one's already.
    for node in [&giver, &reader] {
        node.trust(&[&next, &old]);
    }
    reader.renew(&next);
    assert!(ask(&connection, &named).await.unwrap() == file.bytes, "what stands goes on");
    let anew = reader.dial(&named).await;
    assert!(ask(&anew, &named).await.unwrap() == file.bytes);
    // The rotation is over: the older certificates count no longer.
    giver.renew(&next);
    giver.trust(&[&next]);
    reader.trust(&[&next]);
    assert!(ask(&of_slow, &to_slow).await.is_err());
    let reason = within(of_slow.closed()).await.to_string();
    assert!(reason.contains("this certificate counts no longer"), "{reason}");
    assert!(ask(&anew, &named).await.unwrap() == file.bytes, "the next one's does");
}

#[tokio::test]
async fn what_is_shown_is_prepared_once_for_each_certificate() {
    let cluster = Authority::new();
    let giver = Node::new(&cluster, 1);
    let running = giver.start();
    let first = running.shared.door.config().unwrap();
    assert!(Arc::ptr_eq(&first, &running.shared.door.config().unwrap()));
    giver.renew(&cluster);
    assert!(!Arc::ptr_eq(&first, &running.shared.door.config().unwrap()));
}

#[tokio::test]
async fn a_request_that_fails_takes_no_newer_connection_with_it() {
    let cluster = Authority::new();
    let [giver, reader, other] = [1, 2, 3].map(|n| Node::new(&cluster, n));
    let file = File::new(1, 1_000);
    giver.hold(&file, &file.bytes);
    // What is asked for waits for longer than this test.
    let running = giver.start_at(1);
    let named = running.leave(&reader, &file);
    let bad = Giver { grant: running.leave(&other, &file).grant, ..named };
    let free = || running.shared.chunks.available_permits();
    let all = free();
    let mut early = Box::pin(reader.lines.take(&reader.caller, &named, 0));
    let mut late = Box::pin(reader.lines.take(&reader.caller, &named, 0));
    // On its way over the first connection, until bad grants end that.
    until_or(&mut early, || free() == all - 1).await;
    while free() != all {
        let _ = reader.take(&bad, 0).await;
    }
    // Over the first one still: then the reader knows by now that it is closed.
    let _ = reader.take(&bad, 0).await;
    until_or(&mut late, || free() == all - 1).await;
    let error = within(early).await.unwrap_err();
    assert!(!matches!(error, TakeError::Refused(_)), "{error:?}");
    assert!((&mut late).now_or_never().is_none(), "the second connection is another's");
}

#[tokio::test]
async fn a_giver_that_is_not_reached_is_waited_for_once_and_not_for_every_file() {
    let cluster = Authority::new();
    let (giver, reader) = (Node::new(&cluster, 1), Node::new(&cluster, 2));
    let file = File::new(1, 10);
    giver.hold(&file, &file.bytes);
    let running = giver.start();
    let named = running.leave(&reader, &file);
    // What a firewall does: packets go there, and nothing comes back.
    let firewall = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let behind = Giver { address: firewall.local_addr().unwrap(), ..named };
    let error = reader.take(&behind, 0).await.unwrap_err();
    assert!(error.is_unreached() && matches!(error, TakeError::Dial(_)), "{error:?}");
    let error = reader.take(&behind, 0).await.unwrap_err();
    assert!(error.is_unreached() && matches!(error, TakeError::Resting(_)), "{error:?}");
    assert!(reader.take(&named, 0).await.is_ok(), "at another address it is tried at once");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let cluster = Authority::new();
    let giver = Node::new(&cluster, 1);
    let running = giver.start();
    let error = giver.bind(running.address, 1).err().unwrap();
    assert!(error.to_string().contains(&running.address.to_string()), "{error}");
}
