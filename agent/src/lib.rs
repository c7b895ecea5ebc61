//! What runs on a machine that trains: it joins a coordinator once, connects to it for ever, and runs what it is offered.
//!
//! ```text
//!            ┌──────── driver (a thread): Host decides, outbox and records are synced, then the effects ────────┐
//!   link ◄──►│  conversation: what is said in one session        supervisor: one task per worker process       │
//!  (QUIC)    │  preparations and uploads (tasks) ─► cache, blobs  probe: how the devices feel                  │
//!            └───────────────────────────────────────────────────────────────────────────────────────────────────┘
//!   other nodes ◄──► link/{give,take}: files of the cache, on connections of their own
//! ```
//! Every decision is in `host`; everything else carries out or brings news. Workers need neither this process nor the
//! coordinator: an agent that is stopped leaves them alone and finds them again.

mod beneath;
mod burn_in;
mod cache;
mod clock;
pub mod config;
mod disk;
mod driver;
mod gpu;
pub mod health;
#[doc(hidden)]
pub mod host;
mod link;
mod outbox;
mod places;
mod prepare;
mod pulse;
mod records;
mod room;
mod supervisor;
mod upload;

#[cfg(test)]
mod tests;

pub use config::{Config, ConfigError, Devices};
pub use disk::DiskError;
pub use gpu::{Driver as GpuDriver, Reading as GpuReading, Silence as GpuSilence, readings as gpu_readings};
pub use link::{ClockOff, DialError, FrameError, GiveError, IdentityError, JoinError, LinkError, LinkState, TlsError};

use beneath::For;
use cache::Cache;
use disk::At;
use driver::{Driver, Inbox};
use host::{Event, Host, Rules};
use link::{Caller, Link, Timers, announce::Announcer, blob::Blobs, give::Giving, identity::Identity};
use lorikeet_protocol::{
    id::{BootId, NodeId},
    job::AttemptPhase,
    share::Listens,
};
use outbox::Outbox;
use places::Places;
use prepare::Preparer;
use pulse::Pulse;
use records::Records;
use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
};
use supervisor::{Setting, Supervisor, stray::Strays};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError as TaskError, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use upload::Uploader;

/// Between tasks and driver: when it is slow, those who bring news wait.
const EVENTS: usize = 256;

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The config.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Another agent runs on the same data directory.
    #[error("use {}: another agent runs there", .0.display())]
    Busy(PathBuf),
    /// This machine is no node.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It does not become one.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// No socket.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No socket for other nodes.
    #[error(transparent)]
    Give(#[from] GiveError),
    /// A task of ours died.
    #[error("keep the agent running: one of its tasks died: {0}")]
    Task(#[from] TaskError),
    /// A part of it ended that nobody had told to.
    #[error("keep the agent running: {0} ended, and nobody had told it to")]
    Ended(&'static str),
}

/// Whose doing a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The person's: the same again fails the same way.
    Person,
    /// The machine's, the network's or the coordinator's.
    Machine,
    /// Ours.
    Bug,
}

impl AgentError {
    /// Whose doing it is; an exit code follows from it.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Config(_) | Self::Busy(_) => Blame::Person,
            Self::Identity(IdentityError::NotJoined(_) | IdentityError::AlreadyJoined { .. }) => Blame::Person,
            Self::Join(error) => match error {
                JoinError::Malformed(_) | JoinError::WrongCa { .. } | JoinError::Refused(_) => Blame::Person,
                JoinError::Identity(IdentityError::AlreadyJoined { .. }) => Blame::Person,
                JoinError::Clock { .. }
                | JoinError::Unreachable { .. }
                | JoinError::Answer(_)
                | JoinError::Identity(_)
                | JoinError::Tls(_) => Blame::Machine,
            },
            Self::Identity(_) | Self::Disk(_) | Self::Dial(_) | Self::Give(_) => Blame::Machine,
            Self::Task(_) | Self::Ended(_) => Blame::Bug,
        }
    }

    /// What would help, where it is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Identity(IdentityError::NotJoined(_)) => Some(
                "make a join string with `lorikeet node token` and run `lorikeet agent join STRING --config FILE` here, with the config \
                     that the agent has; a node that was joined elsewhere by mistake goes with `lorikeet node retire NODE`",
            ),
            Self::Join(JoinError::WrongCa { .. }) => Some(
                "compare with `lorikeet ca show`; if the coordinator was set up anew or its CA rotated, make a new join string",
            ),
            Self::Join(JoinError::Refused(_)) => Some(
                "a join string works once, for an hour: make a new one with `lorikeet node token`; `lorikeet node retire NODE` removes the \
                 node of a machine that was joined by mistake",
            ),
            Self::Config(_)
            | Self::Disk(_)
            | Self::Busy(_)
            | Self::Identity(_)
            | Self::Join(_)
            | Self::Dial(_)
            | Self::Give(_) => None,
            Self::Task(_) | Self::Ended(_) => Some("this is a bug of ours; the log has the details"),
        }
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    node: NodeId,
    state: watch::Receiver<LinkState>,
    driver: CancellationToken,
    rest: CancellationToken,
    tasks: JoinSet<Part>,
    _lock: File,
}

/// The tasks, by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Driver,
    Link,
    Probe,
    Sharing,
    Scrub,
}

impl Part {
    /// For people.
    fn name(self) -> &'static str {
        match self {
            Self::Driver => "its driver",
            Self::Link => "its link",
            Self::Probe => "the look at its devices",
            Self::Sharing => "the sharing of its files",
            Self::Scrub => "the reading of its cache",
        }
    }
}

impl Agent {
    /// Where a machine with this config keeps who it is.
    pub fn identity_folder(config: &Config) -> PathBuf {
        Places::new(&config.data_dir).identity()
    }

    /// Whether this is a join string at all; nobody is asked.
    pub fn read_ticket(join_string: &str) -> Result<(), AgentError> {
        link::join::parse(join_string)?;
        Ok(())
    }

    /// Makes this machine a node of the coordinator that gave the join string, and keeps its identity.
    pub async fn join(join_string: &str, config: &Config) -> Result<NodeId, AgentError> {
        config.check()?;
        let places = Places::new(&config.data_dir);
        let timers = Timers::new(&config.link);
        Ok(link::join::join(join_string, &name(config), &places.identity(), &timers).await?)
    }

    /// Takes up what an earlier agent left and connects. It returns before there is a connection: see [`link`](Self::link).
    pub async fn start(config: Config) -> Result<Self, AgentError> {
        config.check()?;
        config.check_programs()?;
        let places = Places::new(&config.data_dir);
        let identity = Identity::load(&places.identity())?;
        let lock = lock(&places)?;
        let node = identity.node;
        let timers = Timers::new(&config.link);
        let caller = Caller::new(identity, config.coordinator.clone(), timers)?;
        let (send_state, state) = watch::channel(LinkState::Down { why: None });
        let (news, link) = mpsc::channel(EVENTS);
        let (looks, received_looks) = mpsc::channel(4);
        let (driver, rest) = (CancellationToken::new(), CancellationToken::new());

        let probe = gpu::Probe::new(&config.devices);
        let every = config.devices.probe;
        let blobs = Blobs::new(caller.clone(), state.clone()).bounded(config.cache.bandwidth);
        let blobs = if config.share.fetch { blobs.with_nodes() } else { blobs };
        let share = config.share.clone();
        let (mut host, mut first, parts) = assemble(config, places, blobs)?;
        // One that is over has nobody that should be there.
        let live = host.known().into_iter().filter(|known| known.phase != AttemptPhase::Done);
        let known = live.map(|known| known.id).collect();
        let mut strays = Strays::find(&parts.places.attempts(), &known, parts.boot)?;
        strays.end(parts.config.worker.discard_grace).await;
        let mut probe = probe.beside(strays);
        let pulse = parts.pulse.clone();
        let (cache, scrub) = (parts.preparer.cache.clone(), parts.config.cache.scrub);
        let sharing = Sharing::bind(&share, &caller, parts.preparer.source.clone(), cache.clone(), state.clone())?;
        // The first hello already names the devices.
        let (probe, look) = tokio::task::spawn_blocking(move || {
            let look = probe.look(clock::wall());
            (probe, look)
        })
        .await?;
        first.extend(host.handle(Event::Looked(look.seen), clock::now()));

        let mut tasks = JoinSet::new();
        let running = parts.into_driver(host, link, received_looks, driver.clone());
        let runtime = tokio::runtime::Handle::current();
        tasks.spawn_blocking(move || {
            runtime.block_on(running.run(first));
            Part::Driver
        });
        let (link, cancel) = (Link { caller, news, state: send_state, pulse }, rest.clone());
        tasks.spawn(async move {
            link.run(cancel.clone()).await;
            // It ends untold where the driver has gone: then that is what is named.
            cancel.cancelled().await;
            Part::Link
        });
        let cancel = rest.clone();
        tasks.spawn(async move {
            sharing.run(cancel).await;
            Part::Sharing
        });
        let cancel = rest.clone();
        tasks.spawn(async move {
            gpu::watch(probe, every, looks, cancel).await;
            Part::Probe
        });
        if scrub > 0 {
            let cancel = rest.clone();
            tasks.spawn(async move {
                cancel.run_until_cancelled(cache.scrub(scrub)).await;
                Part::Scrub
            });
        }
        Ok(Self { node, state, driver, rest, tasks, _lock: lock })
    }

    /// Who this machine is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// How the link to the coordinator stands, now and whenever it changes.
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Returns only when the agent can no longer run, and why: every part of it runs until it is told to end.
    pub async fn wait(&mut self) -> Result<(), AgentError> {
        let Some(ended) = self.tasks.join_next().await else { return Ok(()) };
        if !matches!(ended, Ok(part) if part != Part::Driver) {
            // A shutdown waits for the driver before it tells the others, and this may have been it.
            self.rest.cancel();
        }
        Err(AgentError::Ended(ended?.name()))
    }

    /// Leaves: workers go on, or save and end where the config says so; what is unsaid is kept on the disk.
    pub async fn shutdown(mut self) -> Result<(), AgentError> {
        self.driver.cancel();
        let mut ended = Ok(());
        while let Some(part) = self.tasks.join_next().await {
            match part {
                Ok(Part::Driver) => self.rest.cancel(),
                Ok(Part::Link | Part::Probe | Part::Sharing | Part::Scrub) => {}
                Err(error) => {
                    self.rest.cancel();
                    ended = Err(AgentError::Task(error));
                }
            }
        }
        ended
    }
}

/// What other nodes read here, and what the coordinator is told of it.
struct Sharing {
    giving: Option<Giving>,
    announcer: Announcer,
}

impl Sharing {
    fn bind(
        config: &config::Share,
        caller: &Caller,
        blobs: Blobs,
        cache: Cache,
        state: watch::Receiver<LinkState>,
    ) -> Result<Self, GiveError> {
        let (desk, identity) = (caller.desk(), caller.shared_identity());
        let bind = |listen| Giving::bind(listen, identity, cache.clone(), desk.clone(), config.bandwidth);
        let giving = match config.listen.map(bind).transpose() {
            // This machine is here to train; that it gives nothing costs the others some time.
            Err(error @ GiveError::Bind { .. }) => {
                tracing::warn!(
                    "this node gives no files: could not {}; choose another port, or leave `share.listen` out, and start again",
                    lorikeet_protocol::chain(&error)
                );
                None
            }
            giving => giving?,
        };
        let listens = giving.as_ref().map_or(Listens::Nowhere, |giving| {
            config.address.map_or(Listens::Port(giving.address().port()), Listens::At)
        });
        Ok(Self { giving, announcer: Announcer { blobs, cache, desk, listens, reads: config.fetch, state } })
    }

    async fn run(self, cancel: CancellationToken) {
        // What gives no more is not announced, and is to be noticed.
        let both = cancel.child_token();
        let giving = async {
            if let Some(giving) = self.giving {
                giving.run(both.clone()).await;
                both.cancel();
            }
        };
        futures_util::future::join(giving, self.announcer.run(both.clone())).await;
    }
}

/// Everything of a driver but what only a start can give.
struct Parts {
    config: Config,
    places: Places,
    boot: BootId,
    pulse: Pulse,
    outbox: Outbox,
    records: Records,
    preparer: Preparer<Blobs>,
    uploader: Uploader,
}

/// What an outbox on disk holds: the number before its first report, how many reports, how many bytes of it are whole. For the tests that
/// look at every decoder.
#[doc(hidden)]
pub fn read_outbox(bytes: &[u8]) -> Option<(u64, usize, u64)> {
    outbox::parse(bytes).map(|(base, reports, whole)| (base, reports.len(), whole))
}

/// Reads what an earlier agent left.
fn assemble(config: Config, places: Places, blobs: Blobs) -> Result<(Host, Vec<host::Action>, Parts), AgentError> {
    let (boot, pulse) = (clock::boot_id(), Pulse::default());
    let outbox = Outbox::open(&places.outbox())?;
    let records = Records::open(places.records())?;
    let cache = Cache::open(&places.cache(), &config.cache)?;
    let known = records.load()?;
    let (mut host, first) = Host::restore(Rules::new(boot, &config.worker, &config.devices), known, clock::now());
    host.quarantine(records.quarantine(), clock::now());
    let threads = config.worker.threads;
    let preparer = Preparer { places: places.clone(), cache, source: blobs.clone(), threads };
    let uploader = Uploader::new(places.clone(), blobs);
    Ok((host, first, Parts { config, places, boot, pulse, outbox, records, preparer, uploader }))
}

impl Parts {
    fn into_driver(
        self,
        host: Host,
        link: mpsc::Receiver<link::News>,
        looks: mpsc::Receiver<gpu::Look>,
        told: CancellationToken,
    ) -> Driver {
        let (events, received_events) = mpsc::channel(EVENTS);
        let (notes, received_notes) = mpsc::channel(EVENTS);
        let setting = Setting { config: self.config.worker.clone(), boot: self.boot, events: events.clone() };
        let name = name(&self.config);
        Driver {
            name,
            config: self.config,
            boot: self.boot,
            instance: BootId(uuid::Uuid::now_v7()),
            pulse: self.pulse,
            places: self.places,
            host,
            outbox: self.outbox,
            records: self.records,
            preparer: self.preparer,
            uploader: self.uploader,
            supervisor: Supervisor::new(setting),
            spools: BTreeMap::new(),
            pins: BTreeMap::new(),
            work: BTreeMap::new(),
            tasks: TaskTracker::new(),
            inbox: Inbox { link, events: received_events, notes: received_notes, looks },
            events,
            notes,
            machine_bytes: gpu::machine_bytes(),
            cancel: CancellationToken::new(),
            told,
            conversation: None,
            uploaded: Vec::new(),
            wanted_free: room::Wanted::default(),
        }
    }
}

fn name(config: &Config) -> String {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    config.name.clone().unwrap_or_else(host)
}

fn lock(places: &Places) -> Result<File, AgentError> {
    let path = places.lock();
    let file = beneath::open_file(places.data(), Path::new(places::LOCK), For::Locking).at("open", &path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AgentError::Busy(path)),
        Err(TryLockError::Error(error)) => Err(error).at("lock", &path).map_err(AgentError::Disk),
    }
}
