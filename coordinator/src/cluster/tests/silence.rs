//! Silence is a condition, not a verdict.

use super::{world::*, *};

#[test]
fn silence_makes_unreachable_and_changes_nothing_else() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.pass(Duration::from_secs(6));
    world.pass(Duration::from_secs(40));
    world.pass(Duration::from_secs(6));
    assert!(world.cluster.unreachable_since(&world.cluster.jobs[&job]).is_some());
    assert_eq!(world.phase(job), Some(Phase::Running));
    world.heartbeat();
    assert!(world.cluster.unreachable_since(&world.cluster.jobs[&job]).is_none());
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
fn a_coordinator_that_was_paused_listens_before_it_loses_anybody() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.pass(Duration::from_secs(4_000));
    assert_eq!(world.cluster.jobs[&job].record.current_attempt(), Some(attempt));
    world.heartbeat();
    world.pass(Duration::from_secs(6));
    assert_eq!(world.cluster.jobs[&job].record.current_attempt(), Some(attempt));
}
