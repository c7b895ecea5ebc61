//! Who may what, and what is written down about it.

use super::{world::*, *};

#[test]
fn a_repeated_request_is_answered_and_not_done_again() {
    let mut world = World::ready();
    let key = |body| Some(Idempotency { key: "k".into(), body: hash(body) });
    let submit = |n| Command::SubmitJob { id: JobId(uuid(n)), spec: Box::new(spec()), start: Default::default() };
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
        spec: None,
        created: UnixMillis(1),
        deleted_at: None,
    };
    let absent = JobId(uuid(999));
    let finished =
        crate::record::Job { id: JobId(uuid(71)), state: JobState::Expired, ..world.cluster.jobs[&job].record.clone() };
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
        let rows = Rows { job: Some(finished.clone()), model: Some(model.clone()), ..Rows::default() };
        let refused = world.request(user(), None, anothers.clone(), rows).0.unwrap_err();
        assert!(matches!(refused, Refusal::NotFound { .. }), "{anothers:?}: {refused}");
        assert_eq!(world.request(user(), None, absent, Rows::default()).0.unwrap_err(), refused, "word for word");
    }
    for question in [Query::Why(job), Query::Unreachable(job)] {
        assert!(matches!(world.cluster.answer(user(), question, world.now), Err(Refusal::NotFound { .. })));
    }
    let foreign = world
        .request(
            user(),
            None,
            Command::SubmitJob { id: JobId(uuid(74)), spec: Box::new(spec()), start: Default::default() },
            Rows::default(),
        )
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
        Command::RecordCertificate { node: NODE, serial: "s".into(), joined: None },
        Command::CreateToken { id: TokenId(uuid(82)), user: ADMIN, name: "t".into(), hash: hash(9), expires: None },
    ] {
        assert!(world.ask_as(user(), None, command).0.is_err());
    }
}

#[test]
fn every_change_leaves_one_audit_record() {
    let mut world = World::ready();
    let job = world.submit(1);
    let numbers: Vec<u64> = audits(&world.history).map(|audit| audit.number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let out = world.ask(Command::CancelJob { id: job, reason: None }).1;
    assert_eq!(audits(&out).filter(|audit| audit.action == "job.cancel").count(), 1);
}

#[test]
fn every_phase_of_a_job_follows_from_the_one_before_it() {
    let mut world = World::ready();
    let (good, attempt) = world.running(1);
    world.report(attempt, ReportBody::Finalizing);
    world.report(attempt, ended(Outcome::Ok));
    let (unwanted, attempt) = world.running(2);
    world.ask(Command::CancelJob { id: unwanted, reason: None }).0.unwrap();
    world.report(attempt, ended(Outcome::Cancelled));
    for (job, end) in [(good, "finalizing succeeded"), (unwanted, "cancelling cancelled")] {
        let phases = audits(&world.history).filter(|audit| audit.action == "job.phase");
        let mut went = vec!["submitted".to_owned()];
        for audit in phases.filter(|audit| audit.subject == job.to_string()) {
            assert_eq!(audit.before.as_ref(), went.last(), "{went:?}");
            went.extend(audit.after.clone());
        }
        assert!(went.join(" ").ends_with(&format!("running {end}")), "{went:?}");
    }
}

#[test]
fn a_join_that_is_refused_is_written_down_and_a_flood_of_them_as_a_number() {
    let mut world = World::ready();
    let knock = |world: &mut World, n: u128| {
        let command = Command::Join { secret: hash(77), key: hash(1), name: "n".into(), node: NodeId(uuid(n)) };
        world.ask_as(Actor::System, None, command).0.unwrap_err()
    };
    let refused = |world: &World| -> Vec<String> {
        let kind = |audit: &&Audit| audit.action == "node.join.refused";
        audits(&world.history).filter(kind).map(|audit| audit.after.clone().unwrap()).collect()
    };
    knock(&mut world, 100);
    assert!(matches!(&refused(&world)[..], [one] if one.contains("unknown")), "{:?}", refused(&world));
    (0..1_000).for_each(|n| drop(knock(&mut world, n)));
    assert_eq!(refused(&world).len(), 8);
    world.pass(Duration::from_secs(61));
    let told = refused(&world);
    assert!(told.len() == 9 && told[8].contains("993 more within 60 s"), "{told:?}");
    assert!(world.cluster.throttle.deadline().is_none(), "a minute without any is not looked at");
    knock(&mut world, 100);
    assert_eq!(refused(&world).len(), 10);
}

#[test]
fn a_report_of_an_attempt_that_was_never_this_nodes_is_taken_written_down_and_changes_nothing() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.join(OTHER);
    world.hello(OTHER, boot(2), vec![]);
    let before = world.cluster.jobs[&job].record.clone();
    let session = world.cluster.nodes[&OTHER].session.as_ref().unwrap().number;
    for (number, body) in [
        (1, ReportBody::Checkpoint(checkpoint(7))),
        (2, ended(Outcome::Ok)),
        (2, ended(Outcome::Ok)),
        (4, ended(Outcome::Ok)),
    ] {
        let report = Report { number, attempt, time: UnixMillis(1), body };
        let out = world.handle(Event::Stray { node: OTHER, session, report });
        let answered = sent(&out).any(|message| *message == ToAgent::Acknowledged { through: number });
        assert_eq!(answered, number < 4, "{number}");
        let rows = |record: &Record| matches!(record, Record::Checkpoint(_) | Record::Orphan(_) | Record::Job(_));
        assert!(row(&out, rows).is_none(), "{number}: {out:?}");
    }
    let told: Vec<_> = audits(&world.history).filter(|audit| audit.action == "report.refused").collect();
    assert!(
        told.len() == 2
            && told.iter().all(|audit| audit.subject == attempt.to_string() && audit.from == OTHER.to_string())
    );
    assert_eq!(world.cluster.jobs[&job].record, before);
}

#[test]
fn the_last_token_of_an_administrator_that_works_cannot_be_withdrawn() {
    let mut world = World::ready();
    let token = |n, user, expires| Command::CreateToken {
        id: TokenId(uuid(n)),
        user,
        name: "t".into(),
        hash: hash(n as u8),
        expires,
    };
    let other = UserId(uuid(90));
    let email = "u@example.org".into();
    world.ask(Command::CreateUser { id: other, email, name: "u".into(), role: Role::User }).0.unwrap();
    world.ask(token(91, other, None)).0.unwrap();
    world.ask(token(92, ADMIN, Some(UnixMillis(1)))).0.unwrap();
    let revoke = |world: &mut World, id| world.ask(Command::RevokeToken { id }).0;
    let refused = revoke(&mut world, TOKEN).unwrap_err();
    assert!(matches!(&refused, Refusal::Conflict { message } if message.contains("token add")), "{refused}");
    assert!(world.cluster.authenticate(hash(8), world.now).is_some());
    revoke(&mut world, TokenId(uuid(91))).unwrap();
    revoke(&mut world, TokenId(uuid(92))).unwrap();
    world.ask(token(93, ADMIN, None)).0.unwrap();
    revoke(&mut world, TOKEN).unwrap();
    revoke(&mut world, TokenId(uuid(93))).unwrap_err();
}
