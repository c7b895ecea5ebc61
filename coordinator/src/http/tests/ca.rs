//! The rotation of the CA as an administrator asks for it.

use super::*;
use lorikeet_protocol::id::{Hash, NodeId};

#[tokio::test]
async fn a_rotation_says_where_it_is_is_written_down_once_and_begun_by_administrators_alone() {
    let world = World::new().await;
    let settled = world.get(route::CA_ROTATION).await;
    assert_eq!((&settled["phase"], &settled["next"]), (&json!("SETTLED"), &Value::Null), "{settled}");
    assert!(settled["current"]["daysLeft"].as_u64() > Some(10_000), "{settled}");
    let other = world.user("other", Role::User).await;
    for (path, body) in [(route::CA_ROTATION, json!({})), (route::CA_ROTATION_FINISH, json!({ "force": true }))] {
        let (status, _) = answer(world.ask(Method::POST, path, &other).json(&body)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
    }
    let (status, body) = world.call(Method::POST, route::CA_ROTATION_FINISH, json!({})).await;
    assert!(status == StatusCode::CONFLICT && body.to_string().contains("no rotation is under way"), "{body}");

    let (status, began) = world.call(Method::POST, route::CA_ROTATION, json!({})).await;
    assert_eq!((status, &began["data"]["phase"]), (StatusCode::OK, &json!("OVERLAP")), "{began}");
    let (_, again) = world.call(Method::POST, route::CA_ROTATION, json!({})).await;
    assert_eq!(again["data"]["next"]["hash"], began["data"]["next"]["hash"]);
    assert_eq!(again["data"]["current"], settled["current"]);
    for method in [Method::POST, Method::GET] {
        let (status, _) = answer(world.ask(method, route::CA_ROTATION, &other)).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "nor are others told where it is");
    }
    // What is pinned from now on.
    assert_eq!(world.get(route::CA).await["hash"], began["data"]["next"]["hash"]);
    let audits = world.audits().await;
    assert_eq!(audits.iter().filter(|action| *action == "ca.rotate").count(), 1, "{audits:?}");
    let (status, finished) = world.call(Method::POST, route::CA_ROTATION_FINISH, json!({})).await;
    assert_eq!((status, &finished["data"]["phase"]), (StatusCode::OK, &json!("SETTLED")), "{finished}");
    assert_eq!(finished["data"]["current"], began["data"]["next"]);
    assert!(world.audits().await.contains(&"ca.finish".to_owned()));
}

#[tokio::test]
async fn a_file_of_the_authority_that_is_in_the_way_is_named_and_asking_again_goes_on() {
    let world = World::new().await;
    let ca = world.data().join("ca");
    let settled = world.get(route::CA_ROTATION).await;
    for (path, in_the_way) in [(route::CA_ROTATION, "next.key"), (route::CA_ROTATION_FINISH, "former.pem")] {
        let blocked = ca.join(in_the_way);
        std::fs::create_dir_all(blocked.join("full")).unwrap();
        let (status, told) = world.call(Method::POST, path, json!({})).await;
        let message = told["error"]["message"].as_str().unwrap_or_default();
        assert!(status == StatusCode::INTERNAL_SERVER_ERROR && message.contains(in_the_way), "{told}");
        std::fs::remove_dir_all(blocked).unwrap();
        let (status, told) = world.call(Method::POST, path, json!({})).await;
        assert_eq!(status, StatusCode::OK, "{told}");
    }
    let after = world.get(route::CA_ROTATION).await;
    assert!(after["phase"] == "SETTLED" && after["current"]["hash"] != settled["current"]["hash"], "{after}");
}

#[tokio::test]
async fn a_rotation_finishes_by_itself_when_its_time_is_over_and_nobody_is_cut_off() {
    let world = World::with(|config| {
        config.link.certificate_ttl = Duration::from_secs(1);
        (config.timers.heartbeat, config.timers.lease) = (Duration::from_millis(50), Duration::from_millis(250));
    });
    let world = world.await;
    let secret = Hash([3; 32]);
    world.command(Command::CreateJoinSecret { hash: secret, expires: UnixMillis(u64::MAX) }).await;
    let node = NodeId(Uuid::now_v7());
    world.command(Command::Join { secret, key: Hash([4; 32]), name: "away".into(), node }).await;
    let (_, began) = world.call(Method::POST, route::CA_ROTATION, json!({})).await;
    let next = began["data"]["next"]["hash"].clone();
    // Its time passes, and the node that has never been here keeps it from ending.
    let waiting = world.wait(route::CA_ROTATION, |told| told["waitsFor"].as_array().is_some_and(|all| all.len() == 1));
    let waiting = waiting.await;
    assert_eq!(waiting["waitsFor"][0], "away: its agent has not connected since it joined", "{waiting}");
    let (status, refused) = world.call(Method::POST, route::CA_ROTATION_FINISH, json!({})).await;
    assert!(status == StatusCode::CONFLICT && refused.to_string().contains("away ("), "{refused}");
    assert_eq!(world.get(route::CA_ROTATION).await["phase"], "OVERLAP");
    world.command(Command::RetireNode { id: node }).await;
    let settled = world.wait(route::CA_ROTATION, |told| told["phase"] == "SETTLED").await;
    assert_eq!(settled["current"]["hash"], next);
}

#[tokio::test]
async fn a_request_that_is_repeated_late_neither_begins_a_rotation_nor_forgets_what_nobody_judged() {
    let world = World::new().await;
    let repeat = async |path: &str, key: &str| {
        let (status, told) =
            answer(world.ask(Method::POST, path, &world.admin).header("idempotency-key", key).json(&json!({}))).await;
        assert_eq!(status, StatusCode::OK, "{path} {key}: {told}");
        (told["data"]["phase"].clone(), told["data"]["current"]["hash"].clone())
    };
    let (begin, finish) = (route::CA_ROTATION, route::CA_ROTATION_FINISH);
    let (overlap, settled) = (json!("OVERLAP"), json!("SETTLED"));
    assert_eq!(repeat(begin, "begin").await.0, overlap);
    let (phase, second) = repeat(finish, "finish").await;
    assert_eq!(phase, settled);
    // Its answer was lost.
    assert_eq!(repeat(finish, "finish").await, (settled.clone(), second.clone()));
    assert_eq!(repeat(begin, "begin").await, (settled, second.clone()), "that rotation is over");
    assert_eq!(repeat(begin, "another").await, (overlap.clone(), second.clone()));
    assert_eq!(repeat(finish, "finish").await, (overlap, second), "nobody has judged this one");
}

#[tokio::test]
async fn a_backup_that_is_taken_slowly_keeps_nobody_from_rotating() {
    let world = World::new().await;
    let taking = world.slow_backup().await;
    assert_eq!(taking.status(), StatusCode::OK);
    let (status, began) = world.call(Method::POST, route::CA_ROTATION, json!({})).await;
    assert_eq!((status, &began["data"]["phase"]), (StatusCode::OK, &json!("OVERLAP")), "{began}");
    drop(taking);
}

#[tokio::test]
async fn nothing_is_written_down_where_the_files_are_in_use() {
    let world = World::new().await;
    world.call(Method::POST, route::CA_ROTATION, json!({})).await;
    let held = world.coordinator.trust.hold_still().unwrap();
    let (status, refused) = world.call(Method::POST, route::CA_ROTATION_FINISH, json!({})).await;
    assert!(status == StatusCode::CONFLICT && refused.to_string().contains("in use at this moment"), "{refused}");
    assert!(!world.audits().await.contains(&"ca.finish".to_owned()));
    drop(held);
    let (status, _) = world.call(Method::POST, route::CA_ROTATION_FINISH, json!({})).await;
    assert_eq!(status, StatusCode::OK);
}

impl World {
    /// One of which nobody takes the rest.
    pub(super) async fn slow_backup(&self) -> reqwest::Response {
        // More than what is on its way at once, without a byte on the disk.
        let segment = self.data().join("series/long.seg");
        fs::create_dir_all(segment.parent().unwrap()).unwrap();
        fs::File::create(&segment).unwrap().set_len(256 << 20).unwrap();
        self.ask(Method::GET, &format!("{}?full=true", route::BACKUP), &self.admin).send().await.unwrap()
    }

    /// The actions on record.
    pub(super) async fn audits(&self) -> Vec<String> {
        let read = |store: &crate::store::Store| store.scan::<record::Audit>(&[], |_| true);
        self.coordinator.driver.read(read).await.unwrap().into_iter().map(|row| row.action.to_string()).collect()
    }
}
