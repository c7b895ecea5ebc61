//! What keeps a job from its queue: other jobs, a hand, a moment.

use super::{world::*, *};
use lorikeet_api::jobfile::start::{After, Start, Wants};

#[test]
fn a_job_starts_after_the_one_it_waits_for_ended_well() {
    let mut world = World::ready();
    let (first, attempt) = world.running(1);
    let second = world.submit_after(2, &first.to_string(), Wants::Ok);
    assert_eq!(world.phase(second), Some(Phase::Blocked));
    assert_eq!(world.cluster.jobs[&second].record.waits_for.len(), 1);
    world.report(attempt, ended(Outcome::Ok));
    assert!(world.offer_of(second).is_some());
}

#[test]
fn a_name_stands_for_a_live_job_as_long_as_it_is_the_only_one() {
    let mut world = World::ready();
    let first = world.submit_with(1, |spec| spec.name = "prep: a".into());
    let second = world.submit_after(2, "prep: a", Wants::Any);
    assert_eq!(world.cluster.jobs[&second].record.waits_for[0].job, first);
    world.submit_with(3, |spec| spec.name = "prep: a".into());
    let refused = world.try_after(4, "prep: a", Wants::Any, vec![]).unwrap_err();
    assert!(refused.to_string().contains("2 jobs are called `prep: a`"), "{refused}");
}

#[test]
fn an_id_stands_for_its_job_whatever_others_are_called() {
    let mut world = World::ready();
    let first = world.submit(1);
    let called = world.submit_with(2, |spec| spec.name = first.to_string());
    let third = world.submit_after(3, &first.to_string(), Wants::Any);
    assert_eq!(world.cluster.jobs[&third].record.waits_for[0].job, first);
    let row = world.cluster.jobs[&first].record.clone();
    let attempt = world.run(first);
    world.report(attempt, ended(Outcome::Ok));
    let over = Job { state: JobState::Expired, ..row };
    let fourth = world.try_after(4, &first.to_string(), Wants::Fail, vec![over]).unwrap();
    assert!(world.cluster.jobs[&fourth].record.waits_for.is_empty(), "it has ended so, and its row says it");
    let fifth = world.submit_after(5, &first.to_string(), Wants::Any);
    let waits_for = &world.cluster.jobs[&fifth].record.waits_for;
    assert_eq!(waits_for[0].job, called, "a name as good as any, once no row is left of the job");
}

#[test]
fn a_job_of_somebody_else_is_as_unknown_as_none() {
    let mut world = World::ready();
    world.shares_everything();
    let first = world.submit(1);
    let told = |world: &mut World, job: &str| world.try_as(user(), 2, job, Wants::Any, vec![]).unwrap_err().to_string();
    let (foreign, unknown) = (first.to_string(), JobId(uuid(999)).to_string());
    let (of_foreign, of_unknown) = (told(&mut world, &foreign), told(&mut world, &unknown));
    assert_eq!(of_foreign.replace(&foreign, "X"), of_unknown.replace(&unknown, "X"));
    let row = world.cluster.jobs[&first].record.clone();
    let over = Job { state: JobState::Expired, ..row };
    world.ask(Command::CancelJob { id: first, reason: None }).0.unwrap();
    world.until_cancelled(first);
    let of_finished = world.try_as(user(), 3, &foreign, Wants::Any, vec![over]).unwrap_err().to_string();
    assert_eq!(of_finished, of_foreign);
}

#[test]
fn what_is_over_already_counts_at_once() {
    let mut world = World::ready();
    let first = world.submit(1);
    let row = world.cluster.jobs[&first].record.clone();
    let attempt = world.run(first);
    world.report(attempt, ended(Outcome::Oom));
    let over =
        Job { state: JobState::Failed(Failure { class: FailureClass::OutOfMemory, message: "x".into() }), ..row };
    let named = first.to_string();
    let second = world.try_after(2, &named, Wants::Fail, vec![over.clone()]);
    assert!(second.is_ok(), "{second:?}");
    let refused = world.try_after(3, &named, Wants::Ok, vec![over]).unwrap_err();
    assert!(refused.to_string().contains("can not come true: the job is failed"), "{refused}");
}

#[test]
fn a_bad_end_cancels_what_waited_for_a_good_one_down_the_whole_chain_with_the_reason() {
    let mut world = World::ready();
    let (first, attempt) = world.running(1);
    let mut last = first;
    let chain: Vec<_> = (2..40)
        .map(|n| {
            last = world.submit_after(n, &last.to_string(), Wants::Ok);
            last
        })
        .collect();
    let consoled = world.submit_after(50, &first.to_string(), Wants::Fail);
    let out = world.report(attempt, failed(FailureClass::OutOfMemory));
    for id in &chain {
        assert_eq!(world.phase(*id), None, "{id} is over");
    }
    let Some(Record::Job(row)) = row(&out, |r| matches!(r, Record::Job(job) if job.id == chain[1])) else { panic!() };
    assert_eq!(row.state, JobState::Cancelled);
    let reason = row.cancel_reason.clone().unwrap();
    assert_eq!(reason, format!("it was to start after {}:ok, which was cancelled", chain[0]));
    assert!(world.offer_of(consoled).is_some(), "it wanted just that");
}

#[test]
fn a_broken_dataset_ends_a_job_and_the_one_that_waits_for_it_once_each() {
    let mut world = World::ready();
    let dataset = DatasetId(uuid(30));
    let (name, file_name) = ("late".to_owned(), "d.jsonl".into());
    let create = Command::CreateDataset { id: dataset, name, description: None, file_name, size: 10, format: None };
    world.ask(create).0.unwrap();
    world.ask(Command::ConfirmDataset { id: dataset, manifest: manifest() }).0.unwrap();
    let first = JobId(uuid(101));
    let on_it = || Box::new(JobSpec { dataset: "late".into(), ..spec() });
    let after = vec![After { job: first.to_string(), wants: Wants::Ok }];
    for (id, start) in [(first, Start::default()), (JobId(uuid(102)), Start { after, ..Start::default() })] {
        world.ask(Command::SubmitJob { id, spec: on_it(), start }).0.unwrap();
        assert_eq!(world.phase(id), Some(Phase::Submitted));
    }
    let result = Ok(Inspection::Refused { faults: vec![Fault::whole("it is no dataset")] });
    let out = world.handle(Event::Inspected { subject: Subject::Dataset(dataset), result, files: vec![] });
    let ends = out.iter().filter_map(|action| {
        let Action::Put(record) = action else { return None };
        if let Record::Job(job) = &**record { Some((job.id, job.phase())) } else { None }
    });
    assert_eq!(ends.collect::<Vec<_>>(), [(first, Phase::Rejected), (JobId(uuid(102)), Phase::Cancelled)]);
}

#[test]
fn a_base_that_is_another_ends_a_job_and_the_one_that_waits_for_it_once_each() {
    let mut world = World::ready();
    let (first, attempt) = world.running(1);
    let second = world.submit_after(2, &first.to_string(), Wants::Ok);
    world.report(attempt, ReportBody::Checkpoint(checkpoint(5)));
    world.ask_as(Actor::System, None, Command::MarkChanged { file: hash(30) }).0.unwrap();
    world.report(attempt, ended(Outcome::PrepareFailed));
    world.ask(Command::RegisterBase { id: BASE, name: "b".into(), path: "/b".into() }).0.unwrap();
    world.base_found(77);
    assert_eq!((world.phase(first), world.phase(second)), (None, None));
}

#[test]
fn a_cancel_of_the_first_reaches_those_behind_it_and_a_cancel_behind_leaves_the_first() {
    let mut world = World::ready();
    let (first, _) = world.running(1);
    let second = world.submit_after(2, &first.to_string(), Wants::Ok);
    let third = world.submit_after(3, &second.to_string(), Wants::Any);
    world.ask(Command::CancelJob { id: second, reason: None }).0.unwrap();
    assert_eq!((world.phase(first), world.phase(second)), (Some(Phase::Running), None));
    assert_eq!(world.phase(third), Some(Phase::Queued), "any end will do");
}

#[test]
fn who_waits_for_whom_is_remembered_over_a_restart() {
    let mut world = World::ready();
    let (first, attempt) = world.running(1);
    let second = world.submit_after(2, &first.to_string(), Wants::Ok);
    world.restart();
    world.hello(NODE, boot(1), vec![KnownAttempt { id: attempt, phase: AttemptPhase::Running }]);
    assert_eq!(world.phase(second), Some(Phase::Blocked));
    world.report(attempt, ended(Outcome::Ok));
    assert!(world.offer_of(second).is_some());
}

#[test]
fn a_held_job_waits_for_a_hand_and_is_no_older_than_its_release() {
    let mut world = World::ready();
    let held = world.submit_starting(1, Start { hold: true, ..Start::default() }).unwrap();
    assert_eq!(world.phase(held), Some(Phase::Blocked));
    let first = world.submit(2);
    let attempt = world.run(first);
    let second = world.submit(3);
    world.pass_talking(Duration::from_secs(2));
    world.ask(Command::ReleaseJob { id: held }).0.unwrap();
    assert_eq!(world.phase(held), Some(Phase::Queued));
    world.report(attempt, ended(Outcome::Ok));
    assert!(world.is_placed(second) && !world.is_placed(held));
}

#[test]
fn a_job_starts_when_its_moment_has_come_and_not_before() {
    let mut world = World::ready();
    let moment = UnixMillis(world.now.wall.0 + 20_000);
    let job = world.submit_starting(1, Start { not_before: Some(moment), ..Start::default() }).unwrap();
    world.pass_talking(Duration::from_secs(15));
    assert_eq!(world.phase(job), Some(Phase::Blocked));
    world.pass_talking(Duration::from_secs(6));
    assert!(world.is_placed(job));
}

#[test]
fn one_condition_after_the_other_is_looked_at_and_a_pause_comes_first() {
    let mut world = World::ready();
    let (first, attempt) = world.running(1);
    let after = vec![After { job: first.to_string(), wants: Wants::Ok }];
    let job = world.submit_starting(2, Start { after, hold: true, not_before: None }).unwrap();
    let obstacle = |world: &World| world.cluster.jobs[&job].record.state.clone();
    assert_eq!(obstacle(&world), JobState::Blocked(Obstacle::After));
    world.ask(Command::SetIntent { id: job, intent: Intent::Pause }).0.unwrap();
    world.report(attempt, ended(Outcome::Ok));
    assert_eq!(obstacle(&world), JobState::Paused);
    world.ask(Command::SetIntent { id: job, intent: Intent::Run }).0.unwrap();
    assert_eq!(obstacle(&world), JobState::Blocked(Obstacle::Held));
    world.ask(Command::ReleaseJob { id: job }).0.unwrap();
    assert!(world.is_placed(job));
}

#[test]
fn another_priority_is_another_place_in_line_until_the_job_has_its_device() {
    let mut world = World::ready();
    let (first, attempt) = world.running(1);
    let (second, third) = (world.submit(2), world.submit(3));
    world.ask(Command::SetPriority { id: third, priority: 80 }).0.unwrap();
    assert_eq!((world.why(third).position, world.why(second).position), (1, 2));
    let refused = world.ask(Command::SetPriority { id: first, priority: 1 }).0.unwrap_err();
    assert_eq!(refused.to_string(), "the job is running; its priority counts while it waits");
    assert!(world.ask(Command::SetPriority { id: third, priority: 101 }).0.is_err());
    world.report(attempt, ended(Outcome::Ok));
    assert!(world.is_placed(third));
}

#[test]
fn a_job_that_backs_off_says_until_when() {
    let mut world = World::ready();
    let (job, attempt) = world.running(1);
    world.report(attempt, ended(Outcome::Lost));
    let why = world.why(job);
    let until = why.backs_off_until.expect("it backs off");
    assert!(until > world.now.wall && why.expected == Some(until), "{why:?}");
    world.ask(Command::CordonNode { id: NODE }).0.unwrap();
    let why = world.why(job);
    assert_eq!((why.backs_off_until, why.expected), (Some(until), None), "then there is no device for it");
}

impl World {
    fn submit_after(&mut self, n: u128, job: &str, wants: Wants) -> JobId {
        self.try_after(n, job, wants, vec![]).unwrap()
    }

    fn try_after(&mut self, n: u128, job: &str, wants: Wants, named: Vec<Job>) -> Result<JobId, Refusal> {
        self.try_as(admin(), n, job, wants, named)
    }

    fn try_as(&mut self, actor: Actor, n: u128, job: &str, wants: Wants, named: Vec<Job>) -> Result<JobId, Refusal> {
        let start = Start { after: vec![After { job: job.into(), wants }], ..Start::default() };
        self.submit_when(actor, n, start, named)
    }

    fn submit_starting(&mut self, n: u128, start: Start) -> Result<JobId, Refusal> {
        self.submit_when(admin(), n, start, vec![])
    }

    fn submit_when(&mut self, actor: Actor, n: u128, start: Start, named: Vec<Job>) -> Result<JobId, Refusal> {
        let id = JobId(uuid(100 + n));
        self.now.wall.0 += 1;
        let command = Command::SubmitJob { id, spec: Box::new(spec()), start };
        self.request(actor, None, command, Rows { named, ..Rows::default() }).0?;
        let found = Inspection::Job(self.findings.clone());
        self.handle(Event::Inspected { subject: Subject::Job(id), result: Ok(found), files: vec![] });
        Ok(id)
    }

    fn until_cancelled(&mut self, job: JobId) {
        if let Some(attempt) = self.cluster.jobs.get(&job).and_then(|job| job.attempt.as_ref()).map(|row| row.id) {
            self.report(attempt, ended(Outcome::Cancelled));
        }
        assert_eq!(self.phase(job), None);
    }
}
