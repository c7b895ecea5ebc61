//! Yesterday's memory, today's agents: what both know goes on, the rest is stopped and kept, nothing is counted.

use super::{world::*, *};
use crate::{cluster::Restored, serial::serial};

/// The generation after the restore.
const GENERATION: u32 = 1_790_000_000;
const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn what_both_know_is_adopted_and_its_result_counts_once() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    restore(&mut world);
    let out = world.hello(NODE, boot(1), vec![known(attempt, AttemptPhase::Running)]);
    assert_eq!(verdicts(&out), [(attempt, Verdict::Adopt)]);
    assert!(!sent(&out).any(|message| matches!(message, ToAgent::Stop { .. })));
    world.report(attempt, ended(Outcome::Ok));
    assert_eq!(world.phase(job), None, "it succeeded");
    let out = world.report(attempt, ended(Outcome::Ok));
    assert!(row(&out, |record| matches!(record, Record::Model(_))).is_none(), "and no second time");
}

#[test]
fn what_only_the_agents_know_is_stopped_with_its_state_kept_for_thirty_days_and_then_forgotten() {
    let mut world = World::ready();
    let (_, current) = world.running(1);
    restore(&mut world);
    let strangers =
        [9, 10].map(|job| AttemptId { job: JobId(uuid(job)), token: AttemptToken { generation: 1, number: 1 } });
    let newer = AttemptId { token: AttemptToken { generation: 1, number: 2 }, ..current };
    let attempts = vec![
        known(strangers[0], AttemptPhase::Running),
        known(strangers[1], AttemptPhase::Done),
        known(newer, AttemptPhase::Preparing),
    ];
    let out = world.hello(NODE, boot(1), attempts.clone());
    assert!(verdicts(&out).iter().all(|(_, verdict)| *verdict == Verdict::Adopt), "left alone: {out:?}");
    let stopped: Vec<_> = sent(&out)
        .filter_map(|message| match message {
            ToAgent::Stop { attempt, how: StopHow::Save, cause: StopCause::Superseded } => Some(*attempt),
            _ => None,
        })
        .collect();
    assert_eq!(stopped, [strangers[0], newer]);
    let out = world.report(strangers[0], ended(Outcome::Preempted));
    assert!(row(&out, |record| matches!(record, Record::Orphan(_))).is_some());
    let forgotten = |out: &[Action]| sent(out).any(|message| matches!(message, ToAgent::Forget(_)));
    assert!(!forgotten(&out), "its files stay");
    world.pass_in_steps(Duration::from_secs(30));
    world.now.wall.0 += 31 * DAY.as_millis() as u64;
    let out = world.hello(NODE, boot(1), vec![known(strangers[0], AttemptPhase::Done)]);
    assert_eq!(verdicts(&out), [(strangers[0], Verdict::Forget)]);
}

#[test]
fn an_attempt_placed_after_the_restore_is_fenced_from_those_of_before() {
    let mut world = World::ready();
    let (job, old) = world.running(1);
    restore(&mut world);
    // Its node comes back without it.
    world.hello(NODE, boot(2), vec![]);
    let new = world.until_offered(job).unwrap();
    assert!(new.token > old.token && new.token.generation == GENERATION);
    let out = world.report(old, ended(Outcome::Ok));
    assert!(row(&out, |record| matches!(record, Record::Orphan(_))).is_some());
    assert_eq!(world.cluster.jobs[&job].record.current_attempt(), Some(new), "an older word changes nothing");
}

#[test]
fn a_certificate_issued_since_the_backup_is_known_again_and_an_older_one_is_not() {
    let mut world = World::ready();
    let restored = restore(&mut world);
    let drawn = |millis: i64| {
        let at = UnixMillis(restored.taken.0.saturating_add_signed(millis));
        serial(at, [7; 9]).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let mut comes_as = |node, shown: Shown| {
        let hello = world.hello_message(boot(1), boot(1), vec![]);
        let out = world.handle(Event::SessionOpened { reply: 0, node, shown, hello: Box::new(hello) });
        out.iter().any(|action| matches!(action, Action::Admit { .. }))
    };
    let older = Shown { is_newest: false, ..shown(&drawn(2_000)) };
    assert!(!comes_as(OTHER, older.clone()), "whoever has the key of the CA before may have made it");
    assert!(!comes_as(NODE, Shown { key: hash(9), ..shown(&drawn(1_000)) }), "it is not for the node's key");
    assert!(comes_as(NODE, Shown { serial: drawn(500), ..older }), "the node's own, of before a rotation");
    let mut comes = |node, serial: String| comes_as(node, shown(&serial));
    assert!(!comes(NODE, drawn(-1)), "it was replaced before the backup");
    assert!(comes(NODE, drawn(1_000)), "it was renewed since");
    assert!(comes(OTHER, drawn(2_000)), "a node that joined since");
    assert!(!comes(OTHER, drawn(10 * 86_400_000)), "not even issued when the backup was restored");
    let told = audits(&world.history).filter(|audit| audit.action == "node.readmit");
    let told: Vec<_> = told.map(|audit| audit.subject.clone()).collect();
    assert_eq!(told, [NODE, NODE, OTHER].map(|node| node.to_string()), "each time it is written down");
    world.ask(Command::RevokeNode { id: OTHER }).0.unwrap();
    let hello = world.hello_message(boot(1), boot(1), vec![]);
    let out = world.handle(Event::SessionOpened {
        reply: 0,
        node: OTHER,
        shown: shown(&drawn(2_000)),
        hello: Box::new(hello),
    });
    assert!(out.iter().any(|action| matches!(action, Action::TurnAway { farewell: Farewell::Revoked, .. })));
}

fn known(id: AttemptId, phase: AttemptPhase) -> KnownAttempt {
    KnownAttempt { id, phase }
}

fn verdicts(out: &[Action]) -> Vec<(AttemptId, Verdict)> {
    let welcome =
        sent(out).find_map(|message| if let ToAgent::Welcome(welcome) = message { Some(welcome) } else { None });
    welcome.expect("it was let in").verdicts.clone()
}

/// The process starts again on what it remembered, a day later, as after a restore.
fn restore(world: &mut World) -> Restored {
    let taken = world.now.wall;
    world.now.wall.0 += DAY.as_millis() as u64;
    let restored = Restored { taken, at: world.now.wall };
    let old = &world.cluster;
    let jobs = || old.jobs.values();
    let loaded = Loaded {
        generation: GENERATION,
        users: old.users.values().cloned().collect(),
        tokens: old.tokens.values().cloned().collect(),
        nodes: old.nodes.values().map(|node| node.record.clone()).collect(),
        datasets: old.datasets.values().cloned().collect(),
        bases: old.bases.values().cloned().collect(),
        jobs: jobs().map(|job| job.record.clone()).collect(),
        attempts: jobs().filter_map(|job| job.attempt.clone()).collect(),
        restored: Some(restored),
        ..Loaded::default()
    };
    world.cluster = Cluster::new(loaded, Timers::default(), world.now);
    world.handle(Event::Booted);
    restored
}
