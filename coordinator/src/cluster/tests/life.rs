//! What a person decides about a node.

use super::{world::*, *};
use crate::record::{Became, Closed};

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

/// What the node's row says became of what was there, and whether the drain is over.
fn drained(world: &World) -> (Vec<(Became, Option<u64>)>, bool) {
    let drain = world.cluster.nodes[&NODE].record.drain.as_ref().unwrap();
    (drain.attempts.iter().map(|drained| (drained.became, drained.checkpoint)).collect(), drain.ended.is_some())
}

#[test]
fn a_drain_that_succeeds_in_time_ends_with_the_last_that_leaves_and_says_what_became_of_each() {
    let mut world = World::with_gpus(4, Rules::default());
    let [(saved, one), (_, two), (_, three), (_, four)] = [1, 2, 3, 4].map(|n| world.running(n));
    world.ask(Command::DrainNode { id: NODE, patience: Duration::from_secs(60) }).0.unwrap();
    assert_eq!(drained(&world), (vec![(Became::Leaving, None); 4], false));
    // One saves its last step, one leaves without, one was done anyway, one is cancelled.
    world.report(one, ReportBody::Checkpoint(checkpoint(3)));
    world.report(one, ended(Outcome::Preempted));
    world.report(two, ReportBody::Checkpoint(checkpoint(2)));
    world.report(two, ended(Outcome::Preempted));
    world.report(three, ended(Outcome::Ok));
    assert!(!drained(&world).1 && matches!(world.cluster.nodes[&NODE].record.closed, Some(Closed::Draining { .. })));
    world.ask(Command::CancelJob { id: four.job, reason: None }).0.unwrap();
    world.report(four, ended(Outcome::Cancelled));
    let became =
        vec![(Became::Saved, Some(3)), (Became::Requeued, Some(2)), (Became::Over, None), (Became::Over, None)];
    assert_eq!(drained(&world), (became, true));
    assert_eq!(world.cluster.nodes[&NODE].record.closed, Some(Closed::Cordoned), "before its time is up");
    let told = row(&world.history, |record| matches!(record, Record::Audit(audit) if audit.action == "node.drained"));
    assert!(
        matches!(told, Some(Record::Audit(audit)) if audit.after.as_deref() == Some("1 saved, 1 requeued, 2 over")),
        "{told:?}"
    );
    world.pass_talking(Duration::from_secs(120));
    let times = world.history.iter().filter(|action| matches!(action, Action::Put(record) if matches!(&**record, Record::Audit(audit) if audit.action == "node.drained")));
    assert_eq!(times.count(), 1, "it is over once");
    assert!(!world.history.iter().any(|action| matches!(
        action,
        Action::Send { message: ToAgent::Stop { how: StopHow::Discard, cause: StopCause::Drain, .. }, .. }
    )));
    assert_eq!(world.phase(saved), Some(Phase::Queued));
    world.ask(Command::OpenNode { id: NODE }).0.unwrap();
    assert_eq!(world.cluster.nodes[&NODE].record.drain, None);
}

#[test]
fn a_drain_is_over_when_a_person_wants_something_else_and_what_leaves_is_still_written_down() {
    let mut world = World::ready();
    let (_, attempt) = world.running(1);
    world.ask(Command::DrainNode { id: NODE, patience: Duration::from_secs(60) }).0.unwrap();
    world.ask(Command::CordonNode { id: NODE }).0.unwrap();
    assert_eq!(drained(&world), (vec![(Became::Leaving, None)], true));
    world.pass_talking(Duration::from_secs(120));
    assert_eq!(drained(&world), (vec![(Became::Leaving, None)], true), "its time was up, and nothing was stopped");
    world.report(attempt, ended(Outcome::Preempted));
    assert_eq!(drained(&world), (vec![(Became::Requeued, None)], true));
    let mut world = World::ready();
    world.running(1);
    world.ask(Command::DrainNode { id: NODE, patience: Duration::from_secs(60) }).0.unwrap();
    world.ask(Command::RevokeNode { id: NODE }).0.unwrap();
    assert_eq!(drained(&world), (vec![(Became::Requeued, None)], true));
}

#[test]
fn what_a_drain_had_to_stop_is_told_apart_and_an_empty_node_is_drained_at_once() {
    let mut world = World::ready();
    let (_, attempt) = world.running(1);
    world.report(attempt, ReportBody::Checkpoint(checkpoint(2)));
    world.ask(Command::DrainNode { id: NODE, patience: Duration::from_secs(60) }).0.unwrap();
    // Ordered again: a later end, the same list.
    world.ask(Command::DrainNode { id: NODE, patience: Duration::from_secs(90) }).0.unwrap();
    world.pass_talking(Duration::from_secs(80));
    assert_eq!(drained(&world), (vec![(Became::Leaving, None)], false));
    world.pass_talking(Duration::from_secs(20));
    assert_eq!(drained(&world), (vec![(Became::Stopped, None)], true));
    world.report(attempt, ended(Outcome::Preempted));
    assert_eq!(drained(&world), (vec![(Became::Stopped, Some(2))], true));
    assert!(world.cluster.nodes[&NODE].record.drain.as_ref().unwrap().attempts[0].left.is_some());
    // Ordered once more when nothing is there: the report stays.
    world.ask(Command::DrainNode { id: NODE, patience: Duration::from_secs(60) }).0.unwrap();
    assert_eq!(drained(&world), (vec![(Became::Stopped, Some(2))], true));
    let mut world = World::ready();
    world.ask(Command::DrainNode { id: NODE, patience: Duration::from_secs(60) }).0.unwrap();
    assert_eq!(drained(&world), (vec![], true));
}

#[test]
fn a_drain_lasts_as_long_as_it_was_given_whatever_the_wall_clock_says_and_over_a_start_too() {
    let drained_in = |step: fn(&mut World)| {
        let mut world = World::ready();
        let (_, attempt) = world.running(1);
        world.ask(Command::DrainNode { id: NODE, patience: Duration::from_secs(60) }).0.unwrap();
        step(&mut world);
        let known = vec![KnownAttempt { id: attempt, phase: AttemptPhase::Running }];
        world.hello(NODE, boot(1), known);
        let begun = world.now.mono;
        while !drained(&world).1 {
            world.pass_talking(Duration::from_secs(1));
        }
        (world.now.mono - begun).as_secs()
    };
    assert_eq!(drained_in(|world| world.now.wall.0 += 3_600_000), 60);
    assert_eq!(drained_in(|world| world.now.wall.0 -= 3_600_000), 60);
    assert_eq!(drained_in(World::restart), 60);
    let away = |world: &mut World| {
        (world.now.mono, world.now.wall.0) = (Duration::ZERO, world.now.wall.0 + 40_000);
        world.restart();
    };
    assert_eq!(drained_in(away), 20);
}

#[test]
fn a_checkpoint_is_asked_for_now_of_the_node_that_runs_the_job_and_of_no_other_job() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    let out = world.ask(Command::SaveNow { id: job }).1;
    assert!(
        out.iter().any(
            |action| matches!(action, Action::Send { node: NODE, message: ToAgent::SaveNow(of) } if *of == attempt)
        ),
        "{out:?}"
    );
    world.report(attempt, ReportBody::Checkpoint(checkpoint(2)));
    assert_eq!(world.cluster.jobs[&job].record.checkpoint.as_ref().map(|checkpoint| checkpoint.step), Some(2));
    assert_eq!(world.cluster.jobs[&job].record.current_attempt(), Some(attempt), "it goes on");
    let waits = world.submit(2);
    let refused = world.ask(Command::SaveNow { id: waits }).0.unwrap_err().to_string();
    assert!(refused.contains("not running"), "{refused}");
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
            let command = Command::RecordCertificate { node: machine, serial: serial.into(), joined: None };
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
