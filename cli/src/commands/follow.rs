//! Following a job: its events become a progress display, or lines of JSON.

use crate::{
    client::{Client, events::Told},
    failure::Failure,
    output::{
        Output,
        progress::{Point, TrainingProgress},
        table::word,
    },
};
use lorikeet_api::job::{Job, JobEvent, JobStatus, LogLine, MetricsPoint};
use lorikeet_protocol::{id::JobId, worker::Level};

/// Watches until the job ends, and returns it as it ended.
pub(crate) async fn to_the_end(client: &Client, job: JobId, output: Output) -> Result<Job, Failure> {
    let mut events = client.events(job);
    let mut display = Display::new(output);
    let done = loop {
        match events.next().await? {
            Told::Event(event) => {
                let event = *event;
                if let JobEvent::Complete(done) = event {
                    break *done;
                }
                display.show(event)?;
            }
            Told::Broken(why) => display.progress.note(&broken(&why)),
            Told::Back => display.progress.note(BACK),
        }
    };
    display.progress.finish();
    Ok(done)
}

/// Said once when the connection breaks; the job does not need us.
pub(super) fn broken(why: &str) -> String {
    format!("the connection to the coordinator broke ({why}); trying until it is back, the job goes on meanwhile")
}

/// Said when it is back.
pub(super) const BACK: &str = "the coordinator is back; nothing was missed";

/// A job as it ended, and what to do next.
pub(super) fn tell(output: Output, done: &Job) -> Result<(), Failure> {
    output.answer(done)?;
    verdict(done)?;
    output.note(&format!("fetch its adapter with `lorikeet adapter pull {} --out adapter`", done.id));
    Ok(())
}

/// How a job's end is told by exit code.
pub(crate) fn verdict(job: &Job) -> Result<(), Failure> {
    match job.status {
        JobStatus::Completed => Ok(()),
        JobStatus::Cancelled => Err(Failure::job_failed("the job was cancelled")),
        JobStatus::Failed | JobStatus::Queued | JobStatus::Initializing | JobStatus::Running => Err(failed(job)),
    }
}

fn failed(job: &Job) -> Failure {
    let Some(error) = &job.error else { return Failure::job_failed(format!("the job ended {}", word(&job.phase))) };
    let failure = Failure::job_failed(format!("the job failed: {}", error.message));
    match &error.hint {
        Some(hint) => failure.hint(hint),
        None => failure.hint(format!("read what it said with `lorikeet job logs {}`", job.id)),
    }
}

/// What is shown of events.
struct Display {
    output: Output,
    progress: TrainingProgress,
    /// The last reason told, so that it is told once.
    reason: Option<String>,
}

impl Display {
    fn new(output: Output) -> Self {
        Self { output, progress: TrainingProgress::new(), reason: None }
    }

    fn show(&mut self, event: JobEvent) -> Result<(), Failure> {
        if self.output.is_json() {
            return self.output.object(&event);
        }
        match event {
            JobEvent::Progress(job) => self.job(&job),
            JobEvent::Metrics(point) => self.metrics(&point),
            JobEvent::Stage { stage } => self.progress.stage(&word(&stage).to_lowercase()),
            JobEvent::Log(line) => self.log(&line),
            JobEvent::Checkpoint(checkpoint) => {
                self.progress.stage(&format!("checkpoint after step {}", checkpoint.step))
            }
            JobEvent::Cost { .. } | JobEvent::Complete(_) | JobEvent::Error { .. } => {}
        }
        Ok(())
    }

    fn job(&mut self, job: &Job) {
        self.progress.stage(&word(&job.phase));
        if let Some(total) = job.total_steps.filter(|_| job.status == JobStatus::Running) {
            self.progress.total(total);
        }
        if job.reason != self.reason {
            self.reason.clone_from(&job.reason);
            if let Some(reason) = &self.reason {
                self.progress.note(&format!("{}: {reason}", word(&job.phase)));
            }
        }
    }

    fn metrics(&mut self, point: &MetricsPoint) {
        if let Some(loss) = point.training_loss {
            self.progress.step(Point { step: point.step, loss, tokens_per_second: point.tokens_per_second });
        }
        if let Some(loss) = point.validation_loss {
            self.progress.note(&format!("step {}: validation loss {loss:.4}", point.step));
        }
    }

    fn log(&self, line: &LogLine) {
        match line.level {
            Level::Info => {}
            Level::Warning | Level::Error => self.progress.note(&format!("{}: {}", word(&line.level), line.message)),
        }
    }
}
