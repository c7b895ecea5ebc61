//! Why a job waits, and where one would go that is only thought of: both from the scheduler's own mouth.

use super::{
    App,
    ask::Id,
    caller::Caller,
    failure::Failure,
    job_view::{self, fault_in_words, sentence},
    page::{Answered, one},
};
use crate::{
    access::Actor,
    clock,
    cluster::{
        command::{Answer, Query},
        job::{JobState, Obstacle},
        schedule::{self, Lack, WhyNot},
    },
    discreet::Told,
    record::{BaseState, DatasetState, Dependency, Job},
};
use axum::extract::State;
use lorikeet_api::{
    Envelope, ErrorCode, JobFile, Timestamp,
    job::{self as api, DryRun, FairShare, NodeReason, Why, WhyCode},
    jobfile::start::Start,
    route,
};
use lorikeet_protocol::{
    id::JobId,
    inspect::{Fault, Inspection, JobFindings},
    job::{JobSpec, Phase},
};
use std::{path::PathBuf, sync::Arc};

/// Why a job is where it is.
#[utoipa::path(get, path = route::JOB_WHY, tag = "jobs", params(("id" = String, Path)), responses((status = 200, body = Envelope<Why>)))]
pub(super) async fn why(State(app): State<Arc<App>>, caller: Caller, Id(id): Id<JobId>) -> Answered<Why> {
    let job = app.driver.job(caller.actor, id).await?;
    let phase = job.phase();
    if phase == Phase::Queued
        && let Ok(Answer::Why(Some(waits))) = app.driver.query(caller.actor, Query::Why(id)).await
    {
        return one(waiting(phase, waits, Told::to(caller.actor)));
    }
    if let Some(summary) = silence(&app, caller.actor, id).await {
        return one(Why { code: WhyCode::Unreachable, ..settled(phase, summary) });
    }
    one(blocked(&job)
        .unwrap_or_else(|| settled(phase, job_view::reason(&job).unwrap_or_else(|| sentence(phase).into()))))
}

/// As they are shown; of those that wait for a device the ones that cannot get one as things are say so.
pub(super) async fn views(app: &App, actor: Actor, jobs: Vec<Job>) -> Result<Vec<api::Job>, Failure> {
    let mut jobs = job_view::views(&app.driver, jobs).await?;
    let queued: Vec<_> = jobs.iter().filter(|job| job.phase == Phase::Queued).map(|job| job.id).collect();
    if queued.is_empty() {
        return Ok(jobs);
    }
    let Ok(Answer::Stuck(mut stuck)) = app.driver.query(actor, Query::Stuck(queued)).await else { return Ok(jobs) };
    for job in &mut jobs {
        if let Some(waits) = stuck.remove(&job.id) {
            let why = waiting(Phase::Queued, waits, Told::to(actor));
            (job.reason, job.never) = (Some(why.summary), why.never);
        }
    }
    Ok(jobs)
}

/// One job.
pub(super) async fn view(app: &App, actor: Actor, job: Job) -> Result<api::Job, Failure> {
    Ok(views(app, actor, vec![job]).await?.pop().expect("one view for one job"))
}

fn settled(phase: Phase, summary: String) -> Why {
    let (code, waits_for, nodes) = (WhyCode::Phase, Vec::new(), Vec::new());
    Why { phase, code, summary, never: false, waits_for, position: None, expected_start: None, fair_share: None, nodes }
}

fn waiting(phase: Phase, waits: schedule::Why, told: Told) -> Why {
    let reason = |(node, name, why)| {
        let (code, message) = explain(&why, told);
        NodeReason { node, name, fits: false, code: code.into(), message }
    };
    let nodes: Vec<NodeReason> = waits.nodes.into_iter().map(reason).collect();
    let code = match (waits.limit, waits.backs_off_until) {
        (Some(_), _) => WhyCode::Limit,
        (None, Some(_)) => WhyCode::BackOff,
        (None, None) => WhyCode::Devices,
    };
    let never = waits.never.map(|(_, name, why)| (name, explain(&why, told).1));
    let too_large = matches!(waits.limit, Some(schedule::Limit::TooLarge { .. }));
    let is_never = never.is_some() || too_large;
    let never = never.map(|(name, lacks)| match waits.machines {
        1 => format!("never, as the machines are: {name} {lacks}"),
        several => format!("never, as the {several} machines are: the nearest, {name}, {lacks}"),
    });
    let waits_for = match nodes.as_slice() {
        _ if waits.limit.is_some() => waits.limit.map(over_limit).unwrap_or_default(),
        _ if waits.backs_off_until.is_some() => {
            let until = waits.backs_off_until.map(|until| Timestamp(until).to_string()).unwrap_or_default();
            let word = waits.last_word.map_or_else(|| "ended badly".into(), |word| format!("ended: {word}"));
            format!("its last attempt {word}; it is placed again after {until}")
        }
        [] => "no machine has joined yet; `lorikeet node token` makes a join string".to_owned(),
        [only] => format!("it waits for a device: {} {}", only.name, only.message),
        several => format!("it waits for a device: none of {} machines takes it now", several.len()),
    };
    let expected_start = waits.expected.map(Timestamp);
    let fair_share = waits.owner.map(|(used, weight)| FairShare { device_seconds: used.as_secs(), weight });
    let (summary, position) = (never.unwrap_or(waits_for), Some(waits.position as u64));
    Why { never: is_never, position, expected_start, fair_share, nodes, code, ..settled(phase, summary) }
}

fn over_limit(limit: schedule::Limit) -> String {
    match limit {
        schedule::Limit::Jobs(most) => format!("its owner has {most} jobs on devices already, as many as are allowed"),
        schedule::Limit::Sweep(most) => format!("its sweep has {most} jobs on devices already, as many as it may"),
        schedule::Limit::TooLarge { wanted, most } => {
            format!("never, as the limits are: it asks for {wanted} devices, and one user may hold {most}")
        }
        schedule::Limit::Devices(most) => {
            format!("its owner would hold more than {most} devices, as many as are allowed")
        }
    }
}

/// A word for programs and a sentence for people, to follow a node's name.
fn explain(why: &WhyNot, told: Told) -> (&'static str, String) {
    let size = |bytes: u64| bytesize::ByteSize(bytes).to_string();
    match why {
        WhyNot::Unreachable => ("unreachable", "is not connected".into()),
        WhyNot::Quarantined(reason) => ("quarantined", format!("is closed: {}", told.closed(reason.clone()))),
        WhyNot::Cordoned => ("cordoned", "takes nothing new until `lorikeet node open`, as a person wants it".into()),
        WhyNot::Draining => ("draining", "is being drained and takes nothing new".into()),
        WhyNot::ClosedAndAway(closed) => {
            let (code, message) = explain(closed, told);
            (code, format!("{message}; nor is it connected"))
        }
        WhyNot::Label { key, value } => ("labels", format!("lacks the label {key}={value}")),
        WhyNot::NoSuchDevice(lack) => lacking(lack),
        WhyNot::TooSmall { needed_bytes, memory_bytes } => {
            let (has, needs) = (size(*memory_bytes), size(*needed_bytes));
            ("too_small", format!("has {has} of device memory in all, {needs} are needed"))
        }
        WhyNot::CpuOnly(setting) => {
            ("cpu_only", format!("has GPUs alone, and {setting} is trained on a CPU only so far"))
        }
        WhyNot::TooFew { wanted, there } => {
            ("gpus", format!("has {there} of the {wanted} devices of the kind asked for"))
        }
        WhyNot::Unusable(reason) => {
            ("unusable", format!("cannot train on its device: {}", told.unusable(reason.clone())))
        }
        WhyNot::Busy => ("busy", "is busy with other attempts".into()),
        WhyNot::Memory { needed_bytes, free_bytes, stale } => {
            let (free, needed) = (size(*free_bytes), size(*needed_bytes));
            let said = stale.map(|age| format!(", as it said {} minutes ago", age.as_secs() / 60)).unwrap_or_default();
            ("memory", format!("has {free} of device memory free{said}, {needed} are needed"))
        }
        WhyNot::Outrun => ("outrun", "takes a job that goes first".into()),
        WhyNot::Reserved => ("reserved", "is kept for a job that goes first".into()),
    }
}

/// What the devices of a machine are not.
fn lacking(lack: &Lack) -> (&'static str, String) {
    let size = |bytes: u64| bytesize::ByteSize(bytes).to_string();
    match lack {
        Lack::Device => ("gpu", "has no device".into()),
        Lack::Gpu => ("gpu", "has no GPU".into()),
        Lack::Name(name) => ("gpu", format!("has no device called `{name}`")),
        Lack::Memory { least_bytes, bytes } => {
            ("gpu_memory", format!("has GPUs of {} at most, {} are asked for", size(*bytes), size(*least_bytes)))
        }
        Lack::Compute { least, has } => {
            let word = |(major, minor): &(u8, u8)| format!("{major}.{minor}");
            ("compute", format!("has compute capability {} at most, {} is asked for", word(has), word(least)))
        }
        Lack::Driver { least, has: Some(has) } => {
            ("driver", format!("has driver {has}, {least} or newer is asked for"))
        }
        Lack::Driver { least, has: None } => ("driver", format!("says no driver's version, {least} is asked for")),
    }
}

/// Since when a live job's machine has not been heard, as a sentence.
pub(super) async fn silence(app: &App, actor: Actor, id: JobId) -> Option<String> {
    let Ok(Answer::Unreachable(Some(since))) = app.driver.query(actor, Query::Unreachable(id)).await else {
        return None;
    };
    Some(format!("its machine has not been heard since {}; it is believed to go on", Timestamp(since)))
}

/// Why a job is kept from the queue, if it is.
pub(super) fn blocked(job: &Job) -> Option<Why> {
    let JobState::Blocked(obstacle) = &job.state else { return None };
    if *obstacle == Obstacle::BaseChanged {
        let summary = "the files of its base model changed; an administrator has to restore and register them again";
        return Some(Why { code: WhyCode::BaseChanged, ..settled(Phase::Blocked, summary.into()) });
    }
    let start = Start { hold: job.start.hold && !job.released, ..job.start.clone() };
    self::obstacle(&start, &job.waits_for)
}

/// What its own conditions keep a job waiting for, now or once it is submitted; the first counts.
fn obstacle(start: &Start, waits_for: &[Dependency]) -> Option<Why> {
    let jobs: Vec<_> = waits_for.iter().map(|waits| format!("{}:{}", waits.job, waits.wants)).collect();
    let early = start.not_before.filter(|moment| *moment > clock::now()).map(Timestamp);
    let (code, summary) = match early {
        _ if !jobs.is_empty() => (WhyCode::After, format!("it waits for {}", jobs.join(", "))),
        _ if start.hold => (WhyCode::Held, "it is held; `lorikeet job release` lets it go".into()),
        Some(moment) => (WhyCode::NotBefore, format!("it starts no earlier than {moment}")),
        None => return None,
    };
    let expected_start = early.filter(|_| code == WhyCode::NotBefore);
    Some(Why { code, waits_for: jobs, expected_start, ..settled(Phase::Blocked, summary) })
}

/// Inspects without a record, and asks the schedule without placing.
pub(super) async fn dry_run(app: &App, actor: Actor, spec: JobSpec, start: Start) -> Result<DryRun, Failure> {
    let waits_for = conditions(app, actor, &start).await?;
    let adapters = match spec.init_adapter.clone() {
        Some(name) => app.driver.read(move |store| store.adapters(actor, &name)).await?,
        None => Vec::new(),
    };
    let answer = app.driver.query(actor, Query::Resolve { spec: Box::new(spec.clone()), adapters }).await?;
    let Answer::Resolved { base, dataset, validation } = answer else {
        unreachable!("names are answered with what they stand for")
    };
    let file = JobFile::from(&spec).starting(&start);
    if let (BaseState::Error | BaseState::Changed, Some(fault)) = (&base.state, base.faults.first()) {
        let whole = fault_in_words(&file, fault);
        let message = format!("base model `{}` cannot be used: {whole}", base.name);
        return Ok(not_fitting(file, vec![Fault { line: None, path: "base".into(), message }]));
    }
    let datasets = || [&dataset].into_iter().chain(&validation);
    let ready = base.state == BaseState::Ready && datasets().all(|dataset| dataset.state == DatasetState::Ready);
    let manifests: Option<Vec<_>> = datasets().map(|dataset| dataset.manifest.as_ref()).collect();
    let Some(manifests) = manifests.filter(|_| ready) else {
        let message = format!("base model `{}` or dataset `{}` is not ready", base.name, dataset.name);
        return Ok(not_fitting(file, vec![Fault { line: None, path: String::new(), message }]));
    };
    let mut paths = Vec::new();
    for manifest in manifests {
        paths.push(app.blobs.path(manifest.hash).await?);
    }
    let data = (paths[0].as_path(), paths.get(1).map(PathBuf::as_path));
    match app.inspector.dry_run(actor.owner()?, &base.path, data, spec.clone()).await? {
        Inspection::Job(findings) => {
            let placed = placed(app, actor, spec, file, findings).await?;
            Ok(match obstacle(&start, &waits_for) {
                Some(why) => DryRun { why: Why { nodes: placed.why.nodes, ..why }, ..placed },
                None => placed,
            })
        }
        Inspection::Refused { faults } => Ok(not_fitting(file, faults)),
        Inspection::Dataset(_) | Inspection::Base(_) => {
            Err(Failure::new(ErrorCode::Internal, "the inspection answered another question"))
        }
    }
}

/// What it would have to wait for.
async fn conditions(app: &App, actor: Actor, start: &Start) -> Result<Vec<Dependency>, Failure> {
    let mut named = Vec::new();
    for id in start.after.iter().filter_map(|after| after.job.parse().ok()) {
        named.extend(app.driver.job(actor, id).await.ok());
    }
    let answer = app.driver.query(actor, Query::Conditions { start: start.clone(), named }).await?;
    let Answer::Conditions(waits_for) = answer else { unreachable!("conditions are answered with jobs") };
    Ok(waits_for)
}

async fn placed(
    app: &App,
    actor: Actor,
    spec: JobSpec,
    file: JobFile,
    findings: JobFindings,
) -> Result<DryRun, Failure> {
    let query = Query::DryRun { spec: Box::new(spec), findings: findings.clone() };
    let Answer::Why(waits) = app.driver.query(actor, query).await? else { unreachable!("a dry run says why") };
    let why = match waits {
        Some(waits) => waiting(Phase::Queued, waits, Told::to(actor)),
        None => Why { code: WhyCode::Free, ..settled(Phase::Assigned, "it would start now".into()) },
    };
    Ok(DryRun { spec: file, findings: Some(findings.into()), faults: Vec::new(), why })
}

fn not_fitting(spec: JobFile, faults: Vec<Fault>) -> DryRun {
    let summary = faults.first().map_or_else(|| "it would be rejected".into(), |fault| fault_in_words(&spec, fault));
    let faults = faults.into_iter().map(Into::into).collect();
    DryRun { spec, findings: None, faults, why: settled(Phase::Rejected, summary) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::id::{NodeId, UnixMillis};
    use std::{collections::BTreeSet, time::Duration};
    use uuid::Uuid;

    fn told(change: impl FnOnce(&mut schedule::Why)) -> Why {
        let reason = |n, why| (NodeId(Uuid::from_u128(n)), format!("gpu-{n}"), why);
        let nodes = vec![reason(1, WhyNot::Busy), reason(2, WhyNot::Draining)];
        let mut waits = schedule::Why { position: 1, machines: 2, nodes, ..schedule::Why::default() };
        change(&mut waits);
        waiting(Phase::Queued, waits, Told::Everything)
    }

    #[test]
    fn never_goes_before_every_other_reason_and_names_the_nearest_machine() {
        let too_small = WhyNot::TooSmall { needed_bytes: 40 << 30, memory_bytes: 24 << 30 };
        let nearest = (NodeId(Uuid::from_u128(2)), "gpu-2".to_owned(), too_small);
        let why = told(|waits| {
            (waits.never, waits.backs_off_until) = (Some(nearest), Some(UnixMillis(5)));
        });
        let expected = "never, as the 2 machines are: the nearest, gpu-2, has 24.0 GiB of device memory in all, 40.0 GiB are needed";
        assert_eq!((why.never, why.summary.as_str()), (true, expected));
        let why = told(|waits| waits.limit = Some(schedule::Limit::TooLarge { wanted: 3, most: 2 }));
        let expected = "never, as the limits are: it asks for 3 devices, and one user may hold 2";
        assert_eq!((why.never, why.code, why.summary.as_str()), (true, WhyCode::Limit, expected));
        assert!(!told(|_| {}).never);
    }

    #[test]
    fn what_was_said_at_the_last_end_and_how_old_a_figure_is_are_told() {
        let why = told(|waits| {
            waits.backs_off_until = Some(UnixMillis(5));
            waits.last_word = Some("declined: device GPU-0 is busy".into());
        });
        assert!(
            why.summary.starts_with("its last attempt ended: declined: device GPU-0 is busy; it is placed again after")
        );
        let memory = |stale| WhyNot::Memory { needed_bytes: 2 << 30, free_bytes: 1 << 30, stale };
        assert_eq!(explain(&memory(None), Told::Everything).1, "has 1.0 GiB of device memory free, 2.0 GiB are needed");
        let old = explain(&memory(Some(Duration::from_secs(300))), Told::Everything).1;
        assert_eq!(old, "has 1.0 GiB of device memory free, as it said 5 minutes ago, 2.0 GiB are needed");
    }

    #[test]
    fn every_way_for_a_machine_to_be_out_has_a_word_of_its_own() {
        let out = [
            WhyNot::Unreachable,
            WhyNot::Quarantined("why".into()),
            WhyNot::Cordoned,
            WhyNot::Draining,
            WhyNot::Unusable("why".into()),
        ];
        let words: BTreeSet<_> = out.iter().map(|why| explain(why, Told::Everything).0).collect();
        assert_eq!(words.len(), out.len(), "{words:?}");
        let named = format!("the dead worker of {}-1.2", JobId(Uuid::from_u128(7)));
        let told = explain(&WhyNot::Unusable(named), Told::Machines).1;
        assert_eq!(told, "cannot train on its device: the dead worker of another attempt");
        let closed = WhyNot::Quarantined("the last one: a secret; it is tried again at noon".into());
        let told = explain(&WhyNot::ClosedAndAway(Box::new(closed)), Told::Machines).1;
        assert!(told.starts_with("is closed: several jobs in a row") && told.contains("at noon"), "{told}");
        let both = WhyNot::ClosedAndAway(Box::new(WhyNot::Cordoned));
        let expected = "takes nothing new until `lorikeet node open`, as a person wants it; nor is it connected";
        assert_eq!(explain(&both, Told::Everything), ("cordoned", expected.into()));
    }
}
