//! The driver on a disk that is full and then is not, and in which order it takes what comes.

use super::*;
use crate::{
    access::Role,
    cluster::{Subject, Timers},
    record::{DatasetState, Model, Record},
    store::tests::full::Full,
};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use lorikeet_api::{JobFile, Presets, jobfile::start::Start};
use lorikeet_protocol::{
    file::FileManifest,
    id::{AttemptToken, BaseId, BootId, DatasetId, Hash, JobId, ModelId, RequestId, TokenId, UnixMillis, UserId},
};
use std::time::Instant;
use uuid::Uuid;

struct World {
    _folder: tempfile::TempDir,
    driver: Driver,
    disk: Full,
    user: Actor,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (store, disk) = Store::open_full(&folder.path().join("state.redb"));
        let driver = Driver::start(store, Timers::default(), CancellationToken::new()).unwrap();
        let id = UserId(Uuid::now_v7());
        let user = Actor::User { id, role: Role::Admin, token: TokenId(Uuid::now_v7()) };
        let world = Self { _folder: folder, driver, disk, user };
        let user = Command::CreateUser { id, email: "a@b".into(), name: "A".into(), role: Role::Admin };
        world.command(Actor::System, user).await.unwrap();
        world
    }

    async fn command(&self, actor: Actor, command: Command) -> Result<Receipt, Refusal> {
        let context = Context { actor, request: RequestId(Uuid::now_v7()), from: "test".into(), idempotency: None };
        self.driver.handle.command(context, command).await
    }

    async fn create(&self, name: &str) -> Result<Receipt, Refusal> {
        let (id, file_name) = (DatasetId(Uuid::now_v7()), "x.jsonl".to_owned());
        let command =
            Command::CreateDataset { id, name: name.into(), description: None, file_name, size: 0, format: None };
        self.command(self.user, command).await
    }

    async fn until_writing(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.driver.handle.is_reading_only() {
            assert!(Instant::now() < deadline, "it never wrote again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_full_disk_leaves_the_answers_and_stops_the_changes_until_there_is_room() {
    let mut world = World::new().await;
    let Receipt::Dataset(id) = world.create("before").await.unwrap() else { panic!("no dataset") };
    let hash = Hash(*blake3::hash(b"").as_bytes());
    let manifest = FileManifest { size: 0, hash, chunks: vec![] };
    world.command(world.user, Command::ConfirmDataset { id, manifest }).await.unwrap();
    assert!(matches!(world.driver.inspections.recv().await, Some(Inspect::Dataset { .. })));

    world.disk.fill();
    assert_eq!(world.create("during").await, Err(Refusal::NoSpace));
    assert!(world.driver.handle.is_reading_only());
    assert_eq!(world.create("still").await, Err(Refusal::NoSpace));
    let row = world.driver.handle.dataset(world.user, id).await.unwrap();
    assert_eq!((row.name.as_str(), row.state), ("before", DatasetState::Validating));
    // Its answer comes while nothing can be written, so it is asked for again.
    world.driver.handle.inspected(Subject::Dataset(id), Err(Trouble::Ours("lost".into())), vec![]).await;
    assert!(matches!(world.driver.handle.query(Actor::System, Query::Nodes).await, Ok(Answer::Nodes(_))));

    world.disk.free();
    world.until_writing().await;
    world.create("after").await.unwrap();
    let again = world.driver.inspections.recv().await;
    assert!(matches!(again, Some(Inspect::Dataset { id: asked, .. }) if asked == id), "{again:?}");
    let page = crate::history::Page { offset: 0, limit: 9 };
    let names: Vec<_> = world
        .driver
        .handle
        .datasets(world.user, page, None)
        .await
        .unwrap()
        .rows
        .into_iter()
        .map(|row| row.name)
        .collect();
    assert_eq!(names, ["after", "before"]);
}

#[tokio::test]
async fn a_row_that_does_not_read_stops_the_start_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state.redb")).unwrap();
    let joined = UnixMillis(1);
    let node = crate::record::Node::new(NodeId(Uuid::from_u128(5)), "machine".into(), joined);
    store.commit(&[Record::Node(node.clone())]).unwrap();
    store.damage::<crate::record::Node>(&node.id.bytes());
    let error = Driver::start(store, Timers::default(), CancellationToken::new()).unwrap_err().to_string();
    assert!(error.contains("nodes_1") && error.contains(&node.id.0.simple().to_string()), "{error}");
}

#[tokio::test]
async fn a_row_that_does_not_read_refuses_whoever_names_it_and_nobody_else() {
    let world = World::new().await;
    let Actor::User { id: owner, .. } = world.user else { unreachable!("a person") };
    let id = ModelId(Uuid::from_u128(7));
    let model = Model {
        id,
        owner,
        job: JobId(id.0),
        token: AttemptToken { generation: 1, number: 1 },
        name: "tone".into(),
        version: "1.0.0".into(),
        description: None,
        files: vec![],
        summary: None,
        dataset: DatasetId(Uuid::from_u128(8)),
        base: BaseId(Uuid::from_u128(9)),
        spec: None,
        created: UnixMillis(1),
        deleted_at: None,
    };
    let store = &world.driver.handle.store;
    store.commit(&[Record::Model(model)]).unwrap();
    store.damage::<Model>(&id.bytes());
    assert_eq!(world.command(world.user, Command::DeleteModel { id }).await, Err(Refusal::Unreadable));
    assert_eq!(store.adapters(world.user, "other").unwrap(), [], "it is nothing that anybody looks for");
    assert_eq!(store.readable(|model: &Model| model.holds(&[])).unwrap(), []);
    world.create("after").await.unwrap();
    // It would be looked for by its name, if the job could be made at all.
    let mut file = JobFile::new("nowhere", "after");
    file.init_adapter = Some("tone".into());
    let (spec, start) = (Box::new(file.resolve(&Presets::embedded()).unwrap()), Start::default());
    let refused = world.command(world.user, Command::SubmitJob { id: JobId(Uuid::now_v7()), spec, start }).await;
    assert!(matches!(&refused, Err(Refusal::Invalid { field, .. }) if field == "base"), "{refused:?}");
}

#[tokio::test]
async fn words_of_agents_do_not_wait_behind_commands_that_read_rows() {
    let world = World::new().await;
    let forget = || async {
        world.command(Actor::System, Command::ForgetJobs { ids: vec![], before: UnixMillis(0) }).await.unwrap();
        false
    };
    let said = async {
        let shown = Shown { serial: "s".into(), key: Hash([0; 32]), is_newest: true };
        let hello = Hello {
            boot: BootId(Uuid::from_u128(1)),
            instance: BootId(Uuid::from_u128(1)),
            version: "test".into(),
            name: "machine".into(),
            labels: BTreeMap::new(),
            devices: vec![],
            attempts: vec![],
            cached: vec![],
            acknowledged: 0,
        };
        let admitted = world.driver.handle.open_session(NodeId(Uuid::from_u128(5)), shown, hello).await;
        assert!(admitted.is_err(), "nobody knows it");
        true
    };
    // All of them are in the driver's queues before it looks.
    let waits: FuturesUnordered<_> = (0..200).map(|_| forget().boxed_local()).collect();
    waits.push(said.boxed_local());
    let order: Vec<_> = waits.collect().await;
    assert!(order.iter().position(|is_word| *is_word).is_some_and(|place| place < 5), "{order:?}");
}
