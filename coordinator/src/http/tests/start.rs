//! When a job may start, as its submitter sees it.

use super::*;

fn file(extra: Value) -> Value {
    let mut file = json!({ "base": "tiny", "dataset": "chats" });
    file.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    file
}

#[tokio::test]
async fn a_job_says_what_it_waits_for_and_goes_when_that_is_over() {
    let world = World::new().await;
    let first = world.job().await;
    let after = json!({ "after": [format!("{first}:any")], "hold": true });
    let (status, body) = world.call(Method::POST, route::JOBS, file(after)).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let id = body["data"]["id"].as_str().unwrap().to_owned();
    let why = route::with_id(route::JOB_WHY, &id);
    let told = world.wait(&why, |why| why["phase"] == "blocked").await;
    assert_eq!((&told["code"], &told["waitsFor"]), (&json!("after"), &json!([format!("{first}:any")])));
    let row = world.get(&route::with_id(route::JOB, &id)).await;
    assert_eq!((&row["spec"]["after"][0], &row["spec"]["hold"]), (&json!(format!("{first}:any")), &json!(true)));
    let missed = file(json!({ "after": [format!("{first}:ok")] }));
    let (_, missed) = world.call(Method::POST, route::JOBS, missed).await;
    let (status, body) = world.call(Method::POST, &route::with_id(route::JOB_CANCEL, first), json!({})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let missed = world.get(&route::with_id(route::JOB, missed["data"]["id"].as_str().unwrap())).await;
    let reason = format!("cancelled: it was to start after {first}:ok, which was cancelled");
    assert_eq!(missed["reason"], reason.as_str(), "with an id that can be asked for");
    assert_eq!(world.get(&why).await["code"], "held");
    let (status, body) = world.call(Method::POST, &route::with_id(route::JOB_RELEASE, &id), json!({})).await;
    assert_eq!((status, &body["data"]["phase"]), (StatusCode::OK, &json!("queued")), "{body}");
    let (status, body) = world.call(Method::PATCH, &route::with_id(route::JOB, &id), json!({ "priority": 90 })).await;
    assert_eq!((status, &body["data"]["priority"]), (StatusCode::OK, &json!(90)), "{body}");
    let (status, _) = world.call(Method::PATCH, &route::with_id(route::JOB, &id), json!({ "priority": 101 })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _) = world.call(Method::PATCH, &route::with_id(route::JOB, first), json!({ "priority": 1 })).await;
    assert_eq!(status, StatusCode::CONFLICT, "it is over");
}

#[tokio::test]
async fn a_dry_run_says_what_the_job_would_wait_for_and_what_is_over_is_known_by_its_id() {
    let world = World::new().await;
    let first = world.job().await;
    let (done, _) = world.finished(first).await;
    let dry = format!("{}?dry_run=true", route::JOBS);
    let ask = async |extra| world.call(Method::POST, &dry, file(extra)).await;
    let (_, body) = ask(json!({ "after": [first.to_string()] })).await;
    assert_eq!(body["data"]["why"]["waitsFor"], json!([format!("{first}:ok")]), "{body}");
    let (_, body) = ask(json!({ "not_before": "2999-01-01" })).await;
    assert_eq!(body["data"]["why"]["expectedStart"], "2999-01-01T00:00:00.000Z", "{body}");
    let (_, body) = ask(json!({ "after": [done.to_string()] })).await;
    assert_eq!(body["data"]["why"]["waitsFor"], json!([]), "it ended well already: {body}");
    let (status, body) = ask(json!({ "after": [format!("{done}:fail")] })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("can not come true"), "{body}");
    let (status, body) = world.call(Method::POST, route::JOBS, file(json!({ "after": [done.to_string()] }))).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let other = world.user("other", Role::User).await;
    let told = async |job: String| {
        let request = world.ask(Method::POST, route::JOBS, &other).json(&file(json!({ "after": [job] })));
        let (status, body) = answer(request).await;
        (status, body.to_string().replace(&job, "JOB"))
    };
    let unknown = told(JobId(Uuid::now_v7()).to_string()).await;
    for job in [first, done] {
        assert_eq!(told(job.to_string()).await, unknown, "another's job is as unknown as none");
    }
}

#[tokio::test]
async fn a_dry_run_looks_at_the_adapter_to_begin_with() {
    let world = World::new().await;
    world.job().await;
    let dry = format!("{}?dry_run=true", route::JOBS);
    let (status, body) = world.call(Method::POST, &dry, file(json!({ "init_adapter": "nope" }))).await;
    assert_eq!((status, &body["error"]["field"]), (StatusCode::BAD_REQUEST, &json!("init_adapter")), "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("no model `nope`"), "{body}");
}
