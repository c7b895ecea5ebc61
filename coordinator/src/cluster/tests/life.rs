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
