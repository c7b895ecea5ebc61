//! Which checkpoints are kept.

use super::{world::*, *};

#[test]
fn the_last_three_the_best_and_the_final_one_are_kept() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    let mut out = vec![];
    for (step, kind) in [
        (1, CheckpointKind::Best),
        (2, CheckpointKind::Best),
        (3, CheckpointKind::Periodic),
        (4, CheckpointKind::Periodic),
        (5, CheckpointKind::Emergency),
        (6, CheckpointKind::Final),
        (7, CheckpointKind::Periodic),
        (8, CheckpointKind::Periodic),
        (9, CheckpointKind::Periodic),
    ] {
        let body = ReportBody::Checkpoint(Checkpoint { kind, ..checkpoint(step) });
        out.extend(world.report(attempt, body));
    }
    assert_eq!(steps(&world.cluster.jobs[&job].checkpoints), [2, 6, 7, 8, 9]);
    let removed: Vec<_> = rows(&out).filter(|row| row.removed_at.is_some()).cloned().collect();
    assert_eq!(steps(&removed), [1, 3, 4, 5]);
    let out = world.report(attempt, ended(Outcome::Ok));
    assert_eq!(steps(&rows(&out).cloned().collect::<Vec<_>>()), [7, 8], "the newest stays, the best and the final one");
}

#[test]
fn the_one_to_go_on_from_is_kept_however_many_come_below_it() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.report(attempt, ReportBody::Checkpoint(checkpoint(90)));
    world.report(attempt, ended(Outcome::Lost));
    // Its worker could not go on from there, and begins anew.
    let again = world.until_offered(job).unwrap();
    world.accept(again);
    for step in 1..=6 {
        world.report(again, ReportBody::Checkpoint(checkpoint(step)));
    }
    let live = &world.cluster.jobs[&job];
    assert_eq!(steps(&live.checkpoints), [90, 4, 5, 6]);
    assert_eq!(live.record.checkpoint.as_ref().map(|next| next.step), Some(90));
    world.report(again, ReportBody::Checkpoint(checkpoint(91)));
    assert_eq!(steps(&world.cluster.jobs[&job].checkpoints), [5, 6, 91]);
}

#[test]
fn nothing_goes_on_from_a_step_that_the_job_does_not_have() {
    let mut world = World::ready();
    world.findings.total_steps = 100;
    let (job, attempt) = world.running(1);
    let next = |world: &mut World, step| {
        world.report(attempt, ReportBody::Checkpoint(checkpoint(step)));
        world.cluster.jobs[&job].record.checkpoint.as_ref().map(|next| next.step)
    };
    assert_eq!(next(&mut world, 40), Some(40));
    assert_eq!(next(&mut world, 1 << 40), Some(40));
    assert_eq!(next(&mut world, 100), Some(100));
}

#[test]
fn what_an_older_attempt_says_late_changes_no_row() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.report(attempt, ReportBody::Checkpoint(checkpoint(4)));
    world.report(attempt, ended(Outcome::Lost));
    let again = world.until_offered(job).unwrap();
    world.accept(again);
    let late = ReportBody::Checkpoint(Checkpoint { kind: CheckpointKind::Emergency, ..checkpoint(4) });
    let out = world.report(attempt, late);
    assert_eq!(rows(&out).count(), 0);
    assert_eq!(steps(&world.cluster.jobs[&job].checkpoints), [4]);
    let out = world.report(attempt, ReportBody::Checkpoint(checkpoint(5)));
    assert!(rows(&out).all(|row| row.orphan), "one that nobody had is kept apart");
}

#[test]
fn what_was_removed_stays_removed_after_a_restart_and_the_rest_is_remembered() {
    let mut world = World::ready();
    let (_, attempt) = world.running(1);
    let mut written = vec![];
    for step in 1..=5 {
        let out = world.report(attempt, ReportBody::Checkpoint(checkpoint(step)));
        for row in rows(&out) {
            written.retain(|known: &crate::record::StoredCheckpoint| known.checkpoint.step != row.checkpoint.step);
            written.push(row.clone());
        }
    }
    written.sort_by_key(|row| row.checkpoint.step);
    let live = &world.cluster.jobs[&attempt.job];
    let loaded = Loaded {
        generation: 1,
        jobs: vec![live.record.clone()],
        attempts: live.attempt.iter().cloned().collect(),
        checkpoints: written,
        ..Loaded::default()
    };
    let again = Cluster::new(loaded, Timers::default(), world.now);
    assert_eq!(steps(&again.jobs[&attempt.job].checkpoints), [3, 4, 5]);
}

#[test]
fn two_of_one_step_are_one_and_the_better_reason_stays() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    for (step, kind) in [(4, CheckpointKind::Best), (4, CheckpointKind::Periodic), (5, CheckpointKind::Periodic)] {
        world.report(attempt, ReportBody::Checkpoint(Checkpoint { kind, ..checkpoint(step) }));
    }
    let kept = &world.cluster.jobs[&job].checkpoints;
    assert_eq!(steps(kept), [4, 5]);
    assert_eq!(kept[0].checkpoint.kind, CheckpointKind::Best);
}

fn steps(rows: &[crate::record::StoredCheckpoint]) -> Vec<u64> {
    rows.iter().map(|row| row.checkpoint.step).collect()
}

fn rows(out: &[Action]) -> impl Iterator<Item = &crate::record::StoredCheckpoint> {
    out.iter().filter_map(|action| match action {
        Action::Put(record) => match &**record {
            Record::Checkpoint(row) => Some(row),
            _ => None,
        },
        _ => None,
    })
}
