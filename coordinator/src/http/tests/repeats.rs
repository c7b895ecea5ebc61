//! The same request again, under the same key: one change, one answer, no secret twice.

use super::*;
use std::collections::BTreeSet;

#[tokio::test]
async fn sixty_four_at_once_under_one_key_make_one_dataset() {
    let world = World::new().await;
    let body = json!({ "name": "chats", "fileName": "chats.jsonl", "sizeBytes": 3 });
    let requests = (0..64).map(|_| {
        let request =
            world.ask(Method::POST, route::DATASETS, &world.admin).header("idempotency-key", "one").json(&body);
        tokio::spawn(answer(request))
    });
    let mut ids = BTreeSet::new();
    for request in requests.collect::<Vec<_>>() {
        let (status, body) = request.await.unwrap();
        assert_eq!(status, StatusCode::CREATED, "{body}");
        ids.insert(body["data"]["dataset"]["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 1);
    assert_eq!(world.get(route::DATASETS).await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn one_key_for_another_body_is_a_mismatch() {
    let world = World::new().await;
    let send = |name: &str| {
        let body = json!({ "name": name, "fileName": "x", "sizeBytes": 3 });
        answer(world.ask(Method::POST, route::DATASETS, &world.admin).header("idempotency-key", "two").json(&body))
    };
    assert_eq!(send("first").await.0, StatusCode::CREATED);
    let (status, body) = send("second").await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("IDEMPOTENCY_MISMATCH")));
}

#[tokio::test]
async fn another_person_may_use_the_same_key() {
    let world = World::new().await;
    let other = world.user("other", Role::User).await;
    let body = json!({ "name": "chats", "fileName": "x", "sizeBytes": 3 });
    let mut ids = BTreeSet::new();
    for token in [&world.admin, &other] {
        let request = world.ask(Method::POST, route::DATASETS, token).header("idempotency-key", "three").json(&body);
        let (status, body) = answer(request).await;
        assert_eq!(status, StatusCode::CREATED);
        ids.insert(body["data"]["dataset"]["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), 2);
}

#[tokio::test]
async fn a_secret_is_told_once() {
    let world = World::new().await;
    for (path, field, body) in
        [(route::TOKENS, "secret", json!({ "name": "script" })), (route::JOIN_TOKENS, "joinString", json!({}))]
    {
        let send = || answer(world.ask(Method::POST, path, &world.admin).header("idempotency-key", path).json(&body));
        let (status, first) = send().await;
        assert_eq!(status, StatusCode::CREATED, "{first}");
        let secret = first["data"][field].as_str().unwrap().to_owned();
        let (status, again) = send().await;
        assert_eq!((status, again["data"][field].as_str()), (StatusCode::CREATED, None), "{again}");
        if field == "joinString" {
            assert_eq!(again["data"]["expiresAt"], Value::Null, "when the first expires is not known from the second");
        }
        if field == "secret" {
            assert_eq!(answer(world.ask(Method::GET, route::ME, &secret)).await.0, StatusCode::OK);
        }
    }
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let world = World::new().await;
    let body = json!({ "name": "script" });
    let request =
        world.ask(Method::POST, route::TOKENS, &world.admin).header("idempotency-key", "x".repeat(256)).json(&body);
    assert_eq!(answer(request).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_delete_that_is_repeated_under_its_key_is_done_once() {
    let world = World::new().await;
    let id = world.dataset("chats", "one line\n").await;
    let path = route::with_id(route::DATASET, id);
    let delete = |key: &str| answer(world.ask(Method::DELETE, &path, &world.admin).header("idempotency-key", key));
    assert_eq!(delete("four").await.0, StatusCode::NO_CONTENT);
    assert_eq!(delete("four").await.0, StatusCode::NO_CONTENT);
    assert_eq!(delete("five").await.0, StatusCode::NOT_FOUND);
}
