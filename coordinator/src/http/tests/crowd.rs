//! Too many, too slow, too quiet: none of them keeps the others from being answered.

use super::*;
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn dial(world: &World) -> TcpStream {
    let stream = TcpStream::connect(world.coordinator.http_address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Whether the other side closes, in time.
async fn is_closed(mut stream: TcpStream) -> bool {
    let read = tokio::task::spawn_blocking(move || stream.read_to_end(&mut Vec::new())).await.unwrap();
    !matches!(read, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_never_asks_or_never_ends_its_question_is_closed() {
    let world = World::with(|config| config.http.idle = Duration::from_secs(1)).await;
    let (silent, mut slow, mut once) = (dial(&world), dial(&world), dial(&world));
    slow.write_all(b"GET /api/health HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
    once.write_all(b"GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(is_closed(silent).await, "it said nothing");
    assert!(is_closed(slow).await, "its headers never end");
    assert!(is_closed(once).await, "it asked once and stayed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_comes_is_not_waited_for() {
    let world = World::with(|config| config.http.timeout = Duration::from_secs(1)).await;
    for path in [route::JOBS, route::DATASETS] {
        let mut stream = dial(&world);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{{",
            world.admin
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        let read = tokio::task::spawn_blocking(move || {
            let _ = stream.read_to_string(&mut answer);
            answer
        });
        let answer = read.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_a_bounded_number_of_connections_and_gets_them_back() {
    let world = World::with(|config| config.http.connections_per_address = 3).await;
    let visitors = (0..4).map(|_| {
        let stream = dial(&world);
        // Less than a connection may be silent: only who is turned away is closed in this time.
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        tokio::spawn(is_closed(stream))
    });
    let mut turned_away = 0;
    for visitor in visitors.collect::<Vec<_>>() {
        turned_away += usize::from(visitor.await.unwrap());
    }
    assert_eq!(turned_away, 1, "of four");
    let deadline = Instant::now() + PATIENCE;
    let url = format!("{}{}", world.coordinator.http_url(), route::HEALTH);
    while world.http.get(&url).send().await.is_err() {
        assert!(Instant::now() < deadline, "the places were not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn one_user_has_a_bounded_number_of_streams_and_leaves_the_others_theirs() {
    let world = World::new().await;
    let job = world.job().await;
    let path = route::with_id(route::JOB_EVENTS, job);
    let mut open = Vec::new();
    for _ in 0..crate::http::STREAMS_EACH {
        let stream = world.ask(Method::GET, &path, &world.admin).send().await.unwrap();
        assert_eq!(stream.status(), StatusCode::OK);
        open.push(stream);
    }
    let (status, body) = answer(world.ask(Method::GET, &path, &world.admin)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("you have 64 event streams open"), "{message}");
    let second = world.user("second", Role::Admin).await;
    assert_eq!(world.ask(Method::GET, &path, &second).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_stream_ends_when_its_token_is_withdrawn() {
    let world = World::new().await;
    let job = world.job().await;
    let made = world.call(Method::POST, route::TOKENS, json!({ "name": "for a stream" })).await.1;
    let (id, secret) = (made["data"]["id"].as_str().unwrap(), made["data"]["secret"].as_str().unwrap());
    let mut stream = world.ask(Method::GET, &route::with_id(route::JOB_EVENTS, job), secret).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    for expected in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        let (status, _) = answer(world.ask(Method::DELETE, &route::with_id(route::TOKEN, id), &world.admin)).await;
        assert_eq!(status, expected);
    }
    assert_eq!(world.ask(Method::GET, route::ME, secret).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let rest = tokio::time::timeout(PATIENCE, stream.text()).await.expect("the stream goes on").unwrap();
    assert!(rest.contains("event: error") && rest.contains("expired or withdrawn"), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_has_so_many_downloads_and_leaves_the_rest_to_others() {
    let world = World::new().await;
    let other = world.user("other@example.org", Role::Admin).await;
    let (_, model) = world.finished(world.job().await).await;
    // More than the wire and both ends of it hold while nobody reads.
    let source = world.folder.path().join("large");
    fs::File::create(&source).unwrap().set_len(96 << 20).unwrap();
    let at = |name: &str| world.data().join(name);
    let blobs = crate::blob::Blobs::open(&at("blobs"), &at("staging"), &[], 0).unwrap();
    let manifest = blobs.put(source).await.unwrap();
    let mut row = world.coordinator.driver.model(Actor::System, model).await.unwrap();
    row.files = vec![lorikeet_protocol::file::NamedFile { path: "adapter_model.safetensors".into(), manifest }];
    world.insert(vec![Record::Model(row)]).await;
    let path = format!("{}?artifact=adapter-model", route::with_id(route::MODEL_DOWNLOAD, model));
    let download = async |token: &str| world.ask(Method::GET, &path, token).send().await.unwrap();
    let mut mine = Vec::new();
    for _ in 0..super::super::DOWNLOADS_EACH {
        mine.push(download(&world.admin).await);
    }
    assert!(mine.iter().all(|response| response.status() == StatusCode::OK));
    assert_eq!(download(&world.admin).await.status(), StatusCode::TOO_MANY_REQUESTS);
    let backup = world.ask(Method::GET, route::BACKUP, &world.admin).send().await.unwrap();
    assert_eq!(backup.status(), StatusCode::OK, "it is none of them");
    assert_eq!(download(&other).await.status(), StatusCode::OK);
    drop(mine);
    let deadline = Instant::now() + PATIENCE;
    while download(&world.admin).await.status() != StatusCode::OK {
        assert!(Instant::now() < deadline, "a place that nobody uses is given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_backup_that_the_disk_has_no_room_for_is_not_begun() {
    let world = World::with(|config| config.storage.keep_free = u64::MAX).await;
    let (status, body) = answer(world.ask(Method::GET, route::BACKUP, &world.admin)).await;
    assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "{body}");
    assert_eq!(fs::read_dir(world.data().join("staging")).unwrap().count(), 0);
    assert!(!world.audits().await.contains(&"backup.take".to_owned()), "no keys have left");
}

#[tokio::test]
async fn one_backup_is_taken_at_a_time() {
    let world = World::new().await;
    let taking = world.slow_backup().await;
    assert_eq!(taking.status(), StatusCode::OK);
    let (status, body) = answer(world.ask(Method::GET, route::BACKUP, &world.admin)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
    let taken = world.audits().await.into_iter().filter(|action| action == "backup.take").count();
    assert_eq!(taken, 1, "no keys have left a second time");
}
