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
async fn a_rotation_finishes_by_itself_when_its_time_is_over_and_nobody_is_cut_off() {
    let world = World::with(|config| config.link.certificate_ttl = Duration::from_secs(1)).await;
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

impl World {
    /// The actions on record.
    async fn audits(&self) -> Vec<String> {
        let read = |store: &crate::store::Store| store.scan::<record::Audit>(&[], |_| true);
        self.coordinator.driver.read(read).await.unwrap().into_iter().map(|row| row.action.to_string()).collect()
    }
}
