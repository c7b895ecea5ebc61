//! Attempts: tokens before offers, results once, checkpoints under the current token.

use super::{world::*, *};

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
fn a_jobs_energy_is_that_of_its_attempts_and_each_counts_once() {
    let mut world = World::ready();
    let (job, first) = world.running(1);
    world.pass_talking(Duration::from_secs(100));
    world.report(first, metered(Outcome::Preempted, 20_000));
    let number = world.cluster.nodes[&NODE].record.last_report;
    let repeat = Report { number, attempt: first, time: UnixMillis(0), body: metered(Outcome::Preempted, 20_000) };
    world.hear(FromAgent::Report(repeat));
    world.report(first, metered(Outcome::Preempted, 20_000));
    let energy = |world: &World| world.cluster.jobs[&job].record.energy_joules;
    assert_eq!(energy(&world), Some(20_000), "under its token, and once");
    world.restart();
    world.hello(NODE, boot(1), vec![]);
    assert_eq!(energy(&world), Some(20_000), "it is written down");
    let second = world.until_offered(job).unwrap();
    world.accept(second);
    let out = world.report(second, metered(Outcome::Ok, 22_000));
    let job = row(&out, |row| matches!(row, Record::Job(_)));
    assert!(matches!(job, Some(Record::Job(job)) if job.energy_joules == Some(42_000)), "{job:?}");
    let attempt = row(&out, |row| matches!(row, Record::Attempt(row) if row.id == second));
    assert!(matches!(attempt, Some(Record::Attempt(row)) if row.energy_joules == Some(22_000)), "{attempt:?}");
}

#[test]
fn no_device_draws_more_than_it_can_for_as_long_as_it_was_placed() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.report(attempt, metered(Outcome::Preempted, u64::MAX));
    let joules = world.cluster.jobs[&job].record.energy_joules.unwrap();
    assert!((600_000..700_000).contains(&joules), "a minute or so at ten kilowatts, found {joules} J");
}

fn metered(outcome: Outcome, energy_joules: u64) -> ReportBody {
    let ReportBody::Ended(ended) = ended(outcome) else { unreachable!("that is what it makes") };
    ReportBody::Metered(Metered { ended, energy_joules })
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

#[test]
fn an_offer_lost_on_the_way_is_made_again_under_the_same_token() {
    let mut world = World::ready();
    let job = world.submit(1);
    let attempt = world.offer_of(job).unwrap().attempt;
    let out = world.hello(NODE, boot(1), vec![]);
    assert!(sent(&out).any(|message| matches!(message, ToAgent::Offer(offer) if offer.attempt == attempt)));
}

#[test]
fn an_agent_that_always_declines_is_asked_ever_more_seldom_and_another_goes_first() {
    let mut world = World::ready();
    let job = world.submit(1);
    let mut offers = 0;
    for _ in 0..600 {
        if let Some(offer) = world.offer_of(job) {
            offers += 1;
            world.hear(FromAgent::Declined { attempt: offer.attempt, reason: "no".into() });
        }
        world.pass_talking(Duration::from_secs(1));
    }
    assert!((8..=16).contains(&offers), "{offers} offers in ten minutes");
    world.join(OTHER);
    world.hello(OTHER, boot(2), vec![]);
    let attempt = world.until_offered(job).unwrap();
    assert_eq!(world.cluster.jobs[&job].node(), Some(OTHER));
    world.hear_from(OTHER, FromAgent::Accepted(attempt));
    assert_eq!(world.cluster.jobs[&job].refusals, 0);
}
