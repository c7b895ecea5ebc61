//! What a job begins with besides base and dataset: an adapter, and a dataset to be evaluated on.

use super::{world::*, *};
use crate::{
    access::Refusal,
    cluster::command::Answer,
    record::{DatasetState, Job, Model, Receipt},
};

#[test]
fn a_dataset_to_evaluate_on_is_awaited_offered_and_kept_while_a_job_needs_it() {
    let mut world = World::ready();
    let id = held_out(&mut world);
    let job = JobId(uuid(700));
    let mut asked = spec();
    asked.validation_dataset = Some("held-out".into());
    world.ask(Command::SubmitJob { id: job, spec: Box::new(asked), start: Default::default() }).0.unwrap();
    assert_eq!(world.phase(job), Some(Phase::Submitted), "it waits until the second dataset has been judged");
    assert!(matches!(world.ask(Command::DeleteDataset { id }).0, Err(Refusal::Conflict { .. })));
    let out = judged(&mut world, id);
    let asked = out.iter().find_map(|action| match action {
        Action::Inspect(Inspect::Job { validation, .. }) => Some(validation.clone()),
        _ => None,
    });
    assert_eq!(asked.flatten().map(|manifest| manifest.hash), Some(hash(77)));
    let found = Inspection::Job(world.findings.clone());
    world.handle(Event::Inspected { subject: Subject::Job(job), result: Ok(found), files: vec![] });
    let offer = world.offer_of(job).expect("placed");
    assert_eq!(offer.validation.as_ref().map(|file| file.manifest.hash), Some(hash(77)));
    assert!(world.cluster.may_fetch(NODE, offer.attempt, hash(77)), "its worker needs the file");
}

#[test]
fn an_adapter_to_begin_with_is_found_offered_and_may_be_fetched() {
    let mut world = World::ready();
    let (job, submitted) =
        submit(&mut world, 701, "tone", vec![model(1, "tone", UserId(uuid(3))), model(2, "tone", ADMIN)]);
    submitted.unwrap();
    let found = Inspection::Job(world.findings.clone());
    world.handle(Event::Inspected { subject: Subject::Job(job), result: Ok(found), files: vec![] });
    let offer = world.offer_of(job).expect("placed");
    let hashes: Vec<Hash> = offer.init_adapter.iter().map(|file| file.manifest.hash).collect();
    assert_eq!(hashes, [hash(2), hash(102)], "one's own before another's");
    assert!(hashes.iter().all(|hash| world.cluster.may_fetch(NODE, offer.attempt, *hash)));
    assert!(!world.cluster.may_fetch(NODE, offer.attempt, hash(1)));
}

#[test]
fn an_adapter_that_cannot_be_begun_with_is_refused_by_name() {
    let mut world = World::ready();
    let of = |change: &dyn Fn(&mut Model)| {
        let mut model = model(1, "tone", ADMIN);
        change(&mut model);
        vec![model]
    };
    let cases: [(Vec<Model>, &str); 4] = [
        (vec![], "no model `tone`"),
        (of(&|model| model.deleted_at = Some(UnixMillis(1))), "no model `tone`"),
        (of(&|model| model.base = BaseId(uuid(555))), "another base model"),
        (of(&|model| model.files.truncate(1)), "its every weight was trained"),
    ];
    for (n, (models, words)) in (702..).zip(cases) {
        let refused = submit(&mut world, n, "tone", models).1.unwrap_err();
        assert!(
            matches!(&refused, Refusal::Invalid { field, message } if field == "init_adapter" && message.contains(words)),
            "{refused:?}"
        );
    }
    // another's model does not exist, whatever the driver read
    let mut asked = spec();
    asked.init_adapter = Some("tone".into());
    let rows = Rows { adapters: vec![model(1, "tone", ADMIN)], ..Rows::default() };
    let command = Command::SubmitJob { id: JobId(uuid(720)), spec: Box::new(asked), start: Default::default() };
    world.request(user(), None, command, rows).0.unwrap_err();
}

#[test]
fn a_retry_is_made_of_what_the_first_was_made_of_whatever_the_names_mean_by_now() {
    let mut world = World::ready();
    let adapter = model(1, "tone", ADMIN);
    let (job, submitted) = submit(&mut world, 730, "tone", vec![adapter.clone()]);
    submitted.unwrap();
    let old = Job { id: JobId(uuid(731)), state: JobState::Expired, ..world.cluster.jobs[&job].record.clone() };
    let newer = dataset(&mut world, 771, "d");
    judged(&mut world, newer);
    let retry = |world: &mut World, n, adapters: Vec<Model>| {
        let rows = Rows { job: Some(old.clone()), adapters, ..Rows::default() };
        world.request(admin(), None, Command::RetryJob { old: old.id, new: JobId(uuid(n)) }, rows).0
    };
    retry(&mut world, 732, vec![Model { name: "renamed".into(), ..adapter.clone() }]).unwrap();
    let again = &world.cluster.jobs[&JobId(uuid(732))].record;
    assert_eq!((again.dataset, &again.init_adapter), (old.dataset, &old.init_adapter));
    assert_ne!(again.dataset, newer);
    let gone = |refused: Result<Receipt, Refusal>, what: &str| {
        let words = refused.unwrap_err().to_string();
        assert!(words.contains(what) && words.contains("was deleted"), "{words}");
    };
    gone(retry(&mut world, 733, vec![]), "adapter to begin with, `tone`");
    world.cluster.datasets.remove(&old.dataset);
    gone(retry(&mut world, 733, vec![adapter]), "dataset `d`");
}

#[test]
fn a_newer_dataset_that_cannot_be_used_does_not_hide_an_older_one_of_its_name() {
    let mut world = World::ready();
    let resolved = |world: &World| {
        let query = Query::Resolve { spec: Box::new(spec()), adapters: vec![] };
        let Ok(Answer::Resolved { dataset, .. }) = world.cluster.answer(admin(), query, world.now) else { panic!() };
        dataset.id
    };
    let first = resolved(&world);
    let newer = dataset(&mut world, 772, "d");
    for state in [DatasetState::Uploading, DatasetState::Error] {
        world.cluster.datasets.get_mut(&newer).unwrap().state = state;
        assert_eq!(resolved(&world), first);
    }
    world.cluster.datasets.remove(&first);
    assert_eq!(resolved(&world), newer, "there is no other, and its own fault is told");
}

#[test]
fn of_several_with_one_name_none_is_guessed_at_and_each_goes_by_its_id() {
    let mut world = World::ready();
    let first = *world.cluster.datasets.keys().next().unwrap();
    let newer = dataset(&mut world, 772, "d");
    let several = |asked: Result<Receipt, Refusal>, field: &str, ids: [String; 2]| {
        let said = asked.unwrap_err().to_string();
        assert!(said.starts_with(&format!("{field}: more than one")), "{said}");
        assert!(said.contains(&ids.join(", ")) && said.contains("by its id"), "{said}");
    };
    let datasets = || [newer.to_string(), first.to_string()];
    let mut ask = |n, change: &dyn Fn(&mut JobSpec)| {
        let mut asked = spec();
        change(&mut asked);
        world.ask(Command::SubmitJob { id: JobId(uuid(n)), spec: Box::new(asked), start: Default::default() }).0
    };
    several(ask(740, &|_| ()), "dataset", datasets());
    let by_id = |asked: &mut JobSpec| asked.dataset = newer.to_string();
    let held_out =
        |asked: &mut JobSpec| (asked.dataset, asked.validation_dataset) = (newer.to_string(), Some("d".into()));
    several(ask(741, &held_out), "data.validation_dataset", datasets());
    ask(742, &by_id).unwrap();
    assert_eq!(world.cluster.jobs[&JobId(uuid(742))].record.dataset, newer);
    let manifest = world.cluster.datasets[&first].manifest.clone();
    world.cluster.datasets.get_mut(&newer).unwrap().manifest = manifest;
    let by_name = |asked: &mut JobSpec| asked.name = "same bytes".into();
    let mut ask = |n, change: &dyn Fn(&mut JobSpec)| {
        let mut asked = spec();
        change(&mut asked);
        world.ask(Command::SubmitJob { id: JobId(uuid(n)), spec: Box::new(asked), start: Default::default() }).0
    };
    ask(743, &by_name).unwrap();
    assert_eq!(world.cluster.jobs[&JobId(uuid(743))].record.dataset, newer, "there is nothing to guess");
}

#[test]
fn of_several_adapters_with_one_name_the_newest_of_ones_own_on_this_base_is_meant() {
    let mut world = World::ready();
    let elsewhere = Model { base: BaseId(uuid(99)), ..model(3, "tone", ADMIN) };
    let another = UserId(uuid(3));
    let models = vec![model(1, "tone", ADMIN), model(2, "tone", ADMIN), elsewhere, model(4, "tone", another)];
    let (job, submitted) = submit(&mut world, 743, "tone", models);
    submitted.unwrap();
    let files: Vec<Hash> = world.cluster.jobs[&job].record.init_adapter.iter().map(|file| file.manifest.hash).collect();
    assert_eq!(files, [hash(2), hash(102)]);
}

fn submit(world: &mut World, n: u128, adapter: &str, adapters: Vec<Model>) -> (JobId, Result<Receipt, Refusal>) {
    let id = JobId(uuid(n));
    let mut asked = spec();
    asked.init_adapter = Some(adapter.into());
    let rows = Rows { adapters, ..Rows::default() };
    (
        id,
        world
            .request(admin(), None, Command::SubmitJob { id, spec: Box::new(asked), start: Default::default() }, rows)
            .0,
    )
}

fn held_out(world: &mut World) -> DatasetId {
    dataset(world, 770, "held-out")
}

/// With its bytes, not judged yet.
fn dataset(world: &mut World, n: u128, name: &str) -> DatasetId {
    let id = DatasetId(uuid(n));
    let create = Command::CreateDataset {
        id,
        name: name.into(),
        description: None,
        file_name: "held-out.jsonl".into(),
        size: 10,
        format: None,
    };
    world.ask(create).0.unwrap();
    let manifest = FileManifest { size: 10, hash: hash(77), chunks: vec![hash(77)] };
    world.ask(Command::ConfirmDataset { id, manifest }).0.unwrap();
    id
}

fn judged(world: &mut World, id: DatasetId) -> Vec<Action> {
    let known = world.cluster.datasets.values().find(|dataset| dataset.state == DatasetState::Ready).unwrap();
    let found = Inspection::Dataset(known.findings.clone().unwrap());
    world.handle(Event::Inspected { subject: Subject::Dataset(id), result: Ok(found), files: vec![] })
}

/// A finished adapter; its two files are hashes of `n` and of `n` and a hundred.
fn model(n: u8, name: &str, owner: UserId) -> Model {
    let file = |path: &str, byte| NamedFile {
        path: path.into(),
        manifest: FileManifest { size: 10, hash: hash(byte), chunks: vec![hash(byte)] },
    };
    Model {
        id: ModelId(uuid(800 + u128::from(n))),
        owner,
        job: JobId(uuid(900)),
        token: AttemptToken { generation: 1, number: 1 },
        name: name.into(),
        version: "1.0.0".into(),
        description: None,
        files: vec![file("adapter_config.json", n), file("adapter_model.safetensors", n + 100)],
        summary: None,
        dataset: DatasetId(uuid(21)),
        base: BASE,
        spec: None,
        created: UnixMillis(0),
        deleted_at: None,
    }
}
