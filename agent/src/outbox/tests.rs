//! What the outbox promises: numbers without gaps, nothing lost that was committed, nothing sent that was not.

use super::*;
use lorikeet_protocol::{
    agent::{Ended, Progress},
    id::{AttemptToken, JobId},
    job::Outcome,
};
use proptest::prelude::*;
use std::time::Duration;

#[test]
fn reports_are_numbered_without_gaps_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    push(&mut outbox, 1, ReportBody::Preparing);
    push(&mut outbox, 1, ReportBody::Finalizing);
    outbox.commit().unwrap();
    outbox.acknowledge(2);
    drop(outbox);

    let mut outbox = Outbox::open(folder.path()).unwrap();
    assert_eq!(outbox.resume(2).unwrap(), [attempt(1)]);
    push(&mut outbox, 1, ReportBody::Preparing);
    outbox.commit().unwrap();
    assert_eq!(drain(&mut outbox), [3]);
}

#[test]
fn a_pipe_in_the_place_of_the_reports_is_named_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join(REPORTS);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let refused = crate::link::chain(&Outbox::open(folder.path()).unwrap_err());
    assert_eq!(refused, format!("read {}: it is no regular file", pipe.display()));
}

#[test]
fn a_file_that_cannot_be_shortened_keeps_nobody_from_being_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    for _ in 0..3_000 {
        push(&mut outbox, 1, ReportBody::Preparing);
    }
    outbox.commit().unwrap();
    let in_its_way = folder.path().join("reports.log.aside");
    std::fs::create_dir(&in_its_way).unwrap();
    assert!(outbox.compact().is_err(), "what this test is about");
    assert_eq!(outbox.acknowledge(3_000), [attempt(1)]);
    push(&mut outbox, 2, ReportBody::Preparing);
    assert!(outbox.resume(9_000).is_err(), "the coordinator's number has to last");
    std::fs::remove_dir(&in_its_way).unwrap();
    assert_eq!(outbox.resume(9_000).unwrap(), [attempt(2)]);
    push(&mut outbox, 1, ReportBody::Preparing);
    outbox.commit().unwrap();
    assert_eq!(drain(&mut outbox), [9_001]);
}

#[test]
fn nothing_leaves_before_it_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    push(&mut outbox, 1, ReportBody::Preparing);
    assert_eq!(outbox.next(), None);
    outbox.commit().unwrap();
    assert_eq!(drain(&mut outbox), [1]);
    assert_eq!(outbox.next(), None);
}

#[test]
fn what_is_not_acknowledged_leaves_again_after_a_welcome() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    for _ in 0..3 {
        push(&mut outbox, 1, ReportBody::Preparing);
    }
    outbox.commit().unwrap();
    assert_eq!(drain(&mut outbox), [1, 2, 3]);
    assert!(outbox.resume(1).unwrap().is_empty());
    assert_eq!(drain(&mut outbox), [2, 3]);
}

#[test]
fn a_newer_progress_replaces_one_that_was_not_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    push(&mut outbox, 1, progress(1));
    push(&mut outbox, 2, progress(10));
    push(&mut outbox, 1, progress(2));
    outbox.commit().unwrap();
    assert_eq!(outbox.last(), 2);
    assert_eq!(step(outbox.next()), 2);
    assert_eq!(drain(&mut outbox), [1, 2]);

    push(&mut outbox, 1, progress(3));
    outbox.commit().unwrap();
    assert_eq!(drain(&mut outbox), [3]);
}

#[test]
fn a_progress_that_tells_an_evaluation_is_not_replaced_by_a_later_step() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    let evaluations =
        [(30, None), (40, Some(1.5)), (41, Some(1.5)), (42, Some(1.5)), (80, Some(1.25)), (90, Some(1.25))];
    for (step, loss) in evaluations {
        push(&mut outbox, 1, evaluated(step, loss));
    }
    let steps: Vec<_> = outbox.waiting().map(|report| step(Some(report))).collect();
    assert_eq!(steps, [40, 80, 90]);
}

#[test]
fn an_evaluation_after_every_step_is_one_entry_a_step() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    for step in 1..=50_u32 {
        // first with the loss of the evaluation before
        let losses = [step - 1, step].map(|at| 1.0 / f64::from(at + 1));
        losses.into_iter().for_each(|loss| push(&mut outbox, 1, evaluated(step.into(), Some(loss))));
    }
    let waiting: Vec<_> = outbox.waiting().map(|report| evaluation(&report.body)).collect();
    assert_eq!(waiting.len(), 51, "and the one before the first step");
}

#[test]
fn what_an_earlier_agent_may_have_sent_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    push(&mut outbox, 1, progress(1));
    outbox.commit().unwrap();
    assert_eq!(drain(&mut outbox), [1]);
    outbox.acknowledge(1);
    drop(outbox);

    let mut outbox = Outbox::open(folder.path()).unwrap();
    push(&mut outbox, 1, progress(2));
    outbox.commit().unwrap();
    outbox.resume(1).unwrap();
    assert_eq!(step(outbox.next()), 2);
    assert_eq!(drain(&mut outbox), [2]);
}

#[test]
fn what_has_left_means_what_it_said_when_it_leaves_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    push(&mut outbox, 1, progress(1));
    outbox.commit().unwrap();
    assert_eq!(drain(&mut outbox), [1]);
    outbox.rewind();
    push(&mut outbox, 1, progress(2));
    outbox.commit().unwrap();
    assert_eq!(step(outbox.next()), 1, "the coordinator may have applied it");
    assert_eq!(drain(&mut outbox), [1, 2]);
    // In a new session it is known what was applied.
    outbox.resume(1).unwrap();
    push(&mut outbox, 1, progress(3));
    outbox.commit().unwrap();
    assert_eq!(step(outbox.next()), 3);
    assert_eq!(drain(&mut outbox), [2]);
}

#[test]
fn progress_never_moves_in_front_of_another_report() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    push(&mut outbox, 1, progress(1));
    push(&mut outbox, 1, ReportBody::Finalizing);
    push(&mut outbox, 1, progress(2));
    outbox.commit().unwrap();
    assert_eq!(drain(&mut outbox), [1, 2, 3]);
}

#[test]
fn a_coordinator_that_knows_more_moves_the_numbers_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    push(&mut outbox, 1, ReportBody::Preparing);
    outbox.commit().unwrap();
    outbox.resume(41).unwrap();
    push(&mut outbox, 1, ReportBody::Finalizing);
    outbox.commit().unwrap();
    assert_eq!(drain(&mut outbox), [42]);
    drop(outbox);
    assert_eq!(Outbox::open(folder.path()).unwrap().last(), 42);
}

#[test]
fn an_acknowledgement_of_what_was_never_said_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    push(&mut outbox, 1, ReportBody::Preparing);
    outbox.acknowledge(7);
    outbox.commit().unwrap();
    assert_eq!(drain(&mut outbox), [1]);
}

#[test]
fn what_is_said_after_the_file_was_replaced_or_taken_away_lasts() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    push(&mut outbox, 1, ReportBody::Preparing);
    outbox.commit().unwrap();
    let last = |path: &Path| Outbox::open(path).unwrap().last();
    // As a shortening does that fails once the new file has the name.
    let copy = folder.path().join("copy");
    std::fs::copy(&outbox.path, &copy).unwrap();
    std::fs::rename(&copy, &outbox.path).unwrap();
    push(&mut outbox, 1, ReportBody::Finalizing);
    outbox.commit().unwrap();
    assert_eq!(last(folder.path()), 2);
    std::fs::remove_file(&outbox.path).unwrap();
    push(&mut outbox, 1, ended("why".into()));
    outbox.commit().unwrap();
    assert_eq!(last(folder.path()), 3);
    assert_eq!(drain(&mut outbox), [1, 2, 3]);
}

#[test]
fn a_log_of_which_most_still_waits_is_not_written_anew() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    for _ in 0..300 {
        push(&mut outbox, 1, ended("x".repeat(8 << 10)));
    }
    outbox.commit().unwrap();
    let inode = |outbox: &Outbox| std::fs::metadata(&outbox.path).unwrap().ino();
    let before = inode(&outbox);
    (1..=149).for_each(|through| drop(outbox.acknowledge(through)));
    assert_eq!(inode(&outbox), before);
    outbox.acknowledge(152);
    assert_ne!(inode(&outbox), before);
    assert_eq!(Outbox::open(folder.path()).unwrap().waiting().count(), 148);
}

#[test]
fn a_long_log_is_written_anew_and_keeps_what_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    for _ in 0..300 {
        push(&mut outbox, 1, ended("x".repeat(8 << 10)));
    }
    outbox.commit().unwrap();
    let before = outbox.length;
    outbox.acknowledge(299);
    assert!(outbox.length < before / 100);
    drop(outbox);
    let mut outbox = Outbox::open(folder.path()).unwrap();
    outbox.resume(299).unwrap();
    assert_eq!(drain(&mut outbox), [300]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_log_cut_anywhere_gives_back_its_whole_entries(cut in 0usize..600, noise in proptest::collection::vec(any::<u8>(), 0..20)) {
        let folder = tempfile::tempdir().unwrap();
        let mut outbox = Outbox::open(folder.path()).unwrap();
        for _ in 0..6 {
            push(&mut outbox, 1, ended("why".into()));
        }
        outbox.commit().unwrap();
        let path = outbox.path.clone();
        drop(outbox);

        let mut bytes = std::fs::read(&path).unwrap();
        let cut = HEADER_BYTES + cut % (bytes.len() - HEADER_BYTES);
        // Noise that begins with the very byte that was cut off may make a torn entry whole again.
        prop_assume!(noise.first() != Some(&bytes[cut]));
        let whole = parse(&bytes[..cut]).unwrap().1.len() as u64;
        bytes.truncate(cut);
        bytes.extend(noise);
        std::fs::write(&path, &bytes).unwrap();

        let mut outbox = Outbox::open(folder.path()).unwrap();
        prop_assert_eq!(outbox.last(), whole);
        push(&mut outbox, 1, ReportBody::Finalizing);
        outbox.commit().unwrap();
        drop(outbox);
        prop_assert_eq!(Outbox::open(folder.path()).unwrap().last(), whole + 1);
    }
}

fn attempt(number: u32) -> AttemptId {
    AttemptId { job: JobId(uuid::Uuid::from_u128(7)), token: AttemptToken { generation: 1, number } }
}

fn push(outbox: &mut Outbox, number: u32, body: ReportBody) {
    outbox.push(attempt(number), UnixMillis(1), body);
}

fn progress(step: u64) -> ReportBody {
    evaluated(step, None)
}

fn evaluated(step: u64, validation_loss: Option<f64>) -> ReportBody {
    ReportBody::Progress(Progress {
        step,
        total_steps: 100,
        epoch: 0.0,
        loss: 1.0,
        learning_rate: 1e-4,
        tokens_per_second: 10.0,
        validation_loss,
    })
}

fn step(report: Option<&Report>) -> u64 {
    match report.map(|report| &report.body) {
        Some(ReportBody::Progress(progress)) => progress.step,
        other => panic!("expected progress, found {other:?}"),
    }
}

fn ended(message: String) -> ReportBody {
    ReportBody::Ended(Ended {
        outcome: Outcome::Lost,
        class: None,
        message: Some(message),
        step: 0,
        held: Duration::ZERO,
        files: Vec::new(),
        summary: None,
        last_event: 0,
    })
}

fn drain(outbox: &mut Outbox) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(report) = outbox.next() {
        numbers.push(report.number);
        outbox.sent();
    }
    numbers
}
