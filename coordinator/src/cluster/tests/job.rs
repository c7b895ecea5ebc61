//! A job, from submit to its end.

use super::{world::*, *};

#[test]
fn a_job_goes_from_submit_to_model() {
    let mut world = World::ready();
    let job = world.submit(1);
    let offer = world.offer_of(job).expect("an idle node gets an offer");
    world.accept(offer.attempt);
    world.report(offer.attempt, ReportBody::Preparing);
    world.report(offer.attempt, ReportBody::Running { from_step: 0 });
    assert_eq!(world.phase(job), Some(Phase::Running));
    world.report(offer.attempt, ReportBody::Finalizing);
    let out = world.report(offer.attempt, ended(Outcome::Ok));
    assert!(
        matches!(row(&out, |r| matches!(r, Record::Model(_))), Some(Record::Model(model)) if model.job == job && model.files.len() == 1)
    );
    assert_eq!(world.phase(job), None, "a finished job leaves memory");
    assert!(sent(&out).any(|message| *message == ToAgent::Forget(offer.attempt)));
}

#[test]
fn a_model_has_its_datasets_name_though_the_job_said_the_id() {
    let mut world = World::ready();
    let dataset = world.cluster.datasets.keys().next().unwrap().to_string();
    let job = world.submit_with(1, |spec| spec.dataset = dataset);
    let attempt = world.offer_of(job).unwrap().attempt;
    world.accept(attempt);
    let out = world.report(attempt, ended(Outcome::Ok));
    let Some(Record::Model(model)) = row(&out, |row| matches!(row, Record::Model(_))) else { panic!("{out:?}") };
    assert_eq!(model.name, "Model from d");
}

#[test]
fn a_cancel_is_said_again_at_every_reconnect_and_wins_over_a_later_result() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    let out = world.ask(Command::CancelJob { id: job, reason: Some("other".into()) }).1;
    assert!(
        sent(&out)
            .any(|message| matches!(message, ToAgent::Stop { how: StopHow::Discard, cause: StopCause::Cancel, .. }))
    );
    assert_eq!(world.phase(job), Some(Phase::Cancelling));
    let out = world.hello(NODE, boot(1), vec![KnownAttempt { id: attempt, phase: AttemptPhase::Running }]);
    assert!(sent(&out).any(|message| matches!(message, ToAgent::Stop { cause: StopCause::Cancel, .. })));
    let out = world.report(attempt, ended(Outcome::Ok));
    assert!(row(&out, |r| matches!(r, Record::Orphan(_))).is_some());
    assert!(
        matches!(row(&out, |r| matches!(r, Record::Job(_))), Some(Record::Job(row)) if row.phase() == Phase::Cancelled)
    );
}

#[test]
fn a_paused_job_gives_its_device_back_and_goes_on_when_resumed() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.ask(Command::SetIntent { id: job, intent: Intent::Pause }).0.unwrap();
    world.report(attempt, ReportBody::Checkpoint(checkpoint(7)));
    world.report(attempt, ended(Outcome::Preempted));
    assert_eq!(world.phase(job), Some(Phase::Paused));
    world.ask(Command::SetIntent { id: job, intent: Intent::Run }).0.unwrap();
    assert_eq!(world.offer_of(job).unwrap().resume.unwrap().step, 7);
}

#[test]
fn a_worker_that_somebody_else_ended_is_not_placed_again_at_once() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.report(attempt, ended(Outcome::Preempted));
    assert!(!world.is_placed(job) && world.why(job).backs_off_until.is_some());
    assert!(world.cluster.jobs[&job].shunned.contains(&NODE), "another node is tried first");
    assert!(world.until_offered(job).is_some());
}

#[test]
fn infrastructure_costs_no_retry_and_the_users_failure_is_not_tried_again() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.report(attempt, ended(Outcome::Lost));
    assert_eq!(world.cluster.jobs[&job].record.user_failures, 0);
    world.pass_talking(Duration::from_secs(2));
    let attempt = world.offer_of(job).unwrap().attempt;
    world.accept(attempt);
    let out = world.report(attempt, failed(FailureClass::NonFinite));
    assert!(
        matches!(row(&out, |r| matches!(r, Record::Job(_))), Some(Record::Job(row)) if row.phase() == Phase::Failed)
    );
}

#[test]
fn a_job_that_always_crashes_stops_by_itself() {
    let mut world = World::ready();
    let (job, mut attempt) = world.running(1);
    for _ in 0..20 {
        world.report(attempt, ended(Outcome::Lost));
        match world.until_offered(job) {
            Some(next) => attempt = next,
            None => break,
        }
        world.accept(attempt);
    }
    assert_eq!(world.phase(job), None);
}

#[test]
fn a_dataset_that_a_job_needs_stays() {
    let mut world = World::ready();
    world.submit(1);
    let dataset = *world.cluster.datasets.keys().next().unwrap();
    assert!(world.ask(Command::DeleteDataset { id: dataset }).0.unwrap_err().to_string().contains("needs the dataset"));
}

#[test]
fn a_paused_job_that_fails_stays_paused() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.ask(Command::SetIntent { id: job, intent: Intent::Pause }).0.unwrap();
    world.report(attempt, failed(FailureClass::Internal));
    assert_eq!(world.phase(job), Some(Phase::Paused));
}

#[test]
fn an_inspection_that_could_not_run_is_asked_again_and_rejects_only_in_the_end() {
    let mut world = World::ready();
    let job = JobId(uuid(150));
    world.ask(Command::SubmitJob { id: job, spec: Box::new(spec()), start: Default::default() }).0.unwrap();
    let broken = || Event::Inspected {
        subject: Subject::Job(job),
        result: Err(Trouble::Theirs("killed".into())),
        files: vec![],
    };
    for _ in 0..4 {
        world.handle(broken());
        assert_eq!(world.phase(job), Some(Phase::Validating));
        let seen = world.history.len();
        world.pass_talking(Duration::from_secs(9));
        let asked = |action: &Action| matches!(action, Action::Inspect(Inspect::Job { id, .. }) if *id == job);
        assert_eq!(world.history[seen..].iter().filter(|action| asked(action)).count(), 1);
    }
    world.handle(broken());
    assert_eq!(world.phase(job), None, "five times is enough");
}

#[test]
fn trouble_of_the_coordinator_itself_rejects_nothing() {
    let mut world = World::ready();
    let job = JobId(uuid(150));
    world.ask(Command::SubmitJob { id: job, spec: Box::new(spec()), start: Default::default() }).0.unwrap();
    for _ in 0..20 {
        let result = Err(Trouble::Ours("no room for a process".into()));
        world.handle(Event::Inspected { subject: Subject::Job(job), result, files: vec![] });
        assert_eq!(world.phase(job), Some(Phase::Validating));
        let seen = world.history.len();
        world.pass_talking(Duration::from_secs(61));
        assert!(world.history[seen..].iter().any(|action| matches!(action, Action::Inspect(_))), "it is asked again");
    }
}

#[test]
fn a_dataset_of_ones_own_is_meant_before_anothers_of_the_same_name() {
    let mut world = World::ready();
    let theirs = DatasetId(uuid(91));
    let create = Command::CreateDataset {
        id: theirs,
        name: "d".into(),
        description: None,
        file_name: "d.jsonl".into(),
        size: 10,
        format: None,
    };
    world.ask_as(user(), None, create).0.unwrap();
    let Ok(Answer::Resolved { dataset, .. }) =
        world.cluster.answer(admin(), Query::Resolve { spec: Box::new(spec()), adapters: vec![] }, world.now)
    else {
        panic!("it resolves")
    };
    assert_eq!(dataset.owner, ADMIN);
}
