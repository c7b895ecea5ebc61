//! Uploads break off, come twice, come too long; nothing of it is taken for a dataset.

use super::*;

struct Created {
    id: DatasetId,
    url: String,
}

async fn create(world: &World, size: usize) -> Created {
    let body = json!({ "name": "chats", "fileName": "chats.jsonl", "sizeBytes": size });
    let (status, body) = world.call(Method::POST, route::DATASETS, body).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let data = &body["data"];
    Created {
        id: data["dataset"]["id"].as_str().unwrap().parse().unwrap(),
        url: data["uploadUrl"].as_str().unwrap().to_owned(),
    }
}

async fn offset(world: &World, url: &str) -> Option<u64> {
    let response = world.http.head(format!("{}{url}", world.coordinator.http_url())).send().await.unwrap();
    response.headers().get("upload-offset").map(|value| value.to_str().unwrap().parse().unwrap())
}

async fn send(world: &World, url: &str, from: u64, bytes: impl Into<reqwest::Body>) -> StatusCode {
    patch(world, url, from, bytes).send().await.unwrap().status()
}

#[tokio::test]
async fn an_upload_goes_on_where_it_stopped_and_is_validated_once_confirmed() {
    let world = World::new().await;
    let Created { id, url } = create(&world, 10).await;
    assert_eq!(offset(&world, &url).await, Some(0));
    assert_eq!(send(&world, &url, 0, "01234").await, StatusCode::NO_CONTENT);
    assert_eq!(send(&world, &url, 0, "01234").await, StatusCode::CONFLICT, "these bytes are here");
    assert_eq!(offset(&world, &url).await, Some(5));
    let confirm = route::with_id(route::DATASET_CONFIRM, id);
    let (status, body) = world.call(Method::POST, &confirm, json!({})).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::CONFLICT, Some("CONFLICT")), "{body}");
    assert_eq!(send(&world, &url, 5, "56789").await, StatusCode::NO_CONTENT);
    let hash = blake3::hash(b"0123456789").to_hex().to_string();
    for _ in 0..2 {
        let (status, body) = world.call(Method::POST, &confirm, json!({ "hash": hash })).await;
        assert_eq!((status, &body["data"]["contentHash"]), (StatusCode::OK, &json!(hash)), "{body}");
    }
    let row = world.wait(&route::with_id(route::DATASET, id), |row| row["status"] == "READY").await;
    assert_eq!(row["trainingPairs"], 2);
    assert_eq!(offset(&world, &url).await, Some(10), "an answer that was lost can be asked for again");
    assert_eq!(send(&world, &url, 10, "").await, StatusCode::CONFLICT);
}

#[tokio::test]
async fn confirmations_of_one_upload_at_once_have_one_answer() {
    let world = World::new().await;
    let bytes = vec![b'x'; 8 << 20];
    let Created { id, url } = create(&world, bytes.len()).await;
    assert_eq!(send(&world, &url, 0, bytes).await, StatusCode::NO_CONTENT);
    let confirm = route::with_id(route::DATASET_CONFIRM, id);
    let confirmed = (0..8).map(|_| world.call(Method::POST, &confirm, json!({})));
    for (status, body) in futures_util::future::join_all(confirmed).await {
        assert_eq!(status, StatusCode::OK, "{body}");
    }
}

#[tokio::test]
async fn a_wrong_hash_is_refused_and_the_upload_begins_anew() {
    let world = World::new().await;
    let Created { id, url } = create(&world, 4).await;
    send(&world, &url, 0, "abcd").await;
    let confirm = route::with_id(route::DATASET_CONFIRM, id);
    let (status, body) = world.call(Method::POST, &confirm, json!({ "hash": "00".repeat(32) })).await;
    assert_eq!((status, body["error"]["field"].as_str()), (StatusCode::BAD_REQUEST, Some("hash")), "{body}");
    assert_eq!(offset(&world, &url).await, Some(0));
}

#[tokio::test]
async fn more_than_was_declared_is_refused_whether_it_is_announced_or_not() {
    let world = World::new().await;
    let Created { url, .. } = create(&world, 4).await;
    assert_eq!(send(&world, &url, 0, "12345").await, StatusCode::PAYLOAD_TOO_LARGE);
    let parts = futures_util::stream::iter(["123", "45"].map(Ok::<_, std::io::Error>));
    let unannounced = reqwest::Body::wrap_stream(parts);
    assert_eq!(send(&world, &url, 0, unannounced).await, StatusCode::PAYLOAD_TOO_LARGE);
    let offset = offset(&world, &url).await.unwrap();
    assert!(offset <= 4, "{offset} bytes of 4");
    let body = json!({ "name": "large", "fileName": "x", "sizeBytes": (10_u64 << 30) + 1 });
    let (status, _) = world.call(Method::POST, route::DATASETS, body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn two_writers_at_once_never_mix() {
    let world = World::new().await;
    let Created { id, url } = create(&world, 6).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<&str, std::io::Error>>(1);
    let stream = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let first = tokio::spawn(patch(&world, &url, 0, stream).send());
    sender.send(Ok("abc")).await.unwrap();
    // The first is at it once its part file is there.
    let part = world.data().join("staging").join(format!("{id}.part"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !part.exists() {
        assert!(Instant::now() < deadline, "the first writer never began");
        tokio::task::yield_now().await;
    }
    let (status, body) = answer(patch(&world, &url, 3, "xyz")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(body["error"]["message"].as_str().unwrap().contains("another writer"), "{body}");
    sender.send(Ok("def")).await.unwrap();
    drop(sender);
    assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(offset(&world, &url).await, Some(6));
}

#[tokio::test]
async fn a_link_that_was_changed_or_whose_dataset_is_gone_is_as_good_as_none() {
    let world = World::new().await;
    let Created { id, url } = create(&world, 4).await;
    let other = create(&world, 4).await;
    let swapped = url.replace(&id.to_string(), &other.id.to_string());
    let later = url.replace("expires=1", "expires=2");
    for wrong in [&swapped, &later, &format!("{url}0")] {
        assert_eq!(send(&world, wrong, 0, "abcd").await, StatusCode::NOT_FOUND, "{wrong}");
    }
    let (status, _) = world.call(Method::DELETE, &route::with_id(route::DATASET, id), Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(send(&world, &url, 0, "abcd").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_must_stay_free_is_not_taken_by_bytes_of_an_upload_that_was_begun_before() {
    let world = World::with(|config| config.storage.keep_free = u64::MAX / 2).await;
    let me = world.get(route::ME).await["id"].as_str().unwrap().parse().unwrap();
    let id = DatasetId(Uuid::now_v7());
    let mut row = record::Dataset::new(id, "chats".into(), None, "x.jsonl".into(), 4, None, at(1));
    row.owner = me;
    world.insert(vec![Record::Dataset(row)]).await;
    let (status, body) = world.call(Method::POST, &route::with_id(route::DATASET_UPLOAD_URL, id), json!({})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let url = body["data"]["uploadUrl"].as_str().unwrap();
    assert_eq!(send(&world, url, 0, "abcd").await, StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(offset(&world, url).await, Some(0));
    let health = world.http.get(format!("{}{}", world.coordinator.http_url(), route::HEALTH)).send().await.unwrap();
    assert_eq!(health.status(), StatusCode::SERVICE_UNAVAILABLE);
}

fn at(wall: u64) -> crate::cluster::Now {
    crate::cluster::Now { mono: Duration::ZERO, wall: UnixMillis(wall) }
}
