//! Sweeps, as their submitter sees them.

use super::*;

fn file() -> Value {
    json!({ "base": "tiny", "dataset": "chats", "name": "tone",
        "sweep": { "max_parallel": 1, "lora": { "rank": [4, 8] }, "training": { "learning_rate": [1e-4, 2e-4] } } })
}

#[tokio::test]
async fn a_sweep_is_counted_submitted_listed_shown_and_cancelled() {
    let world = World::new().await;
    let lone = world.job().await;
    let (status, body) = world.call(Method::POST, &format!("{}?dry_run=true", route::SWEEPS), file()).await;
    assert_eq!((status, &body["data"]["jobs"]), (StatusCode::OK, &json!(4)), "{body}");
    assert_eq!(body["data"]["first"]["spec"]["lora"]["rank"], 4, "{body}");
    let (status, body) = world.call(Method::POST, route::SWEEPS, file()).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let id = body["data"]["id"].as_str().unwrap().to_owned();
    let one = route::with_id(route::SWEEP, &id);
    let children = body["data"]["children"].as_array().unwrap().clone();
    assert_eq!(children.len(), 4);
    assert_eq!(children[3]["values"], json!({ "lora.rank": 8, "training.learning_rate": 2e-4 }));
    assert_eq!((&children[3]["name"], &body["data"]["status"]), (&json!("tone #4"), &json!("RUNNING")));
    let job = world.get(&route::with_id(route::JOB, children[0]["job"].as_str().unwrap())).await;
    assert_eq!(job["sweep"], json!(id));
    assert_eq!(world.get(route::SWEEPS).await[0]["jobs"], 4);
    let body = json!({ "reason": "wrong_config" });
    let (status, cancelled) = world.call(Method::POST, &route::with_id(route::SWEEP_CANCEL, &id), body.clone()).await;
    assert_eq!((status, &cancelled["data"]["status"]), (StatusCode::OK, &json!("CANCELLED")), "{cancelled}");
    let row = world.get(&one).await;
    assert!(row["children"].as_array().unwrap().iter().all(|child| child["status"] == "CANCELLED"), "{row}");
    assert_eq!(row["ended"], 4);
    let (status, again) = world.call(Method::POST, &route::with_id(route::SWEEP_CANCEL, &id), body).await;
    assert_eq!((status, &again["data"]["ended"]), (StatusCode::OK, &json!(4)), "what is over stays as it is");
    assert_eq!(world.get(&route::with_id(route::JOB, lone)).await["phase"], "queued", "it is no child");
}

#[tokio::test]
async fn a_sweep_and_a_single_job_are_told_apart_and_a_bad_value_is_named() {
    let world = World::new().await;
    world.job().await;
    let (status, body) = world.call(Method::POST, route::JOBS, file()).await;
    assert_eq!((status, &body["error"]["field"]), (StatusCode::BAD_REQUEST, &json!("sweep")), "{body}");
    let single = json!({ "base": "tiny", "dataset": "chats" });
    let (status, body) = world.call(Method::POST, route::SWEEPS, single).await;
    assert_eq!((status, &body["error"]["field"]), (StatusCode::BAD_REQUEST, &json!("sweep")), "{body}");
    let mut wrong = file();
    wrong["sweep"]["lora"]["rank"] = json!([4, 4000]);
    let (status, body) = world.call(Method::POST, route::SWEEPS, wrong).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert_eq!(body["error"]["field"], "sweep.lora.rank", "{body}");
    assert_eq!(world.get(route::SWEEPS).await, json!([]), "nothing of it is left");
}
