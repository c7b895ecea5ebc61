//! Events in, actions out: the core's rules, one sentence each.

use super::*;
use crate::access::{Idempotency, Role};
use lorikeet_protocol::{
    agent::*,
    file::{FileManifest, NamedFile},
    id::*,
    inspect::{DatasetFindings, JobFindings},
    job::*,
};
use proptest::prelude::*;
use schedule::WhyNot;
use std::collections::BTreeSet;

#[test]
fn a_job_goes_from_submit_to_model() {
    let mut world = World::ready();
    let job = world.submit(1);
    let offer = world.offer_of(job).expect("an idle node gets an offer");
    world.accept(offer.attempt);
    world.report(offer.attempt, ReportBody::Preparing);
    world.report(offer.attempt, ReportBody::Running { from_step: 0 });
    assert_eq!(world.phase(job), Some(Phase::Running));
    world.report(offer.attempt, ReportBody::Finalizing);
    let out = world.report(offer.attempt, ended(Outcome::Ok));
    assert!(
        matches!(row(&out, |r| matches!(r, Record::Model(_))), Some(Record::Model(model)) if model.job == job && model.files.len() == 1)
    );
    assert_eq!(world.phase(job), None, "a finished job leaves memory");
    assert!(sent(&out).any(|message| *message == ToAgent::Forget(offer.attempt)));
}

#[test]
fn the_token_is_written_before_its_offer_is_sent() {
    let mut world = World::ready();
    let job = world.submit(1);
    let offer = world.offer_of(job).unwrap();
    let written = world.history.iter().position(|action| matches!(action, Action::Put(record) if matches!(&**record, Record::Attempt(row) if row.id == offer.attempt)));
    let said =
        world.history.iter().position(|action| matches!(action, Action::Send { message: ToAgent::Offer(_), .. }));
    assert!(written.unwrap() < said.unwrap());
}

#[test]
fn a_job_without_a_node_waits_and_says_why() {
    let mut world = World::new();
    world.prepare();
    let job = world.submit(1);
    assert_eq!(world.phase(job), Some(Phase::Queued));
    world.join(NODE);
    let Ok(Answer::Why(Some(why))) = world.cluster.answer(admin(), Query::Why(job), world.now) else {
        panic!("it waits")
    };
    assert_eq!(why.nodes[0].2, WhyNot::Unreachable);
    world.hello(NODE, boot(1), vec![]);
    assert!(world.offer_of(job).is_some());
}

#[test]
fn a_job_that_needs_more_memory_than_is_free_waits_and_says_how_much() {
    let mut world = World::ready_with(|findings| findings.cpu_bytes = 100 << 30);
    let job = world.submit(1);
    let Ok(Answer::Why(Some(why))) = world.cluster.answer(admin(), Query::Why(job), world.now) else {
        panic!("it waits")
    };
    assert_eq!(why.nodes[0].2, WhyNot::Memory { needed_bytes: 100 << 30, free_bytes: 8 << 30 });
}

#[test]
fn higher_priority_goes_first_then_age() {
    let mut world = World::ready();
    let first = world.submit(1);
    let second = world.submit_with(2, |spec| spec.priority = 50);
    let third = world.submit_with(3, |spec| spec.priority = 90);
    assert!(world.offer_of(first).is_some());
    let attempt = world.offer_of(first).unwrap().attempt;
    world.accept(attempt);
    world.report(attempt, ended(Outcome::Ok));
    assert!(world.offer_of(third).is_some());
    assert!(world.offer_of(second).is_none());
}

#[test]
fn an_offer_without_an_answer_is_withdrawn_and_a_late_yes_is_told_to_stop() {
    let mut world = World::ready();
    let job = world.submit(1);
    let old = world.offer_of(job).unwrap().attempt;
    world.pass_talking(Duration::from_secs(11));
    world.pass_talking(Duration::from_secs(2));
    let new = world.offer_of(job).unwrap().attempt;
    assert!(new.token > old.token);
    let out = world.accept(old);
    assert!(
        sent(&out)
            .any(|message| matches!(message, ToAgent::Stop { attempt, how: StopHow::Discard, .. } if *attempt == old))
    );
}

#[test]
fn silence_makes_unreachable_and_changes_nothing_else() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.pass(Duration::from_secs(6));
    world.pass(Duration::from_secs(40));
    world.pass(Duration::from_secs(6));
    assert!(world.cluster.jobs[&job].unreachable_since.is_some());
    assert_eq!(world.phase(job), Some(Phase::Running));
    world.heartbeat();
    assert!(world.cluster.jobs[&job].unreachable_since.is_none());
    assert_eq!(world.cluster.jobs[&job].record.current_attempt(), Some(attempt));
}

#[test]
fn after_lost_after_a_job_is_queued_again_and_goes_on_from_its_checkpoint() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.report(attempt, ReportBody::Checkpoint(checkpoint(100)));
    world.pass_in_steps(Duration::from_secs(400));
    assert_eq!(world.phase(job), Some(Phase::Queued));
    world.join(OTHER);
    world.hello(OTHER, boot(2), vec![]);
    world.pass(Duration::from_secs(2));
    let offer = world.offer_of(job).unwrap();
    assert_eq!(offer.attempt.token.number, 2);
    assert_eq!(offer.resume.unwrap().step, 100);
}

#[test]
fn a_job_that_waits_for_its_node_is_never_placed_twice() {
    let mut world = World::ready();
    let job = world.submit_with(1, |spec| spec.policy.on_lost = OnLost::Wait);
    let attempt = world.offer_of(job).unwrap().attempt;
    world.accept(attempt);
    world.pass_in_steps(Duration::from_secs(4_000));
    assert_eq!(world.cluster.jobs[&job].record.current_attempt(), Some(attempt));
}

#[test]
fn a_result_under_an_older_token_is_kept_and_never_applied() {
    let mut world = World::ready();
    let (job, old) = world.running(1);
    world.pass_in_steps(Duration::from_secs(400));
    world.join(OTHER);
    world.hello(OTHER, boot(2), vec![]);
    let out = world.hello(NODE, boot(1), vec![KnownAttempt { id: old, phase: AttemptPhase::Running }]);
    assert!(
        sent(&out)
            .any(|message| matches!(message, ToAgent::Welcome(welcome) if welcome.verdicts == [(old, Verdict::Stop)]))
    );
    let out = world.report(old, ReportBody::Checkpoint(checkpoint(200)));
    assert!(matches!(row(&out, |r| matches!(r, Record::Checkpoint(_))), Some(Record::Checkpoint(row)) if row.orphan));
    let out = world.report(old, ended(Outcome::Ok));
    assert!(row(&out, |r| matches!(r, Record::Orphan(_))).is_some());
    assert!(row(&out, |r| matches!(r, Record::Model(_))).is_none());
    assert_eq!(world.cluster.jobs[&job].record.checkpoint, None);
}

#[test]
fn a_report_counts_once_and_in_order() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    let number = world.cluster.nodes[&NODE].record.last_report;
    let repeat = Report { number, attempt, time: UnixMillis(0), body: ended(Outcome::Ok) };
    let out = world.hear(FromAgent::Report(repeat));
    assert!(sent(&out).any(|message| *message == ToAgent::Acknowledged { through: number }));
    assert_eq!(world.phase(job), Some(Phase::Running));
    let early = Report { number: number + 2, attempt, time: UnixMillis(0), body: ended(Outcome::Ok) };
    assert!(world.hear(FromAgent::Report(early)).is_empty());
    assert_eq!(world.phase(job), Some(Phase::Running));
}

#[test]
fn a_cancel_is_said_again_at_every_reconnect_and_wins_over_a_later_result() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    let out = world.ask(Command::CancelJob { id: job, reason: Some("other".into()) }).1;
    assert!(
        sent(&out)
            .any(|message| matches!(message, ToAgent::Stop { how: StopHow::Discard, cause: StopCause::Cancel, .. }))
    );
    assert_eq!(world.phase(job), Some(Phase::Cancelling));
    let out = world.hello(NODE, boot(1), vec![KnownAttempt { id: attempt, phase: AttemptPhase::Running }]);
    assert!(sent(&out).any(|message| matches!(message, ToAgent::Stop { cause: StopCause::Cancel, .. })));
    let out = world.report(attempt, ended(Outcome::Ok));
    assert!(row(&out, |r| matches!(r, Record::Orphan(_))).is_some());
    assert!(
        matches!(row(&out, |r| matches!(r, Record::Job(_))), Some(Record::Job(row)) if row.phase() == Phase::Cancelled)
    );
}

#[test]
fn a_paused_job_gives_its_device_back_and_goes_on_when_resumed() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.ask(Command::SetIntent { id: job, intent: Intent::Pause }).0.unwrap();
    world.report(attempt, ReportBody::Checkpoint(checkpoint(7)));
    world.report(attempt, ended(Outcome::Preempted));
    assert_eq!(world.phase(job), Some(Phase::Paused));
    world.ask(Command::SetIntent { id: job, intent: Intent::Run }).0.unwrap();
    assert_eq!(world.offer_of(job).unwrap().resume.unwrap().step, 7);
}

#[test]
fn infrastructure_costs_no_retry_and_the_users_failure_is_not_tried_again() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.report(attempt, ended(Outcome::Lost));
    assert_eq!(world.cluster.jobs[&job].record.user_failures, 0);
    world.pass_talking(Duration::from_secs(2));
    let attempt = world.offer_of(job).unwrap().attempt;
    world.accept(attempt);
    let out = world.report(attempt, failed(FailureClass::NonFinite));
    assert!(
        matches!(row(&out, |r| matches!(r, Record::Job(_))), Some(Record::Job(row)) if row.phase() == Phase::Failed)
    );
}

#[test]
fn a_job_that_always_crashes_stops_by_itself() {
    let mut world = World::ready();
    let (job, mut attempt) = world.running(1);
    for _ in 0..20 {
        world.report(attempt, ended(Outcome::Lost));
        world.pass_talking(Duration::from_secs(61));
        match world.offer_of(job) {
            Some(offer) => attempt = offer.attempt,
            None => break,
        }
        world.accept(attempt);
    }
    assert_eq!(world.phase(job), None);
}

#[test]
fn an_attempt_that_a_returning_agent_does_not_know_is_over_at_once() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.hello(NODE, boot(2), vec![]);
    assert_ne!(world.cluster.jobs[&job].record.current_attempt(), Some(attempt));
}

#[test]
fn an_offer_lost_on_the_way_is_made_again_under_the_same_token() {
    let mut world = World::ready();
    let job = world.submit(1);
    let attempt = world.offer_of(job).unwrap().attempt;
    let out = world.hello(NODE, boot(1), vec![]);
    assert!(sent(&out).any(|message| matches!(message, ToAgent::Offer(offer) if offer.attempt == attempt)));
}

#[test]
fn a_newer_session_supersedes_and_two_machines_with_one_key_stay_out() {
    let mut world = World::ready();
    let out = world.hello_as(NODE, boot(1), boot(11), vec![]);
    assert!(out.iter().any(|action| matches!(action, Action::Close { farewell: Farewell::Superseded, .. })));
    let out = world.hello_as(NODE, boot(1), boot(1), vec![]);
    assert!(out.iter().any(|action| matches!(action, Action::TurnAway { farewell: Farewell::TwoMachines, .. })));
    assert!(world.cluster.nodes[&NODE].record.quarantine.is_some());
}

#[test]
fn a_certificate_that_is_not_on_record_is_turned_away() {
    let mut world = World::ready();
    let hello = world.hello_message(boot(1), boot(1), vec![]);
    let out =
        world.handle(Event::SessionOpened { reply: 0, node: NODE, serial: "another".into(), hello: Box::new(hello) });
    assert!(out.iter().any(|action| matches!(action, Action::TurnAway { farewell: Farewell::Revoked, .. })));
}

#[test]
fn a_join_secret_works_for_one_key_and_again_for_that_key_only() {
    let mut world = World::new();
    let join = |key: u8, node: u128| Command::Join {
        secret: hash(1),
        key: hash(key),
        name: "n".into(),
        node: NodeId(uuid(node)),
    };
    world.ask(Command::CreateJoinSecret { hash: hash(1), expires: UnixMillis(world.now.wall.0 + 1_000) }).0.unwrap();
    let first = world.ask_as(Actor::System, None, join(2, 50)).0.unwrap();
    assert_eq!(world.ask_as(Actor::System, None, join(2, 51)).0.unwrap(), first);
    assert!(world.ask_as(Actor::System, None, join(3, 52)).0.unwrap_err().to_string().contains("another key"));
    world.ask(Command::CreateJoinSecret { hash: hash(4), expires: UnixMillis(world.now.wall.0 + 1_000) }).0.unwrap();
    world.pass(Duration::from_secs(2));
    let late = Command::Join { secret: hash(4), key: hash(2), name: "n".into(), node: NodeId(uuid(53)) };
    assert!(world.ask_as(Actor::System, None, late).0.unwrap_err().to_string().contains("expired"));
}

#[test]
fn a_repeated_request_is_answered_and_not_done_again() {
    let mut world = World::ready();
    let key = |body| Some(Idempotency { key: "k".into(), body: hash(body) });
    let submit = |n| Command::SubmitJob { id: JobId(uuid(n)), spec: Box::new(spec()) };
    let first = world.ask_as(admin(), key(1), submit(900)).0.unwrap();
    assert_eq!(world.ask_as(admin(), key(1), submit(901)).0.unwrap(), first);
    assert_eq!(world.ask_as(admin(), key(2), submit(902)).0, Err(Refusal::IdempotencyMismatch));
    assert_eq!(world.cluster.jobs.len(), 1);
    assert!(world.ask_as(user(), key(1), submit(903)).0.is_err(), "another's key is another key");
}

#[test]
fn what_is_anothers_does_not_exist() {
    let mut world = World::ready();
    let job = world.submit(1);
    let dataset = *world.cluster.datasets.keys().next().unwrap();
    let model = crate::record::Model {
        id: ModelId(uuid(70)),
        owner: ADMIN,
        job,
        token: AttemptToken { generation: 1, number: 1 },
        name: "m".into(),
        version: "1.0.0".into(),
        description: None,
        files: vec![],
        summary: None,
        dataset,
        base: BaseId(uuid(20)),
        created: UnixMillis(1),
        deleted_at: None,
    };
    let absent = JobId(uuid(999));
    let finished = crate::record::Job {
        id: JobId(uuid(71)),
        state: job::JobState::Expired,
        ..world.cluster.jobs[&job].record.clone()
    };
    let pairs = [
        (Command::CancelJob { id: job, reason: None }, Command::CancelJob { id: absent, reason: None }),
        (
            Command::SetIntent { id: job, intent: Intent::Pause },
            Command::SetIntent { id: absent, intent: Intent::Pause },
        ),
        (Command::SaveNow { id: job }, Command::SaveNow { id: absent }),
        (
            Command::RetryJob { old: finished.id, new: JobId(uuid(72)) },
            Command::RetryJob { old: absent, new: JobId(uuid(73)) },
        ),
        (Command::DeleteDataset { id: dataset }, Command::DeleteDataset { id: DatasetId(uuid(999)) }),
        (Command::ValidateDataset { id: dataset }, Command::ValidateDataset { id: DatasetId(uuid(999)) }),
        (
            Command::ConfirmDataset { id: dataset, manifest: manifest() },
            Command::ConfirmDataset { id: DatasetId(uuid(999)), manifest: manifest() },
        ),
        (Command::DeleteModel { id: model.id }, Command::DeleteModel { id: ModelId(uuid(999)) }),
        (
            Command::PatchModel { id: model.id, name: None, description: None },
            Command::PatchModel { id: ModelId(uuid(999)), name: None, description: None },
        ),
        (Command::RevokeToken { id: TOKEN }, Command::RevokeToken { id: TokenId(uuid(999)) }),
    ];
    for (anothers, absent) in pairs {
        let rows = Rows { job: Some(finished.clone()), model: Some(model.clone()) };
        let refused = world.request(user(), None, anothers.clone(), rows).0.unwrap_err();
        assert!(matches!(refused, Refusal::NotFound { .. }), "{anothers:?}: {refused}");
        assert_eq!(world.request(user(), None, absent, Rows::default()).0.unwrap_err(), refused, "word for word");
    }
    for question in [Query::Why(job), Query::Unreachable(job)] {
        assert!(matches!(world.cluster.answer(user(), question, world.now), Err(Refusal::NotFound { .. })));
    }
    let foreign = world
        .request(user(), None, Command::SubmitJob { id: JobId(uuid(74)), spec: Box::new(spec()) }, Rows::default())
        .0
        .unwrap_err();
    assert!(matches!(foreign, Refusal::Invalid { field, .. } if field == "dataset"));
}

#[test]
fn only_an_administrator_adds_users_bases_and_nodes() {
    let mut world = World::ready();
    for command in [
        Command::CreateUser {
            id: UserId(uuid(80)),
            email: "x@example.org".into(),
            name: "x".into(),
            role: Role::Admin,
        },
        Command::RegisterBase { id: BaseId(uuid(81)), name: "b2".into(), path: "/b2".into() },
        Command::RemoveBase { id: BaseId(uuid(20)) },
        Command::CreateJoinSecret { hash: hash(9), expires: UnixMillis(u64::MAX) },
        Command::RecordCertificate { node: NODE, serial: "s".into() },
        Command::CreateToken { id: TokenId(uuid(82)), user: ADMIN, name: "t".into(), hash: hash(9), expires: None },
    ] {
        assert!(world.ask_as(user(), None, command).0.is_err());
    }
}

#[test]
fn every_change_leaves_one_audit_record() {
    let mut world = World::ready();
    let job = world.submit(1);
    let numbers: Vec<u64> = world
        .history
        .iter()
        .filter_map(|action| match action {
            Action::Put(record) => {
                if let Record::Audit(audit) = &**record {
                    Some(audit.number)
                } else {
                    None
                }
            }
            Action::Reply { .. }
            | Action::Admit { .. }
            | Action::TurnAway { .. }
            | Action::Send { .. }
            | Action::Close { .. }
            | Action::Inspect(_)
            | Action::JobChanged(_) => None,
        })
        .collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let out = world.ask(Command::CancelJob { id: job, reason: None }).1;
    let audits = out.iter().filter(|action| matches!(action, Action::Put(record) if matches!(&**record, Record::Audit(audit) if audit.action == "job.cancel")));
    assert_eq!(audits.count(), 1);
}

#[test]
fn a_dataset_that_a_job_needs_stays() {
    let mut world = World::ready();
    world.submit(1);
    let dataset = *world.cluster.datasets.keys().next().unwrap();
    assert!(world.ask(Command::DeleteDataset { id: dataset }).0.unwrap_err().to_string().contains("needs the dataset"));
}

#[test]
fn a_coordinator_that_was_paused_listens_before_it_loses_anybody() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.pass(Duration::from_secs(4_000));
    assert_eq!(world.cluster.jobs[&job].record.current_attempt(), Some(attempt));
    world.heartbeat();
    world.pass(Duration::from_secs(6));
    assert_eq!(world.cluster.jobs[&job].record.current_attempt(), Some(attempt));
}

#[test]
fn a_node_reads_only_what_its_current_attempt_names() {
    let mut world = World::ready();
    let (_, attempt) = world.running(1);
    let may = |world: &World, node, attempt, file| {
        world.cluster.answer(Actor::System, Query::MayFetch { node, attempt, file }, world.now)
            == Ok(Answer::Allowed(true))
    };
    assert!(may(&world, NODE, attempt, hash(30)) && may(&world, NODE, attempt, hash(31)));
    assert!(!may(&world, NODE, attempt, hash(99)));
    assert!(!may(&world, OTHER, attempt, hash(30)));
    world.report(attempt, ended(Outcome::Ok));
    assert!(!may(&world, NODE, attempt, hash(30)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever is said in whatever order, the invariants hold, one success is applied at most once, and terminal states stay.
    #[test]
    fn any_conversation_keeps_the_invariants(moves in proptest::collection::vec((0u8..14, 0u8..4, 1u64..30), 1..80)) {
        let mut world = World::ready();
        world.join(OTHER);
        let mut known: Vec<AttemptId> = vec![];
        let mut over: BTreeSet<JobId> = BTreeSet::new();
        let mut models = 0usize;
        let mut serial = 0;
        for (kind, which, amount) in moves {
            let seen = world.history.len();
            let node = if which % 2 == 0 { NODE } else { OTHER };
            let attempt = known.get(usize::from(which) % known.len().max(1)).copied();
            match (kind, attempt) {
                (0 | 1, _) => { serial += 1; world.submit(1_000 + serial); }
                (2, _) => { world.hello(node, boot(which.into()), known.iter().map(|id| KnownAttempt { id: *id, phase: AttemptPhase::Running }).collect()); }
                (3, _) => { world.hello(node, boot(which.into()), vec![]); }
                (4, _) => world.pass(Duration::from_secs(amount * 20)),
                (5, _) => world.pass_talking(Duration::from_secs(amount)),
                (6, Some(attempt)) => { world.hear_from(node, FromAgent::Accepted(attempt)); }
                (7, Some(attempt)) => { world.report_from(node, attempt, ReportBody::Running { from_step: 0 }); }
                (8, Some(attempt)) => { world.report_from(node, attempt, ReportBody::Checkpoint(checkpoint(amount))); }
                (9, Some(attempt)) => { world.report_from(node, attempt, ended(Outcome::Ok)); }
                (10, Some(attempt)) => { world.report_from(node, attempt, ended(Outcome::Lost)); }
                (11, Some(attempt)) => { let _ = world.ask(Command::CancelJob { id: attempt.job, reason: None }); }
                (12, Some(attempt)) => { let _ = world.ask(Command::SetIntent { id: attempt.job, intent: Intent::Pause }); }
                (13, Some(attempt)) => { let _ = world.ask(Command::SetIntent { id: attempt.job, intent: Intent::Run }); }
                _ => world.heartbeat(),
            }
            for action in &world.history[seen..] {
                match action {
                    Action::Send { message: ToAgent::Offer(offer), .. } if !known.contains(&offer.attempt) => known.push(offer.attempt),
                    Action::Put(record) => match &**record {
                        Record::Job(job) => {
                            prop_assert!(!over.contains(&job.id), "a terminal state was left");
                            if job.phase().is_terminal() { over.insert(job.id); }
                        }
                        Record::Model(_) => models += 1,
                        _ => {}
                    },
                    _ => {}
                }
            }
            prop_assert!(models <= over.len());
        }
    }
}

const ADMIN: UserId = UserId(uuid(1));
const TOKEN: TokenId = TokenId(uuid(2));
const NODE: NodeId = NodeId(uuid(10));
const OTHER: NodeId = NodeId(uuid(11));

const fn uuid(n: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(n)
}

fn boot(n: u128) -> BootId {
    BootId(uuid(n))
}

fn hash(byte: u8) -> Hash {
    Hash([byte; 32])
}

fn manifest() -> FileManifest {
    FileManifest { size: 10, hash: hash(31), chunks: vec![hash(31)] }
}

fn admin() -> Actor {
    Actor::User { id: ADMIN, role: Role::Admin, token: TOKEN }
}

fn user() -> Actor {
    Actor::User { id: UserId(uuid(3)), role: Role::User, token: TokenId(uuid(4)) }
}

fn checkpoint(step: u64) -> Checkpoint {
    Checkpoint { step, loss: 1.0, kind: CheckpointKind::Periodic, files: vec![] }
}

fn ended(outcome: Outcome) -> ReportBody {
    let files = vec![NamedFile { path: "adapter_model.safetensors".into(), manifest: manifest() }];
    ReportBody::Ended(Ended {
        outcome,
        class: None,
        message: None,
        step: 3,
        held: Duration::from_secs(5),
        files,
        summary: None,
    })
}

fn failed(class: FailureClass) -> ReportBody {
    ReportBody::Ended(Ended {
        outcome: class.outcome(),
        class: Some(class),
        message: None,
        step: 3,
        held: Duration::from_secs(5),
        files: vec![],
        summary: None,
    })
}

fn sent(out: &[Action]) -> impl Iterator<Item = &ToAgent> {
    out.iter().filter_map(|action| if let Action::Send { message, .. } = action { Some(message) } else { None })
}

fn row(out: &[Action], wanted: impl Fn(&Record) -> bool) -> Option<&Record> {
    out.iter()
        .filter_map(|action| if let Action::Put(record) = action { Some(&**record) } else { None })
        .rfind(|record| wanted(record))
}

fn spec() -> JobSpec {
    JobSpec {
        name: "tone".into(),
        base: "b".into(),
        dataset: "d".into(),
        preset: "balanced".into(),
        priority: 50,
        task: Task::Train(Train {
            training: Training {
                learning_rate: 1e-4,
                batch_size: 4,
                micro_tokens: MicroTokens::Auto,
                length: TrainingLength::Epochs(1),
                max_seq_length: 512,
                schedule: Schedule::Cosine,
                adam_beta1: 0.9,
                adam_beta2: 0.999,
                adam_epsilon: 1e-8,
                warmup_ratio: 0.1,
                weight_decay: 0.0,
                max_grad_norm: 1.0,
                shuffle: true,
                seed: 42,
                validation_fraction: 0.1,
                supervise: Supervise::Assistant,
                eval_every: Every::Epoch,
                checkpoint_every: Every::Steps(100),
                base_dtype: BaseDtype::Auto,
            },
            data: DataFilter::default(),
            lora: Lora { rank: 8, alpha: 16.0, dropout: 0.0, target_modules: TargetModules::AllLinear, rslora: false },
        }),
        resources: Resources {
            gpus: 1,
            gpu: GpuRequest::Any,
            labels: Default::default(),
            max_runtime: Duration::from_secs(86_400),
        },
        policy: Policy {
            retries: 2,
            lost_after: Duration::from_secs(300),
            on_lost: OnLost::Requeue,
            max_cost_micros: None,
        },
    }
}

/// A cluster, a clock, and everything it ever said.
struct World {
    cluster: Cluster,
    now: Now,
    history: Vec<Action>,
    findings: JobFindings,
}

impl World {
    fn new() -> Self {
        let now = Now { mono: Duration::from_secs(100), wall: UnixMillis(1_790_000_000_000) };
        let cluster = Cluster::new(Loaded { generation: 1, ..Loaded::default() }, Timers::default(), now);
        let findings = JobFindings {
            examples: 10,
            validation_examples: 1,
            total_steps: 3,
            epoch_tokens: 100,
            supervised_tokens: 50,
            longest_tokens: 20,
            cut_examples: 0,
            cut_tokens: 0,
            cpu_bytes: 1 << 30,
            cuda_bytes: 1 << 30,
            rendered: vec![],
        };
        let mut world = Self { cluster, now, history: vec![], findings };
        let admin =
            Command::CreateUser { id: ADMIN, email: "a@example.org".into(), name: "A".into(), role: Role::Admin };
        world.ask_as(Actor::System, None, admin).0.unwrap();
        world
            .ask_as(
                Actor::System,
                None,
                Command::CreateToken { id: TOKEN, user: ADMIN, name: "t".into(), hash: hash(8), expires: None },
            )
            .0
            .unwrap();
        world.pass(Duration::from_secs(6));
        world
    }

    fn ready() -> Self {
        Self::ready_with(|_| {})
    }

    /// A dataset, a base and an idle node.
    fn ready_with(change: impl FnOnce(&mut JobFindings)) -> Self {
        let mut world = Self::new();
        change(&mut world.findings);
        world.prepare();
        world.join(NODE);
        world.hello(NODE, boot(1), vec![]);
        world
    }

    fn prepare(&mut self) {
        let (dataset, base) = (DatasetId(uuid(21)), BaseId(uuid(20)));
        self.ask(Command::CreateDataset {
            id: dataset,
            name: "d".into(),
            description: None,
            file_name: "d.jsonl".into(),
            size: 10,
            format: None,
        })
        .0
        .unwrap();
        self.ask(Command::ConfirmDataset { id: dataset, manifest: manifest() }).0.unwrap();
        let found = DatasetFindings {
            format: None,
            conversations: 3,
            pairs: 3,
            trainable_pairs: 3,
            average_turns: 2.0,
            tokens: None,
            warnings: vec![],
            errors: vec![],
            error_count: 0,
            samples: vec![],
        };
        self.handle(Event::Inspected {
            subject: Subject::Dataset(dataset),
            result: Ok(Inspection::Dataset(found)),
            files: vec![],
        });
        self.ask(Command::RegisterBase { id: base, name: "b".into(), path: "/b".into() }).0.unwrap();
        let found = lorikeet_protocol::inspect::BaseFindings {
            architecture: "LlamaForCausalLM".into(),
            parameters: 1,
            config_json: "{}".into(),
            dtype: "F32".into(),
            vocabulary: 256,
            chat_template: false,
            files: vec![],
        };
        let files = vec![NamedFile {
            path: "model.safetensors".into(),
            manifest: FileManifest { size: 10, hash: hash(30), chunks: vec![hash(30)] },
        }];
        self.handle(Event::Inspected { subject: Subject::Base(base), result: Ok(Inspection::Base(found)), files });
    }

    fn join(&mut self, node: NodeId) {
        let record = crate::record::Node {
            id: node,
            name: "n".into(),
            joined: UnixMillis(1),
            serials: vec!["s".into()],
            quarantine: None,
            boot: None,
            sessions: 0,
            last_report: 0,
        };
        let now = self.now;
        self.cluster.nodes.insert(node, LiveNode::new(record, now));
    }

    fn hello_message(&self, boot: BootId, instance: BootId, attempts: Vec<KnownAttempt>) -> Hello {
        let device = Device {
            id: DeviceId::cpu(),
            name: "cpu".into(),
            kind: DeviceKind::Cpu,
            memory_bytes: 16 << 30,
            free_bytes: 8 << 30,
            usable: Ok(()),
        };
        Hello {
            boot,
            instance,
            version: "0".into(),
            name: "n".into(),
            labels: Default::default(),
            devices: vec![device],
            attempts,
            cached: vec![],
            last_report: 0,
        }
    }

    fn hello(&mut self, node: NodeId, boot: BootId, attempts: Vec<KnownAttempt>) -> Vec<Action> {
        let instance = self.cluster.nodes[&node].session.as_ref().map_or(BootId(boot.0), |_| BootId(boot.0));
        self.hello_as(node, boot, instance, attempts)
    }

    fn hello_as(&mut self, node: NodeId, boot: BootId, instance: BootId, attempts: Vec<KnownAttempt>) -> Vec<Action> {
        let hello = self.hello_message(boot, instance, attempts);
        self.handle(Event::SessionOpened { reply: 0, node, serial: "s".into(), hello: Box::new(hello) })
    }

    fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut out = self.cluster.handle(event, self.now);
        out.extend(self.cluster.handle(Event::Ticked, self.now));
        self.cluster.check_invariants();
        self.history.extend(out.iter().cloned());
        out
    }

    fn pass(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.wall.0 += time.as_millis() as u64;
        self.handle(Event::Ticked);
    }

    /// Time passes while this process runs as it should.
    fn pass_in_steps(&mut self, time: Duration) {
        for _ in 0..time.as_secs() / 5 {
            self.pass(Duration::from_secs(5));
        }
    }

    /// Time passes while the node goes on talking.
    fn pass_talking(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.pass(Duration::from_secs(1));
            self.heartbeat();
        }
    }

    fn heartbeat(&mut self) {
        self.hear(FromAgent::Heartbeat);
    }

    fn hear(&mut self, message: FromAgent) -> Vec<Action> {
        self.hear_from(NODE, message)
    }

    fn hear_from(&mut self, node: NodeId, message: FromAgent) -> Vec<Action> {
        let session = self.cluster.nodes[&node].record.sessions;
        self.handle(Event::Heard { node, session, message })
    }

    fn accept(&mut self, attempt: AttemptId) -> Vec<Action> {
        self.hear(FromAgent::Accepted(attempt))
    }

    fn report(&mut self, attempt: AttemptId, body: ReportBody) -> Vec<Action> {
        self.report_from(NODE, attempt, body)
    }

    fn report_from(&mut self, node: NodeId, attempt: AttemptId, body: ReportBody) -> Vec<Action> {
        let number = self.cluster.nodes[&node].record.last_report + 1;
        self.hear_from(node, FromAgent::Report(Report { number, attempt, time: self.now.wall, body }))
    }

    fn ask(&mut self, command: Command) -> (Result<Receipt, Refusal>, Vec<Action>) {
        self.ask_as(admin(), None, command)
    }

    fn ask_as(
        &mut self,
        actor: Actor,
        idempotency: Option<Idempotency>,
        command: Command,
    ) -> (Result<Receipt, Refusal>, Vec<Action>) {
        self.request(actor, idempotency, command, Rows::default())
    }

    fn request(
        &mut self,
        actor: Actor,
        idempotency: Option<Idempotency>,
        command: Command,
        rows: Rows,
    ) -> (Result<Receipt, Refusal>, Vec<Action>) {
        let context = Context { actor, request: RequestId(uuid(5)), from: "test".into(), idempotency };
        let out = self.handle(Event::Requested { reply: 7, context, command, rows });
        let reply = out.iter().find_map(|action| {
            if let Action::Reply { reply: 7, result } = action { Some(result.clone()) } else { None }
        });
        let result = reply
            .expect("every request is answered")
            .map(|answer| if let Answer::Receipt(receipt) = answer { receipt } else { panic!("{answer:?}") });
        (result, out)
    }

    fn submit(&mut self, n: u128) -> JobId {
        self.submit_with(n, |_| {})
    }

    fn submit_with(&mut self, n: u128, change: impl FnOnce(&mut JobSpec)) -> JobId {
        let id = JobId(uuid(100 + n));
        let mut spec = spec();
        change(&mut spec);
        self.now.wall.0 += 1;
        self.ask(Command::SubmitJob { id, spec: Box::new(spec) }).0.unwrap();
        let found = Inspection::Job(self.findings.clone());
        self.handle(Event::Inspected { subject: Subject::Job(id), result: Ok(found), files: vec![] });
        id
    }

    fn running(&mut self, n: u128) -> (JobId, AttemptId) {
        let job = self.submit(n);
        let attempt = self.offer_of(job).unwrap().attempt;
        self.accept(attempt);
        self.report(attempt, ReportBody::Running { from_step: 0 });
        (job, attempt)
    }

    /// The newest offer of a job that is still on the table.
    fn offer_of(&self, job: JobId) -> Option<Offer> {
        let current = self.cluster.jobs.get(&job)?.record.current_attempt()?;
        self.history.iter().rev().find_map(|action| match action {
            Action::Send { message: ToAgent::Offer(offer), .. } if offer.attempt == current => Some((**offer).clone()),
            _ => None,
        })
    }

    fn phase(&self, job: JobId) -> Option<Phase> {
        self.cluster.jobs.get(&job).map(|job| job.record.phase())
    }
}
