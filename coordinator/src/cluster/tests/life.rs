//! What a person decides about a node.

use super::{world::*, *};

#[test]
fn a_cordoned_node_keeps_what_it_has_and_takes_nothing_new() {
    let mut world = World::with_gpus(2, Rules::default());
    let (running, attempt) = world.running(1);
    world.ask(Command::CordonNode { id: NODE }).0.unwrap();
    let waits = world.submit(2);
    assert_eq!(world.why(waits).nodes[0].2, WhyNot::Cordoned);
    assert_eq!(world.cluster.jobs[&running].record.current_attempt(), Some(attempt));
    world.ask(Command::OpenNode { id: NODE }).0.unwrap();
    assert!(world.is_placed(waits));
}

#[test]
fn a_drained_node_sends_its_work_elsewhere_and_stops_what_stays_too_long() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    let out = world.ask(Command::DrainNode { id: NODE, patience: Duration::from_secs(60) }).1;
    let stop = |out: &[Action], wanted| {
        sent(out).any(|message| matches!(message, ToAgent::Stop { how, cause: StopCause::Drain, .. } if *how == wanted))
    };
    assert!(stop(&out, StopHow::Save));
    world.join(OTHER);
    world.hello(OTHER, boot(2), vec![]);
    let seen = world.history.len();
    world.pass_talking(Duration::from_secs(59));
    assert!(!stop(&world.history[seen..], StopHow::Discard));
    world.pass_talking(Duration::from_secs(2));
    assert!(stop(&world.history[seen..], StopHow::Discard));
    world.report(attempt, ended(Outcome::Preempted));
    world.until_offered(job).unwrap();
    assert_eq!(world.cluster.jobs[&job].node(), Some(OTHER));
}

#[test]
fn a_retired_node_is_gone_for_good_and_never_with_work_on_it() {
    let mut world = World::ready();
    let (_, attempt) = world.running(1);
    let refused = world.ask(Command::RetireNode { id: NODE }).0.unwrap_err().to_string();
    assert!(refused.contains("drain it first"), "{refused}");
    world.report(attempt, ended(Outcome::Ok));
    let out = world.ask(Command::RetireNode { id: NODE }).1;
    assert!(out.iter().any(|action| matches!(action, Action::Close { farewell: Farewell::Revoked, .. })));
    let out = world.hello(NODE, boot(1), vec![]);
    assert!(out.iter().any(|action| matches!(action, Action::TurnAway { farewell: Farewell::Revoked, .. })));
    assert!(matches!(world.ask(Command::OpenNode { id: NODE }).0, Err(Refusal::NotFound { .. })));
    assert!(
        matches!(world.cluster.answer(admin(), Query::Nodes, world.now), Ok(Answer::Nodes(nodes)) if nodes.is_empty())
    );
}

#[test]
fn a_revoked_node_is_gone_at_once_and_its_work_goes_elsewhere() {
    let mut world = World::ready();
    let (job, old) = world.running(1);
    let out = world.ask(Command::RevokeNode { id: NODE }).1;
    assert!(out.iter().any(|action| matches!(action, Action::Close { farewell: Farewell::Revoked, .. })));
    let out = world.hello(NODE, boot(1), vec![KnownAttempt { id: old, phase: AttemptPhase::Running }]);
    assert!(out.iter().any(|action| matches!(action, Action::TurnAway { farewell: Farewell::Revoked, .. })));
    world.join(OTHER);
    world.hello(OTHER, boot(2), vec![]);
    let new = world.until_offered(job).unwrap();
    assert!(new.token > old.token && world.cluster.jobs[&job].node() == Some(OTHER));
}

#[test]
fn a_node_that_was_sent_away_comes_back_by_no_way_it_knows() {
    for revoked in [true, false] {
        let mut world = World::ready();
        let machine = NodeId(uuid(60));
        let strings = |world: &mut World, secret: u8| {
            let expires = UnixMillis(world.now.wall.0 + 3_600_000);
            world.ask(Command::CreateJoinSecret { hash: hash(secret), expires }).0.unwrap();
        };
        let join = |world: &mut World, secret: u8, key: u8, node: NodeId| {
            let command = Command::Join { secret: hash(secret), key: hash(key), name: "machine".into(), node };
            world.ask_as(Actor::System, None, command).0
        };
        let certify = |world: &mut World, serial: &str| {
            let command = Command::RecordCertificate { node: machine, serial: serial.into() };
            world.ask_as(Actor::System, None, command).0
        };
        let comes = |world: &mut World, serial: &str| {
            let hello = world.hello_message(boot(9), boot(9), vec![]);
            let shown = Shown { key: hash(61), ..shown(serial) };
            let out = world.handle(Event::SessionOpened { reply: 0, node: machine, shown, hello: Box::new(hello) });
            out.iter().any(|action| matches!(action, Action::Admit { .. }))
        };
        (1..=2).for_each(|secret| strings(&mut world, secret));
        join(&mut world, 1, 61, machine).unwrap();
        certify(&mut world, "first").unwrap();
        assert!(comes(&mut world, "first"));
        let id = machine;
        world.ask(if revoked { Command::RevokeNode { id } } else { Command::RetireNode { id } }).0.unwrap();
        assert!(!comes(&mut world, "first"), "with its old certificate");
        let refused = join(&mut world, 1, 61, NodeId(uuid(62))).unwrap_err().to_string();
        assert!(refused.contains(&machine.to_string()) && refused.contains("identity/"), "its own string: {refused}");
        certify(&mut world, "late").unwrap_err();
        assert!(!comes(&mut world, "late"), "with one that was under way");
        join(&mut world, 2, 61, NodeId(uuid(62))).unwrap_err();
        let held = join(&mut world, 2, 63, NodeId(uuid(63)));
        assert_eq!(held.is_err(), revoked, "with a string that it may hold, and another key: {held:?}");
        strings(&mut world, 3);
        join(&mut world, 3, 61, NodeId(uuid(62))).unwrap_err();
        // An administrator has made a new one, and the machine a new key.
        assert_eq!(join(&mut world, 3, 64, NodeId(uuid(64))), Ok(Receipt::Node(NodeId(uuid(64)))));
        // It stays so over a restart.
        assert!(row(&world.history, |record| matches!(record, Record::Node(row) if row.id == machine)).is_some_and(
            |record| matches!(record, Record::Node(row) if row.is_gone() && row.key == Some(hash(61)) && row.serials.is_empty())
        ));
        if revoked {
            let ended = |record: &Record| matches!(record, Record::JoinSecret(row) if row.hash == hash(2) && row.expires <= world.now.wall);
            assert!(row(&world.history, ended).is_some());
        }
    }
}

#[test]
fn only_an_administrator_changes_nodes() {
    let mut world = World::ready();
    for command in [
        Command::CordonNode { id: NODE },
        Command::OpenNode { id: NODE },
        Command::RevokeNode { id: NODE },
        Command::TakeBackup,
        Command::BeginRotation { current: Hash([1; 32]) },
        Command::FinishRotation { next: Some(Hash([1; 32])), force: true },
        Command::DrainNode { id: NODE, patience: Duration::from_secs(1) },
        Command::RetireNode { id: NODE },
    ] {
        assert!(matches!(world.ask_as(user(), None, command).0, Err(Refusal::Forbidden { .. })));
    }
}
