//! What the document says of every route alike is so.

use super::*;
use lorikeet_api::ErrorEnvelope;
use lorikeet_protocol::id::NodeId;
use std::collections::BTreeSet;

/// The documented operations, with an id in each path.
async fn operations(world: &World, id: impl Fn(&str) -> String) -> Vec<(Method, String, Value)> {
    let mut operations = documented(world).await;
    for (_, path, _) in &mut operations {
        *path = route::with_id(path, id(path));
    }
    operations
}

/// What such a thing might be called.
fn nobodys(path: &str) -> String {
    let id = Uuid::now_v7();
    match path.split('/').nth(2).unwrap_or_default() {
        "training-jobs" => JobId(id).to_string(),
        "base-models" => BaseId(id).to_string(),
        "models" => ModelId(id).to_string(),
        "nodes" => NodeId(id).to_string(),
        "sweeps" => SweepId(id).to_string(),
        "tokens" => TokenId(id).to_string(),
        _ => DatasetId(id).to_string(),
    }
}

#[tokio::test]
async fn a_stranger_is_refused_where_it_says_so_and_in_the_form_that_it_says() {
    let world = World::new().await;
    for (method, path, said) in operations(&world, nobodys).await {
        let is_open = said["security"] == json!([{}]);
        let request = world.http.request(method.clone(), format!("{}{path}", world.coordinator.http_url()));
        let (status, body) = answer(request).await;
        assert_eq!(status != StatusCode::UNAUTHORIZED, is_open, "{method} {path}: {status}");
        let form = &said["responses"]["default"]["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(form.is_null(), method == Method::HEAD, "{method} {path}: {said}");
        if !status.is_success() && method != Method::HEAD {
            assert_eq!(form, "#/components/schemas/ErrorEnvelope", "{method} {path}");
            serde_json::from_value::<ErrorEnvelope>(body).unwrap();
        }
    }
}

#[tokio::test]
async fn operations_have_names_of_their_own_answers_have_words_and_every_change_takes_an_idempotency_key() {
    let world = World::new().await;
    let mut names = BTreeSet::new();
    for (method, path, said) in operations(&world, nobodys).await {
        let name = said["operationId"].as_str().unwrap().to_owned();
        assert!(names.insert(name.clone()), "{method} {path}: {name} stands twice");
        for (status, answer) in said["responses"].as_object().unwrap() {
            assert_ne!(answer["description"].as_str().unwrap_or_default(), "", "{method} {path} {status}");
        }
        let parameters = said["parameters"].as_array().cloned().unwrap_or_default();
        let is_repeatable = parameters.iter().any(|parameter| parameter["name"] == "Idempotency-Key");
        let is_change = ![Method::GET, Method::HEAD].contains(&method) && said["security"].is_null();
        assert_eq!(is_repeatable, is_change, "{method} {path}");
        if is_change {
            let asked = world.ask(method.clone(), &path, &world.admin).header("idempotency-key", "x".repeat(256));
            let (_, refused) = answer(asked).await;
            assert_eq!(refused["error"]["field"], "Idempotency-Key", "{method} {path}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_body_is_left_out_where_it_says_so_and_nowhere_else() {
    let world = World::new().await;
    for (method, path, said) in operations(&world, nobodys).await {
        let Some(is_required) = said["requestBody"].as_object().map(|body| body["required"] == true) else { continue };
        if said["security"] == json!([{}]) {
            continue;
        }
        let (status, body) = answer(world.ask(method.clone(), &path, &world.admin)).await;
        assert_eq!(status == StatusCode::BAD_REQUEST, is_required, "{method} {path}: {status} {body}");
    }
}

#[tokio::test]
async fn pages_are_as_long_as_it_says_and_no_longer() {
    let world = World::new().await;
    let (job, mut lists) = (world.job().await, 0);
    for (method, path, said) in operations(&world, |_| job.to_string()).await {
        for parameter in said["parameters"].as_array().into_iter().flatten() {
            let (name, bounds) = (parameter["name"].as_str().unwrap(), &parameter["schema"]);
            if !["page", "pageSize"].contains(&name) {
                continue;
            }
            assert_eq!(bounds["minimum"], 1, "{method} {path}");
            let ask = async |number: u64| {
                answer(world.ask(method.clone(), &format!("{path}?{name}={number}"), &world.admin)).await
            };
            let most = bounds["maximum"].as_u64();
            assert_eq!(ask(most.unwrap_or(1)).await.0, StatusCode::OK, "{method} {path}?{name}");
            for wrong in [Some(0), most.map(|most| most + 1)].into_iter().flatten() {
                let (_, refused) = ask(wrong).await;
                assert_eq!(refused["error"]["field"], name, "{method} {path}?{name}={wrong}: {refused}");
            }
            lists += 1;
        }
    }
    assert!(lists > 10, "{lists}");
}
