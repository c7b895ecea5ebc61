//! B4: Kueue's baseline generator, replayed: thirty queues in five cohorts, each with small, medium and large workloads that come faster
//! than they can be run.
//!
//! What stands for what: a cohort's quota is one device whose memory its jobs share, a unit a GiB of their plans, a cohort a label, a
//! queue a user. Quotas that are lent and taken back we have none: fair share orders the users of a cohort, priority the kinds, and
//! nobody is asked to leave. Users are made and judged inside, so this talks to the driver itself, over a store with real fsync;
//! neither HTTP nor QUIC is in it. Work is a wait, as it is with Kueue.

mod cohort;
mod queue;

use crate::{Size, place::seconds, report::Report};
use lorikeet_coordinator::{
    access::{Actor, Context, Role},
    cluster::{Inspect, Subject, Timers, command::Command},
    driver::{Driver, Handle},
    store::Store,
};
use lorikeet_protocol::{
    id::{AttemptId, BaseId, RequestId, TokenId, UserId},
    inspect::Inspection,
    job::JobSpec,
};
use lorikeet_tests::findings;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// `test/performance/scheduler/configs/baseline/generator.yaml`; its priorities, 50, 100 and 200, halved: ours end at 100.
const KINDS: [Kind; 3] = [
    Kind { name: "small", count: 350, every: 100, lasts: 200, units: 1, priority: 25 },
    Kind { name: "medium", count: 100, every: 500, lasts: 500, units: 5, priority: 50 },
    Kind { name: "large", count: 50, every: 1_200, lasts: 1_000, units: 20, priority: 100 },
];
const COHORTS: usize = 5;
const QUEUES: usize = 6;
/// Of each queue; a cohort has those of its queues.
const QUOTA: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(420);

/// Workloads of one kind, in each queue.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    count: usize,
    /// Milliseconds from one to the next.
    every: u64,
    /// Milliseconds that it runs.
    lasts: u64,
    units: u64,
    priority: u8,
}

impl Kind {
    fn of(spec: &JobSpec) -> Self {
        *KINDS.iter().find(|kind| kind.priority == spec.priority).expect("its kind gave it its priority")
    }
}

/// What was seen: of each kind, how long jobs waited from their submission to their offer.
#[derive(Debug, Default)]
struct Board(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    submitted: BTreeMap<Uuid, Instant>,
    waited: BTreeMap<&'static str, Vec<Duration>>,
    ended: usize,
}

impl Board {
    fn read(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offered(&self, attempt: AttemptId, kind: Kind, now: Instant) {
        let mut seen = self.read();
        let waited = now - seen.submitted[&attempt.job.0];
        seen.waited.entry(kind.name).or_default().push(waited);
    }
}

pub(crate) fn generator(size: Size, report: &mut Report) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    let (board, part) = (Arc::new(Board::default()), size.of(10, 1));
    let (took, cpu) = runtime.block_on(replay(&board, part));
    let seen = board.read();
    let kinds = KINDS.iter().rev().map(|kind| {
        let waited = &seen.waited[kind.name];
        let mean = waited.iter().sum::<Duration>() / waited.len() as u32;
        let most = waited.iter().max().copied().unwrap_or_default();
        format!("{} {} (longest {})", kind.name, seconds(mean), seconds(most))
    });
    let admitted = kinds.collect::<Vec<_>>().join(", ");
    let measured = format!("all ended after {}; mean wait: {admitted}", seconds(took));
    let load = format!("Kueue's generator, {} jobs, {COHORTS} cohorts × {QUEUES} queues", seen.ended);
    report.row(
        "B4",
        &load,
        measured,
        "≤ 100 s (ideal 66); large ≤ 16.5 s",
        format!("{:.1} CPU s, both ends", cpu.as_secs_f64()),
    );
}

/// A tenth of it, or all.
async fn replay(board: &Arc<Board>, part: usize) -> (Duration, Duration) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(&folder.path().join("state.redb")).expect("a new store");
    let stop = CancellationToken::new();
    let Driver { handle, inspections, task } =
        Driver::start(store, Timers::default(), stop.clone()).expect("an empty store");
    let judging = tokio::spawn(judge(handle.clone(), inspections));
    let admin = user(&handle, Role::Admin).await;
    let base = Command::RegisterBase { id: BaseId(Uuid::now_v7()), name: "b".into(), path: "/b".into() };
    order(&handle, admin, base).await;
    let mut queues = Vec::new();
    for number in 0..COHORTS {
        cohort::join(&handle, admin, number, board).await;
        for _ in 0..QUEUES {
            queues.push((number, queue::open(&handle).await));
        }
    }
    let (began, before) = (Instant::now(), cpu());
    let feeding = |(cohort, user): &(usize, Actor)| queue::feed(&handle, *cohort, *user, part, board);
    let jobs: usize = queues.iter().map(feeding).sum();
    while board.read().ended < jobs {
        assert!(began.elapsed() < PATIENCE, "{} of {jobs} ended in {PATIENCE:?}", board.read().ended);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let spent = (began.elapsed(), cpu().saturating_sub(before));
    judging.abort();
    stop.cancel();
    task.await.expect("the driver ends").expect("every commit was made");
    spent
}

/// In the place of `lorikeet inspect`: a plan is as many GiB as its kind has units.
async fn judge(handle: Handle, mut inspections: tokio::sync::mpsc::UnboundedReceiver<Inspect>) {
    while let Some(inspect) = inspections.recv().await {
        let (subject, found) = match inspect {
            Inspect::Dataset { id, .. } => (Subject::Dataset(id), Inspection::Dataset(findings::dataset())),
            Inspect::Base { id, .. } => (Subject::Base(id), Inspection::Base(findings::base())),
            Inspect::Job { id, spec, .. } => {
                let plan = Kind::of(&spec).units << 30;
                (Subject::Job(id), Inspection::Job(findings::job(10, plan, plan)))
            }
        };
        let files =
            if matches!(subject, Subject::Base(_)) { vec![findings::file("model.safetensors", 30)] } else { vec![] };
        handle.inspected(subject, Ok(found), files).await;
    }
}

async fn user(handle: &Handle, role: Role) -> Actor {
    let id = UserId(Uuid::now_v7());
    let (email, name) = (format!("{id}@example.org"), id.to_string());
    order(handle, Actor::System, Command::CreateUser { id, email, name, role }).await;
    Actor::User { id, role, token: TokenId(Uuid::now_v7()) }
}

async fn order(handle: &Handle, actor: Actor, command: Command) {
    let context = Context { actor, request: RequestId(Uuid::now_v7()), from: "bench".into(), idempotency: None };
    handle.command(context, command).await.expect("it may");
}

/// Of this process.
fn cpu() -> Duration {
    let stat = procfs::process::Process::myself().and_then(|process| process.stat()).expect("it runs");
    Duration::from_secs_f64((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}
