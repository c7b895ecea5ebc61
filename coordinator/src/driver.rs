//! The task that owns the cluster: receive, turn, commit, then send.
//!
//! Everybody else holds a [`Handle`] and waits for an answer, which leaves only after the batch it belongs to is durable. Events that
//! arrive while a batch commits form the next one. A full disk rebuilds the cluster from the store and refuses the batch; any other
//! failure to commit ends the task, and with it the process: the store, not memory, is what is true.

use crate::{
    access::{Actor, Context, Refusal},
    cluster::{
        Action, Cluster, Event, Inspect, Loaded, Now, ReplyKey, Rows, Settings, Subject,
        command::{Answer, Command, Query},
    },
    record::{Audit, Receipt, Record, Replay},
    store::{Row, Store, StoreError},
    turn::Turn,
};
use lorikeet_protocol::{
    agent::{Farewell, FromAgent, Hello, ToAgent},
    file::NamedFile,
    id::{JobId, NodeId, UnixMillis},
    inspect::Inspection,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc as thread_channel},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{Semaphore, broadcast, mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Events of one transaction: more would only lengthen the wait of the first.
const BATCH: usize = 256;

/// Inputs that may wait: a burst of that many agents speaking at once; senders beyond it wait.
const QUEUE: usize = 4_096;

/// Messages that may wait for one agent; one that takes none for so long is cut off, and hears everything again when it returns.
const OUTBOX: usize = 1_024;

/// Read transactions at once: each pins pages of the store.
const READERS: usize = 8;

type Answering = oneshot::Sender<Result<Answer, Refusal>>;

enum Input {
    Command { context: Context, command: Box<Command>, answer: Answering },
    Query { actor: Actor, query: Query, answer: Answering },
    Session { node: NodeId, serial: String, hello: Box<Hello>, admitted: oneshot::Sender<Result<Session, Farewell>> },
    Closed { node: NodeId, session: u64 },
    Heard { node: NodeId, session: u64, message: Box<FromAgent> },
    Inspected { subject: Subject, result: Box<Result<Inspection, String>>, files: Vec<NamedFile> },
}

/// An agent that was let in.
#[derive(Debug)]
pub struct Session {
    /// Counts the node's sessions.
    pub number: u64,
    /// What the agent is to be told, the welcome first; closed when the session is over.
    pub outbox: mpsc::Receiver<ToAgent>,
}

/// The only door to the cluster; cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    inputs: mpsc::Sender<Input>,
    store: Store,
    readers: Arc<Semaphore>,
    changes: broadcast::Sender<JobId>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Input")
    }
}

impl Handle {
    /// Does something, once; answered when it is durable.
    pub async fn command(&self, context: Context, command: Command) -> Result<Receipt, Refusal> {
        let (answer, answered) = oneshot::channel();
        let answer = self.ask(Input::Command { context, command: Box::new(command), answer }, answered).await?;
        let Answer::Receipt(receipt) = answer else {
            unreachable!("a command is answered by a receipt, not by {answer:?}")
        };
        Ok(receipt)
    }

    /// Asks memory; answered when everything before is durable.
    pub async fn query(&self, actor: Actor, query: Query) -> Result<Answer, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.ask(Input::Query { actor, query, answer }, answered).await
    }

    async fn ask(&self, input: Input, answered: oneshot::Receiver<Result<Answer, Refusal>>) -> Result<Answer, Refusal> {
        self.inputs.send(input).await.map_err(|_| Refusal::Unavailable)?;
        answered.await.map_err(|_| Refusal::Unavailable)?
    }

    /// Reads the store as it is after everything asked before. The closure runs on a thread of its own, a bounded number at a time.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.query(Actor::System, Query::Barrier).await?;
        let _permit = self.readers.acquire().await.map_err(|_| Refusal::Unavailable)?;
        let store = self.store.clone();
        let result = tokio::task::spawn_blocking(move || read(&store)).await.map_err(|_| Refusal::Unavailable)?;
        result.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "a read failed");
            Refusal::Unavailable
        })
    }

    /// Lets an agent in, or says why not.
    pub async fn open_session(&self, node: NodeId, serial: String, hello: Hello) -> Result<Session, Farewell> {
        let (admitted, answer) = oneshot::channel();
        let input = Input::Session { node, serial, hello: Box::new(hello), admitted };
        self.inputs.send(input).await.map_err(|_| Farewell::ShuttingDown)?;
        answer.await.map_err(|_| Farewell::ShuttingDown)?
    }

    /// What an agent said in its session.
    pub async fn heard(&self, node: NodeId, session: u64, message: FromAgent) {
        let _ = self.inputs.send(Input::Heard { node, session, message: Box::new(message) }).await;
    }

    /// An agent's connection ended.
    pub async fn close_session(&self, node: NodeId, session: u64) {
        let _ = self.inputs.send(Input::Closed { node, session }).await;
    }

    /// What `lorikeet inspect` printed, or why it printed nothing.
    pub async fn inspected(&self, subject: Subject, result: Result<Inspection, String>, files: Vec<NamedFile>) {
        let _ = self.inputs.send(Input::Inspected { subject, result: Box::new(result), files }).await;
    }

    /// Jobs whose rows change from now on. A slow reader misses some and is told so: then read again.
    pub fn changes(&self) -> broadcast::Receiver<JobId> {
        self.changes.subscribe()
    }
}

/// Why the driver ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The store failed in a way that a retry would not mend.
    #[error("commit to the store; start again to go on from what is durable")]
    Commit(#[source] StoreError),
    /// The store's thread is gone.
    #[error("commit to the store: its thread has ended")]
    WriterGone,
}

/// The running task, and the questions it has for `lorikeet inspect`.
#[derive(Debug)]
pub struct Driver {
    /// The door.
    pub handle: Handle,
    /// What is to be inspected; at most one per dataset, base and job that waits for it.
    pub inspections: mpsc::UnboundedReceiver<Inspect>,
    /// Ends when `stop` is cancelled, or with an error before.
    pub task: JoinHandle<Result<(), DriverError>>,
}

impl Driver {
    /// Rebuilds the cluster from the store and starts.
    pub fn start(store: Store, settings: impl Into<Settings>, stop: CancellationToken) -> Result<Self, StoreError> {
        let clock = Clock { started: Instant::now() };
        let settings = settings.into();
        let cluster = Cluster::new(load(&store)?, settings, clock.now());
        let (inputs, received) = mpsc::channel(QUEUE);
        let (inspect, inspections) = mpsc::unbounded_channel();
        let (changes, _) = broadcast::channel(1_024);
        let handle = Handle {
            inputs,
            store: store.clone(),
            readers: Arc::new(Semaphore::new(READERS)),
            changes: changes.clone(),
        };
        let worker = Loop {
            turn: Turn::new(cluster),
            clock,
            settings,
            writer: Writer::start(store.clone()),
            store,
            replies: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            outboxes: BTreeMap::new(),
            next_key: 0,
            inspect,
            changes,
        };
        let task = tokio::spawn(worker.run(received, stop));
        Ok(Self { handle, inspections, task })
    }
}

struct Clock {
    started: Instant,
}

impl Clock {
    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono: self.started.elapsed(), wall: UnixMillis(wall.as_millis() as u64) }
    }
}

struct Loop {
    turn: Turn,
    clock: Clock,
    settings: Settings,
    writer: Writer,
    store: Store,
    replies: BTreeMap<ReplyKey, Answering>,
    arrivals: BTreeMap<ReplyKey, oneshot::Sender<Result<Session, Farewell>>>,
    outboxes: BTreeMap<NodeId, (u64, mpsc::Sender<ToAgent>)>,
    next_key: ReplyKey,
    inspect: mpsc::UnboundedSender<Inspect>,
    changes: broadcast::Sender<JobId>,
}

impl Loop {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) -> Result<(), DriverError> {
        self.turn(vec![Event::Booted]).await?;
        let mut waiting = Vec::new();
        loop {
            let wait = self
                .turn
                .next_deadline()
                .map_or(self.settings.timers.heartbeat, |at| at.saturating_sub(self.clock.now().mono))
                .min(self.settings.timers.heartbeat);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                received = inputs.recv_many(&mut waiting, BATCH) => if received == 0 { break },
                () = tokio::time::sleep(wait) => {}
            }
            self.batches(&mut waiting).await?;
        }
        self.say_goodbye();
        self.writer.close().await
    }

    /// A command that names a finished thing reads its row from the store; so it starts a batch of its own, after everything before it.
    async fn batches(&mut self, waiting: &mut Vec<Input>) -> Result<(), DriverError> {
        let mut batch = Vec::new();
        for input in waiting.drain(..) {
            if let Input::Command { command, .. } = &input
                && names_finished(command)
            {
                self.turn(std::mem::take(&mut batch)).await?;
                let rows = self.rows(command).map_err(DriverError::Commit)?;
                let event = self.event(input, rows);
                self.turn(vec![event]).await?;
            } else {
                batch.push(self.event(input, Rows::default()));
            }
        }
        self.turn(batch).await
    }

    fn rows(&self, command: &Command) -> Result<Rows, StoreError> {
        let mut rows = Rows::default();
        if let Command::RetryJob { old, .. } = command {
            rows.job = self.store.get(&old.bytes())?;
        }
        if let Command::PatchModel { id, .. } | Command::DeleteModel { id } = command {
            rows.model = self.store.get(&id.bytes())?;
        }
        Ok(rows)
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
            Input::Session { node, serial, hello, admitted } => {
                self.arrivals.insert(reply, admitted);
                Event::SessionOpened { reply, node, serial, hello }
            }
            Input::Closed { node, session } => {
                if self.outboxes.get(&node).is_some_and(|(live, _)| *live == session) {
                    self.outboxes.remove(&node);
                }
                Event::SessionClosed { node, session }
            }
            Input::Heard { node, session, message } => Event::Heard { node, session, message: *message },
            Input::Inspected { subject, result, files } => Event::Inspected { subject, result: *result, files },
        }
    }

    async fn turn(&mut self, batch: Vec<Event>) -> Result<(), DriverError> {
        let outcome = self.turn.run(batch, self.clock.now());
        if !outcome.records.is_empty() {
            match self.writer.commit(outcome.records).await {
                Ok(()) => {}
                Err(DriverError::Commit(StoreError::NoSpace)) => return self.start_over(),
                Err(error) => return Err(error),
            }
        }
        outcome.effects.into_iter().for_each(|effect| self.release(effect));
        Ok(())
    }

    /// The disk is full: memory is ahead of it, so memory goes. Agents reconnect; who waits hears that nothing was done.
    fn start_over(&mut self) -> Result<(), DriverError> {
        tracing::error!("the store's disk is full: nothing new is accepted until there is space");
        let loaded = load(&self.store).map_err(DriverError::Commit)?;
        self.turn = Turn::new(Cluster::new(loaded, self.settings, self.clock.now()));
        self.outboxes.clear();
        self.arrivals.clear();
        for (_, answer) in std::mem::take(&mut self.replies) {
            let _ = answer.send(Err(Refusal::NoSpace));
        }
        Ok(())
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
                if self.outboxes.get(&node).is_some_and(|(live, _)| *live == session) {
                    self.send(node, ToAgent::Goodbye(farewell));
                    self.outboxes.remove(&node);
                }
            }
            Action::Inspect(inspect) => drop(self.inspect.send(inspect)),
            Action::JobChanged(id) => drop(self.changes.send(id)),
        }
    }

    fn admit(&mut self, reply: ReplyKey, node: NodeId, session: u64) {
        let (outbox, receiver) = mpsc::channel(OUTBOX);
        if let Some(answer) = self.arrivals.remove(&reply)
            && answer.send(Ok(Session { number: session, outbox: receiver })).is_ok()
        {
            self.outboxes.insert(node, (session, outbox));
        }
    }

    fn send(&mut self, node: NodeId, message: ToAgent) {
        if let Some((_, outbox)) = self.outboxes.get(&node)
            && outbox.try_send(message).is_err()
        {
            self.outboxes.remove(&node);
        }
    }

    fn say_goodbye(&mut self) {
        for (_, (_, outbox)) in std::mem::take(&mut self.outboxes) {
            let _ = outbox.try_send(ToAgent::Goodbye(Farewell::ShuttingDown));
        }
    }
}

fn names_finished(command: &Command) -> bool {
    matches!(command, Command::RetryJob { .. } | Command::PatchModel { .. } | Command::DeleteModel { .. })
}

/// The store's one writer: a thread, because a commit waits for the disk.
struct Writer {
    requests: thread_channel::Sender<Commit>,
    thread: std::thread::JoinHandle<()>,
}

/// Rows to write together, and who waits for them.
struct Commit {
    records: Vec<Record>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Writer {
    fn start(store: Store) -> Self {
        let (requests, received) = thread_channel::channel::<Commit>();
        let write = move || {
            while let Ok(Commit { records, done }) = received.recv() {
                let _ = done.send(store.commit(&records));
            }
        };
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(write)
            .expect("a process that cannot start a thread cannot start");
        Self { requests, thread }
    }

    /// Ends the thread and waits for it: it holds the store, and who comes next wants to open it.
    async fn close(self) -> Result<(), DriverError> {
        let Self { requests, thread } = self;
        drop(requests);
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        joined.map_err(|_| DriverError::WriterGone)?.map_err(|_| DriverError::WriterGone)
    }

    async fn commit(&self, records: Vec<Record>) -> Result<(), DriverError> {
        let (done, committed) = oneshot::channel();
        self.requests.send(Commit { records, done }).map_err(|_| DriverError::WriterGone)?;
        committed.await.map_err(|_| DriverError::WriterGone)?.map_err(DriverError::Commit)
    }
}

/// The heads that decisions need.
fn load(store: &Store) -> Result<Loaded, StoreError> {
    let live = store.scan(&[], |job: &crate::record::Job| !job.phase().is_terminal())?;
    let mut attempts = Vec::new();
    for id in live.iter().filter_map(|job| job.current_attempt()) {
        attempts.extend(store.scan(&id.job.bytes(), |attempt: &crate::record::Attempt| attempt.id == id)?);
    }
    let mut checkpoints = Vec::new();
    for job in &live {
        checkpoints.extend(store.scan(&job.id.bytes(), |_: &crate::record::StoredCheckpoint| true)?);
    }
    let newest: (Vec<Audit>, usize) = store.page(0, 1, |_| true)?;
    Ok(Loaded {
        generation: store.generation()?,
        users: all(store)?,
        tokens: all(store)?,
        secrets: all(store)?,
        nodes: all(store)?,
        datasets: all(store)?,
        bases: all(store)?,
        jobs: live,
        attempts,
        checkpoints,
        replays: all::<Replay>(store)?,
        usages: all(store)?,
        audits: newest.0.first().map_or(0, |audit| audit.number),
    })
}

fn all<R: Row>(store: &Store) -> Result<Vec<R>, StoreError> {
    store.scan(&[], |_| true)
}

/// How long a stopped driver may take; used by who stops it.
pub const STOP_WITHIN: Duration = Duration::from_secs(5);
