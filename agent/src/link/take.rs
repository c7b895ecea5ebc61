//! Reading from other nodes: a connection to each giver, made when it is first asked and again when it broke, one request per stream.
//!
//! Nothing is asked twice here: a giver that is slow, away or does not want to is given up, and its chunk comes from elsewhere. One that
//! was not reached rests for a while, so that it is waited for once and not for every file. A giver closes a connection that asks
//! nothing any more.

use super::{Caller, DialError, FrameError, TlsError, chain, frame};
use lorikeet_protocol::{
    blob::Refusal,
    file::CHUNK_BYTES,
    id::NodeId,
    share::{Giver, ShareAnswer, ShareRequest},
};
use quinn::Connection;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

/// For a connection and one chunk: 16 MiB in this time are 4 Mbit/s, and who is slower is no help.
const PATIENCE: Duration = Duration::from_secs(30);
/// A handshake is two round trips; a chunk waits for it, and a line that takes longer is no help.
const REACH: Duration = Duration::from_secs(2);
/// A giver behind a firewall stays there; one that restarts is back.
const REST: Duration = Duration::from_secs(60);

/// Why a giver brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    /// It does not answer, or is not the node that it should be.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It did not a moment ago.
    #[error("reach it: it was not reached {} s ago", .0.as_secs())]
    Resting(Duration),
    /// TLS cannot begin.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection broke.
    #[error("keep the connection to it: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The stream broke, or carries no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It was sent away while this node knew of it as a giver.
    #[error("read from it: the coordinator has sent it away")]
    Expelled,
    /// It does not give it.
    #[error("read from it: it refused: {0:?}")]
    Refused(Refusal),
    /// It announced more than a chunk has.
    #[error("read from it: it announced {0} bytes, and a chunk has {CHUNK_BYTES} at most")]
    TooLong(u64),
    /// It takes too long.
    #[error("read from it: no chunk came within {PATIENCE:?}")]
    Slow,
}

impl TakeError {
    /// Whether there is no way to the giver at all.
    pub(crate) fn is_unreached(&self) -> bool {
        matches!(self, Self::Dial(_) | Self::Resting(_))
    }
}

/// What there is to a giver.
#[derive(Debug, Default)]
enum Way {
    #[default]
    Untried,
    Open(Connection),
    /// At this address, since then.
    Closed(SocketAddr, Instant),
}

impl Way {
    fn is_worth_knowing(&self) -> bool {
        match self {
            Self::Untried => false,
            Self::Open(connection) => connection.close_reason().is_none(),
            Self::Closed(_, since) => since.elapsed() < REST,
        }
    }
}

type Line = Arc<tokio::sync::Mutex<Way>>;

/// A cheap handle to all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines(Arc<std::sync::Mutex<BTreeMap<NodeId, Line>>>);

impl Lines {
    /// One chunk of the grant's file, as it came.
    pub(super) async fn take(&self, caller: &Caller, giver: &Giver, chunk: u32) -> Result<Vec<u8>, TakeError> {
        let (line, mut used) = (self.line(giver.node), None);
        let asked = tokio::time::timeout(PATIENCE, async {
            tokio::select! {
                biased;
                () = caller.desk.expelled(giver.node) => Err(TakeError::Expelled),
                came = async {
                    exchange(used.insert(connected(&line, caller, giver).await?), giver, chunk).await
                } => came,
            }
        });
        let came = asked.await.unwrap_or(Err(TakeError::Slow));
        if let (Some(connection), false) = (used, matches!(came, Ok(_) | Err(TakeError::Refused(_)))) {
            // Whatever else is under way on this one comes from elsewhere as well; the next request makes another.
            connection.close(0u32.into(), b"");
        }
        came
    }

    /// It was sent away: nothing is asked of it any more, and what is open closes.
    pub(super) async fn part_with(&self, node: NodeId) {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        let Some(line) = line else { return };
        // Held for the two seconds of a handshake at most.
        if let Way::Open(connection) = std::mem::take(&mut *line.lock().await) {
            connection.close(0u32.into(), b"this node was sent away");
        }
    }

    fn line(&self, node: NodeId) -> Line {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|_, line| Arc::strong_count(line) > 1 || line.try_lock().is_ok_and(|way| way.is_worth_knowing()));
        Arc::clone(lines.entry(node).or_default())
    }
}

async fn connected(line: &Line, caller: &Caller, giver: &Giver) -> Result<Connection, TakeError> {
    let mut way = line.lock().await;
    match &*way {
        Way::Open(connection) if connection.close_reason().is_none() => return Ok(connection.clone()),
        Way::Closed(address, since) if *address == giver.address && since.elapsed() < REST => {
            return Err(TakeError::Resting(since.elapsed()));
        }
        Way::Untried | Way::Open(_) | Way::Closed(..) => {}
    }
    let dialled = caller.dial_giver(giver, REACH).await;
    *way = match &dialled {
        Ok(connection) => Way::Open(connection.clone()),
        Err(error) if error.is_unreached() => {
            let again_after = REST.as_secs();
            tracing::warn!(node = %giver.node, address = %giver.address, again_after, "a node that gives files is not reached: could not {}", chain(error));
            Way::Closed(giver.address, Instant::now())
        }
        Err(_) => Way::Untried,
    };
    dialled
}

pub(super) async fn exchange(connection: &Connection, giver: &Giver, chunk: u32) -> Result<Vec<u8>, TakeError> {
    let (mut send, mut receive) = connection.open_bi().await?;
    frame::write(&mut send, &ShareRequest { grant: giver.grant, chunk }).await?;
    let _ = send.finish();
    match frame::read(&mut receive).await? {
        ShareAnswer::Refused(refusal) => Err(TakeError::Refused(refusal)),
        ShareAnswer::Bytes(length) if length <= CHUNK_BYTES => {
            let mut bytes = vec![0; usize::try_from(length).expect("a chunk is 16 MiB at most")];
            receive.read_exact(&mut bytes).await.map_err(FrameError::Read)?;
            Ok(bytes)
        }
        ShareAnswer::Bytes(length) => Err(TakeError::TooLong(length)),
    }
}
