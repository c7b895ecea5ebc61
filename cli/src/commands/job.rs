//! `lorikeet job …`: one job.

use super::{
    follow::{self, Waits},
    jobs, submit,
};
use crate::{
    args::{self, CancelReason, Job as Args},
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
    match args {
        Args::List(args) => jobs::run(client, output, args).await,
        Args::Show(args::OneJob { id }) => output.answer(&show(client, id).await?),
        Args::Cancel { job, reason } => cancel(client, output, job.id, reason).await,
        Args::Pause(args::OneJob { id }) => order(client, output, route::JOB_PAUSE, id).await,
        Args::Resume(args::OneJob { id }) => order(client, output, route::JOB_RESUME, id).await,
        Args::Release(args::OneJob { id }) => order(client, output, route::JOB_RELEASE, id).await,
        Args::Priority { job, priority } => {
            let changed: Job = client.patch(&with_id(route::JOB, job.id), &PatchJob { priority }).await?;
            output.answer(&changed)
        }
        Args::Checkpoint(args::OneJob { id }) => order(client, output, route::JOB_CHECKPOINT, id).await,
        Args::Retry { job, follow } => {
            let again: Job = client.post(&with_id(route::JOB_RETRY, job.id), &[], &NoBody {}).await?;
            submit::show(client, output, again, follow).await
        }
        Args::Why(args::OneJob { id }) => output.answer(&client.get::<Why>(&with_id(route::JOB_WHY, id), &[]).await?),
        Args::Logs { job, follow: false } => {
            let (lines, missing) = client.all_said::<LogLine>(&with_id(route::JOB_LOGS, job.id), &[]).await?;
            note_missing(output, &missing);
            if lines.is_empty() && missing.is_empty() {
                output.note(&format!("no log lines: a worker that has nothing to warn of says nothing. Its steps: `lorikeet job metrics {}`", job.id));
            }
            lines.iter().try_for_each(|line| output.item(line, log_line))
        }
        Args::Logs { job, follow: true } => logs(client, output, job.id).await,
        Args::Metrics(args::OneJob { id }) => {
            let (points, missing) = client.said::<Vec<MetricsPoint>>(&with_id(route::JOB_METRICS, id)).await?;
            note_missing(output, &missing);
            output.answer(&points)
        }
        Args::Checkpoints(args::OneJob { id }) => {
            output.answer(&client.get::<Vec<CheckpointView>>(&with_id(route::JOB_CHECKPOINTS, id), &[]).await?)
        }
        Args::Follow(args::OneJob { id }) => {
            let done = follow::watch(client, id, output).await?;
            follow::tell(output, &done)
        }
    }
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
