//! Who goes first, and why the others wait.

use super::{world::*, *};

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
fn a_job_that_fits_no_message_fails_with_a_reason_and_is_never_offered() {
    let mut world = World::ready();
    let job = world.submit_with(1, |spec| {
        let lorikeet_protocol::job::Task::Train(train) = &mut spec.task;
        train.lora.target_modules = lorikeet_protocol::job::TargetModules::Names(vec!["abcdefgh".into(); 80_000]);
    });
    assert!(world.offer_of(job).is_none());
    assert_eq!(world.phase(job), None, "a job that is over is not among the live ones");
    let next = world.submit(2);
    assert!(world.offer_of(next).is_some(), "its device is free");
}
