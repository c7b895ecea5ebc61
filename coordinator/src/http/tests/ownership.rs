//! What belongs to another does not exist. A second person walks every route of the document; a route that this file does not
//! know fails the test, so a new one must say here how it keeps people apart.

use super::*;

/// How a route keeps people apart.
enum Kept {
    /// It needs no token and tells nothing of anybody.
    Public,
    /// A signed link stands for its owner.
    Link,
    /// The id of another's answers exactly as one that does not exist.
    NotFound(Kind, Value),
    /// A list without what is another's.
    Empty,
    /// It only ever makes something of the caller's own.
    Own(Value),
    /// Only an administrator may.
    Admin(Value),
    /// Everybody may read it.
    Shared,
    /// Everybody may read one, and there is none with an id that was never given out.
    Machine,
    /// What it names must be the caller's: another's name is as unknown as one that was never given.
    Named,
}

#[derive(Clone, Copy)]
enum Kind {
    Dataset,
    Job,
    Model,
    Token,
    Sweep,
}

fn kept(method: &str, path: &str) -> Option<Kept> {
    use Kept::{Admin, Empty, Link, Machine, Named, NotFound, Own, Public, Shared};
    use Kind::{Dataset, Job, Model, Sweep, Token};
    Some(match (method, path) {
        ("GET", route::HEALTH | route::VERSION | route::CA) => Public,
        ("HEAD" | "PATCH", route::UPLOAD) => Link,
        ("GET", route::ME) => Shared,
        ("GET", route::DATASETS | route::JOBS | route::MODELS | route::SWEEPS) => Empty,
        ("GET", route::TOKENS) => Shared,
        ("POST", route::DATASETS) => Own(json!({ "name": "own", "fileName": "x", "sizeBytes": 3 })),
        ("POST", route::TOKENS) => Own(json!({ "name": "own" })),
        ("DELETE", route::TOKEN) => NotFound(Token, Value::Null),
        ("GET" | "DELETE", route::DATASET) => NotFound(Dataset, Value::Null),
        ("GET", route::DATASET_VALIDATION_STATUS) => NotFound(Dataset, Value::Null),
        ("POST", route::DATASET_CONFIRM | route::DATASET_UPLOAD_URL | route::DATASET_VALIDATE) => {
            NotFound(Dataset, json!({}))
        }
        ("POST", route::BASES) => Admin(json!({ "name": "x", "path": "/etc" })),
        ("DELETE", route::BASE) => Admin(Value::Null),
        ("GET", route::BASES | route::BASE | route::NODES) => Shared,
        ("POST", route::JOIN_TOKENS) => Admin(json!({})),
        ("POST", route::JOBS | route::SWEEPS) => Named,
        ("GET", route::SWEEP) => NotFound(Sweep, Value::Null),
        ("POST", route::SWEEP_CANCEL) => NotFound(Sweep, json!({})),
        ("PATCH", route::JOB) => NotFound(Job, json!({ "priority": 1 })),
        ("GET", route::NODE) => Machine,
        ("GET", route::JOB | route::JOB_WHY | route::JOB_METRICS | route::JOB_LOGS) => NotFound(Job, Value::Null),
        ("GET", route::JOB_CHECKPOINTS | route::JOB_EVENTS) => NotFound(Job, Value::Null),
        ("POST", route::JOB_CANCEL | route::JOB_RETRY) => NotFound(Job, json!({})),
        ("POST", route::JOB_PAUSE | route::JOB_RESUME | route::JOB_RELEASE | route::JOB_CHECKPOINT) => {
            NotFound(Job, json!({}))
        }
        ("POST", route::NODE_CORDON | route::NODE_DRAIN | route::NODE_OPEN | route::NODE_REVOKE) => Admin(json!({})),
        ("GET", route::BACKUP | route::CA_ROTATION) => Admin(Value::Null),
        ("POST", route::CA_ROTATION | route::CA_ROTATION_FINISH) => Admin(json!({})),
        ("DELETE", route::NODE) => Admin(Value::Null),
        ("GET" | "DELETE", route::MODEL) => NotFound(Model, Value::Null),
        ("GET", route::MODEL_DOWNLOAD) => NotFound(Model, Value::Null),
        ("PATCH", route::MODEL) => NotFound(Model, json!({ "name": "mine now" })),
        _ => return None,
    })
}

/// What the administrator owns.
struct Theirs {
    datasets: Vec<String>,
    base: String,
    jobs: Vec<String>,
    model: String,
    token: String,
    sweep: String,
}

impl Theirs {
    fn of(&self, kind: Kind) -> Vec<&str> {
        match kind {
            Kind::Dataset => self.datasets.iter().map(String::as_str).collect(),
            Kind::Job => self.jobs.iter().map(String::as_str).collect(),
            Kind::Model => vec![&self.model],
            Kind::Token => vec![&self.token],
            Kind::Sweep => vec![&self.sweep],
        }
    }
}

fn unknown(kind: Kind) -> String {
    let id = Uuid::now_v7();
    match kind {
        Kind::Dataset => DatasetId(id).to_string(),
        Kind::Job => JobId(id).to_string(),
        Kind::Model => ModelId(id).to_string(),
        Kind::Token => TokenId(id).to_string(),
        Kind::Sweep => SweepId(id).to_string(),
    }
}

fn request(world: &World, method: &str, path: &str, token: &str, body: &Value) -> RequestBuilder {
    let request = world.ask(method.parse().unwrap(), path, token);
    if body.is_null() { request } else { request.json(body) }
}

async fn theirs(world: &World) -> Theirs {
    let job = world.job().await;
    let (finished, model) = world.finished(job).await;
    let dataset = world.get(route::DATASETS).await[0]["id"].as_str().unwrap().to_owned();
    let body = json!({ "name": "uploading", "fileName": "x", "sizeBytes": 3 });
    let (_, uploading) = world.call(Method::POST, route::DATASETS, body).await;
    let uploading = uploading["data"]["dataset"]["id"].as_str().unwrap().to_owned();
    let base = world.get(route::BASES).await[0]["id"].as_str().unwrap().to_owned();
    let sweep = json!({ "base": "tiny", "dataset": "chats", "sweep": { "lora": { "rank": [4, 8] } } });
    let (status, sweep) = world.call(Method::POST, route::SWEEPS, sweep).await;
    assert_eq!(status, StatusCode::CREATED, "{sweep}");
    let jobs = vec![job.to_string(), finished.to_string()];
    let token = world.get(route::TOKENS).await[0]["id"].as_str().unwrap().to_owned();
    let sweep = sweep["data"]["id"].as_str().unwrap().to_owned();
    Theirs { datasets: vec![dataset, uploading], base, jobs, model: model.to_string(), token, sweep }
}

#[tokio::test]
async fn another_persons_things_do_not_exist_on_any_route() {
    let world = World::new().await;
    let theirs = theirs(&world).await;
    let other = world.user("other", Role::User).await;
    let billing = world.user("billing", Role::BillingAdmin).await;
    for (method, path, _) in &documented(&world).await {
        let method = method.as_str();
        let kept =
            kept(method, path).unwrap_or_else(|| panic!("{method} {path} does not say how it keeps people apart"));
        for token in [&other, &billing] {
            walk(&world, &theirs, token, method, path, &kept).await;
        }
    }
    for id in &theirs.jobs {
        let job = world.get(&route::with_id(route::JOB, id)).await;
        assert_ne!(job["status"], "CANCELLED", "somebody else cancelled it");
    }
}

async fn walk(world: &World, theirs: &Theirs, token: &str, method: &str, path: &str, kept: &Kept) {
    let what = format!("{method} {path}");
    let node = lorikeet_protocol::id::NodeId(Uuid::now_v7()).to_string();
    let id = if path.starts_with(route::NODES) { &node } else { &theirs.base };
    match kept {
        Kept::Public | Kept::Link => {}
        Kept::NotFound(kind, body) => {
            let fresh = route::with_id(path, unknown(*kind));
            let expected = answer(request(world, method, &fresh, token, body)).await;
            assert_eq!(expected.0, StatusCode::NOT_FOUND, "{what}");
            for id in theirs.of(*kind) {
                let found = answer(request(world, method, &route::with_id(path, id), token, body)).await;
                assert_eq!(found, expected, "{what} tells that {id} exists");
            }
        }
        Kept::Empty => {
            let (status, body) = answer(request(world, method, path, token, &Value::Null)).await;
            assert_eq!(status, StatusCode::OK, "{what}");
            let owners: Vec<_> = body["data"].as_array().unwrap().iter().map(|row| row["name"].clone()).collect();
            assert!(owners.iter().all(|name| name == "own"), "{what} lists what is another's: {body}");
            assert_eq!(body["meta"]["pagination"]["total"], owners.len(), "{what} counts what is another's");
        }
        Kept::Own(body) => {
            let (status, body) = answer(request(world, method, path, token, body)).await;
            assert_eq!(status, StatusCode::CREATED, "{what}: {body}");
        }
        Kept::Admin(body) => {
            let (status, _) = answer(request(world, method, &route::with_id(path, id), token, body)).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{what}");
        }
        Kept::Shared => {
            let (status, body) = answer(request(world, method, &route::with_id(path, id), token, &Value::Null)).await;
            assert_eq!(status, StatusCode::OK, "{what}");
            let text = body.to_string();
            let hidden = theirs.jobs.iter().chain(&theirs.datasets).chain([&theirs.model]);
            assert!(hidden.clone().all(|id| !text.contains(id.as_str())), "{what} names what is another's: {text}");
            assert!(!text.contains("bases/tiny"), "{what} tells a path of the machine: {text}");
        }
        Kept::Machine => {
            let (status, _) = answer(request(world, method, &route::with_id(path, id), token, &Value::Null)).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{what}");
        }
        Kept::Named => {
            for query in ["", "?dry_run=true"] {
                let mut seen = Vec::new();
                for dataset in ["chats", "never given", theirs.datasets[0].as_str()] {
                    let mut body = json!({ "base": "tiny", "dataset": dataset });
                    if path == route::SWEEPS {
                        body["sweep"] = json!({ "lora": { "rank": [4, 8] } });
                    }
                    let (status, body) = answer(request(world, method, &format!("{path}{query}"), token, &body)).await;
                    seen.push((status, body.to_string().replace(dataset, "NAME")));
                }
                assert!(seen[0].0.is_client_error(), "{what}: {seen:?}");
                assert!(seen.iter().all(|one| *one == seen[1]), "{what}: {seen:?}");
            }
        }
    }
}

#[tokio::test]
async fn nothing_but_what_is_public_answers_without_a_token() {
    let world = World::new().await;
    for (method, path, _) in documented(&world).await {
        let url = format!("{}{}", world.coordinator.http_url(), route::with_id(&path, unknown(Kind::Dataset)));
        let response = world.http.request(method.clone(), url).send().await.unwrap();
        match kept(method.as_str(), &path) {
            Some(Kept::Public) => assert_eq!(response.status(), StatusCode::OK, "{method} {path}"),
            // Without its signature a link is no request at all.
            Some(Kept::Link) => assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{method} {path}"),
            _ => assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{method} {path}"),
        }
    }
}

#[tokio::test]
async fn an_administrator_sees_everything() {
    let world = World::new().await;
    let other = world.user("other", Role::User).await;
    let body = json!({ "name": "own", "fileName": "x", "sizeBytes": 3 });
    let (_, created) = answer(world.ask(Method::POST, route::DATASETS, &other).json(&body)).await;
    let id = created["data"]["dataset"]["id"].as_str().unwrap();
    assert_eq!(world.get(&route::with_id(route::DATASET, id)).await["name"], "own");
}
