//! The API as its clients see it: a whole coordinator on loopback, requests over TCP, and a script in the place of `lorikeet inspect`.

mod ca;
mod crowd;
mod discreet;
mod document;
mod events;
mod ownership;
mod repeats;
mod start;
mod sweep;
mod uploads;

use crate::{
    Coordinator,
    access::{Actor, Context, Role},
    cluster::{command::Command, job::JobState},
    record::{self, Record},
};
use lorikeet_api::{job::JobStatus, route};
use lorikeet_protocol::{
    id::{AttemptToken, BaseId, DatasetId, JobId, ModelId, RequestId, SweepId, TokenId, UnixMillis, UserId},
    job::Intent,
};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};
use uuid::Uuid;

/// Answers every question with yes. The file's path is looked at, so that a dataset can be told to be bad.
const SCRIPT: &str = r#"#!/bin/sh
case "$1" in
--version) echo "lorikeet 1.0.0"; exit ;;
esac
case "$2" in
dataset) if grep -q broken "$3"; then
  echo '{"kind":"refused","faults":[{"line":3,"path":"$.messages","message":"is not a list"}]}'
else
  echo '{"kind":"dataset","format":"CHAT_MESSAGES","conversations":1,"pairs":2,"trainable_pairs":2,"average_turns":2.0,"tokens":null,"warnings":[],"errors":[],"error_count":0,"samples":[]}'
fi ;;
base) echo '{"kind":"base","architecture":"LlamaForCausalLM","parameters":10,"config_json":"{}","dtype":"F32","vocabulary":3,"chat_template":false,"files":["config.json"]}' ;;
job) echo '{"kind":"job","examples":2,"validation_examples":0,"total_steps":5,"epoch_tokens":9,"supervised_tokens":4,"longest_tokens":5,"cut_examples":0,"cut_tokens":0,"cpu_bytes":1000,"cuda_bytes":1000,"rendered":[]}' ;;
esac
"#;

pub(crate) struct World {
    pub(super) folder: tempfile::TempDir,
    pub(crate) coordinator: Coordinator,
    pub(super) http: reqwest::Client,
    pub(super) admin: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut crate::config::Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("lorikeet");
        fs::write(&program, SCRIPT).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let bases = folder.path().join("bases");
        fs::create_dir_all(bases.join("tiny")).unwrap();
        fs::write(bases.join("tiny").join("config.json"), "{}").unwrap();
        let mut config = crate::tests::config(&folder.path().join("data"));
        config.inspect.program = Some(program);
        config.base_roots = vec![bases];
        change(&mut config);
        let coordinator = Coordinator::bind(config).await.unwrap();
        let admin = fs::read_to_string(coordinator.admin_token_path()).unwrap().trim().to_owned();
        Self { folder, coordinator, http: reqwest::Client::new(), admin }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(super) fn ask(&self, method: Method, path: &str, token: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.coordinator.http_url())).bearer_auth(token)
    }

    /// Status and body of a request by the administrator.
    pub(super) async fn call(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.ask(method, path, &self.admin).json(&body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = answer(self.ask(Method::GET, path, &self.admin)).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body["data"].clone()
    }

    /// The token of another person with a role of their own.
    pub(super) async fn user(&self, email: &str, role: Role) -> String {
        let (id, secret) = (UserId(Uuid::now_v7()), format!("lk_{email}"));
        let email = email.to_owned();
        self.command(Command::CreateUser { id, email, name: "Another".into(), role }).await;
        let hash = super::hash_of(&secret);
        let token =
            Command::CreateToken { id: TokenId(Uuid::now_v7()), user: id, name: "test".into(), hash, expires: None };
        self.command(token).await;
        secret
    }

    async fn command(&self, command: Command) {
        let request = RequestId(Uuid::now_v7());
        let context = Context { actor: Actor::System, request, from: "test".into(), idempotency: None };
        self.coordinator.driver.command(context, command).await.unwrap();
    }

    /// Rows of things that are over; the cluster keeps none of them in memory.
    pub(super) async fn insert(&self, records: Vec<Record>) {
        self.coordinator.driver.read(move |store| store.commit(&records)).await.unwrap();
    }

    /// A dataset whose bytes are here and judged.
    pub(super) async fn dataset(&self, name: &str, bytes: &str) -> DatasetId {
        let body = json!({ "name": name, "fileName": "chats.jsonl", "sizeBytes": bytes.len() });
        let (status, created) = self.call(Method::POST, route::DATASETS, body).await;
        assert_eq!(status, StatusCode::CREATED, "{created}");
        let url = created["data"]["uploadUrl"].as_str().unwrap();
        let sent = patch(self, url, 0, bytes.to_owned()).send().await.unwrap();
        assert_eq!(sent.status(), StatusCode::NO_CONTENT);
        let id: DatasetId = created["data"]["dataset"]["id"].as_str().unwrap().parse().unwrap();
        let (status, body) = self.call(Method::POST, &route::with_id(route::DATASET_CONFIRM, id), json!({})).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        self.wait(&route::with_id(route::DATASET, id), |row| row["status"] != "VALIDATING").await;
        id
    }

    pub(super) async fn base(&self, name: &str) -> BaseId {
        let path = self.folder.path().join("bases").join("tiny");
        let (status, body) = self.call(Method::POST, route::BASES, json!({ "name": name, "path": path })).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        let id: BaseId = body["data"]["id"].as_str().unwrap().parse().unwrap();
        self.wait(&route::with_id(route::BASE, id), |row| row["status"] == "READY").await;
        id
    }

    /// A job that waits for a machine.
    pub(crate) async fn job(&self) -> JobId {
        self.dataset("chats", "one line\n").await;
        self.base("tiny").await;
        let (status, body) = self.call(Method::POST, route::JOBS, json!({ "base": "tiny", "dataset": "chats" })).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        let id: JobId = body["data"]["id"].as_str().unwrap().parse().unwrap();
        self.wait(&route::with_id(route::JOB, id), |row| row["phase"] == "queued").await;
        id
    }

    /// The job once more, as one that has succeeded, with its model.
    pub(crate) async fn finished(&self, of: JobId) -> (JobId, ModelId) {
        let mut job = self.coordinator.driver.job(Actor::System, of).await.unwrap();
        job.id = JobId(Uuid::now_v7());
        let model = ModelId(job.id.0);
        (job.state, job.intent) = (JobState::Succeeded { model }, Intent::Run);
        job.completed_at = Some(job.created);
        let model_row = record::Model {
            id: model,
            owner: job.owner,
            job: job.id,
            token: AttemptToken { generation: 1, number: 1 },
            name: "Model from chats".into(),
            version: "1.0.0".into(),
            description: None,
            files: vec![],
            summary: Some("{\"final_loss\":1.5}".into()),
            dataset: job.dataset,
            base: job.base,
            spec: None,
            created: UnixMillis(1_000),
            deleted_at: None,
        };
        let id = job.id;
        self.insert(vec![Record::Job(Box::new(job)), Record::Model(model_row)]).await;
        (id, model)
    }

    pub(super) async fn wait(&self, path: &str, until: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let row = self.get(path).await;
            if until(&row) {
                return row;
            }
            assert!(Instant::now() < deadline, "{path} stayed {row}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub(super) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) };
    (status, body)
}

/// Method, path and what is said of it, of every operation of the document that the coordinator serves.
pub(super) async fn documented(world: &World) -> Vec<(Method, String, Value)> {
    let (_, document) = answer(world.ask(Method::GET, route::OPENAPI, &world.admin)).await;
    let paths = document["paths"].as_object().unwrap();
    let operations = |(path, item): (&String, &Value)| {
        let named =
            |(verb, said): (&String, &Value)| (verb.to_uppercase().parse().unwrap(), path.clone(), said.clone());
        item.as_object().unwrap().iter().map(named).collect::<Vec<_>>()
    };
    let operations: Vec<_> = paths.iter().flat_map(operations).collect();
    assert!(operations.len() > 50, "{document}");
    operations
}

pub(super) fn patch(world: &World, url: &str, offset: u64, bytes: impl Into<reqwest::Body>) -> RequestBuilder {
    let request = world.http.patch(format!("{}{url}", world.coordinator.http_url()));
    let request = request.header("upload-offset", offset).header("content-type", "application/offset+octet-stream");
    request.header("tus-resumable", "1.0.0").body(bytes)
}

#[tokio::test]
async fn health_version_ca_and_the_document_need_no_token_and_everything_has_a_request_id() {
    let world = World::new().await;
    for path in [route::HEALTH, route::VERSION, route::CA, route::OPENAPI] {
        let response = world.http.get(format!("{}{path}", world.coordinator.http_url())).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert!(response.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
    }
}

#[tokio::test]
async fn a_wrong_token_a_wrong_path_and_a_wrong_method_are_refused_in_an_envelope() {
    let world = World::new().await;
    for (method, path, token, expected, code) in [
        (Method::GET, route::ME, "lk_wrong", 401, "UNAUTHORIZED"),
        (Method::GET, route::ME, "wrong", 401, "UNAUTHORIZED"),
        (Method::GET, "/api/nowhere", world.admin.as_str(), 404, "NOT_FOUND"),
        (Method::PUT, route::DATASETS, world.admin.as_str(), 405, "METHOD_NOT_ALLOWED"),
        (Method::GET, "/api/datasets/nonsense", world.admin.as_str(), 404, "NOT_FOUND"),
    ] {
        let (status, body) = answer(world.ask(method, path, token)).await;
        assert_eq!((status.as_u16(), body["error"]["code"].as_str()), (expected, Some(code)), "{path}: {body}");
        assert_eq!(body["success"], false);
        if token == "wrong" {
            assert!(body["error"]["message"].as_str().unwrap().contains("begin with `lk_`"), "{body}");
        }
    }
}

#[tokio::test]
async fn an_expired_token_no_longer_works() {
    let world = World::new().await;
    let me = world.get(route::ME).await;
    assert_eq!((me["role"].as_str(), me["email"].as_str()), (Some("ADMIN"), Some("admin@localhost")));
    let user = me["id"].as_str().unwrap().parse().unwrap();
    let hash = super::hash_of("lk_expired");
    let (id, expires) = (TokenId(Uuid::now_v7()), Some(UnixMillis(1)));
    world.command(Command::CreateToken { id, user, name: "old".into(), hash, expires }).await;
    let (status, _) = answer(world.ask(Method::GET, route::ME, "lk_expired")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn wrong_fields_are_all_named() {
    let world = World::new().await;
    let body = json!({ "name": "", "fileName": "../x", "sizeBytes": 0 });
    let (status, refused) = world.call(Method::POST, route::DATASETS, body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let fields: Vec<_> =
        refused["error"]["details"].as_array().unwrap().iter().map(|fault| fault["field"].clone()).collect();
    assert_eq!(fields, ["name", "fileName", "sizeBytes"]);
    let (status, refused) = world.call(Method::POST, route::DATASETS, json!({ "name": "x", "colour": 1 })).await;
    assert_eq!((status, refused["error"]["field"].as_str()), (StatusCode::BAD_REQUEST, Some("colour")));
    let job = json!({ "base": "b", "dataset": "d", "lora": { "rank": 0 } });
    let (status, refused) = world.call(Method::POST, route::JOBS, job).await;
    assert_eq!((status, refused["error"]["field"].as_str()), (StatusCode::BAD_REQUEST, Some("lora.rank")), "{refused}");
    let (status, _) = answer(world.ask(Method::GET, "/api/jobs?pageSize=101", &world.admin)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_list_is_asked_for_the_whole_of_a_name_or_a_part_of_one() {
    let world = World::new().await;
    world.job().await;
    for name in ["tone", "tone 2"] {
        world.dataset(name, "one line\n").await;
        let job = json!({ "name": name, "base": "tiny", "dataset": "chats" });
        let (status, body) = world.call(Method::POST, route::JOBS, job).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
    }
    for list in [route::JOBS, route::DATASETS] {
        for (question, count) in [("name=tone", 1), ("name=Tone", 0), ("search=Tone", 2)] {
            let found = world.get(&format!("{list}?{question}")).await;
            assert_eq!(found.as_array().unwrap().len(), count, "{list}?{question}: {found}");
        }
    }
}

#[tokio::test]
async fn a_job_that_cannot_start_says_so_wherever_it_is_shown_and_in_the_same_words() {
    let world = World::new().await;
    let job = world.job().await;
    let why = world.get(&route::with_id(route::JOB_WHY, job)).await["summary"].clone();
    assert!(why.as_str().unwrap().contains("no machine has joined yet"), "{why}");
    assert_eq!(world.get(&route::with_id(route::JOB, job)).await["reason"], why);
    let row = &world.get(route::JOBS).await[0];
    assert_eq!((&row["reason"], &row["never"]), (&why, &json!(false)), "one may join");
}

#[tokio::test]
async fn an_order_to_a_job_that_is_over_is_told_that_nothing_comes_of_it_and_how_the_job_ended() {
    let world = World::new().await;
    let waiting = world.job().await;
    let (done, _) = world.finished(waiting).await;
    for (route, what) in [(route::JOB_CANCEL, "cancel"), (route::JOB_PAUSE, "pause"), (route::JOB_RESUME, "resume")] {
        let (status, body) = world.call(Method::POST, &route::with_id(route, done), json!({})).await;
        let expected = format!("nothing to {what}, the job is over: the adapter is here");
        assert_eq!((status, &body["error"]["message"]), (StatusCode::CONFLICT, &json!(expected)));
    }
}

#[tokio::test]
async fn a_key_of_a_body_that_stands_twice_is_refused_by_name() {
    let world = World::new().await;
    for (path, body, field) in [
        (route::JOBS, r#"{"base":"b","dataset":"d","lora":{"rank":8,"rank":16}}"#, "lora.rank"),
        (route::DATASETS, r#"{"name":"a","name":"b","fileName":"x","sizeBytes":3}"#, "name"),
    ] {
        let (status, body) = answer(world.ask(Method::POST, path, &world.admin).body(body)).await;
        assert_eq!((status, &body["error"]["field"]), (StatusCode::BAD_REQUEST, &json!(field)), "{body}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let world = World::new().await;
    let body = json!({ "name": "x".repeat(2 << 20) });
    let (status, body) = world.call(Method::POST, route::DATASETS, body).await;
    assert_eq!((status, body["error"]["code"].as_str()), (StatusCode::PAYLOAD_TOO_LARGE, Some("PAYLOAD_TOO_LARGE")));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_called_too_large() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new().await;
    for body in ["5\r\n{\"a\"", "zz\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(world.coordinator.http_address()).await.unwrap();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
            route::DATASETS,
            world.admin
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{body:?}: {answer}");
        assert!(answer.contains("the body broke off"), "{body:?}: {answer}");
    }
}

#[tokio::test]
async fn a_value_of_the_wrong_kind_is_told_by_its_field_and_in_words() {
    let world = World::new().await;
    let told = async |method, path: &str, body| {
        let (status, body) = world.call(method, path, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        let error = &body["error"];
        (error["field"].as_str().unwrap_or_default().to_owned(), error["message"].as_str().unwrap().to_owned())
    };
    let id = world.job().await;
    let (field, message) = told(Method::PATCH, &route::with_id(route::JOB, id), json!({ "priority": -1 })).await;
    assert!(field == "priority" && message.contains("expected a whole number from 0 to 255"), "{field} {message}");
    assert!(!message.contains("line"), "{message}");
    let (field, message) = told(Method::POST, route::DATASETS, json!({ "name": 3 })).await;
    assert!(field == "name" && message.contains("expected a text"), "{field} {message}");
    let (field, message) = told(Method::GET, &format!("{}?page=x", route::JOBS), Value::Null).await;
    assert!(field == "page" && message.contains("expected a whole number"), "{field} {message}");
    let (field, _) = told(Method::GET, &format!("{}?colour=x", route::JOBS), Value::Null).await;
    assert_eq!(field, "colour");
}

#[tokio::test]
async fn a_query_that_nobody_reads_is_refused_by_its_key() {
    let world = World::new().await;
    let id = world.job().await;
    let why = route::with_id(route::JOB_WHY, id);
    let events = route::with_id(route::JOB_EVENTS, id);
    for path in [format!("{why}?page=2"), format!("{events}?page=-1"), format!("{}?page=-1", route::NODES)] {
        let (status, body) = answer(world.ask(Method::GET, &path, &world.admin)).await;
        assert_eq!(
            (status, body["error"]["field"].as_str()),
            (StatusCode::BAD_REQUEST, Some("page")),
            "{path}: {body}"
        );
    }
    assert_eq!(world.get(&format!("{}?page=2", route::NODES)).await, json!([]));
    world.get(&format!("{why}?")).await;
}

#[tokio::test]
async fn a_job_goes_through_its_life_and_says_why_it_waits() {
    let world = World::new().await;
    let id = world.job().await;
    let why = world.get(&route::with_id(route::JOB_WHY, id)).await;
    assert!(why["summary"].as_str().unwrap().contains("no machine has joined"), "{why}");
    let alias = world.get(&format!("{}/{id}", route::JOBS_ALIAS)).await;
    assert_eq!((alias["status"].as_str(), alias["base"].as_str()), (Some("QUEUED"), Some("tiny")));
    let (status, body) =
        world.call(Method::POST, "/api/jobs?dry_run=true", json!({ "base": "tiny", "dataset": "chats" })).await;
    assert_eq!((status, &body["data"]["findings"]["totalSteps"]), (StatusCode::OK, &json!(5)), "{body}");
    let cancel = route::with_id(route::JOB_CANCEL, id);
    for _ in 0..2 {
        let (status, body) = world.call(Method::POST, &cancel, json!({ "reason": "wrong_config" })).await;
        assert_eq!((status, body["data"]["status"].as_str()), (StatusCode::OK, Some("CANCELLED")), "{body}");
    }
    let (status, body) = world.call(Method::POST, &route::with_id(route::JOB_RETRY, id), Value::Null).await;
    assert_eq!((status, &body["data"]["parent"]), (StatusCode::CREATED, &json!(id.to_string())), "{body}");
    let list = world.get(&format!("{}?status=CANCELLED", route::JOBS)).await;
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(serde_json::from_value::<JobStatus>(list[0]["status"].clone()).unwrap(), JobStatus::Cancelled);
}

#[tokio::test]
async fn a_base_model_comes_from_below_a_root_and_from_nowhere_else() {
    let world = World::new().await;
    let root = world.folder.path().join("bases");
    std::os::unix::fs::symlink("/etc", root.join("outside")).unwrap();
    for path in [
        PathBuf::from("/etc"),
        root.join("outside"),
        root.join("tiny/../../data"),
        PathBuf::from("bases/tiny"),
        root.join("none"),
    ] {
        let (status, body) = world.call(Method::POST, route::BASES, json!({ "name": "x", "path": path })).await;
        assert_eq!(
            (status, body["error"]["field"].as_str()),
            (StatusCode::BAD_REQUEST, Some("path")),
            "{}",
            path.display()
        );
    }
    let id = world.base("tiny").await;
    let row = world.get(&route::with_id(route::BASE, id)).await;
    assert_eq!(row["files"][0]["path"], "config.json");
}

#[tokio::test]
async fn a_dataset_that_is_bad_says_where() {
    let world = World::new().await;
    let id = world.dataset("bad", "a broken line\n").await;
    let status = world.get(&route::with_id(route::DATASET_VALIDATION_STATUS, id)).await;
    assert_eq!((status["status"].as_str(), &status["errors"][0]["line"]), (Some("ERROR"), &json!(3)), "{status}");
}

#[tokio::test]
async fn a_model_is_downloaded_whole_or_not_at_all() {
    let world = World::new().await;
    let job = world.job().await;
    let (_, model) = world.finished(job).await;
    let path = route::with_id(route::MODEL_DOWNLOAD, model);
    let blobs = crate::blob::Blobs::open(&world.data().join("blobs"), &world.data().join("staging"), &[], 0).unwrap();
    let mut files = Vec::new();
    for (name, bytes) in [("adapter_config.json", vec![b'{'; 3]), ("adapter_model.safetensors", vec![7; 1_000])] {
        let source = world.folder.path().join(name);
        fs::write(&source, bytes).unwrap();
        let manifest = blobs.put(source).await.unwrap();
        files.push(lorikeet_protocol::file::NamedFile { path: name.into(), manifest });
    }
    let mut row = world.coordinator.driver.model(Actor::System, model).await.unwrap();
    row.files = files;
    world.insert(vec![Record::Model(row.clone())]).await;

    let whole = world.ask(Method::GET, &path, &world.admin).send().await.unwrap().bytes().await.unwrap();
    let mut archive = tar::Archive::new(whole.as_ref());
    let names: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names, [Path::new("adapter_config.json"), Path::new("adapter_model.safetensors")]);
    let one = world.ask(Method::GET, &format!("{path}?artifact=adapter-model"), &world.admin).send().await.unwrap();
    assert_eq!(one.bytes().await.unwrap(), vec![7; 1_000]);
    let (status, body) = answer(world.ask(Method::GET, &format!("{path}?artifact=gguf"), &world.admin)).await;
    assert!(
        status == StatusCode::BAD_REQUEST && body["error"]["message"].as_str().unwrap().contains("not available yet")
    );

    let kept = crate::blob::Kept { hash: row.files[1].manifest.hash, since: SystemTime::now() };
    blobs.delete(kept).await.unwrap();
    let broken = world.ask(Method::GET, &path, &world.admin).send().await.unwrap().bytes().await;
    assert!(broken.is_err(), "half an archive must not look like a whole one");
}

#[tokio::test]
async fn beyond_loopback_it_speaks_https_with_a_certificate_of_its_own_ca() {
    let world = World::with(|config| config.http.listen = ([0, 0, 0, 0], 0).into()).await;
    assert!(world.coordinator.http_url().starts_with("https://"));
    let url = format!("https://localhost:{}{}", world.coordinator.http_address().port(), route::HEALTH);
    assert!(reqwest::get(&url).await.is_err(), "nobody knows this CA yet");
    let pem = fs::read(world.data().join("ca").join("ca.pem")).unwrap();
    let pinned =
        reqwest::Client::builder().tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()]).build().unwrap();
    assert_eq!(pinned.get(&url).send().await.unwrap().status(), StatusCode::OK);
}
