//! Many jobs of one file.

use super::{world::*, *};
use crate::{cluster::sweep::NewSweep, record::Sweep};
use lorikeet_api::jobfile::{
    start::{After, Start, Wants},
    sweep::StopRule,
};

const SWEEP: SweepId = SweepId(uuid(500));

#[test]
fn no_more_children_than_allowed_hold_devices_and_the_others_say_so() {
    let mut world = World::with_gpus(4, Rules::default());
    let children = world.sweep(5, Some(2), None);
    let placed: Vec<_> = children.iter().filter(|job| world.is_placed(**job)).collect();
    assert_eq!(placed.len(), 2);
    assert_eq!(world.why(children[4]).limit, Some(Limit::Sweep(2)));
    let other = world.submit(90);
    assert!(world.is_placed(other), "who is no child of it is not held back");
    let attempt = world.run(children[0]);
    world.report(attempt, ended(Outcome::Ok));
    assert!(world.is_placed(children[2]));
}

#[test]
fn a_sweep_ends_with_its_last_child_and_names_the_best() {
    let mut world = World::with_gpus(3, Rules::default());
    let children = world.sweep(3, None, None);
    for (child, loss) in children.iter().zip([2.0, 1.5, 1.0]) {
        let attempt = world.run(*child);
        world.report(attempt, progress(3, Some(loss)));
        let outcome = if *child == children[2] { failed(FailureClass::OutOfMemory) } else { ended(Outcome::Ok) };
        world.report(attempt, outcome);
    }
    let row = world.sweep_row();
    assert!(row.completed_at.is_some() && world.cluster.sweeps.is_empty());
    assert_eq!(row.best(), Some((children[1], 1.5)), "the lowest of those that came through");
}

#[test]
fn the_worse_of_those_at_a_rung_ends_there_with_the_reason_and_the_better_goes_on() {
    let mut world = World::with_gpus(3, Rules::default());
    let children = world.sweep(3, None, Some(StopRule { min_steps: 10, reduction: 2 }));
    let attempts: Vec<_> = children.iter().map(|child| world.run(*child)).collect();
    let mut told = |attempt: AttemptId, step, loss| {
        let out = world.report(attempt, progress(step, Some(loss)));
        sent(&out)
            .any(|message| matches!(message, ToAgent::Stop { how: StopHow::Discard, cause: StopCause::Cancel, .. }))
    };
    assert!(!told(attempts[0], 9, 9.0), "before the first rung nobody is judged");
    assert!(!told(attempts[0], 10, 3.0));
    assert!(told(attempts[1], 11, 4.0));
    assert!(!told(attempts[0], 15, 3.0), "the same evaluation again");
    assert!(!told(attempts[2], 11, 2.0));
    world.report(attempts[1], ended(Outcome::Cancelled));
    let row = world.sweep_row();
    assert_eq!(row.children[1].stopped_at, Some(11));
    let reason = world.last_row(children[1]).cancel_reason.unwrap();
    assert_eq!(
        reason,
        "stopped early: validation loss 4.0000 after 11 steps is not among the best of its sweep, one in 2"
    );
    world.report(attempts[0], ended(Outcome::Ok));
    world.report(attempts[2], progress(100, Some(99.0)));
    assert!(world.cluster.jobs[&children[2]].record.intent == Intent::Run, "at its last step it is as good as done");
}

#[test]
fn a_loss_that_was_told_before_judges_no_later_step() {
    let mut world = World::with_gpus(2, Rules::default());
    let children = world.sweep(2, None, Some(StopRule { min_steps: 60, reduction: 2 }));
    let attempts: Vec<_> = children.iter().map(|child| world.run(*child)).collect();
    world.report(attempts[0], progress(80, Some(0.75)));
    world.report(attempts[1], progress(40, Some(1.25)));
    world.report(attempts[1], progress(55, Some(1.25)));
    // Its agent begins anew, and reads the lines again.
    for (step, loss) in [(1, None), (40, Some(1.25)), (77, Some(1.25))] {
        world.report(attempts[1], progress(step, loss));
        let told = world.cluster.jobs[&children[1]].record.progress.unwrap();
        assert_eq!((told.step, told.validation_loss), (step.max(55), Some(1.25)), "after {step}");
    }
    assert_eq!(world.cluster.jobs[&children[1]].record.intent, Intent::Run, "it was not evaluated behind the rung");
    world.report(attempts[1], progress(80, Some(1.0)));
    assert_eq!(world.cluster.jobs[&children[1]].record.intent, Intent::Cancel);
}

#[test]
fn an_attempt_that_goes_on_tells_where_and_keeps_the_evaluation_before_its_own() {
    let mut world = World::with_gpus(1, Rules::default());
    let job = world.submit(1);
    let attempt = world.run(job);
    world.report(attempt, progress(54, Some(1.5)));
    world.report(attempt, ended(Outcome::Lost));
    world.until_offered(job).unwrap();
    let next = world.run(job);
    world.report(next, progress(50, None));
    let told = world.cluster.jobs[&job].record.progress.unwrap();
    assert_eq!((told.step, told.validation_loss), (50, Some(1.5)));
}

#[test]
fn what_was_judged_is_remembered_over_a_restart() {
    let mut world = World::with_gpus(2, Rules::default());
    let children = world.sweep(2, Some(2), Some(StopRule { min_steps: 10, reduction: 2 }));
    let attempts: Vec<_> = children.iter().map(|child| world.run(*child)).collect();
    world.report(attempts[0], progress(10, Some(1.0)));
    world.restart();
    let known = attempts.iter().map(|id| KnownAttempt { id: *id, phase: AttemptPhase::Running }).collect();
    world.hello(NODE, boot(1), known);
    world.report(attempts[1], progress(10, Some(2.0)));
    assert_eq!(world.cluster.jobs[&children[1]].record.intent, Intent::Cancel);
}

#[test]
fn one_cancel_reaches_every_child_and_what_waits_for_one() {
    let mut world = World::with_gpus(1, Rules::default());
    let children = world.sweep(3, None, None);
    let attempt = world.run(children[0]);
    let start = Start { after: vec![After { job: children[2].to_string(), wants: Wants::Ok }], ..Start::default() };
    let behind = JobId(uuid(700));
    world.ask(Command::SubmitJob { id: behind, spec: Box::new(spec()), start }).0.unwrap();
    let cancel = Command::CancelSweep { id: SWEEP, reason: Some("wrong_config".into()) };
    let foreign = world.ask_as(user(), None, cancel.clone()).0.unwrap_err();
    assert_eq!(foreign, Refusal::not_found("sweep"));
    world.ask(cancel).0.unwrap();
    assert!(world.cluster.jobs.keys().eq([&children[0]]), "the one that runs is on its way out");
    world.report(attempt, ended(Outcome::Cancelled));
    let row = world.sweep_row();
    assert!(row.cancelled && row.completed_at.is_some());
    assert!(row.children.iter().all(|child| child.end.is_some_and(|end| end.phase == Phase::Cancelled)));
    assert_eq!(world.last_row(children[1]).cancel_reason.as_deref(), Some("wrong_config"));
}

#[test]
fn children_count_against_the_limits_of_their_owner() {
    let rules = Rules { jobs_per_user: Some(1), ..Rules::default() };
    let mut world = World::with_gpus(4, rules);
    let children = world.sweep(3, Some(3), None);
    assert_eq!(children.iter().filter(|job| world.is_placed(**job)).count(), 1);
    assert_eq!(world.why(children[1]).limit, Some(Limit::Jobs(1)));
}

#[test]
fn a_sweep_with_a_condition_that_cannot_be_leaves_nothing_behind() {
    let mut world = World::with_gpus(1, Rules::default());
    let start = Start { after: vec![After { job: "nobody".into(), wants: Wants::Ok }], ..Start::default() };
    let refused = world.try_sweep(3, None, None, start).unwrap_err();
    assert!(refused.to_string().contains("no job `nobody`"), "{refused}");
    assert!(world.cluster.jobs.is_empty() && world.cluster.sweeps.is_empty());
}

#[test]
fn a_sweep_of_which_a_later_job_is_refused_leaves_no_hole_in_the_audit_records() {
    let mut world = World::with_gpus(1, Rules::default());
    let bad = JobSpec { validation_dataset: Some("nobody".into()), ..spec() };
    let children = [spec(), spec(), bad].into_iter().enumerate();
    let children = children.map(|(n, spec)| (JobId(uuid(600 + n as u128)), Default::default(), spec)).collect();
    let (name, start) = ("tone".into(), Start::default());
    let sweep = NewSweep { id: SWEEP, name, children, max_parallel: None, stop: None, start };
    let refused = world.ask(Command::SubmitSweep(Box::new(sweep))).0.unwrap_err();
    assert!(refused.to_string().contains("no dataset `nobody`"), "{refused}");
    assert!(world.cluster.jobs.is_empty() && world.cluster.sweeps.is_empty());
    world.submit(1);
    let numbers = world.history.iter().filter_map(|action| match action {
        Action::Put(record) => match &**record {
            Record::Audit(audit) => Some(audit.number),
            _ => None,
        },
        _ => None,
    });
    let numbers: Vec<_> = numbers.collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
}

#[test]
fn the_jobs_of_a_sweep_wait_for_what_was_there_before_it_and_not_for_each_other() {
    let mut world = World::with_gpus(1, Rules::default());
    let before = world.submit(1);
    let start = Start { after: vec![After { job: spec().name, wants: Wants::Any }], ..Start::default() };
    let children = world.try_sweep(3, None, None, start).unwrap();
    let waits =
        |job: &JobId| world.cluster.jobs[job].record.waits_for.iter().map(|waits| waits.job).collect::<Vec<_>>();
    assert!(children.iter().all(|child| waits(child) == [before]));
}

fn progress(step: u64, validation_loss: Option<f64>) -> ReportBody {
    ReportBody::Progress(Progress {
        step,
        total_steps: 100,
        epoch: 0.5,
        loss: 2.0,
        learning_rate: 1e-4,
        tokens_per_second: 1.0,
        validation_loss,
    })
}

impl World {
    fn sweep(&mut self, count: u128, max_parallel: Option<u32>, stop: Option<StopRule>) -> Vec<JobId> {
        self.try_sweep(count, max_parallel, stop, Start::default()).unwrap()
    }

    fn try_sweep(
        &mut self,
        count: u128,
        max_parallel: Option<u32>,
        stop: Option<StopRule>,
        start: Start,
    ) -> Result<Vec<JobId>, Refusal> {
        let ids: Vec<_> = (0..count).map(|n| JobId(uuid(600 + n))).collect();
        let values = |n: usize| [("lora.rank".to_owned(), serde_json::Value::from(n))].into();
        let children = ids.iter().enumerate().map(|(n, id)| (*id, values(n), spec())).collect();
        let sweep = NewSweep { id: SWEEP, name: "tone".into(), children, max_parallel, stop, start };
        self.ask(Command::SubmitSweep(Box::new(sweep))).0?;
        for id in &ids {
            let found = Inspection::Job(self.findings.clone());
            self.handle(Event::Inspected { subject: Subject::Job(*id), result: Ok(found), files: vec![] });
        }
        Ok(ids)
    }

    fn sweep_row(&self) -> Sweep {
        let Some(Record::Sweep(row)) = row(&self.history, |row| matches!(row, Record::Sweep(_))) else { panic!() };
        (**row).clone()
    }

    fn last_row(&self, id: JobId) -> Job {
        let of_job = |row: &Record| matches!(row, Record::Job(job) if job.id == id);
        let Some(Record::Job(row)) = row(&self.history, of_job) else { panic!() };
        (**row).clone()
    }
}
