//! Following a job: its events become a progress display, or lines of JSON.

use crate::{
    client::{
        Client,
        events::{Events, Told},
    },
    failure::Failure,
    interrupt,
    output::{
        Output,
        progress::{Point, TrainingProgress},
        table::word,
    },
};
use lorikeet_api::{
    job::{Job, JobEvent, JobStatus, LogLine, MetricsPoint, MissingLines, Why},
    route::{self, with_id},
};
use lorikeet_protocol::{id::JobId, job::Phase, worker::Level};
use std::{pin::pin, time::Duration};

/// A job that waits for longer than this is asked at once what it waits for: most are placed sooner, and have nothing to say.
const WORDLESS: Duration = Duration::from_millis(200);
/// And so often again: the reason changes with other jobs and machines, and no event of this job tells of that.
const ASKED_AGAIN: Duration = Duration::from_secs(3);

/// Watches until the job ends or the person has seen enough: Ctrl-C ends the watching and says so.
pub(super) async fn watch(client: &Client, job: JobId, output: Output) -> Result<Job, Failure> {
    tokio::select! {
        done = to_the_end(client, job, output) => done,
        Ok(()) = tokio::signal::ctrl_c() => {
            output.note(&format!(
                "the job goes on: `lorikeet job follow {job}` comes back to it, `lorikeet job cancel {job}` ends it"
            ));
            std::process::exit(interrupt::EXIT.into())
        }
    }
}

/// Watches until the job ends, and returns it as it ended.
pub(crate) async fn to_the_end(client: &Client, job: JobId, output: Output) -> Result<Job, Failure> {
    let mut events = client.events(job);
    let mut display = Display::new(output);
    let done = loop {
        match next(client, job, &mut events, &mut display.waits, &mut |words| display.progress.note(words)).await? {
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

/// The next thing; a job that waits meanwhile says why.
pub(super) async fn next(
    client: &Client,
    job: JobId,
    events: &mut Events<'_>,
    waits: &mut Waits,
    note: &mut impl FnMut(&str),
) -> Result<Told, Failure> {
    let (mut next, mut patience) = (pin!(events.next()), WORDLESS);
    loop {
        tokio::select! {
            biased;
            told = &mut next => return told,
            () = tokio::time::sleep(patience), if waits.is_waiting() => {}
        }
        patience = ASKED_AGAIN;
        // Of a coordinator that does not answer the events tell.
        if let Ok(why) = client.get::<Why>(&with_id(route::JOB_WHY, job), &[]).await {
            waits.hear(&why, note);
        }
    }
}

/// Said once when the connection breaks; the job does not need us.
pub(super) fn broken(why: &str) -> String {
    format!("the connection to the coordinator broke ({why}); trying until it is back, the job goes on meanwhile")
}

/// Said when it is back.
pub(super) const BACK: &str = "the coordinator is back, and the stream goes on where it broke";

/// Lines that should stand here, where they were to stand.
pub(super) fn missing(MissingLines { attempt, from, through }: &MissingLines) -> String {
    let lines = match through {
        Some(through) if through == from => format!("line {from}"),
        Some(through) => format!("lines {from} to {through}"),
        None => format!("lines from {from} on"),
    };
    format!(
        "something is missing here: {lines} of {attempt}, which the coordinator's disk has not kept or which have not come to it; they may stand in \
         events.jsonl on the node"
    )
}

/// A job as it ended, and what to do next.
pub(super) fn tell(output: Output, done: &Job) -> Result<(), Failure> {
    match output.is_json() {
        // the last of its events, which are a line each
        true => output.object(done)?,
        false => output.answer(done)?,
    }
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
    waits: Waits,
}

/// Where a job was when it was last heard of, and what was told of that.
#[derive(Default)]
pub(super) struct Waits {
    phase: Option<Phase>,
    /// The last reason told of this phase, so that it is told once.
    reason: Option<String>,
}

impl Waits {
    /// The job's record; answers the phase before it.
    pub(super) fn record(&mut self, job: &Job) -> Option<Phase> {
        let before = self.phase.replace(job.phase);
        if before != Some(job.phase) {
            self.reason = None;
        }
        before
    }

    /// Whether nothing is done for the job, and not because a person wants it so.
    fn is_waiting(&self) -> bool {
        self.phase.is_some_and(|phase| phase != Phase::Paused && JobStatus::of(phase) == JobStatus::Queued)
    }

    /// Heard of a phase that is over meanwhile, it is no news.
    fn hear(&mut self, why: &Why, note: &mut impl FnMut(&str)) {
        if self.phase == Some(why.phase) {
            self.tell(why.phase, &why.summary, note);
        }
    }

    fn tell(&mut self, phase: Phase, reason: &str, note: &mut impl FnMut(&str)) {
        if self.reason.as_deref() != Some(reason) {
            self.reason = Some(reason.to_owned());
            note(&format!("{}: {reason}", word(&phase)));
        }
    }
}

impl Display {
    fn new(output: Output) -> Self {
        Self { output, progress: TrainingProgress::new(), waits: Waits::default() }
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
            JobEvent::Missing(lines) => self.progress.note(&missing(&lines)),
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
        let before = self.waits.record(job);
        let mut note = |words: &str| self.progress.note(words);
        if job.phase == Phase::Paused {
            self.waits.tell(job.phase, &format!("`lorikeet job resume {}` lets it go on", job.id), &mut note);
        } else if before == Some(Phase::Paused) {
            note(&format!("{}: it was resumed", word(&job.phase)));
        }
        if let Some(reason) = &job.reason {
            self.waits.tell(job.phase, reason, &mut note);
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
