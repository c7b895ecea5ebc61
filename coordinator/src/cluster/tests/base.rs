//! A base model whose files change under the jobs that use it.

use super::{world::*, *};
use crate::record::BaseState;

#[test]
fn a_base_that_changed_holds_its_jobs_back_and_lets_them_go_when_it_is_whole_again() {
    let mut world = World::ready();
    let (running, attempt) = world.running(1);
    let waiting = world.submit(2);
    world.change_base();
    assert_eq!(world.cluster.bases[&BASE].state, BaseState::Changed);
    assert_eq!(world.phase(waiting), Some(Phase::Blocked));
    assert_eq!(world.phase(running), Some(Phase::Running), "what has its files goes on");
    let submit = Command::SubmitJob { id: JobId(uuid(900)), spec: Box::new(spec()), start: Default::default() };
    assert!(matches!(world.ask(submit).0, Err(Refusal::Invalid { field, .. }) if field == "base"));
    world.report(attempt, ended(Outcome::PrepareFailed));
    assert_eq!(world.phase(running), Some(Phase::Blocked));
    world.register_base_again(30);
    assert_eq!(world.phase(running), Some(Phase::Queued));
    assert_ne!(world.phase(waiting), Some(Phase::Blocked));
}

#[test]
fn other_files_under_the_same_name_are_judged_anew_and_never_mixed_with_old_checkpoints() {
    let mut world = World::ready();
    let (begun, attempt) = world.running(1);
    let fresh = world.submit(2);
    world.report(attempt, ReportBody::Checkpoint(checkpoint(5)));
    world.change_base();
    world.report(attempt, ended(Outcome::PrepareFailed));
    let out = world.register_base_again(77);
    assert_eq!(world.phase(begun), None);
    let failed = row(&out, |r| matches!(r, Record::Job(job) if job.id == begun));
    assert!(
        matches!(failed, Some(Record::Job(job)) if matches!(&job.state, JobState::Failed(failure) if failure.class == FailureClass::Base))
    );
    assert_eq!(world.phase(fresh), Some(Phase::Validating));
}

#[test]
fn a_registration_that_failed_in_between_does_not_make_other_files_the_same() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.report(attempt, ReportBody::Checkpoint(checkpoint(5)));
    world.change_base();
    let again = Command::RegisterBase { id: BaseId(uuid(24)), name: "b".into(), path: "/b".into() };
    world.ask(again).0.unwrap();
    let faults = vec![Fault::whole("a shard is missing")];
    world.handle(Event::Inspected {
        subject: Subject::Base(BASE),
        result: Ok(Inspection::Refused { faults }),
        files: vec![],
    });
    world.report(attempt, ended(Outcome::PrepareFailed));
    assert_eq!(world.phase(job), Some(Phase::Blocked), "nothing is placed on a base that is not whole");
    world.register_base_again(77);
    assert_eq!(world.phase(job), None);
}

#[test]
fn a_checkpoint_of_a_job_that_ran_through_the_change_never_goes_on_over_other_weights() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.change_base();
    world.register_base_again(77);
    world.report(attempt, ReportBody::Checkpoint(checkpoint(5)));
    let out = world.report(attempt, ended(Outcome::Lost));
    let failed = row(&out, |r| matches!(r, Record::Job(record) if record.id == job));
    assert!(matches!(failed, Some(Record::Job(job)) if job.phase() == Phase::Failed));
}

#[test]
fn a_job_without_a_checkpoint_is_judged_anew_over_other_files_wherever_it_was_when_they_changed() {
    let mut world = World::with_gpus(3, Rules::default());
    let (lost, attempt) = world.running(1);
    let paused = world.submit_with(2, |spec| spec.resources.gpus = 3);
    world.ask(Command::SetIntent { id: paused, intent: Intent::Pause }).0.unwrap();
    let asked = JobId(uuid(103));
    world.ask(Command::SubmitJob { id: asked, spec: Box::new(spec()), start: Default::default() }).0.unwrap();
    world.change_base();
    world.register_base_again(77);
    assert_eq!((world.phase(paused), world.phase(asked)), (Some(Phase::Paused), Some(Phase::Validating)));
    world.ask(Command::SetIntent { id: paused, intent: Intent::Run }).0.unwrap();
    assert_eq!(world.phase(paused), Some(Phase::Validating));
    world.report(attempt, ended(Outcome::Lost));
    assert_eq!(world.phase(lost), Some(Phase::Validating));
    // What it was asked of the old files is answered late.
    let found = |world: &mut World, id, cuda_bytes| {
        let findings = JobFindings { cuda_bytes, ..world.findings.clone() };
        world.handle(Event::Inspected {
            subject: Subject::Job(id),
            result: Ok(Inspection::Job(findings)),
            files: vec![],
        });
    };
    found(&mut world, asked, 5);
    assert_eq!(world.phase(asked), Some(Phase::Validating));
    found(&mut world, asked, 7);
    assert_eq!(world.offer_of(asked).unwrap().planned_bytes, 7);
    found(&mut world, lost, 7);
    assert_eq!(world.until_offered(lost).map(|attempt| attempt.token.number), Some(2));
}

#[test]
fn a_job_that_is_to_be_judged_anew_without_a_dataset_that_can_be_used_is_rejected() {
    let mut world = World::ready();
    let paused = world.submit_with(1, |spec| spec.resources.gpus = 3);
    world.ask(Command::SetIntent { id: paused, intent: Intent::Pause }).0.unwrap();
    world.change_base();
    world.register_base_again(77);
    let dataset = world.cluster.datasets.values_mut().next().unwrap();
    dataset.state = crate::record::DatasetState::Error;
    let name = dataset.name.clone();
    let (_, out) = world.ask(Command::SetIntent { id: paused, intent: Intent::Run });
    let rejected = row(&out, |row| matches!(row, Record::Job(job) if job.id == paused));
    let Some(Record::Job(job)) = rejected else { panic!("{out:?}") };
    let JobState::Rejected { faults } = &job.state else { panic!("{:?}", job.state) };
    assert_eq!(faults[0].path, name);
}

#[test]
fn a_name_stands_for_one_directory() {
    let mut world = World::ready();
    let elsewhere = Command::RegisterBase { id: BaseId(uuid(22)), name: "b".into(), path: "/other".into() };
    assert!(world.ask(elsewhere).0.unwrap_err().to_string().contains("another directory"));
    let again = Command::RegisterBase { id: BaseId(uuid(23)), name: "b".into(), path: "/b".into() };
    assert_eq!(world.ask(again).0, Ok(Receipt::Base(BASE)));
    assert_eq!(world.cluster.bases[&BASE].state, BaseState::Ready, "what is fine is not read again");
}

#[test]
fn a_directory_that_could_not_be_used_gives_its_name_to_another_unless_models_may_have_been_made_of_it() {
    let mut world = World::ready();
    let at =
        |name: &str, path: &str| Command::RegisterBase { id: BaseId(uuid(24)), name: name.into(), path: path.into() };
    let unusable = |world: &mut World, id| {
        let found = Ok(Inspection::Refused { faults: vec![Fault::whole("no weights found")] });
        world.handle(Event::Inspected { subject: Subject::Base(id), result: found, files: vec![] });
    };
    let missed = BaseId(uuid(24));
    world.ask(at("missed", "/bases")).0.unwrap();
    assert!(world.ask(at("missed", "/bases/tiny")).0.is_err(), "it is being read");
    unusable(&mut world, missed);
    assert_eq!(world.ask(at("missed", "/bases/tiny")).0, Ok(Receipt::Base(missed)));
    let base = &world.cluster.bases[&missed];
    assert_eq!((base.path.to_str(), &base.state), (Some("/bases/tiny"), &BaseState::Validating));
    // One that was ready stands for its files.
    world.change_base();
    world.ask(at("b", "/b")).0.unwrap();
    unusable(&mut world, BASE);
    assert!(world.ask(at("b", "/b/tiny")).0.unwrap_err().to_string().contains("/b"));
}

#[test]
fn only_the_coordinator_itself_closes_a_base() {
    let mut world = World::ready();
    assert!(world.ask_as(user(), None, Command::MarkChanged { file: hash(30) }).0.is_err());
    assert_eq!(world.ask_as(Actor::System, None, Command::MarkChanged { file: hash(99) }).0, Ok(Receipt::Done));
    assert!(world.cluster.bases.values().all(|base| base.state == BaseState::Ready));
}

impl World {
    fn change_base(&mut self) {
        self.ask_as(Actor::System, None, Command::MarkChanged { file: hash(30) }).0.unwrap();
    }

    fn register_base_again(&mut self, byte: u8) -> Vec<Action> {
        let again = Command::RegisterBase { id: BaseId(uuid(24)), name: "b".into(), path: "/b".into() };
        assert_eq!(self.ask(again).0, Ok(Receipt::Base(BASE)));
        self.base_found(byte)
    }
}
