//! A whole coordinator: quick to start, clean to stop, plain about what it lacks.

use super::*;
use lorikeet_protocol::id::{Hash, NodeId, TokenId, UnixMillis, UserId};
use std::{net::Ipv4Addr, os::unix::fs::PermissionsExt, time::Instant};

pub(crate) fn config(data: &Path) -> Config {
    let mut config = Config { data: data.to_owned(), ..Config::default() };
    config.http.listen = (Ipv4Addr::LOCALHOST, 0).into();
    config.link.listen = (Ipv4Addr::LOCALHOST, 0).into();
    config.storage.keep_free = 0;
    config.timers.shutdown = Duration::from_secs(5);
    config
}

#[tokio::test]
async fn it_is_ready_within_a_second_and_leaves_nothing_open() {
    let folder = tempfile::tempdir().unwrap();
    // As an operator makes it.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let begun = Instant::now();
    let coordinator = Coordinator::bind(config(folder.path())).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let token = std::fs::metadata(coordinator.admin_token_path()).unwrap();
    assert_eq!(token.permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
    let announced = std::fs::read_to_string(folder.path().join("addresses.json")).unwrap();
    assert!(announced.contains(coordinator.http_url()), "{announced}");
    assert!(coordinator.join_string().await.unwrap().starts_with("LK1."));
    let (http, link) = (coordinator.http_address(), coordinator.link_address());
    coordinator.shutdown().await;
    std::net::TcpListener::bind(http).unwrap();
    std::net::UdpSocket::bind(link).unwrap();
    Store::open(&folder.path().join("state.redb")).expect("the store is closed");
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_named_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let (data, program) = (folder.path().join("data"), folder.path().join("lorikeet"));
    let mut config = config(&data);
    config.inspect.program = Some(program.clone());
    let refused = async || {
        let error = Coordinator::bind(config.clone()).await.err().expect("a program that cannot be started");
        assert!(!error.is_ours() && !data.exists());
        lorikeet_protocol::chain(&error)
    };
    let error = refused().await;
    assert!(error.contains(&format!("inspect.program is {}, expected", program.display())), "{error}");
    assert!(error.contains("No such file"), "{error}");
    std::fs::write(&program, "").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o644)).unwrap();
    // Whoever may do everything may not start this either: nobody may.
    let error = refused().await;
    assert!(error.contains("Permission denied"), "{error}");
    std::fs::remove_file(&program).unwrap();
    std::fs::create_dir(&program).unwrap();
    assert!(refused().await.contains("it is no file"));
    std::fs::remove_dir(&program).unwrap();
    // Anything that may be started is not one of ours.
    for (says, told) in
        [("true", "its version is ``, not lorikeet's"), ("echo other 1.0", "its version is `other 1.0`")]
    {
        std::fs::write(&program, format!("#!/bin/sh\n{says}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = refused().await;
        assert!(error.contains(told), "{error}");
    }
}

#[tokio::test]
async fn a_second_start_keeps_identity_and_administrator() {
    let folder = tempfile::tempdir().unwrap();
    let first = Coordinator::bind(config(folder.path())).await.unwrap();
    let (hash, token) = (first.ca_hash(), std::fs::read_to_string(first.admin_token_path()).unwrap());
    first.shutdown().await;
    let second = Coordinator::bind(config(folder.path())).await.unwrap();
    assert_eq!(second.ca_hash(), hash);
    assert_eq!(std::fs::read_to_string(second.admin_token_path()).unwrap(), token);
    second.shutdown().await;
}

#[tokio::test]
async fn a_start_that_finds_no_working_token_of_an_administrator_makes_one() {
    let folder = tempfile::tempdir().unwrap();
    let first = Coordinator::bind(config(folder.path())).await.unwrap();
    let path = first.admin_token_path().to_owned();
    first.shutdown().await;
    let old = std::fs::read_to_string(&path).unwrap();
    let store = Store::open(&folder.path().join("state.redb")).unwrap();
    let mut token = store.scan::<record::Token>(&[], |_| true).unwrap().remove(0);
    let admin = store.scan::<record::User>(&[], |_| true).unwrap().remove(0);
    // One who is no administrator comes in, and helps nobody.
    let (id, hash) = (UserId(uuid::Uuid::from_u128(2)), Hash([2; 32]));
    let user = record::User { id, email: "user@example.org".into(), role: access::Role::User, ..admin };
    let users = record::Token { id: TokenId(uuid::Uuid::from_u128(2)), owner: id, hash, ..token.clone() };
    token.expires = Some(UnixMillis(1));
    let records = [record::Record::User(user), record::Record::Token(users), record::Record::Token(token)];
    store.commit(&records).unwrap();
    drop(store);
    Coordinator::bind(config(folder.path())).await.unwrap().shutdown().await;
    let new = std::fs::read_to_string(&path).unwrap();
    assert_ne!(new, old);
    std::fs::remove_file(&path).unwrap();
    Coordinator::bind(config(folder.path())).await.unwrap().shutdown().await;
    assert!(!path.exists(), "somebody has one that works");
}

#[tokio::test]
async fn a_lost_authority_is_not_made_anew_while_machines_trust_it() {
    let folder = tempfile::tempdir().unwrap();
    let start = async || Coordinator::bind(config(folder.path())).await;
    let first = start().await.unwrap();
    let hash = first.ca_hash();
    first.shutdown().await;
    let (ca, aside) = (folder.path().join("ca"), folder.path().join("aside"));
    std::fs::rename(&ca, &aside).unwrap();
    let second = start().await.expect("nobody has joined yet");
    assert_ne!(second.ca_hash(), hash);
    second.shutdown().await;
    let joined = record::Node::new(NodeId(uuid::Uuid::from_u128(1)), "one".into(), UnixMillis(1));
    let node = record::Node { serials: vec!["7e".into()], ..joined };
    let commit = |node: &record::Node| {
        Store::open(&folder.path().join("state.redb")).unwrap().commit(&[record::Record::Node(node.clone())]).unwrap()
    };
    commit(&node);
    std::fs::remove_file(ca.join("ca.pem")).unwrap();
    let refused = start().await.err().expect("a machine trusts it").to_string();
    assert!(refused.contains("1 machines") && refused.contains("tar -xf"), "{refused}");
    assert!(!ca.join("ca.pem").exists(), "nothing was made");
    commit(&record::Node { closed: Some(record::Closed::Retired), ..node });
    start().await.expect("the machine will not come back").shutdown().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut config = config(folder.path());
    config.http.listen = taken.local_addr().unwrap();
    config.data = folder.path().join("data");
    let error = Coordinator::bind(config.clone()).await.err().unwrap();
    assert!(error.to_string().contains(&taken.local_addr().unwrap().to_string()), "{error}");
    assert!(error.hint().unwrap().contains("[http]"), "{error}");
    assert!(!config.data.exists(), "nothing is made for a coordinator that cannot listen");
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "no directory").unwrap();
    let error = Coordinator::bind(config(&file.join("data"))).await.err().unwrap().to_string();
    assert!(error.contains(file.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = Coordinator::bind(config(folder.path())).await.unwrap();
    let error = Coordinator::bind(config(folder.path())).await.err().unwrap().to_string();
    assert!(error.contains("state.redb"), "{error}");
    first.shutdown().await;
}

#[tokio::test]
async fn a_data_directory_that_others_can_read_is_closed_to_them() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let coordinator = Coordinator::bind(config(folder.path())).await.unwrap();
    assert_eq!(folder.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    coordinator.shutdown().await;
}

#[tokio::test]
async fn a_part_that_ends_takes_the_whole_down() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::bind(config(folder.path())).await.unwrap();
    coordinator.parts.spawn(async { panic!("a part dies") });
    let error = tokio::time::timeout(Duration::from_secs(10), coordinator.join()).await.unwrap();
    assert!(matches!(error, RunError::Part(_)), "{error}");
    coordinator.shutdown().await;
}
