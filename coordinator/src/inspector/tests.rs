//! The child is a shell script here: what matters is what happens to one that lies, hangs, floods or dies.

use super::*;
use crate::{
    access::{Actor, Context, Role},
    cluster::Timers,
    driver::Driver,
    store::Store,
};
use lorikeet_protocol::id::{BaseId, DatasetId, RequestId, TokenId};
use std::{fs, os::unix::fs::PermissionsExt, time::Instant};
use uuid::Uuid;

struct Place {
    folder: tempfile::TempDir,
    blobs: Blobs,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let blobs = Blobs::open(&at("blobs"), &at("staging"), &[at("base")], 0).unwrap();
        Self { folder, blobs }
    }

    fn inspector(&self, script: &str, timeout: Duration) -> Inspector {
        let program = self.folder.path().join("lorikeet");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let config = config::Inspect { program: Some(program), timeout, ..config::Inspect::default() };
        Inspector::new(&config, self.blobs.clone()).unwrap()
    }
}

const BASE: &str = r#"{"kind":"base","architecture":"L","parameters":1,"config_json":"{}","dtype":"F32","vocabulary":3,"chat_template":false,"files":[]}"#;
const PLAN: &str = r#"{"kind":"job","examples":1,"validation_examples":0,"total_steps":1,"epoch_tokens":1,"supervised_tokens":1,"longest_tokens":1,"cut_examples":0,"cut_tokens":0,"cpu_bytes":1,"cuda_bytes":1,"rendered":[]}"#;
const DATASET: &str = r#"{"kind":"dataset","format":"CHAT_MESSAGES","conversations":1,"pairs":2,"trainable_pairs":2,"average_turns":2.0,"tokens":null,"warnings":[],"errors":[],"error_count":0,"samples":[]}"#;

#[tokio::test]
async fn an_answer_is_read_and_a_wrong_declaration_is_a_fault() {
    let place = Place::new();
    let inspector = place.inspector(&format!("echo '{DATASET}'"), Duration::from_secs(10));
    let found = inspector.dataset(Path::new("/x"), Some(DatasetFormat::ChatMessages)).await.unwrap();
    assert!(matches!(found, Inspection::Dataset(_)));
    let found = inspector.dataset(Path::new("/x"), Some(DatasetFormat::Alpaca)).await.unwrap();
    assert!(matches!(found, Inspection::Refused { .. }));
}

#[tokio::test]
async fn a_child_that_hangs_is_killed_in_time() {
    let place = Place::new();
    let inspector = place.inspector("exec sleep 600", Duration::from_millis(200));
    let begun = Instant::now();
    let error = inspector.dataset(Path::new("/x"), None).await.unwrap_err();
    assert!(matches!(error, InspectError::TooSlow(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_child_that_floods_or_dies_gives_no_answer_and_says_why() {
    let place = Place::new();
    let flood = place.inspector("exec cat /dev/zero", Duration::from_secs(60));
    assert!(matches!(flood.dataset(Path::new("/x"), None).await, Err(InspectError::NoAnswer { .. })));
    let dead = place.inspector("echo 'out of luck' >&2; exit 7", Duration::from_secs(10));
    let error = dead.dataset(Path::new("/x"), None).await.unwrap_err().to_string();
    assert!(error.contains("out of luck") && error.contains('7'), "{error}");
}

#[tokio::test]
async fn its_limits_are_arguments_of_the_child() {
    let place = Place::new();
    let script = r#"echo "{\"kind\":\"refused\",\"faults\":[{\"line\":null,\"path\":\"\",\"message\":\"$*\"}]}""#;
    let found = place.inspector(script, Duration::from_secs(20)).dataset(Path::new("/x"), None).await.unwrap();
    let Inspection::Refused { faults } = found else { panic!("{found:?}") };
    assert_eq!(faults[0].message, format!("inspect dataset /x --memory-bytes {} --seconds 20", 4_u64 << 30));
}

#[tokio::test]
async fn one_user_asks_once_at_a_time_and_keeps_nobodys_validation_waiting() {
    let place = Place::new();
    // A job hangs until the file is there; a dataset is answered at once.
    let go = place.folder.path().join("go");
    let base = place.folder.path().join("base");
    fs::create_dir_all(&base).unwrap();
    let script =
        format!("if [ $2 = job ]; then while [ ! -e {} ]; do sleep 0.01; done; fi; echo '{DATASET}'", go.display());
    let inspector = place.inspector(&script, Duration::from_secs(60));
    let spec = || lorikeet_api::JobFile::new("a", "b").resolve(&lorikeet_api::Presets::embedded()).unwrap();
    let dry_run = |n: u128| {
        let (inspector, user, base) = (inspector.clone(), UserId(uuid::Uuid::from_u128(n)), base.clone());
        async move { inspector.dry_run(user, &base, (Path::new("/d"), None), spec()).await }
    };
    let running: Vec<_> = (1..=3).map(|n| tokio::spawn(dry_run(n))).collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while inspector.curious.lock().len() < 3 {
        assert!(Instant::now() < deadline, "they never asked");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(dry_run(1).await, Err(InspectError::Crowded)));
    inspector.dataset(Path::new("/x"), None).await.unwrap();
    fs::write(&go, "").unwrap();
    for run in running {
        run.await.unwrap().unwrap();
    }
    dry_run(1).await.unwrap();
}

#[tokio::test]
async fn the_files_of_a_base_are_hashed_where_they_lie_and_a_name_that_leads_out_is_refused() {
    let place = Place::new();
    let base = place.folder.path().join("base");
    fs::create_dir(&base).unwrap();
    fs::write(base.join("config.json"), "{}").unwrap();
    let answer = |file: &str| {
        format!(
            r#"echo '{{"kind":"base","architecture":"L","parameters":1,"config_json":"{{}}","dtype":"F32","vocabulary":3,"chat_template":false,"files":["{file}"]}}'"#
        )
    };
    let inspector = place.inspector(&answer("config.json"), Duration::from_secs(10));
    let (_, files) = inspector.base(&base).await.unwrap();
    assert_eq!(place.blobs.chunk(files[0].manifest.hash, 0).await.unwrap(), b"{}");
    let inspector = place.inspector(&answer("../secret"), Duration::from_secs(10));
    let (refused, files) = inspector.base(&base).await.unwrap();
    assert!(matches!(refused, Inspection::Refused { .. }) && files.is_empty());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let place = Place::new();
    let program = place.folder.path().join("nowhere");
    let config = config::Inspect { program: Some(program.clone()), ..config::Inspect::default() };
    let inspector = Inspector::new(&config, place.blobs.clone()).unwrap();
    let error = inspector.dataset(Path::new("/x"), None).await.unwrap_err().to_string();
    assert!(error.contains(program.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn a_base_with_a_link_to_the_outside_is_refused_by_name_before_anybody_reads_it() {
    let place = Place::new();
    let (base, secret) = (place.folder.path().join("base"), place.folder.path().join("ca.key"));
    fs::create_dir(&base).unwrap();
    fs::write(&secret, "secret").unwrap();
    std::os::unix::fs::symlink(&secret, base.join("merges.txt")).unwrap();
    let inspector = place.inspector("echo read > /proc/self/fd/1; exit 9", Duration::from_secs(10));
    let (refused, files) = inspector.base(&base).await.unwrap();
    let Inspection::Refused { faults } = refused else { panic!("{refused:?}") };
    assert_eq!((faults[0].path.as_str(), files.len()), ("merges.txt", 0), "{faults:?}");
    assert!(!faults[0].message.contains(&*place.folder.path().to_string_lossy()), "{faults:?}");
}

#[tokio::test]
async fn neither_a_base_that_hangs_nor_a_crowd_of_one_owner_holds_others_up_and_what_was_deleted_is_not_looked_at() {
    let place = Place::new();
    let at = |name: &str| place.folder.path().join(name);
    fs::create_dir(at("base")).unwrap();
    let (asked, go) = (at("asked"), at("go"));
    let script = format!(
        "[ $2 = base ] && exec sleep 600\ncat \"$3\" >> {}\nwhile [ ! -e {} ]; do sleep 0.01; done\necho '{DATASET}'",
        asked.display(),
        go.display()
    );
    let inspector = Inspector { at_once: 1, ..place.inspector(&script, Duration::from_secs(60)) };
    let stop = CancellationToken::new();
    let store = Store::open(&at("state.redb")).unwrap();
    let Driver { handle, inspections, task } = Driver::start(store, Timers::default(), stop.clone()).unwrap();
    let serving = tokio::spawn(inspector.serve(inspections, handle.clone(), stop.clone()));
    let crowd = Crowd { place: &place, driver: handle };
    let [one, other] = [crowd.user(1).await, crowd.user(2).await];
    let base =
        cluster::command::Command::RegisterBase { id: BaseId(Uuid::from_u128(1)), name: "b".into(), path: at("base") };
    crowd.command(one, base).await;
    let looked_at = |lines: usize| {
        let asked = asked.clone();
        async move {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                let text = fs::read_to_string(&asked).unwrap_or_default();
                if text.lines().count() >= lines {
                    return text;
                }
                assert!(Instant::now() < deadline, "only {text:?} were looked at");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    crowd.dataset(one, "one 1").await;
    looked_at(1).await;
    crowd.dataset(one, "one 2").await;
    let deleted = crowd.dataset(one, "one 3").await;
    crowd.dataset(one, "one 4").await;
    crowd.dataset(other, "other 1").await;
    crowd.command(one, cluster::command::Command::DeleteDataset { id: deleted }).await;
    fs::write(&go, "").unwrap();
    assert_eq!(looked_at(4).await, "one 1\none 2\nother 1\none 4\n");
    stop.cancel();
    serving.await.unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_job_whose_plan_is_known_waits_behind_nothing() {
    let place = Place::new();
    let at = |name: &str| place.folder.path().join(name);
    fs::create_dir(at("base")).unwrap();
    let script = format!(
        "case $2 in\nbase) echo '{BASE}';;\njob) echo '{PLAN}';;\n*) while grep -q slow \"$3\" && [ ! -e {} ]; do sleep 0.01; done; echo '{DATASET}';;\nesac",
        at("go").display()
    );
    let inspector = Inspector { at_once: 1, ..place.inspector(&script, Duration::from_secs(60)) };
    let stop = CancellationToken::new();
    let store = Store::open(&at("state.redb")).unwrap();
    let Driver { handle, inspections, task } = Driver::start(store, Timers::default(), stop.clone()).unwrap();
    let mut changes = handle.changes();
    let serving = tokio::spawn(inspector.serve(inspections, handle.clone(), stop.clone()));
    let crowd = Crowd { place: &place, driver: handle };
    let one = crowd.user(1).await;
    crowd.dataset(one, "chats").await;
    let base =
        cluster::command::Command::RegisterBase { id: BaseId(Uuid::from_u128(1)), name: "b".into(), path: at("base") };
    crowd.command(one, base).await;
    for number in [1, 2] {
        let (id, spec) =
            (lorikeet_protocol::id::JobId(Uuid::from_u128(number)), lorikeet_api::JobFile::new("b", "chats"));
        let spec = Box::new(spec.resolve(&lorikeet_api::Presets::embedded()).unwrap());
        crowd.command(one, cluster::command::Command::SubmitJob { id, spec, start: Default::default() }).await;
        while crowd.driver.job(one, id).await.unwrap().phase() != lorikeet_protocol::job::Phase::Queued {
            timeout(Duration::from_secs(20), changes.recv()).await.expect("it is judged").unwrap();
        }
        // From now on the one place is taken.
        crowd.dataset(one, "slow").await;
    }
    fs::write(at("go"), "").unwrap();
    stop.cancel();
    serving.await.unwrap();
    task.await.unwrap().unwrap();
}

struct Crowd<'a> {
    place: &'a Place,
    driver: Handle,
}

impl Crowd<'_> {
    async fn command(&self, actor: Actor, command: cluster::command::Command) {
        let context = Context { actor, request: RequestId(Uuid::now_v7()), from: "test".into(), idempotency: None };
        self.driver.command(context, command).await.unwrap();
    }

    async fn user(&self, n: u128) -> Actor {
        let (id, email) = (UserId(Uuid::from_u128(n)), format!("{n}@example.org"));
        let role = Role::Admin;
        let command = cluster::command::Command::CreateUser { id, email, name: "A".into(), role };
        self.command(Actor::System, command).await;
        Actor::User { id, role, token: TokenId(Uuid::from_u128(n)) }
    }

    /// With these words in its file; its validation is asked for when this returns.
    async fn dataset(&self, owner: Actor, words: &str) -> DatasetId {
        use cluster::command::Command;
        let (id, file) = (DatasetId(Uuid::now_v7()), self.place.folder.path().join("base").join(words));
        fs::write(&file, format!("{words}\n")).unwrap();
        let manifest = self.place.blobs.link(file).await.unwrap();
        let (name, file_name, size) = (words.to_owned(), "x.jsonl".into(), manifest.size);
        let create = Command::CreateDataset { id, name, description: None, file_name, size, format: None };
        self.command(owner, create).await;
        self.command(owner, Command::ConfirmDataset { id, manifest }).await;
        id
    }
}

#[test]
fn a_small_file_has_little_time_and_none_has_more_than_the_config_says() {
    let place = Place::new();
    let inspector = place.inspector("true", Duration::from_secs(90));
    let file = place.folder.path().join("file");
    fs::write(&file, "[]").unwrap();
    assert_eq!(inspector.time_for(&file), Duration::from_secs(60));
    fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    assert_eq!(inspector.time_for(&file), Duration::from_secs(90));
}

#[tokio::test]
async fn the_same_question_about_a_job_is_asked_once_and_a_refusal_is_not_remembered() {
    let place = Place::new();
    let (base, asked) = (place.folder.path().join("base"), place.folder.path().join("asked"));
    fs::create_dir(&base).unwrap();
    let refusal = r#"{"kind":"refused","faults":[]}"#;
    let script = |answer: &str| format!("echo >> {}; echo '{answer}'", asked.display());
    let spec = |name: &str, rate: &str| {
        let mut file = lorikeet_api::JobFile::new("a", "b");
        file.name = Some(name.into());
        file.training.learning_rate = rate.parse().ok();
        file.resolve(&lorikeet_api::Presets::embedded()).unwrap()
    };
    let ask = |inspector: &Inspector, spec| {
        let (inspector, base) = (inspector.clone(), base.clone());
        async move { inspector.job(&base, (Path::new("/d"), None), spec).await.unwrap() }
    };
    let children = || fs::read_to_string(&asked).unwrap().len();
    let inspector = place.inspector(&script(refusal), Duration::from_secs(20));
    for _ in 0..2 {
        assert!(matches!(ask(&inspector, spec("one", "1e-4")).await, Inspection::Refused { .. }));
    }
    assert_eq!(children(), 2);
    let inspector = place.inspector(&script(PLAN), Duration::from_secs(20));
    let both = tokio::join!(ask(&inspector, spec("one", "1e-4")), ask(&inspector, spec("two", "1e-4")));
    assert!(matches!(both, (Inspection::Job(_), Inspection::Job(_))) && both.0 == both.1);
    assert_eq!(children(), 3);
    ask(&inspector, spec("one", "2e-4")).await;
    assert_eq!(children(), 4);
    let curious =
        inspector.dry_run(UserId(uuid::Uuid::from_u128(1)), &base, (Path::new("/d"), None), spec("three", "2e-4"));
    assert!(matches!(curious.await, Ok(Inspection::Job(_))));
    assert_eq!(children(), 4, "somebody who only wants to know is told what is known");
    // The base is read anew, and may be another: a child for it, and one for the job.
    inspector.base(&base).await.unwrap();
    ask(&inspector, spec("one", "2e-4")).await;
    assert_eq!(children(), 6);
}
