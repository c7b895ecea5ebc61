//! One attempt's conversation: offered, fetched, told of, uploaded, reported.

use super::*;
use crate::{access::Role, cluster::Subject};
use lorikeet_api::{JobFile, Presets};
use lorikeet_protocol::{
    agent::{Checkpoint, CheckpointKind, Ended, EventLines, Metered, Offer, Report, ReportBody},
    file::NamedFile,
    id::{BaseId, DatasetId, DeviceId, TokenId, UserId},
    inspect::{BaseFindings, DatasetFindings, Inspection, JobFindings},
    job::{Device, DeviceKind},
};
use std::sync::atomic::{AtomicUsize, Ordering};
use tracing::{Metadata, Subscriber, span};

async fn command(world: &World, actor: Actor, command: Command) {
    let request = RequestId(Uuid::now_v7());
    let context = Context { actor, request, from: "test".into(), idempotency: None };
    world.services.driver.command(context, command).await.unwrap();
}

async fn stored(world: &World, bytes: &[u8]) -> FileManifest {
    let path = world.folder.path().join("source");
    std::fs::write(&path, bytes).unwrap();
    world.services.blobs.put(path).await.unwrap()
}

/// A job that only waits for a machine.
pub(super) async fn queued(world: &World) {
    queued_over(world, b"training data").await;
}

/// The same over a dataset of these bytes.
async fn queued_over(world: &World, data: &[u8]) {
    let (driver, id) = (&world.services.driver, UserId(Uuid::now_v7()));
    let user = Actor::User { id, role: Role::Admin, token: TokenId(Uuid::now_v7()) };
    command(world, Actor::System, Command::CreateUser { id, email: "a@b".into(), name: "A".into(), role: Role::Admin })
        .await;
    let dataset = DatasetId(Uuid::now_v7());
    let manifest = stored(world, data).await;
    let (name, file_name, size) = ("chats".to_owned(), "x.jsonl".to_owned(), manifest.size);
    command(
        world,
        user,
        Command::CreateDataset { id: dataset, name, description: None, file_name, size, format: None },
    )
    .await;
    command(world, user, Command::ConfirmDataset { id: dataset, manifest }).await;
    let found: DatasetFindings = serde_json::from_value(serde_json::json!({
        "format": "CHAT_MESSAGES", "conversations": 1, "pairs": 1, "trainable_pairs": 1, "average_turns": 1.0,
        "tokens": null, "warnings": [], "errors": [], "error_count": 0, "samples": [] }))
    .unwrap();
    driver.inspected(Subject::Dataset(dataset), Ok(Inspection::Dataset(found)), vec![]).await;
    let base = BaseId(Uuid::now_v7());
    command(world, user, Command::RegisterBase { id: base, name: "tiny".into(), path: "/base".into() }).await;
    let found: BaseFindings = serde_json::from_value(serde_json::json!({
        "architecture": "L", "parameters": 1, "config_json": "{}", "dtype": "F32", "vocabulary": 1,
        "chat_template": false, "files": ["config.json"] }))
    .unwrap();
    let file = NamedFile { path: "config.json".into(), manifest: stored(world, b"{}").await };
    driver.inspected(Subject::Base(base), Ok(Inspection::Base(found)), vec![file]).await;
    let (job, spec) = (JobId(Uuid::now_v7()), JobFile::new("tiny", "chats").resolve(&Presets::embedded()).unwrap());
    command(world, user, Command::SubmitJob { id: job, spec: Box::new(spec), start: Default::default() }).await;
    let found: JobFindings = serde_json::from_value(serde_json::json!({
        "examples": 1, "validation_examples": 0, "total_steps": 2, "epoch_tokens": 3, "supervised_tokens": 1,
        "longest_tokens": 3, "cut_examples": 0, "cut_tokens": 0, "cpu_bytes": 10, "cuda_bytes": 10, "rendered": [] }))
    .unwrap();
    driver.inspected(Subject::Job(job), Ok(Inspection::Job(found)), vec![]).await;
}

/// An agent with a processor to offer, and the offer it gets.
pub(super) async fn offered(world: &World, seed: u8) -> (Control, Connection, Offer) {
    let (identity, key) = world.node(seed).await;
    offered_to(world, (&identity, &key)).await
}

async fn offered_to(world: &World, identity: (&Identity, &KeyPair)) -> (Control, Connection, Offer) {
    let mut control = world.control(identity).await;
    let device = Device {
        id: DeviceId::cpu(),
        name: "processor".into(),
        kind: DeviceKind::Cpu,
        memory_bytes: 1 << 30,
        free_bytes: 1 << 30,
        usable: Ok(()),
    };
    control.say(FromAgent::Hello(Box::new(Hello { devices: vec![device], ..hello(1) }))).await;
    assert!(matches!(control.hear().await, ToAgent::Welcome(_)));
    let blob = world.dial(ALPN_BLOB_SHARE, Some(identity)).await.unwrap();
    let ToAgent::Offer(offer) = control.hear().await else { panic!("no offer") };
    control.say(FromAgent::Accepted(offer.attempt)).await;
    (control, blob, *offer)
}

/// One request, the bytes behind it, and the answer with the bytes behind that.
pub(super) async fn ask(blob: &Connection, request: BlobRequest, bytes: &[u8]) -> (BlobAnswer, Vec<u8>) {
    let (mut send, mut receive) = blob.open_bi().await.unwrap();
    wire::write(&mut send, &request).await.unwrap();
    send.write_all(bytes).await.unwrap();
    let answer = timeout(PATIENCE, wire::read(&mut receive)).await.unwrap().unwrap().unwrap();
    (answer, receive.read_to_end(1 << 20).await.unwrap())
}

fn report(offer: &Offer, number: u64, body: ReportBody) -> FromAgent {
    FromAgent::Report(Report { number, attempt: offer.attempt, time: UnixMillis(1), body })
}

#[tokio::test]
async fn an_attempt_fetches_its_files_and_no_others() {
    let world = World::new();
    queued(&world).await;
    let foreign = stored(&world, b"another's").await;
    let (_control, blob, offer) = offered(&world, 1).await;
    let (attempt, file) = (offer.attempt, offer.dataset.manifest.hash);
    let fetched = ask(&blob, BlobRequest::Fetch { attempt, file, chunk: 0 }, b"").await;
    assert_eq!(fetched, (BlobAnswer::Bytes(13), b"training data".to_vec()));
    let beyond = ask(&blob, BlobRequest::Fetch { attempt, file, chunk: 1 }, b"").await;
    assert_eq!(beyond.0, BlobAnswer::Refused(Refusal::Missing));
    let other = ask(&blob, BlobRequest::Fetch { attempt, file: foreign.hash, chunk: 0 }, b"").await;
    assert_eq!(other.0, BlobAnswer::Refused(Refusal::NotYours));
}

#[tokio::test]
async fn a_chunk_that_would_wait_behind_too_many_is_not_even_read() {
    let world = World::narrow(1);
    queued_over(&world, &[7; 4 << 10]).await;
    let (identity, key) = world.node(1).await;
    let (_control, blob, offer) = offered_to(&world, (&identity, &key)).await;
    let (attempt, file) = (offer.attempt, offer.dataset.manifest.hash);
    let fetch = move || BlobRequest::Fetch { attempt, file, chunk: 0 };
    // A byte a second: who asks first waits for an hour, and nobody waits here for that.
    let mut asked = tokio::task::JoinSet::new();
    let other = world.dial(ALPN_BLOB_SHARE, Some((&identity, &key))).await.unwrap();
    for other in [other.clone(), other] {
        asked.spawn(async move { ask(&other, fetch(), b"").await.0 });
    }
    assert_eq!(asked.join_next().await.unwrap().unwrap(), BlobAnswer::Refused(Refusal::Busy));
    let kept = world.services.blobs.list().await.unwrap().into_iter().find(|kept| kept.hash == file).unwrap();
    world.services.blobs.delete(kept).await.unwrap();
    let refused = ask(&blob, fetch(), b"").await.0;
    assert_eq!(refused, BlobAnswer::Refused(Refusal::Busy), "whoever looked for it would say that it is missing");
}

#[tokio::test]
async fn a_report_counts_only_when_its_files_are_here() {
    let world = World::new();
    queued(&world).await;
    let (mut control, blob, offer) = offered(&world, 2).await;
    let bytes = b"adapter weights".to_vec();
    let hash = Hash(*blake3::hash(&bytes).as_bytes());
    let manifest = FileManifest { size: bytes.len() as u64, hash, chunks: vec![hash] };
    let (step, loss, kind) = (1, 2.0, CheckpointKind::Periodic);
    let files = vec![NamedFile { path: "adapter_model.safetensors".into(), manifest: manifest.clone() }];
    let checkpoint = ReportBody::Checkpoint(Checkpoint { step, loss, kind, files });

    control.say(report(&offer, 1, ReportBody::Running { from_step: 0 })).await;
    assert_eq!(control.hear().await, ToAgent::Acknowledged { through: 1 });
    control.say(report(&offer, 2, checkpoint.clone())).await;
    // Lines are acknowledged behind it: had the report been taken, its own acknowledgement would come first.
    let (attempt, lines) = (offer.attempt, vec!["{}".to_owned(), "{}".to_owned()]);
    control.say(FromAgent::Events(EventLines { attempt, first: 1, lines })).await;
    assert_eq!(control.hear().await, ToAgent::EventsAcknowledged { attempt, through: 2 });

    let wanted = ask(&blob, BlobRequest::Offer { attempt, manifest }, b"").await;
    assert_eq!(wanted.0, BlobAnswer::Wanted(vec![0]));
    let wrong = ask(&blob, BlobRequest::Put { attempt, file: hash, chunk: 0 }, b"adapter weighty").await;
    assert_eq!(wrong.0, BlobAnswer::Refused(Refusal::Corrupt));
    assert_eq!(ask(&blob, BlobRequest::Put { attempt, file: hash, chunk: 0 }, &bytes).await.0, BlobAnswer::Stored);
    assert_eq!(ask(&blob, BlobRequest::Finish { attempt, file: hash }, b"").await.0, BlobAnswer::Stored);
    control.say(report(&offer, 2, checkpoint)).await;
    assert_eq!(control.hear().await, ToAgent::Acknowledged { through: 2 });
    let row = world.services.driver.job(Actor::System, attempt.job).await.unwrap();
    assert_eq!(row.checkpoint.map(|checkpoint| checkpoint.step), Some(1));
}

#[tokio::test]
async fn the_hash_of_anothers_file_is_no_leave_to_have_it() {
    let world = World::new();
    queued(&world).await;
    let foreign = stored(&world, b"another's").await;
    let (mut control, blob, offer) = offered(&world, 16).await;
    let (attempt, own) = (offer.attempt, offer.base[0].clone());
    let checkpoint = |step, manifest: &FileManifest| {
        let files = vec![NamedFile { path: "adapter_model.safetensors".into(), manifest: manifest.clone() }];
        ReportBody::Checkpoint(Checkpoint { step, loss: 2.0, kind: CheckpointKind::Periodic, files })
    };
    let wanted = ask(&blob, BlobRequest::Offer { attempt, manifest: foreign.clone() }, b"").await;
    assert_eq!(wanted.0, BlobAnswer::Wanted(vec![0]), "it has to bring the bytes");
    let finished = ask(&blob, BlobRequest::Finish { attempt, file: foreign.hash }, b"").await;
    assert!(matches!(finished.0, BlobAnswer::Refused(_)), "{finished:?}");
    control.say(report(&offer, 1, checkpoint(1, &foreign))).await;
    // Lines are acknowledged behind it: had the report been taken, its own acknowledgement would come first.
    control.say(FromAgent::Events(EventLines { attempt, first: 1, lines: vec!["{}".to_owned()] })).await;
    assert_eq!(control.hear().await, ToAgent::EventsAcknowledged { attempt, through: 1 });
    let fetched = ask(&blob, BlobRequest::Fetch { attempt, file: foreign.hash, chunk: 0 }, b"").await;
    assert_eq!(fetched.0, BlobAnswer::Refused(Refusal::NotYours));
    // What it may read anyway need not be brought.
    let wanted = ask(&blob, BlobRequest::Offer { attempt, manifest: own.manifest.clone() }, b"").await;
    assert_eq!(wanted.0, BlobAnswer::Wanted(vec![]));
    control.say(report(&offer, 1, checkpoint(1, &own.manifest))).await;
    assert_eq!(control.hear().await, ToAgent::Acknowledged { through: 1 });
}

/// An attempt of one node, whose connections last as long as they are held, and another node with its key.
async fn offered_to_another(world: &World) -> (Offer, (Control, Connection), Control, KeyPair) {
    queued(world).await;
    let (control, blob, offer) = offered(world, 3).await;
    let (identity, key) = world.node(4).await;
    let mut stranger = world.control((&identity, &key)).await;
    stranger.hello(2).await;
    (offer, (control, blob), stranger, key)
}

#[tokio::test]
async fn lines_of_another_nodes_attempt_are_not_kept() {
    let world = World::new();
    let (offer, _to_another, mut stranger, key) = offered_to_another(&world).await;
    let (attempt, lines) = (offer.attempt, vec!["forged".to_owned()]);
    stranger.say(FromAgent::Events(EventLines { attempt, first: 1, lines })).await;
    // Something that is answered, behind it.
    stranger.say(FromAgent::Renew(request(&key))).await;
    assert!(matches!(stranger.hear().await, ToAgent::Renewed(_)));
    assert_eq!(world.services.series.through(attempt).await.unwrap(), 0);
}

#[tokio::test]
async fn a_flood_of_lines_of_another_nodes_attempt_is_no_flood_in_the_log() {
    let world = World::new();
    let (offer, _to_another, mut stranger, key) = offered_to_another(&world).await;
    let warnings = Warnings::default();
    let _logging = tracing::subscriber::set_default(warnings.clone());
    for first in 1..=100 {
        let lines = vec!["forged".to_owned()];
        stranger.say(FromAgent::Events(EventLines { attempt: offer.attempt, first, lines })).await;
    }
    // Something that is answered, behind them.
    stranger.say(FromAgent::Renew(request(&key))).await;
    assert!(matches!(stranger.hear().await, ToAgent::Renewed(_)));
    assert_eq!(warnings.0.load(Ordering::Relaxed), 8);
}

/// Counts what is warned of on this thread.
#[derive(Debug, Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn a_report_of_an_attempt_that_no_longer_counts_is_acknowledged_without_its_files() {
    let world = World::new();
    queued(&world).await;
    let (_control, _blob, offer) = offered(&world, 5).await;
    let (identity, key) = world.node(6).await;
    let mut other = world.control((&identity, &key)).await;
    other.hello(2).await;
    let manifest = FileManifest { size: 1, hash: Hash([8; 32]), chunks: vec![Hash([8; 32])] };
    let files = vec![NamedFile { path: "adapter_model.safetensors".into(), manifest }];
    let checkpoint = Checkpoint { step: 1, loss: 2.0, kind: CheckpointKind::Periodic, files };
    // Nobody will ever bring these files: without an answer, everything that the node reports would wait behind them.
    other.say(report(&offer, 1, ReportBody::Checkpoint(checkpoint))).await;
    assert_eq!(other.hear().await, ToAgent::Acknowledged { through: 1 });
}

#[tokio::test]
async fn a_number_that_is_none_ends_the_session_and_is_not_recorded() {
    let world = World::new();
    queued(&world).await;
    let (mut control, _blob, offer) = offered(&world, 7).await;
    let checkpoint = Checkpoint { step: 1, loss: f64::NAN, kind: CheckpointKind::Periodic, files: vec![] };
    control.say(report(&offer, 1, ReportBody::Checkpoint(checkpoint))).await;
    assert_eq!(control.hear().await, ToAgent::Goodbye(Farewell::Misbehaved));
    close_code(&control.connection).await;
    let rows = world.services.driver.checkpoints(Actor::System, offer.attempt.job).await.unwrap();
    assert_eq!(rows, []);
}

#[tokio::test]
async fn lines_of_an_attempt_long_over_are_let_go_and_not_kept() {
    use crate::record::{Attempt, AttemptEnd, Record};
    let world = World::new();
    queued(&world).await;
    let (mut control, _blob, offer) = offered(&world, 8).await;
    let id = offer.attempt;
    let change = move |store: &Store| {
        let mut row = store.scan(&id.job.bytes(), |_: &Attempt| true)?.remove(0);
        row.id.token.number += 1;
        let outcome = lorikeet_protocol::job::Outcome::Lost;
        let (at, held) = (UnixMillis(1), Duration::ZERO);
        row.end = Some(AttemptEnd { outcome, class: None, message: None, at, held, last_event: 0 });
        let old = row.id;
        store.commit(&[Record::Attempt(row)])?;
        Ok(old)
    };
    let old = world.services.driver.read(change).await.unwrap();
    let lines = vec!["{}".to_owned(), "{}".to_owned()];
    control.say(FromAgent::Events(EventLines { attempt: old, first: 5, lines })).await;
    assert_eq!(control.hear().await, ToAgent::EventsAcknowledged { attempt: old, through: 6 });
    assert_eq!(world.services.series.through(old).await.unwrap(), 0);
}

#[tokio::test]
async fn lines_of_a_forgotten_job_are_let_go_and_those_of_an_earlier_generation_stay_where_they_are() {
    let world = World::new();
    queued(&world).await;
    let (mut control, _blob, offer) = offered(&world, 9).await;
    let forgotten = AttemptId { job: JobId(Uuid::now_v7()), ..offer.attempt };
    let earlier = AttemptId { token: AttemptToken { generation: 0, number: 1 }, ..forgotten };
    for attempt in [earlier, forgotten] {
        control.say(FromAgent::Events(EventLines { attempt, first: 1, lines: vec!["{}".to_owned()] })).await;
    }
    assert_eq!(control.hear().await, ToAgent::EventsAcknowledged { attempt: forgotten, through: 1 });
    assert_eq!(world.services.series.through(forgotten).await.unwrap(), 0);
}

#[tokio::test]
async fn a_report_of_a_job_that_is_not_here_is_taken_and_nothing_is_kept_of_it() {
    let world = World::new();
    queued(&world).await;
    let (mut control, _blob, offer) = offered(&world, 10).await;
    let attempt = AttemptId { job: JobId(Uuid::now_v7()), ..offer.attempt };
    let (outcome, held, step, last_event) = (lorikeet_protocol::job::Outcome::Ok, Duration::ZERO, 1, 0);
    let ended = Ended { outcome, class: None, message: None, step, held, files: vec![], summary: None, last_event };
    let body = ReportBody::Ended(ended);
    control.say(FromAgent::Report(Report { number: 1, attempt, time: UnixMillis(1), body })).await;
    assert_eq!(control.hear().await, ToAgent::Acknowledged { through: 1 });
    assert_eq!(control.hear().await, ToAgent::Forget(attempt), "the agent keeps nothing of it either");
    let kept = world.services.driver.read(|store| store.scan(&[], |_: &crate::record::Orphan| true)).await.unwrap();
    assert_eq!(kept, []);
}

#[tokio::test]
async fn of_what_a_restored_coordinator_does_not_know_only_files_that_are_here_are_kept() {
    let world = World::restored();
    let (identity, key) = world.node(11).await;
    let mut control = world.control((&identity, &key)).await;
    assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)));
    let attempt = AttemptId { job: JobId(Uuid::now_v7()), token: AttemptToken { generation: 1, number: 1 } };
    let manifest = FileManifest { size: 1, hash: Hash([7; 32]), chunks: vec![Hash([7; 32])] };
    let files = vec![NamedFile { path: "adapter_model.safetensors".into(), manifest }];
    let (outcome, held, step, last_event) = (lorikeet_protocol::job::Outcome::Ok, Duration::ZERO, 1, 0);
    let ended = Ended { outcome, class: None, message: None, step, held, files, summary: None, last_event };
    let body = ReportBody::Ended(ended);
    control.say(FromAgent::Report(Report { number: 1, attempt, time: UnixMillis(1), body })).await;
    while control.hear().await != (ToAgent::Acknowledged { through: 1 }) {}
    let kept = world.services.driver.read(|store| store.scan(&[], |_: &crate::record::Orphan| true)).await.unwrap();
    assert!(matches!(&kept[..], [one] if one.attempt == attempt && one.files.is_empty()), "{kept:?}");
}

#[tokio::test]
async fn energy_is_spoken_of_only_in_a_conversation_that_has_a_word_for_it() {
    let world = World::new();
    for (seed, conversation) in [(14, ALPN_CONTROL_EXPEL), (15, ALPN_CONTROL_METER)] {
        let (identity, key) = world.node(seed).await;
        let mut control = world.control_in(conversation, (&identity, &key)).await;
        assert!(matches!(control.hello(1).await, ToAgent::Welcome(_)));
        let attempt = AttemptId { job: JobId(Uuid::now_v7()), token: AttemptToken { generation: 1, number: 1 } };
        let (outcome, held, step, last_event) = (lorikeet_protocol::job::Outcome::Ok, Duration::ZERO, 1, 0);
        let ended = Ended { outcome, class: None, message: None, step, held, files: vec![], summary: None, last_event };
        let body = ReportBody::Metered(Metered { ended, energy_joules: 1 });
        control.say(FromAgent::Report(Report { number: 1, attempt, time: UnixMillis(1), body })).await;
        if conversation == ALPN_CONTROL_METER {
            assert_eq!(control.hear().await, ToAgent::Acknowledged { through: 1 });
        } else {
            let heard = timeout(PATIENCE, wire::read::<ToAgent>(&mut control.receive)).await.unwrap();
            assert!(!matches!(heard, Ok(Some(_))), "{heard:?}");
        }
    }
}
