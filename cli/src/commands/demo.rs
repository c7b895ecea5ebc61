//! `lorikeet demo`: everything once, on this machine, as it would run in earnest.
//!
//! ```text
//! folder ─► coordinator (child) ─► join, agent (child) ─► base, dataset, job over HTTP ─► adapter ─► questions
//!                                      └── worker, started by the agent
//! ```
//! The children are this program; nothing here reaches around HTTP into them. Ctrl-C, a failure and the end all lead to the
//! same place: the agent stops its worker, then the children end, and what does not end is killed. A demo that is itself killed
//! takes them along: each holds the end of a pipe that ends with it.

mod child;
mod cluster;
mod files;
mod report;
mod sample;

use super::{adapter, base, dataset, follow, gpu, inspect, service::Signals};
use crate::{
    args::Demo,
    client::Client,
    failure::{Failure, chain},
    interrupt,
    output::{Output, table::dataset::fault_lines},
};
use cluster::Cluster;
use files::{End, Files};
use lorikeet_api::{
    base::AddBase,
    job::{Job, MetricsPoint},
    model::Model,
    route::{self, with_id},
};
use report::{Losses, Report};
use std::{path::Path, process::ExitCode, time::Instant};
use tokio::runtime::Builder;

/// Until the adapter is there, or the person has seen enough.
pub(crate) fn run(output: Output, args: &Demo) -> Result<ExitCode, Failure> {
    args.dataset.as_deref().map_or(Ok(()), check)?;
    if args.gpu {
        gpu::there()?;
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(Failure::bug)?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let files = Files::make(args)?;
        let mut cluster = Cluster::new(&files, args.gpu);
        let ended = tokio::select! {
            ended = whole(output, &files, &mut cluster) => ended.map(Some),
            () = signals.wait() => Ok(None),
        };
        output.note("stopping");
        signals.or_at_once(cluster.stop()).await;
        let end = match &ended {
            Ok(Some(_)) => End::Succeeded,
            Ok(None) => End::Interrupted,
            Err(_) => End::Failed,
        };
        if let Some(left) = files.tidy(args.keep, end) {
            output.note(&left);
        }
        ended
    });
    // A sample that is still computed when Ctrl-C comes must not be waited for.
    runtime.shutdown_background();
    match ended? {
        Some(report) => output.answer(&report).map(|()| ExitCode::SUCCESS),
        None => Ok(ExitCode::from(interrupt::EXIT)),
    }
}

/// Said before anything is started for it.
fn check(dataset: &Path) -> Result<(), Failure> {
    let faulty =
        |faults: &[_]| Failure::mistake(format!("{} cannot be trained on:{}", dataset.display(), fault_lines(faults)));
    let found = inspect::check(dataset, None).map_err(|faults| faulty(&faults))?;
    if found.error_count == 0 { Ok(()) } else { Err(faulty(&found.errors)) }
}

async fn whole(output: Output, files: &Files, cluster: &mut Cluster) -> Result<Report, Failure> {
    let began = Instant::now();
    output.note(&format!("everything of this demo lies in {}", files.folder().display()));
    let client = cluster.start(output).await?;
    tokio::select! {
        report = job(output, files, &client, began) => report,
        failure = cluster.died() => Err(failure),
    }
}

/// Files, upload, training, adapter, samples.
async fn job(output: Output, files: &Files, client: &Client, began: Instant) -> Result<Report, Failure> {
    output.note("writing the base model and the conversations");
    let prepared = blocking({
        let files = files.clone();
        move || files.prepare()
    });
    prepared.await?;
    register(client, output, files).await?;
    let (job, model) = train(client, output, files).await?;
    let losses = losses(client, &job).await?;
    adapter::pull(client, &model, &files.adapter()).await?;
    output.note("asking the model what it was not trained on, without the adapter and with it");
    let answers = blocking({
        let files = files.clone();
        move || sample::ask(&files)
    });
    let answers = answers.await?;
    Ok(Report::new(files, &job, &model, losses, answers, began.elapsed()))
}

/// Base and dataset, as a person would bring them.
async fn register(client: &Client, output: Output, files: &Files) -> Result<(), Failure> {
    let request = AddBase { name: files::BASE.into(), path: files.base().display().to_string() };
    base::judge(&base::add(client, request, true).await?)?;
    let new = dataset::New { file: files.dataset(), name: Some(files::DATASET.into()), description: None };
    let added = dataset::add(client, output, &new, true).await?;
    dataset::judge(&added)?;
    let uploaded = match added.conversations.unwrap_or_default() {
        1 => "1 conversation".to_owned(),
        many => format!("{many} conversations"),
    };
    output.note(&format!("{uploaded} uploaded and checked"));
    Ok(())
}

async fn train(client: &Client, output: Output, files: &Files) -> Result<(Job, Model), Failure> {
    let job: Job = client.post(route::JOBS, &[], &files.job()?).await?;
    output.note(&format!("submitted {}", job.id));
    // Lines of JSON belong to `submit --follow`; the demo's answer is one document.
    let done = follow::to_the_end(client, job.id, output.for_people()).await?;
    follow::verdict(&done)?;
    let model = done.model.ok_or_else(|| Failure::bug("the job succeeded without a model"))?;
    let model = client.get(&with_id(route::MODEL, model), &[]).await?;
    Ok((done, model))
}

/// The first and the last evaluation of the held-out split.
async fn losses(client: &Client, job: &Job) -> Result<Option<Losses>, Failure> {
    let points: Vec<MetricsPoint> = client.get(&with_id(route::JOB_METRICS, job.id), &[]).await?;
    let evals: Vec<f64> = points.iter().filter_map(|point| point.validation_loss).collect();
    Ok(evals.first().zip(evals.last()).map(|(&before, &after)| Losses { before, after }))
}

/// Work that holds a thread for a while, away from those that wait for signals.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::bug(format!("work of the demo ended: {}", chain(&error))))?
}
