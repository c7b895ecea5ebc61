//! Silence is a condition, not a verdict.

use super::{world::*, *};

#[test]
fn silence_makes_unreachable_and_changes_nothing_else() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.pass(Duration::from_secs(6));
    world.pass(Duration::from_secs(40));
    world.pass(Duration::from_secs(6));
    let heard = UnixMillis(world.now.wall.0 - 52_000);
    assert_eq!(world.unreachable_since(job), Some(heard), "since its last word");
    assert_eq!(world.phase(job), Some(Phase::Running));
    world.heartbeat();
    assert_eq!(world.unreachable_since(job), None);
    assert_eq!(world.cluster.jobs[&job].record.current_attempt(), Some(attempt));
}

#[test]
fn who_has_closed_its_session_is_not_said_to_train_until_its_lease_is_over() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    let heard = world.now.wall;
    world.pass(Duration::from_secs(2));
    assert_eq!(world.unreachable_since(job), None);
    let session = world.cluster.nodes[&NODE].record.sessions;
    world.handle(Event::SessionClosed { node: NODE, session, nonsense: None });
    assert_eq!(world.unreachable_since(job), Some(heard));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.unreachable_since(job), Some(heard), "it was the same moment all the time");
    assert_eq!(world.cluster.nodes[&NODE].unreachable_since, None, "its lease is not over");
    world.hello(NODE, boot(1), vec![KnownAttempt { id: attempt, phase: AttemptPhase::Running }]);
    assert_eq!(world.unreachable_since(job), None);
    assert_eq!(world.phase(job), Some(Phase::Running));
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
fn a_job_that_waits_for_its_node_goes_on_when_that_comes_back() {
    let mut world = World::ready();
    let job = world.submit_with(1, |spec| spec.policy.on_lost = OnLost::Wait);
    let attempt = world.run(job);
    world.pass_in_steps(Duration::from_secs(4_000));
    let out = world.hello(NODE, boot(1), vec![KnownAttempt { id: attempt, phase: AttemptPhase::Running }]);
    assert!(sent(&out).any(
        |message| matches!(message, ToAgent::Welcome(welcome) if welcome.verdicts == [(attempt, Verdict::Adopt)])
    ));
    let out = world.report(attempt, ended(Outcome::Ok));
    assert!(row(&out, |r| matches!(r, Record::Model(_))).is_some());
}

#[test]
fn a_job_that_waits_for_its_node_and_is_cancelled_waits_no_longer() {
    let mut world = World::ready();
    let job = world.submit_with(1, |spec| spec.policy.on_lost = OnLost::Wait);
    world.run(job);
    world.pass_in_steps(Duration::from_secs(4_000));
    world.ask(Command::CancelJob { id: job, reason: None }).0.unwrap();
    world.pass_in_steps(Duration::from_secs(10));
    assert_eq!(last_state(&world, job), JobState::Cancelled);
}

#[test]
fn a_job_that_is_to_fail_when_it_is_lost_fails_and_is_placed_nowhere_again() {
    let mut world = World::ready();
    let job = world.submit_with(1, |spec| spec.policy.on_lost = OnLost::Fail);
    let attempt = world.run(job);
    world.report(attempt, ReportBody::Checkpoint(checkpoint(100)));
    world.pass_in_steps(Duration::from_secs(250));
    assert_eq!(world.phase(job), Some(Phase::Running), "`lost_after` is not over");
    world.pass_in_steps(Duration::from_secs(150));
    let JobState::Failed(failure) = last_state(&world, job) else { panic!("it fails") };
    assert_eq!(failure.class, FailureClass::Hardware);
    assert!(failure.message.contains("silent for longer than `lost_after`"), "{}", failure.message);
    world.join(OTHER);
    world.hello(OTHER, boot(2), vec![]);
    assert_eq!(world.until_offered(job), None);
    assert!(world.cluster.nodes[&NODE].record.suspected_by.is_empty(), "silence is nobody's fault");
    // Its node comes back and has gone on: that is over.
    let out = world.hello(NODE, boot(1), vec![KnownAttempt { id: attempt, phase: AttemptPhase::Running }]);
    assert!(
        sent(&out).any(
            |message| matches!(message, ToAgent::Welcome(welcome) if welcome.verdicts == [(attempt, Verdict::Stop)])
        )
    );
    let out = world.report(attempt, ended(Outcome::Ok));
    assert!(row(&out, |r| matches!(r, Record::Model(_))).is_none());
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
fn what_a_coordinator_slept_through_is_held_against_nobody_and_what_it_lived_through_is() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    let is_placed = |world: &World| world.cluster.jobs[&job].record.current_attempt() == Some(attempt);
    world.pass_in_steps(Duration::from_secs(100));
    world.pass(Duration::from_secs(4_000));
    // Its agent has to notice that the connection is gone, and to dial again.
    world.pass_in_steps(Duration::from_secs(60));
    assert!(is_placed(&world));
    world.pass(Duration::from_secs(4_000));
    world.pass_in_steps(Duration::from_secs(100));
    assert!(is_placed(&world), "it was silent for 260 s");
    world.pass_in_steps(Duration::from_secs(60));
    assert!(!is_placed(&world), "and for 320 s");
    // A word ends that account.
    world.hello(NODE, boot(1), vec![]);
    let again = world.until_offered(job).unwrap();
    world.accept(again);
    world.pass_in_steps(Duration::from_secs(320));
    assert_eq!(world.phase(job), Some(Phase::Queued));
}

impl World {
    fn unreachable_since(&self, job: JobId) -> Option<UnixMillis> {
        let answer = self.cluster.answer(admin(), Query::Unreachable(job), self.now).unwrap();
        let Answer::Unreachable(since) = answer else { panic!("{answer:?}") };
        since
    }
}

fn last_state(world: &World, id: JobId) -> JobState {
    let is_its = |record: &Record| matches!(record, Record::Job(job) if job.id == id);
    let Some(Record::Job(job)) = row(&world.history, is_its) else { panic!("{id} was never written") };
    job.state.clone()
}
