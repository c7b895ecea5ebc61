//! Nodes: joining, sessions, and what a returning agent is told.

use super::{world::*, *};

#[test]
fn an_attempt_that_a_returning_agent_does_not_know_is_over_at_once() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.hello(NODE, boot(2), vec![]);
    assert_ne!(world.cluster.jobs[&job].record.current_attempt(), Some(attempt));
}

#[test]
fn a_newer_session_supersedes_and_two_machines_with_one_key_stay_out() {
    let mut world = World::ready();
    let out = world.hello_as(NODE, boot(1), boot(11), vec![]);
    assert!(out.iter().any(|action| matches!(action, Action::Close { farewell: Farewell::Superseded, .. })));
    let out = world.hello_as(NODE, boot(1), boot(1), vec![]);
    assert!(out.iter().any(|action| matches!(action, Action::TurnAway { farewell: Farewell::TwoMachines, .. })));
    let why = world.cluster.nodes[&NODE].record.quarantine.clone().expect("it is kept out");
    assert_eq!(story(&out, NODE), [("node.quarantine", "", why.as_str())]);
    let out = world.hello_as(NODE, boot(1), boot(12), vec![]);
    assert!(out.iter().any(|action| matches!(action, Action::TurnAway { farewell: Farewell::TwoMachines, .. })));
    assert!(world.ask_as(user(), None, Command::OpenNode { id: NODE }).0.is_err());
    world.ask(Command::OpenNode { id: NODE }).0.unwrap();
    let out = world.hello_as(NODE, boot(1), boot(12), vec![]);
    assert!(out.iter().any(|action| matches!(action, Action::Admit { .. })));
}

#[test]
fn a_node_that_talks_nonsense_again_and_again_is_kept_out_and_loses_what_it_holds() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    let known = [KnownAttempt { id: attempt, phase: AttemptPhase::Running }];
    let session = |world: &mut World, nonsense| {
        let out = world.hello_as(NODE, boot(1), boot(1), known.to_vec());
        let session = world.cluster.nodes[&NODE].record.sessions;
        world.handle(Event::SessionClosed { node: NODE, session, nonsense });
        out.iter().any(|action| matches!(action, Action::Admit { .. }))
    };
    let nonsense = Some("it said hello twice");
    for _ in 0..3 {
        for _ in 0..4 {
            assert!(session(&mut world, nonsense));
            assert!(session(&mut world, None), "one that is cut is not held against it");
        }
        world.pass_talking(Duration::from_secs(601));
    }
    for _ in 0..5 {
        assert!(session(&mut world, nonsense));
    }
    let why = world.cluster.nodes[&NODE].record.quarantine.clone().expect("it is kept out");
    assert!(why.starts_with("5 of its sessions within 10m") && why.contains("it said hello twice"), "{why}");
    assert_eq!(story(&world.history, NODE), [("node.quarantine", "", why.as_str())]);
    for _ in 0..400 {
        world.pass(Duration::from_secs(1));
        let out = world.hello_as(NODE, boot(1), boot(1), known.to_vec());
        assert!(out.iter().any(|action| matches!(action, Action::TurnAway { farewell: Farewell::Misbehaved, .. })));
    }
    assert_eq!(world.phase(job), Some(Phase::Queued), "no hello of it is a sign of life any more");
    world.ask(Command::OpenNode { id: NODE }).0.unwrap();
    assert!(session(&mut world, nonsense) && session(&mut world, None), "it begins anew");
}

#[test]
fn a_device_that_goes_out_and_one_that_comes_back_are_written_down_once() {
    let mut world = World::with_gpus(2, Rules::default());
    let first = gpu(0).id;
    let mut tell = |usable: Result<(), String>, session| {
        let devices = vec![Device { usable, ..gpu(0) }, gpu(1)];
        let out = world.handle(Event::Heard { node: NODE, session, message: FromAgent::Devices(devices) });
        let told = audits(&out).map(|audit| (audit.action.clone(), audit.before.clone(), audit.after.clone()));
        assert!(audits(&out).all(|audit| audit.subject == format!("{NODE} {first}")));
        told.collect::<Vec<_>>()
    };
    let out = || Err("it failed".to_owned());
    assert_eq!(tell(Ok(()), 1), []);
    assert_eq!(tell(out(), 1), [("device.out".into(), None, Some("it failed".into()))]);
    assert_eq!(tell(Err("its test failed as well".into()), 1), []);
    assert_eq!(tell(Ok(()), 0), [], "nobody's session");
    let back = ("device.back".to_owned(), Some("its test failed as well".to_owned()), None);
    assert_eq!(tell(Ok(()), 1), [back]);
}

#[test]
fn devices_that_flap_without_end_fill_no_store() {
    let mut world = World::with_gpus(1, Rules::default());
    for look in 0..1_000 {
        let usable = if look % 2 == 0 { Err("it failed".to_owned()) } else { Ok(()) };
        let devices = vec![Device { usable, ..gpu(0) }];
        world.handle(Event::Heard { node: NODE, session: 1, message: FromAgent::Devices(devices) });
    }
    let of_devices = |world: &World| -> Vec<Audit> {
        audits(&world.history).filter(|audit| audit.action.starts_with("device.")).cloned().collect()
    };
    assert_eq!(of_devices(&world).len(), 16, "eight of each kind, one by one");
    world.pass(Duration::from_secs(61));
    let told = of_devices(&world);
    assert_eq!(told.len(), 18);
    for rest in &told[16..] {
        assert_eq!(rest.subject, NODE.to_string());
        assert!(rest.after.as_deref().is_some_and(|why| why.starts_with("492 more within 60 s")), "{rest:?}");
    }
}

#[test]
fn a_certificate_that_is_not_on_record_is_turned_away() {
    let mut world = World::ready();
    let hello = world.hello_message(boot(1), boot(1), vec![]);
    let out =
        world.handle(Event::SessionOpened { reply: 0, node: NODE, shown: shown("another"), hello: Box::new(hello) });
    assert!(out.iter().any(|action| matches!(action, Action::TurnAway { farewell: Farewell::Revoked, .. })));
}

#[test]
fn a_key_that_no_record_tells_is_learnt_from_the_ca_that_signs_now_and_kept() {
    let mut world = World::ready();
    world.cluster.nodes.get_mut(&NODE).unwrap().record.key = None;
    let comes = |world: &mut World, shown: Shown| {
        let hello = world.hello_message(boot(1), boot(1), vec![]);
        let out = world.handle(Event::SessionOpened { reply: 0, node: NODE, shown, hello: Box::new(hello) });
        out.iter().any(|action| matches!(action, Action::Admit { .. }))
    };
    let other = hash(9);
    assert!(!comes(&mut world, Shown { is_newest: false, ..shown("s") }), "anybody may have made it");
    assert!(comes(&mut world, Shown { key: other, ..shown("s") }));
    assert!(!comes(&mut world, shown("s")), "it has a key now");
    assert!(
        comes(&mut world, Shown { key: other, is_newest: false, ..shown("s") }),
        "a rotation changes nothing for it"
    );
    assert!(row(&world.history, |record| matches!(record, Record::Node(row) if row.key == Some(other))).is_some());
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
fn join_secrets_leave_memory_a_day_after_their_end() {
    let mut world = World::new();
    let invite = |world: &mut World, secret: u8| {
        let expires = UnixMillis(world.now.wall.0 + 1_000);
        world.ask(Command::CreateJoinSecret { hash: hash(secret), expires }).0.unwrap();
    };
    let join = |secret, key| Command::Join { secret, key, name: "n".into(), node: NodeId(uuid(50)) };
    (1..=100).for_each(|secret| invite(&mut world, secret));
    let first = world.ask_as(Actor::System, None, join(hash(1), hash(2))).0.unwrap();
    world.now.wall.0 += JoinSecret::KEPT_MILLIS;
    invite(&mut world, 101);
    assert_eq!(world.cluster.secrets.len(), 101, "their day is not over");
    assert_eq!(world.ask_as(Actor::System, None, join(hash(1), hash(2))).0, Ok(first), "its answer may have been lost");
    world.now.wall.0 += 1_000;
    invite(&mut world, 102);
    assert_eq!(world.cluster.secrets.into_keys().collect::<Vec<_>>(), [hash(101), hash(102)]);
}

#[test]
fn a_coordinator_from_an_older_copy_does_not_wait_for_reports_that_are_gone() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    let known = world.cluster.nodes[&NODE].record.last_report;
    let mut hello =
        world.hello_message(boot(1), boot(1), vec![KnownAttempt { id: attempt, phase: AttemptPhase::Running }]);
    hello.acknowledged = known + 40;
    world.handle(Event::SessionOpened { reply: 0, node: NODE, shown: shown("s"), hello: Box::new(hello) });
    let next = Report { number: known + 41, attempt, time: UnixMillis(0), body: ended(Outcome::Ok) };
    let out = world.hear(FromAgent::Report(next));
    assert!(sent(&out).any(|message| *message == ToAgent::Acknowledged { through: known + 41 }));
    assert_eq!(world.phase(job), None, "its end was applied");
}

#[test]
fn a_silent_node_is_unreachable_even_when_nothing_runs_there() {
    let mut world = World::ready();
    world.pass_in_steps(Duration::from_secs(40));
    assert!(world.cluster.nodes[&NODE].unreachable_since.is_some());
    world.heartbeat();
    assert!(world.cluster.nodes[&NODE].unreachable_since.is_none());
}

#[test]
fn a_lost_renewal_does_not_shut_a_node_out_and_a_used_one_retires_the_old() {
    let mut world = World::ready();
    for n in 0..20 {
        world
            .ask_as(
                Actor::System,
                None,
                Command::RecordCertificate { node: NODE, serial: format!("n{n}"), joined: None },
            )
            .0
            .unwrap();
    }
    let serials = &world.cluster.nodes[&NODE].record.serials;
    assert!(serials.len() <= 9 && serials[0] == "s" && serials.last().unwrap() == "n19");
    let hello = world.hello_message(boot(1), boot(1), vec![]);
    world.handle(Event::SessionOpened { reply: 0, node: NODE, shown: shown("n19"), hello: Box::new(hello) });
    assert_eq!(world.cluster.nodes[&NODE].record.serials, ["n19"]);
}
