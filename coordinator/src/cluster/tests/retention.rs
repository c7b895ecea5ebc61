//! What is over and old is forgotten, and nothing else.

use super::{world::*, *};
use crate::record::Model;

/// The rows of a job that has succeeded, as the store would give them.
fn over(world: &mut World, n: u128) -> (Job, Model) {
    let job = world.submit(n);
    let attempt = world.offer_of(job).unwrap().attempt;
    world.accept(attempt);
    let out = world.report(attempt, ended(Outcome::Ok));
    let Some(Record::Job(row)) = row(&out, |record| matches!(record, Record::Job(_))).cloned() else {
        panic!("no job")
    };
    let Some(Record::Model(model)) = row_of_model(&out) else { panic!("no model") };
    (*row, model)
}

fn row_of_model(out: &[Action]) -> Option<Record> {
    row(out, |record| matches!(record, Record::Model(_))).cloned()
}

fn forget(world: &mut World, actor: Actor, old: Vec<(Job, Option<Model>)>) -> (Result<Receipt, Refusal>, Vec<Action>) {
    let (ids, before) = (old.iter().map(|(job, _)| job.id).collect(), UnixMillis(world.now.wall.0 - 10_000));
    world.request(actor, None, Command::ForgetJobs { ids, before }, Rows { old, ..Rows::default() })
}

fn forgotten(out: &[Action]) -> Option<JobId> {
    let record = row(out, |record| matches!(record, Record::Forgotten(_)))?;
    if let Record::Forgotten(job) = record { Some(job.id) } else { None }
}

#[test]
fn a_job_that_ended_long_ago_goes_and_its_model_takes_over_its_settings() {
    let mut world = World::ready();
    let (job, model) = over(&mut world, 1);
    world.pass_talking(Duration::from_secs(11));
    let (result, out) = forget(&mut world, admin(), vec![(job.clone(), Some(model))]);
    assert_eq!((result, forgotten(&out)), (Ok(Receipt::Done), Some(job.id)));
    let told: Vec<_> = audits(&out).map(|audit| (audit.action.as_str(), audit.subject.as_str())).collect();
    assert_eq!(told[0], ("job.forget", job.id.to_string().as_str()), "each is named");
    let Some(Record::Model(model)) = row_of_model(&out) else { panic!("its model stays") };
    assert_eq!(model.spec.as_deref(), Some(&job.spec));
}

#[test]
fn a_job_that_is_not_over_or_not_for_long_stays() {
    let mut world = World::ready();
    let (recent, model) = over(&mut world, 1);
    let live = world.submit(2);
    let live = world.cluster.jobs[&live].record.clone();
    world.pass_talking(Duration::from_secs(9));
    let (_, out) = forget(&mut world, admin(), vec![(recent.clone(), Some(model)), (live, None)]);
    assert_eq!(forgotten(&out), None);
    // What says that it is over and is in memory is not: memory knows better.
    let id = world.submit(3);
    let said = Job { id, ..recent };
    world.pass_talking(Duration::from_secs(9));
    assert_eq!(forgotten(&forget(&mut world, admin(), vec![(said, None)]).1), None);
}

#[test]
fn a_job_of_a_sweep_stays_until_the_sweep_is_over() {
    let mut world = World::ready();
    let (job, _) = over(&mut world, 1);
    world.pass_talking(Duration::from_secs(11));
    let sweep = SweepId(uuid(70));
    let children = vec![(JobId(uuid(71)), Default::default(), spec())];
    let (name, start) = ("search".to_owned(), Default::default());
    let wanted = crate::cluster::sweep::NewSweep { id: sweep, name, children, max_parallel: None, stop: None, start };
    world.ask(Command::SubmitSweep(Box::new(wanted))).0.unwrap();
    let child = Job { sweep: Some(sweep), ..job };
    assert_eq!(forgotten(&forget(&mut world, admin(), vec![(child.clone(), None)]).1), None);
    world.ask(Command::CancelSweep { id: sweep, reason: None }).0.unwrap();
    assert_eq!(forgotten(&forget(&mut world, admin(), vec![(child.clone(), None)]).1), Some(child.id));
}

#[test]
fn only_who_runs_the_cluster_makes_it_forget() {
    let mut world = World::ready();
    let (job, model) = over(&mut world, 1);
    world.pass_talking(Duration::from_secs(11));
    let (result, out) = forget(&mut world, user(), vec![(job, Some(model))]);
    assert!(matches!(result, Err(Refusal::Forbidden { .. })), "{result:?}");
    assert_eq!(forgotten(&out), None);
}
