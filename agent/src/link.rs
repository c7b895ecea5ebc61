//! The way to the coordinator: one task that dials, says hello, carries messages both ways, and dials again for ever. And the way between
//! nodes, on connections of their own: `give.rs` listens, `take.rs` reads, `announce.rs` says what there is to give.
//!
//! It owns the socket, the identity in force and the heartbeat; the driver owns everything that is said. They meet in three
//! places: [`News`] go up, a [`Session`] takes what goes down, and the watched [`LinkState`] tells everybody else how it
//! stands. A slow disk slows the driver, never the heartbeat; one that hangs ends the session. Nobody else imports quinn.

pub(crate) mod announce;
pub(crate) mod blob;
mod dial;
mod frame;
pub(crate) mod give;
pub(crate) mod identity;
pub(crate) mod join;
mod session;
pub(crate) mod take;
mod tls;

#[cfg(test)]
pub(crate) mod stand_in;
#[cfg(test)]
mod tests;

pub use dial::DialError;
pub use frame::FrameError;
pub use give::GiveError;
pub use identity::IdentityError;
pub use join::JoinError;
pub(crate) use lorikeet_protocol::chain;
pub use tls::{TlsError, dated::ClockOff};

use crate::{config, pulse::Pulse};
use identity::{Identity, Shared};
use lorikeet_protocol::{
    ALPN_CONTROL, ALPN_CONTROL_METER,
    agent::{Farewell, FromAgent, Hello, Report, Telemetry, ToAgent, Welcome, former},
    backoff::Backoff,
    codec,
    id::NodeId,
    share::Giver,
};
use quinn::{Connection, Endpoint};
use std::{
    sync::{Arc, RwLock},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// How the link stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// On its way, and what went wrong last.
    Down {
        /// For people.
        why: Option<String>,
    },
    /// Welcomed.
    Up {
        /// Who we are there.
        node: NodeId,
        /// Which session of this node it is.
        session: u64,
    },
    /// The coordinator does not let this node in. It is still asked, seldom: a person may change its mind.
    Refused {
        /// For people.
        why: String,
    },
}

/// What the link tells the driver.
#[derive(Debug)]
pub(crate) enum News {
    /// A connection stands: what shall be said first?
    Dialled(oneshot::Sender<Hello>),
    /// The coordinator answered.
    Welcomed(Box<Welcome>, Session),
    /// It said something.
    Heard(ToAgent),
    /// The session is over.
    Lost,
}

/// Where messages of one session go; dead as soon as the session is.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// What is said, in order.
    pub(crate) outgoing: mpsc::Sender<FromAgent>,
    connection: Connection,
    words: Words,
}

/// What can be spoken of in a conversation, by its name.
#[derive(Debug, Clone, Copy)]
struct Words {
    /// Which CAs are trusted.
    trust: bool,
    /// All that devices say of themselves, and what they drew.
    meter: bool,
}

impl Words {
    fn of(connection: &Connection) -> Self {
        let spoken = negotiated(connection);
        let spoken = spoken.as_deref().unwrap_or(ALPN_CONTROL);
        Self { trust: spoken != ALPN_CONTROL, meter: spoken == ALPN_CONTROL_METER }
    }

    /// As the other side reads it.
    fn sayable(self, message: FromAgent) -> FromAgent {
        match message {
            FromAgent::Report(report) if !self.meter => {
                FromAgent::Report(Report { body: report.body.unmetered(), ..report })
            }
            other @ (FromAgent::Hello(_)
            | FromAgent::Heartbeat
            | FromAgent::Devices(_)
            | FromAgent::Accepted(_)
            | FromAgent::Declined { .. }
            | FromAgent::Report(_)
            | FromAgent::Events(_)
            | FromAgent::Renew(_)
            | FromAgent::Trusts(_)) => other,
        }
    }
}

impl Session {
    /// Says how a device feels; it may get lost.
    pub(crate) fn telemetry(&self, telemetry: &Telemetry) {
        let frame = match self.words.meter {
            true => codec::encode(telemetry),
            false => codec::encode(&former::Telemetry::from(telemetry)),
        };
        if let Ok(frame) = frame {
            let body = frame[codec::HEADER_BYTES..].to_vec();
            if body.len() <= TELEMETRY_BYTES {
                let _ = self.connection.send_datagram(body.into());
            }
        }
    }
}

/// A whole chunk may be in flight.
const CHUNK_WINDOW: u32 = 16 << 20;
/// Telemetry that waits: of sixteen devices, twice.
const DATAGRAM_BUFFER: usize = 64 << 10;
/// What fits into one packet on every path.
const TELEMETRY_BYTES: usize = 1100;
/// A goodbye takes a round trip or three.
const PARTING: Duration = Duration::from_secs(1);
/// Messages between driver and wire: enough to keep the wire busy, few enough that a stop is not behind a minute of logs.
const OUTGOING: usize = 64;

/// Why the link cannot begin, or why one session ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// TLS cannot begin.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A message that is none, or a broken stream.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection broke.
    #[error("keep the connection to the coordinator: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The coordinator does not take this node's certificate.
    #[error(
        "be let in: the coordinator refuses this node's certificate ({0}); it was revoked, is of another coordinator, or of a CA that was \
        rotated out while this machine was away: then move identity/ aside and join again"
    )]
    CertificateRefused(String),
    /// The coordinator takes this node's certificate for one of another time.
    #[error(
        "be let in: for the coordinator this node's certificate is not valid at this time; a machine that was away for 90 days has to join again (move \
        identity/ aside), and else the clock of one of the two machines is off: the coordinator's log says by how much"
    )]
    Untimely,
    /// The coordinator is who it should be, and its certificate is not of now.
    #[error("trust the coordinator: {0}")]
    Clock(ClockOff),
    /// The coordinator's certificate is not of a CA that this node trusts.
    #[error(
        "trust the coordinator: its certificate is not of the CA this node joined ({0}); if that was rotated while this machine was \
        away, move identity/ aside and join again with a new join string"
    )]
    Impostor(String),
    /// The coordinator ended the session.
    #[error("stay connected: {}", words(*.0))]
    Farewell(Farewell),
    /// It says what it must not say now.
    #[error("understand the coordinator: it {0}")]
    Misbehaved(&'static str),
    /// No welcome in time.
    #[error("be welcomed: the coordinator said nothing for {0:?}")]
    Silence(Duration),
    /// The driver let go of the session, or takes no turns.
    #[error("stay connected: nothing can be reported, because the disk takes no report")]
    Speechless,
    /// The agent itself leaves.
    #[error("go on: the agent is stopping")]
    Stopping,
}

impl LinkError {
    /// Whether only a person can change it.
    fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::CertificateRefused(_)
                | Self::Clock(_)
                | Self::Untimely
                | Self::Impostor(_)
                | Self::Farewell(Farewell::Revoked | Farewell::TwoMachines | Farewell::Superseded)
        )
    }
}

fn words(farewell: Farewell) -> &'static str {
    match farewell {
        Farewell::Superseded => "a newer session of the same identity took its place; is another agent using its key?",
        Farewell::TwoMachines => {
            "two machines alternate under this identity; both stay out until one of them joins anew"
        }
        Farewell::Revoked => "this node was revoked; join again with a new join string",
        Farewell::ShuttingDown => "the coordinator is shutting down",
        Farewell::Misbehaved => "the coordinator found a message that makes no sense",
    }
}

/// The timers of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Timers {
    connect_timeout: Duration,
    keep_alive: Duration,
    idle_timeout: Duration,
    backoff_first: Duration,
    backoff_longest: Duration,
    report_retry: Duration,
    /// A renewal that is not answered is asked for again after this, and what the disk did not keep is tried again.
    ask_again: Duration,
}

impl Timers {
    /// Out of the config.
    pub(crate) fn new(link: &config::Link) -> Self {
        Self {
            connect_timeout: link.connect_timeout,
            keep_alive: link.keep_alive,
            idle_timeout: link.idle_timeout,
            backoff_first: link.backoff_first,
            backoff_longest: link.backoff_longest,
            report_retry: link.report_retry,
            ask_again: Duration::from_secs(60),
        }
    }

    fn transport(&self) -> quinn::TransportConfig {
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(self.keep_alive));
        transport.max_idle_timeout(quinn::IdleTimeout::try_from(self.idle_timeout).ok());
        // Four chunks of 16 MiB on their way fill a line of 10 Gbit/s and 50 ms; without it 1.25 MB would be the most in flight.
        transport.stream_receive_window(CHUNK_WINDOW.into());
        transport.receive_window((4 * CHUNK_WINDOW).into());
        transport.send_window(u64::from(CHUNK_WINDOW));
        // The coordinator sends none. But quinn sends none either where none can be received.
        transport.datagram_receive_buffer_size(Some(1));
        transport.datagram_send_buffer_size(DATAGRAM_BUFFER);
        // The coordinator opens no streams; a stranger shall not either.
        transport.max_concurrent_bidi_streams(0u32.into());
        transport.max_concurrent_uni_streams(0u32.into());
        transport
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(self.backoff_first, self.backoff_longest)
    }
}

/// Everything that dials: shared by the control connection and the blob connection.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    endpoint: Endpoint,
    identity: Shared,
    address: String,
    timers: Timers,
    /// To nodes that give.
    lines: take::Lines,
    /// What the coordinator says of who may read, and with whom nothing is exchanged any more.
    desk: give::Desk,
}

impl Caller {
    /// With a socket of its own.
    pub(crate) fn new(identity: Identity, address: Option<String>, timers: Timers) -> Result<Self, DialError> {
        let address = address.unwrap_or_else(|| identity.address.clone());
        let identity = Arc::new(RwLock::new(Arc::new(identity)));
        let (lines, desk) = (take::Lines::default(), give::Desk::default());
        Ok(Self { endpoint: dial::endpoint()?, identity, address, timers, lines, desk })
    }

    /// Until its goodbyes are on their way: a coordinator that heard none would keep a dead connection. One that is gone is not
    /// waited for.
    pub(crate) async fn part(&self) {
        let _ = tokio::time::timeout(PARTING, self.endpoint.wait_idle()).await;
    }

    fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn replace_identity(&self, identity: Identity) {
        *self.identity.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(identity);
    }

    /// What the coordinator said of other nodes.
    pub(crate) fn desk(&self) -> give::Desk {
        self.desk.clone()
    }

    /// The coordinator has sent a node away: nothing is given to it or taken from it any more.
    async fn expel(&self, node: NodeId) {
        tracing::info!(%node, "a node was sent away: nothing is exchanged with it any more");
        self.desk.expel(node);
        self.lines.part_with(node).await;
    }

    /// Who this node is, as renewals change it.
    pub(crate) fn shared_identity(&self) -> Shared {
        Arc::clone(&self.identity)
    }

    /// A connection to another node that gives files, both sides verified.
    async fn dial_giver(&self, giver: &Giver, limit: Duration) -> Result<Connection, take::TakeError> {
        let config = tls::between::reader(&self.identity(), giver.node, &self.timers)?;
        Ok(dial::node(&self.endpoint, giver.address, config, limit.min(self.timers.connect_timeout)).await?)
    }

    /// A connection to the coordinator, both sides verified, in the first of these conversations that it knows.
    pub(crate) async fn dial(&self, alpns: &[&[u8]]) -> Result<Connection, LinkError> {
        let (config, dated) = tls::member(&self.identity(), alpns, &self.timers)?;
        let dialled = dial::connect(&self.endpoint, &self.address, config, self.timers.connect_timeout).await;
        dialled.map_err(|error| match error {
            DialError::Handshake(_, error) => dated.off().map_or_else(|| judge(error), LinkError::Clock),
            other @ (DialError::Name { .. }
            | DialError::Socket(_)
            | DialError::Address(..)
            | DialError::Silence { .. }) => LinkError::Dial(other),
        })
    }
}

/// The conversation that the other side chose.
fn negotiated(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// The alert `certificate_expired`, in QUIC's numbers: said of one that has not begun as well.
const EXPIRED: u64 = 0x100 + 45;

/// TLS alerts are told apart from a line that broke: the first need a person, the second patience.
fn judge(error: quinn::ConnectionError) -> LinkError {
    let is_alert = |code: u64| (0x100..0x200).contains(&code);
    match &error {
        quinn::ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == EXPIRED => {
            LinkError::Untimely
        }
        quinn::ConnectionError::ConnectionClosed(close) if is_alert(close.error_code.into()) => {
            LinkError::CertificateRefused(close.to_string())
        }
        quinn::ConnectionError::TransportError(ours) if is_alert(ours.code.into()) => {
            LinkError::Impostor(ours.to_string())
        }
        quinn::ConnectionError::ConnectionClosed(_)
        | quinn::ConnectionError::TransportError(_)
        | quinn::ConnectionError::ApplicationClosed(_)
        | quinn::ConnectionError::VersionMismatch
        | quinn::ConnectionError::Reset
        | quinn::ConnectionError::TimedOut
        | quinn::ConnectionError::LocallyClosed
        | quinn::ConnectionError::CidsExhausted => LinkError::Connection(error),
    }
}

/// The task.
pub(crate) struct Link {
    /// Dials.
    pub(crate) caller: Caller,
    /// To the driver.
    pub(crate) news: mpsc::Sender<News>,
    /// To everybody.
    pub(crate) state: watch::Sender<LinkState>,
    /// The driver's.
    pub(crate) pulse: Pulse,
}

impl Link {
    /// Until cancelled, or until the driver is gone.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let mut backoff = self.caller.timers.backoff();
        loop {
            let error = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                error = self.session(&mut backoff, &cancel) => error,
            };
            // Whether it was told so or finds the driver gone: the agent leaves, and that is nobody's fault.
            if cancel.is_cancelled() || matches!(error, LinkError::Stopping) {
                break;
            }
            self.tell(&error);
            let _ = self.news.send(News::Lost).await;
            let wait = if error.is_refusal() { self.caller.timers.backoff_longest } else { backoff.wait(random()) };
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.caller.endpoint.close(0u32.into(), b"the agent is leaving");
        self.caller.endpoint.wait_idle().await;
    }

    fn tell(&self, error: &LinkError) {
        let why = chain(error);
        let state = if error.is_refusal() {
            tracing::error!(coordinator = self.caller.address, "could not {why}");
            LinkState::Refused { why }
        } else {
            tracing::warn!(coordinator = self.caller.address, "could not {why}");
            LinkState::Down { why: Some(why) }
        };
        self.state.send_replace(state);
    }
}

/// Evenly drawn. Where the system has no randomness, the middle: jitter is a courtesy.
fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_or(u64::MAX / 2, |()| u64::from_le_bytes(bytes))
}
