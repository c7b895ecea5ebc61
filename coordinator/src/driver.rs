//! The task that owns the cluster: receive, turn, commit, then send.
//!
//! Everybody else holds a [`Handle`] and waits for an answer, which leaves only after the batch it belongs to is durable. Events that
//! arrive while a batch commits form the next ones, in the order of [`Inbox`](crate::inbox::Inbox).
//!
//! ```text
//!              commit failed for lack of space: the store is opened anew, memory is rebuilt from it
//!   writing ─────────────────────────────────────────────────────────────► reading only
//!      ▲  there is room again: memory is rebuilt once more, and everything begins as after a start   │
//!      └─────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! While it only reads, questions are answered, changes are refused (`NoSpace`) and agents are asked to come back. Any other
//! failure to commit ends the task, and with it the process: the store, not memory, is what is true.
//!
//! `driver/run.rs` is the loop, `driver/writer.rs` the store's thread, `driver/load.rs` what memory begins with.

mod load;
mod run;
mod writer;

use crate::{
    access::{Actor, Context, Refusal},
    cluster::{
        Announced, Cluster, Inspect, Now, Settings, Shown, Subject, Trouble,
        command::{Answer, Command, Query},
    },
    record::Receipt,
    store::{Store, StoreError},
    turn::Turn,
};
use lorikeet_protocol::{
    agent::{Farewell, FromAgent, Hello, Report, ToAgent},
    file::NamedFile,
    id::{JobId, NodeId, RequestId},
    inspect::Inspection,
};
use run::{Clock, Door, Loop, Periodic};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, broadcast, mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use writer::Writer;

/// Inputs of a kind that may wait: a burst of that many agents speaking at once; senders beyond it wait.
const QUEUE: usize = 4_096;

/// Read transactions at once: each pins pages of the store.
const READERS: usize = 8;

type Answering = oneshot::Sender<Result<Answer, Refusal>>;

enum Input {
    Command { context: Context, command: Box<Command>, answer: Answering },
    Query { actor: Actor, query: Query, answer: Answering },
    Session { node: NodeId, shown: Shown, hello: Box<Hello>, admitted: oneshot::Sender<Result<Session, Farewell>> },
    Closed { node: NodeId, session: u64, nonsense: Option<&'static str> },
    Heard { node: NodeId, session: u64, message: Box<FromAgent> },
    Stray { node: NodeId, session: u64, report: Box<Report> },
    Announced { node: NodeId, session: u64, said: Box<Announced> },
    Inspected { subject: Subject, result: Box<Result<Inspection, Trouble>>, files: Vec<NamedFile> },
}

impl Input {
    /// Whether it goes before what is to be changed: what agents say, what is asked for them, and every question.
    fn is_word(&self) -> bool {
        match self {
            Self::Command { command, .. } => matches!(**command, Command::RecordCertificate { .. }),
            Self::Inspected { .. } => false,
            Self::Query { .. }
            | Self::Session { .. }
            | Self::Closed { .. }
            | Self::Heard { .. }
            | Self::Stray { .. }
            | Self::Announced { .. } => true,
        }
    }

    fn reads_rows(&self) -> bool {
        matches!(self, Self::Command { command, .. } if command.names_finished())
    }
}

/// An agent that was let in.
#[derive(Debug)]
pub struct Session {
    /// Counts the node's sessions.
    pub number: u64,
    /// What the agent is to be told, the welcome first; closed when the session is over.
    pub outbox: mpsc::Receiver<ToAgent>,
    /// Cancelled when the session is over, however much of the outbox the agent has taken.
    pub ended: CancellationToken,
}

/// The only door to the cluster; cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    words: mpsc::Sender<Input>,
    requests: mpsc::Sender<Input>,
    store: Store,
    readers: Arc<Semaphore>,
    changes: broadcast::Sender<JobId>,
    reading_only: Arc<AtomicBool>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Input")
    }
}

/// What the coordinator itself does; `from` says where in it.
pub(crate) fn as_system(from: impl Into<String>) -> Context {
    let request = RequestId(uuid::Uuid::now_v7());
    Context { actor: Actor::System, request, from: from.into(), idempotency: None }
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
        self.send(input).await.ok_or(Refusal::Unavailable)?;
        answered.await.map_err(|_| Refusal::Unavailable)?
    }

    /// `None`: the driver is gone.
    async fn send(&self, input: Input) -> Option<()> {
        let door = if input.is_word() { &self.words } else { &self.requests };
        door.send(input).await.ok()
    }

    /// Reads the store as it is after everything answered before. The closure runs on a thread of its own, a bounded number at a time.
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
    pub async fn open_session(&self, node: NodeId, shown: Shown, hello: Hello) -> Result<Session, Farewell> {
        let (admitted, answer) = oneshot::channel();
        let input = Input::Session { node, shown, hello: Box::new(hello), admitted };
        self.send(input).await.ok_or(Farewell::ShuttingDown)?;
        answer.await.map_err(|_| Farewell::ShuttingDown)?
    }

    /// What an agent said in its session.
    pub async fn heard(&self, node: NodeId, session: u64, message: FromAgent) {
        let _ = self.send(Input::Heard { node, session, message: Box::new(message) }).await;
    }

    /// What an agent reported in its session of an attempt that was never placed on it.
    pub async fn stray(&self, node: NodeId, session: u64, report: Report) {
        let _ = self.send(Input::Stray { node, session, report: Box::new(report) }).await;
    }

    /// What an agent said of its cache in its session.
    pub async fn announced(&self, node: NodeId, session: u64, said: Announced) {
        let _ = self.send(Input::Announced { node, session, said: Box::new(said) }).await;
    }

    /// An agent's connection ended, and by what nonsense of the agent, if it was by that.
    pub async fn close_session(&self, node: NodeId, session: u64, nonsense: Option<&'static str>) {
        let _ = self.send(Input::Closed { node, session, nonsense }).await;
    }

    /// Whether an inspection is still waited for.
    pub async fn is_judged(&self, subject: Subject) -> bool {
        matches!(self.query(Actor::System, Query::IsJudged(subject)).await, Ok(Answer::Allowed(true)))
    }

    /// What `lorikeet inspect` printed, or why it printed nothing.
    pub async fn inspected(&self, subject: Subject, result: Result<Inspection, Trouble>, files: Vec<NamedFile>) {
        let _ = self.send(Input::Inspected { subject, result: Box::new(result), files }).await;
    }

    /// Whether nothing new is taken, because the store's disk is full.
    pub fn is_reading_only(&self) -> bool {
        self.reading_only.load(Ordering::Relaxed)
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
        let (clock, settings) = (Clock::start(), settings.into());
        let Now { mono, wall } = clock.now();
        let is_all = match store.expire(wall, settings.old_audit(wall)) {
            Ok(expired) => expired.is_all,
            // The loop will find out as well that there is no room, and knows what to do.
            Err(StoreError::NoSpace) => true,
            Err(error) => return Err(error),
        };
        let cluster = Cluster::new(load::load(&store)?, settings.clone(), clock.now());
        let ((words, said), (requests, asked)) = (mpsc::channel(QUEUE), mpsc::channel(QUEUE));
        let (inspect, inspections) = mpsc::unbounded_channel();
        let (changes, _) = broadcast::channel(1_024);
        let handle = Handle {
            words,
            requests,
            store: store.clone(),
            readers: Arc::new(Semaphore::new(READERS)),
            changes: changes.clone(),
            reading_only: Arc::default(),
        };
        let worker = Loop {
            reading_only: Arc::clone(&handle.reading_only),
            next_look: clock.now().mono,
            expiry: Periodic::begun(mono, run::EXPIRE_EVERY, is_all),
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
        let task = tokio::spawn(worker.run(Door { words: said, requests: asked }, stop));
        Ok(Self { handle, inspections, task })
    }
}

/// How long a stopped driver may take; used by who stops it.
pub const STOP_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
