//! The loop: waits for inputs, makes turns of them, commits, then lets the effects go.

use super::{Answering, DriverError, Input, Session, load::load, writer::Writer};
use crate::{
    access::{Actor, Refusal},
    clock,
    cluster::{Action, Cluster, Event, Inspect, Loaded, Now, ReplyKey, Rows, Settings, command::Command, model_of},
    inbox::{BATCH, Inbox},
    record::{Job, Model},
    store::{Store, StoreError},
    turn::Turn,
};
use lorikeet_protocol::{
    agent::{Farewell, ToAgent},
    id::{JobId, NodeId},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Messages that may wait for one agent; one that takes none for so long is cut off, and hears everything again when it returns.
const OUTBOX: usize = 1_024;

/// While the disk is full it is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What expires lives for a day; an hour more does no harm.
pub(super) const EXPIRE_EVERY: Duration = Duration::from_secs(3_600);

/// Something that is done every so often, and again at once as long as it was not all of it.
#[derive(Debug)]
pub(super) struct Periodic {
    next: Duration,
    every: Duration,
}

impl Periodic {
    /// It was done at this moment, all of it or a part.
    pub(super) fn begun(now: Duration, every: Duration, is_all: bool) -> Self {
        let mut periodic = Self { next: now, every };
        periodic.done(now, is_all);
        periodic
    }

    fn is_due(&self, now: Duration) -> bool {
        now >= self.next
    }

    fn done(&mut self, now: Duration, is_all: bool) {
        self.next = if is_all { now + self.every } else { now };
    }
}

/// Both clocks.
pub(super) struct Clock {
    started: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started: Instant::now() }
    }

    pub(super) fn now(&self) -> Now {
        Now { mono: self.started.elapsed(), wall: clock::now() }
    }
}

/// Where inputs come in.
pub(super) struct Door {
    pub(super) words: mpsc::Receiver<Input>,
    pub(super) requests: mpsc::Receiver<Input>,
}

impl Door {
    /// What is here already comes along.
    fn fill(&mut self, inbox: &mut Inbox<Input>) {
        while inbox.len().0 < BATCH
            && let Ok(word) = self.words.try_recv()
        {
            inbox.word(word);
        }
        while inbox.len().1 < BATCH
            && let Ok(request) = self.requests.try_recv()
        {
            inbox.request(request);
        }
    }
}

/// What the task owns.
pub(super) struct Loop {
    pub(super) turn: Turn,
    pub(super) clock: Clock,
    pub(super) settings: Settings,
    pub(super) writer: Writer,
    pub(super) store: Store,
    pub(super) replies: BTreeMap<ReplyKey, Answering>,
    pub(super) arrivals: BTreeMap<ReplyKey, oneshot::Sender<Result<Session, Farewell>>>,
    pub(super) outboxes: BTreeMap<NodeId, Outbox>,
    pub(super) next_key: ReplyKey,
    pub(super) inspect: mpsc::UnboundedSender<Inspect>,
    pub(super) changes: broadcast::Sender<JobId>,
    pub(super) reading_only: Arc<AtomicBool>,
    /// When it is next looked whether there is room again.
    pub(super) next_look: Duration,
    /// What has expired leaves the store.
    pub(super) expiry: Periodic,
}

/// Where an agent is told things; without it the session is over.
pub(super) struct Outbox {
    session: u64,
    messages: mpsc::Sender<ToAgent>,
    _ends: DropGuard,
}

impl Loop {
    pub(super) async fn run(mut self, mut door: Door, stop: CancellationToken) -> Result<(), DriverError> {
        self.turn(vec![Event::Booted]).await?;
        let mut inbox = Inbox::default();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = std::future::ready(()), if !inbox.is_empty() => {}
                word = door.words.recv() => match word {
                    Some(word) => inbox.word(word),
                    None => break,
                },
                request = door.requests.recv() => match request {
                    Some(request) => inbox.request(request),
                    None => break,
                },
                () = tokio::time::sleep(self.wait()) => {}
            }
            door.fill(&mut inbox);
            if self.is_reading_only() {
                self.look_for_room().await?;
            }
            self.batch(inbox.next(Input::reads_rows)).await?;
            self.expire().await?;
        }
        self.say_goodbye();
        self.writer.close().await
    }

    fn wait(&self) -> Duration {
        let now = self.clock.now().mono;
        let of_turn = self.turn.next_deadline().unwrap_or(now + self.settings.timers.heartbeat);
        let next = if self.is_reading_only() { self.next_look } else { of_turn };
        next.saturating_sub(now).min(self.settings.timers.heartbeat)
    }

    fn is_reading_only(&self) -> bool {
        self.reading_only.load(Ordering::Relaxed)
    }

    async fn batch(&mut self, inputs: Vec<Input>) -> Result<(), DriverError> {
        if self.is_reading_only() {
            inputs.into_iter().for_each(|input| self.answer_only(input));
            return Ok(());
        }
        let mut batch = Vec::with_capacity(inputs.len());
        for input in inputs {
            let rows = match &input {
                Input::Command { context, command, .. } => self.rows(context.actor, command),
                Input::Query { .. }
                | Input::Session { .. }
                | Input::Closed { .. }
                | Input::Heard { .. }
                | Input::Stray { .. }
                | Input::Announced { .. }
                | Input::Inspected { .. } => Ok(Rows::default()),
            };
            match rows {
                Ok(rows) => batch.push(self.event(input, rows)),
                Err(error) if error.is_of_one_row() => refuse_unread(input, &error),
                Err(error) => return Err(DriverError::Commit(error)),
            }
        }
        self.turn(batch).await
    }

    /// Of what is over, as everything before has left it.
    fn rows(&self, actor: Actor, command: &Command) -> Result<Rows, StoreError> {
        let mut rows = Rows::default();
        if let Command::RetryJob { old, .. } = command {
            rows.job = self.store.get(&old.bytes())?;
            let files = rows.job.iter().map(|job: &Job| job.init_adapter.as_slice()).find(|files| !files.is_empty());
            rows.adapters = files
                .map(|files| self.store.readable(|model: &Model| model.holds(files)))
                .transpose()?
                .unwrap_or_default();
        }
        // Models are many: they are looked through only for who would get a job with one.
        if let Some(spec) = command.begins_with()
            && let Some(name) = &spec.init_adapter
            && self.turn.can_make(actor, spec)
        {
            rows.adapters = self.store.adapters(actor, name)?;
        }
        if let Some(start) = command.conditions() {
            let ids = start.after.iter().filter_map(|after| after.job.parse::<JobId>().ok());
            let found = ids.map(|id| self.store.get(&id.bytes())).collect::<Result<Vec<_>, _>>()?;
            rows.named = found.into_iter().flatten().collect();
        }
        if let Command::PatchModel { id, .. } | Command::DeleteModel { id } = command {
            rows.model = self.store.get(&id.bytes())?;
        }
        if let Command::ForgetJobs { ids, .. } = command {
            for id in ids {
                match self.old(*id) {
                    Ok(found) => rows.old.extend(found),
                    // The others are forgotten all the same.
                    Err(error) if error.is_of_one_row() => {
                        tracing::error!(job = %id, error = &error as &dyn std::error::Error, "an old job stays");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(rows)
    }

    /// A job and its model.
    fn old(&self, id: JobId) -> Result<Option<(Job, Option<Model>)>, StoreError> {
        let Some(job) = self.store.get(&id.bytes())? else { return Ok(None) };
        Ok(Some((job, self.store.get(&model_of(id).bytes())?)))
    }

    fn event(&mut self, input: Input, rows: Rows) -> Event {
        self.next_key += 1;
        let reply = self.next_key;
        match input {
            Input::Command { context, command, answer } => {
                self.replies.insert(reply, answer);
                Event::Requested { reply, context, command: *command, rows }
            }
            Input::Query { actor, query, answer } => {
                self.replies.insert(reply, answer);
                Event::Asked { reply, actor, query }
            }
            Input::Session { node, shown, hello, admitted } => {
                self.arrivals.insert(reply, admitted);
                Event::SessionOpened { reply, node, shown, hello }
            }
            Input::Closed { node, session, nonsense } => {
                if self.outboxes.get(&node).is_some_and(|live| live.session == session) {
                    self.outboxes.remove(&node);
                }
                Event::SessionClosed { node, session, nonsense }
            }
            Input::Heard { node, session, message } => Event::Heard { node, session, message: *message },
            Input::Stray { node, session, report } => Event::Stray { node, session, report: *report },
            Input::Announced { node, session, said } => Event::Announced { node, session, said: *said },
            Input::Inspected { subject, result, files } => Event::Inspected { subject, result: *result, files },
        }
    }

    async fn turn(&mut self, batch: Vec<Event>) -> Result<(), DriverError> {
        let outcome = self.turn.run(batch, self.clock.now());
        outcome.early.into_iter().for_each(|effect| self.release(effect));
        if !outcome.records.is_empty() {
            match self.writer.commit(outcome.records).await {
                Ok(()) => {}
                Err(DriverError::Commit(StoreError::NoSpace)) => return self.start_over().await,
                Err(error) => return Err(error),
            }
        }
        outcome.effects.into_iter().for_each(|effect| self.release(effect));
        Ok(())
    }

    /// The disk is full: memory is ahead of it, so memory goes. Agents are asked to come back; who waits hears that nothing was done.
    async fn start_over(&mut self) -> Result<(), DriverError> {
        tracing::error!("the store's disk is full: nothing new is taken until there is room");
        self.reading_only.store(true, Ordering::Relaxed);
        self.next_look = self.clock.now().mono + LOOK_EVERY;
        self.say_goodbye();
        self.arrivals.clear();
        for (_, answer) in std::mem::take(&mut self.replies) {
            let _ = answer.send(Err(Refusal::NoSpace));
        }
        self.remember(|store| store.reopen().and_then(|()| load(store))).await
    }

    async fn remember(
        &mut self,
        read: impl FnOnce(&Store) -> Result<Loaded, StoreError> + Send + 'static,
    ) -> Result<(), DriverError> {
        let loaded = self.writer.run(read).await?;
        self.turn = Turn::new(Cluster::new(loaded, self.settings.clone(), self.clock.now()));
        Ok(())
    }

    /// Once there is room everything begins as after a start: leases anew, and what was to be inspected is asked for again.
    async fn look_for_room(&mut self) -> Result<(), DriverError> {
        if self.clock.now().mono < self.next_look {
            return Ok(());
        }
        self.next_look = self.clock.now().mono + LOOK_EVERY;
        if !self.writer.run(|store| Ok(store.has_room())).await? {
            return Ok(());
        }
        tracing::info!("there is room again: new work is taken");
        self.remember(load).await?;
        self.reading_only.store(false, Ordering::Relaxed);
        self.turn(vec![Event::Booted]).await
    }

    /// Without writing, only questions have an answer. What agents say they say again, and inspections are asked for again.
    fn answer_only(&mut self, input: Input) {
        match input {
            Input::Command { answer, .. } => drop(answer.send(Err(Refusal::NoSpace))),
            Input::Query { actor, query, answer } => {
                self.next_key += 1;
                self.replies.insert(self.next_key, answer);
                let effects = self.turn.ask(self.next_key, actor, query, self.clock.now());
                effects.into_iter().for_each(|effect| self.release(effect));
            }
            Input::Session { admitted, .. } => drop(admitted.send(Err(Farewell::ShuttingDown))),
            Input::Closed { .. }
            | Input::Heard { .. }
            | Input::Stray { .. }
            | Input::Announced { .. }
            | Input::Inspected { .. } => {}
        }
    }

    /// What nobody can ask for any more leaves the store; what of it is in memory went with the turn that noticed.
    async fn expire(&mut self) -> Result<(), DriverError> {
        let now = self.clock.now();
        if !self.expiry.is_due(now.mono) || self.is_reading_only() {
            return Ok(());
        }
        let old_audit = self.settings.old_audit(now.wall);
        match self.writer.run(move |store| store.expire(now.wall, old_audit)).await {
            Ok(expired) => {
                // What is left goes after the next batch: nobody waits for more than these.
                self.expiry.done(now.mono, expired.is_all);
                Ok(())
            }
            Err(DriverError::Commit(StoreError::NoSpace)) => self.start_over().await,
            Err(error) => Err(error),
        }
    }

    fn release(&mut self, effect: Action) {
        match effect {
            Action::Put(_) => unreachable!("rows were committed before effects are released"),
            Action::Reply { reply, result } => {
                if let Some(answer) = self.replies.remove(&reply) {
                    let _ = answer.send(result);
                }
            }
            Action::Admit { reply, node, session } => self.admit(reply, node, session),
            Action::TurnAway { reply, farewell } => {
                if let Some(answer) = self.arrivals.remove(&reply) {
                    let _ = answer.send(Err(farewell));
                }
            }
            Action::Send { node, message } => self.send(node, message),
            Action::Close { node, session, farewell } => {
                if self.outboxes.get(&node).is_some_and(|live| live.session == session) {
                    self.send(node, ToAgent::Goodbye(farewell));
                    self.outboxes.remove(&node);
                }
            }
            Action::Inspect(inspect) => drop(self.inspect.send(inspect)),
            Action::JobChanged(id) => drop(self.changes.send(id)),
        }
    }

    fn admit(&mut self, reply: ReplyKey, node: NodeId, session: u64) {
        let (messages, receiver) = mpsc::channel(OUTBOX);
        let ended = CancellationToken::new();
        if let Some(answer) = self.arrivals.remove(&reply)
            && answer.send(Ok(Session { number: session, outbox: receiver, ended: ended.clone() })).is_ok()
        {
            self.outboxes.insert(node, Outbox { session, messages, _ends: ended.drop_guard() });
        }
    }

    fn send(&mut self, node: NodeId, message: ToAgent) {
        if let Some(outbox) = self.outboxes.get(&node)
            && outbox.messages.try_send(message).is_err()
        {
            self.outboxes.remove(&node);
        }
    }

    fn say_goodbye(&mut self) {
        for (_, outbox) in std::mem::take(&mut self.outboxes) {
            let _ = outbox.messages.try_send(ToAgent::Goodbye(Farewell::ShuttingDown));
        }
    }
}

/// A row that a command names does not read: whoever asked is told, and everybody else goes on.
fn refuse_unread(input: Input, error: &StoreError) {
    tracing::error!(error = error as &dyn std::error::Error, "a command names a row that does not read");
    if let Input::Command { answer, .. } = input {
        let _ = answer.send(Err(Refusal::Unreadable));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_every_hour_is_due_again_after_an_hour_and_at_once_while_some_is_left() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let mut expiry = Periodic::begun(minutes(0), EXPIRE_EVERY, true);
        assert!(!expiry.is_due(minutes(59)) && expiry.is_due(minutes(60)));
        expiry.done(minutes(61), false);
        assert!(expiry.is_due(minutes(61)));
        expiry.done(minutes(62), true);
        assert!(!expiry.is_due(minutes(62)) && !expiry.is_due(minutes(121)) && expiry.is_due(minutes(122)));
        assert!(Periodic::begun(minutes(5), EXPIRE_EVERY, false).is_due(minutes(5)));
    }
}
