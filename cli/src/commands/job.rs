//! `lorikeet job …`: one job.

use super::{
    follow::{self, Waits},
    jobs, named, submit,
};
use crate::{
    args::{CancelReason, Job as Args, OneJob},
    client::{Client, events::Told},
    failure::Failure,
    output::{Output, table::job::log_line},
};
use lorikeet_api::{
    job::{self, CancelJob, CheckpointView, Job, JobEvent, LogLine, MetricsPoint, MissingLines, PatchJob, Why},
    route::{self, with_id},
};
use lorikeet_protocol::id::JobId;
use serde::Serialize;

/// Does what was asked of one job.
pub(crate) async fn run(client: &Client, output: Output, args: Args) -> Result<(), Failure> {
    let id = async |OneJob { job }: OneJob| named::id::<Job>(client, output, &job).await;
    let own = async |OneJob { job }: OneJob| named::own_id::<Job>(client, output, &job).await;
    match args {
        Args::List(args) => jobs::run(client, output, args).await,
        Args::Show(job) => output.answer(&show(client, id(job).await?).await?),
        Args::Cancel { job, reason } => cancel(client, output, own(job).await?, reason).await,
        Args::Pause(job) => order(client, output, route::JOB_PAUSE, own(job).await?).await,
        Args::Resume(job) => order(client, output, route::JOB_RESUME, own(job).await?).await,
        Args::Release(job) => order(client, output, route::JOB_RELEASE, own(job).await?).await,
        Args::Priority { job, priority } => {
            let changed: Job = client.patch(&with_id(route::JOB, own(job).await?), &PatchJob { priority }).await?;
            output.answer(&changed)
        }
        Args::Checkpoint(job) => order(client, output, route::JOB_CHECKPOINT, own(job).await?).await,
        Args::Retry { job, follow } => {
            let again: Job = client.post(&with_id(route::JOB_RETRY, own(job).await?), &[], &NoBody {}).await?;
            submit::show(client, output, again, follow).await
        }
        Args::Why(job) => output.answer(&client.get::<Why>(&with_id(route::JOB_WHY, id(job).await?), &[]).await?),
        Args::Logs { job, follow: false } => said(client, output, id(job).await?).await,
        Args::Logs { job, follow: true } => logs(client, output, id(job).await?).await,
        Args::Metrics(job) => {
            let (points, missing) =
                client.said::<Vec<MetricsPoint>>(&with_id(route::JOB_METRICS, id(job).await?)).await?;
            note_missing(output, &missing);
            output.answer(&points)
        }
        Args::Checkpoints(job) => {
            let path = with_id(route::JOB_CHECKPOINTS, id(job).await?);
            output.answer(&client.get::<Vec<CheckpointView>>(&path, &[]).await?)
        }
        Args::Follow(job) => {
            let done = follow::watch(client, id(job).await?, output).await?;
            follow::tell(output, &done)
        }
    }
}

/// Every line there is.
async fn said(client: &Client, output: Output, id: JobId) -> Result<(), Failure> {
    let (lines, missing) = client.all_said::<LogLine>(&with_id(route::JOB_LOGS, id), &[]).await?;
    note_missing(output, &missing);
    if lines.is_empty() && missing.is_empty() {
        let steps = format!("Its steps: `lorikeet job metrics {id}`");
        output.note(&format!("no log lines: a worker that has nothing to warn of says nothing. {steps}"));
    }
    lines.iter().try_for_each(|line| output.item(line, log_line))
}

/// On standard error: a list of points has only points.
fn note_missing(output: Output, missing: &[MissingLines]) {
    missing.iter().for_each(|missing| output.note(&follow::missing(missing)));
}

/// The body of a request that needs none.
#[derive(Serialize)]
pub(super) struct NoBody {}

/// One job's record.
pub(crate) async fn show(client: &Client, id: JobId) -> Result<Job, Failure> {
    client.get(&with_id(route::JOB, id), &[]).await
}

async fn order(client: &Client, output: Output, route: &str, id: JobId) -> Result<(), Failure> {
    let job: Job = client.post(&with_id(route, id), &[], &NoBody {}).await?;
    output.answer(&job)
}

async fn cancel(client: &Client, output: Output, id: JobId, reason: CancelReason) -> Result<(), Failure> {
    let body = CancelJob { reason: self::reason(reason) };
    let cancelled: Job = client.post(&with_id(route::JOB_CANCEL, id), &[], &body).await?;
    output.answer(&cancelled)
}

/// The server's word for it.
pub(super) fn reason(reason: CancelReason) -> job::CancelReason {
    match reason {
        CancelReason::CostConcern => job::CancelReason::CostConcern,
        CancelReason::PoorPerformance => job::CancelReason::PoorPerformance,
        CancelReason::WrongConfig => job::CancelReason::WrongConfig,
        CancelReason::NoLongerNeeded => job::CancelReason::NoLongerNeeded,
        CancelReason::Other => job::CancelReason::Other,
    }
}

/// Every line there is, then every line that comes; of a job that waits there are none, and what it waits for is said.
async fn logs(client: &Client, output: Output, id: JobId) -> Result<(), Failure> {
    let (mut events, mut waits) = (client.events(id), Waits::default());
    while !output.is_unread() {
        let told = follow::next(client, id, &mut events, &mut waits, &mut |words| output.note(words)).await?;
        let event = match told {
            Told::Event(event) => *event,
            Told::Broken(why) => {
                output.note(&follow::broken(&why));
                continue;
            }
            Told::Back => {
                output.note(follow::BACK);
                continue;
            }
        };
        match event {
            JobEvent::Log(line) => output.item(&line, log_line)?,
            JobEvent::Missing(missing) => output.note(&follow::missing(&missing)),
            JobEvent::Complete(_) => return Ok(()),
            JobEvent::Progress(job) => _ = waits.record(&job),
            JobEvent::Metrics(_)
            | JobEvent::Stage { .. }
            | JobEvent::Cost { .. }
            | JobEvent::Checkpoint(_)
            | JobEvent::Error { .. } => {}
        }
    }
    Ok(())
}
