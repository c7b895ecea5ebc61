//! `/api/training-jobs/{id}/events`: a job as it happens, by server-sent events.
//!
//! A stream is a loop of three questions – new lines? a new row? over? – that sleeps until either is announced. Lines carry
//! `<attempt token>:<seq>` as their id, and `Last-Event-ID` goes on behind it; what the row says needs no id, because only the
//! newest counts. The token and the row are asked for each time, so the stream ends when the token or its owner's rights do.

use super::{
    App,
    ask::Id,
    caller::{Caller, actor_of},
    curve,
    ends::{Ends, LAST_LINES, is_long_over},
    failure::Failure,
    job::checkpoint_view,
    job_series::{log_line, parse},
    job_why,
    place::{Full, Place},
};
use crate::{access::Actor, record::Job, series::Missing};
use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::Stream;
use lorikeet_api::{
    ErrorCode,
    job::{JobEvent, JobStage},
    route,
};
use lorikeet_protocol::{
    id::{AttemptId, AttemptToken, Hash, JobId, UserId},
    worker::{EventLine, Stage, WorkerEvent},
};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// Events that wait for a slow client; the loop waits beyond that.
const WAITING: usize = 64;
/// Lines read at once.
const READ_LINES: usize = 500;
/// Even without news the row is looked at: a change whose announcement was missed is seen then.
const LOOK: Duration = Duration::from_secs(1);
/// A comment line, so that proxies and clients know the stream is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A job as it happens: progress, metrics, stage, log, missing, checkpoint; ends after `complete`.
#[utoipa::path(get, path = route::JOB_EVENTS, tag = "jobs", params(("id" = String, Path), ("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = JobEvent)))]
pub(super) async fn follow(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id<JobId>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    app.driver.job(caller.actor, id).await?;
    let cursor = headers.get("last-event-id").and_then(|value| Cursor::parse(value.to_str().ok()?));
    let place = app.streams.take(caller.actor.owner()?).map_err(crowded)?;
    let (events, stream) = mpsc::channel(WAITING);
    let follower = Follower {
        lines: app.series.follow(id),
        changes: app.driver.changes(),
        app: Arc::clone(&app),
        token: caller.token,
        id,
        cursor: cursor.unwrap_or_default(),
        missed: BTreeSet::new(),
        shown: None,
        checkpoints: None,
        over_since: None,
        events,
        _place: place,
    };
    app.tasks.spawn(follower.run());
    Ok(Sse::new(ReceiverStream::new(stream)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn crowded(full: Full) -> Failure {
    let message = match full {
        Full::Each(streams) => format!("you have {streams} event streams open, which is all one user may; close one"),
        Full::All(streams) => format!("{streams} event streams are open, which is all there are; try again later"),
    };
    Failure::new(ErrorCode::RateLimited, message)
}

/// The last line that the client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cursor {
    token: Option<AttemptToken>,
    seq: u64,
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let (token, seq) = text.split_once(':')?;
        Some(Self { token: Some(token.parse().ok()?), seq: seq.parse().ok()? })
    }
}

/// The client has gone, or the coordinator goes.
struct Gone;

struct Follower {
    app: Arc<App>,
    token: Hash,
    id: JobId,
    lines: watch::Receiver<u64>,
    changes: broadcast::Receiver<JobId>,
    cursor: Cursor,
    /// What the client was told to miss, by its first line.
    missed: BTreeSet<(AttemptId, u64)>,
    /// The row as the client knows it.
    shown: Option<Job>,
    /// Checkpoints that the client knows, or that were there before it came.
    checkpoints: Option<usize>,
    /// When the job was first seen to be over.
    over_since: Option<Instant>,
    events: mpsc::Sender<Result<Event, Infallible>>,
    _place: Place<UserId>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            match self.look().await {
                Ok(true) | Err(Ended::Gone) => return,
                Ok(false) => {}
                Err(Ended::Failed(failure)) => {
                    let message = failure.0.message;
                    let _ = self.send(&JobEvent::Error { message }, None).await;
                    return;
                }
            }
            if self.sleep().await.is_err() {
                return;
            }
        }
    }

    /// Says what is new; true: the job is over and everything was said.
    async fn look(&mut self) -> Result<bool, Ended> {
        let actor = actor_of(&self.app, self.token).await?;
        let job = self.app.driver.job(actor, self.id).await.map_err(Failure::from)?;
        let over = job.phase().is_terminal();
        // The row and then the lines: a line that the row's end names is here, or is waited for.
        let complete = !over || self.has_every_line(actor).await?;
        self.say_lines().await?;
        if !complete {
            return Ok(false);
        }
        if over {
            self.say_what_is_missing(actor).await?;
        }
        if self.shown.as_ref() != Some(&job) {
            self.say_checkpoints(actor).await?;
            let view = Box::new(job_why::view(&self.app, actor, job.clone()).await?);
            self.shown = Some(job);
            let event = if over { JobEvent::Complete(view) } else { JobEvent::Progress(view) };
            self.send(&event, None).await?;
        }
        Ok(over)
    }

    /// An agent reports an end before its last lines are through; they are what a person wants to read. One that has gone for
    /// good is not waited for longer than `LAST_LINES`.
    async fn has_every_line(&mut self, actor: Actor) -> Result<bool, Ended> {
        let patience_ends = *self.over_since.get_or_insert_with(Instant::now) + LAST_LINES;
        let attempts = self.app.driver.attempts(actor, self.id).await.map_err(Failure::from)?;
        for attempt in attempts {
            let Some(end) = attempt.end.filter(|end| !is_long_over(end)) else { continue };
            let through = self.app.series.through(attempt.id).await.map_err(Failure::from)?;
            if through < end.last_event && Instant::now() < patience_ends {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn say_lines(&mut self) -> Result<(), Ended> {
        for attempt in self.app.series.attempts(self.id).await.map_err(Failure::from)? {
            match self.cursor.token {
                Some(token) if attempt.token < token => continue,
                Some(token) if attempt.token == token => {}
                _ => self.cursor = Cursor { token: Some(attempt.token), seq: 0 },
            }
            loop {
                let read = self.app.series.read_as(attempt, self.cursor.seq, READ_LINES, |line| line);
                let part = read.await.map_err(Failure::from)?;
                // What has no end may be torn alone, and come again.
                let mut gaps = part.missing.into_iter().filter(|missing| missing.through.is_some()).peekable();
                let is_empty = part.lines.is_empty();
                for line in part.lines {
                    while let Some(missing) = gaps.next_if(|missing| missing.from < line.seq) {
                        self.say_missing(attempt, missing).await?;
                    }
                    if let Some(event) = parse(&line.text).and_then(|event| said(attempt, event, &line.text)) {
                        self.send(&event, Some(format!("{}:{}", attempt.token, line.seq))).await?;
                    }
                    self.cursor.seq = line.seq;
                }
                for missing in gaps {
                    self.say_missing(attempt, missing).await?;
                }
                if is_empty {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Once to a client.
    async fn say_missing(&mut self, attempt: AttemptId, missing: Missing) -> Result<(), Ended> {
        if self.missed.insert((attempt, missing.from)) {
            self.send(&JobEvent::Missing(missing.of(attempt)), None).await?;
        }
        Ok(())
    }

    /// Behind the last line of each attempt: until the job is over, lines may come in the place of what is torn.
    async fn say_what_is_missing(&self, actor: Actor) -> Result<(), Ended> {
        let attempts = self.app.driver.attempts(actor, self.id).await.map_err(Failure::from)?;
        let ends = Ends::among(&attempts, |_| true);
        for attempt in ends.attempts(&self.app.series, self.id).await? {
            let behind = self.app.series.read_as(attempt, u64::MAX, 1, drop).await.map_err(Failure::from)?;
            if let Some(missing) = ends.missing(&self.app.series, attempt, behind.missing.first().copied()).await? {
                self.send(&JobEvent::Missing(missing), None).await?;
            }
        }
        Ok(())
    }

    /// Those that were verified since the stream began.
    async fn say_checkpoints(&mut self, actor: Actor) -> Result<(), Ended> {
        let rows = self.app.driver.checkpoints(actor, self.id).await.map_err(Failure::from)?;
        let known = self.checkpoints.replace(rows.len()).unwrap_or(rows.len());
        for row in rows.into_iter().skip(known).filter(|row| !row.orphan) {
            self.send(&JobEvent::Checkpoint(checkpoint_view(row)), None).await?;
        }
        Ok(())
    }

    async fn send(&self, event: &JobEvent, id: Option<String>) -> Result<(), Ended> {
        let data = serde_json::to_string(event).expect("an event is plain data");
        let block = Event::default().event(event.name()).data(data);
        let block = id.into_iter().fold(block, Event::id);
        // A client that takes nothing holds up nobody's leaving.
        tokio::select! {
            biased;
            () = self.app.leaving.cancelled() => Err(Ended::Gone),
            sent = self.events.send(Ok(block)) => sent.map_err(|_| Ended::Gone),
        }
    }

    /// Until there may be something new.
    async fn sleep(&mut self) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.app.leaving.cancelled() => return Err(Gone),
            () = self.events.closed() => return Err(Gone),
            _ = self.lines.changed() => {}
            () = changed(&mut self.changes, self.id) => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        Ok(())
    }
}

/// Until this job's row changes; announcements that were missed count as one.
async fn changed(changes: &mut broadcast::Receiver<JobId>, id: JobId) {
    loop {
        match changes.recv().await {
            Ok(changed) if changed != id => {}
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            // The driver has ended; the coordinator's own token says so next.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Why a stream ends early.
enum Ended {
    Gone,
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What a line says to a client; its checkpoints come from the record, once they are verified.
fn said(attempt: AttemptId, line: EventLine, text: &str) -> Option<JobEvent> {
    if let WorkerEvent::Stage { stage } = line.event {
        return Some(JobEvent::Stage { stage: stage_of(stage) });
    }
    let point = curve::point(attempt, &line, text).map(JobEvent::Metrics);
    point.or_else(|| log_line(attempt, line).map(JobEvent::Log))
}

fn stage_of(stage: Stage) -> JobStage {
    match stage {
        Stage::Data | Stage::Loading => JobStage::Initializing,
        Stage::Training => JobStage::Training,
        Stage::Validating => JobStage::Validating,
        Stage::Saving => JobStage::Saving,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_nonsense_begins_at_the_beginning() {
        let token = AttemptToken { generation: 1, number: 2 };
        assert_eq!(Cursor::parse("1.2:30"), Some(Cursor { token: Some(token), seq: 30 }));
        assert_eq!(Cursor::parse("1.2"), None);
        assert_eq!(Cursor::parse("x:3"), None);
    }
}
