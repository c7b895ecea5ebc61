//! Reading from other nodes: a connection to each giver, made when it is first asked and again when it broke, one request per stream.
//!
//! Nothing is asked twice here: a giver that is slow, away or does not want to is given up, and its chunk comes from elsewhere. A giver
//! closes a connection that asks nothing any more.

use super::{Caller, DialError, FrameError, TlsError, frame};
use lorikeet_protocol::{
    blob::Refusal,
    file::CHUNK_BYTES,
    id::NodeId,
    share::{Giver, ShareAnswer, ShareRequest},
};
use quinn::Connection;
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

/// For a connection and one chunk: 16 MiB in this time are 4 Mbit/s, and who is slower is no help.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a giver brought nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    /// It does not answer, or is not the node that it should be.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// TLS cannot begin.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection broke.
    #[error("keep the connection to it: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The stream broke, or carries no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
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

type Line = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// A cheap handle to all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines(Arc<std::sync::Mutex<BTreeMap<NodeId, Line>>>);

impl Lines {
    /// One chunk of the grant's file, as it came.
    pub(super) async fn take(&self, caller: &Caller, giver: &Giver, chunk: u32) -> Result<Vec<u8>, TakeError> {
        let (line, mut used) = (self.line(giver.node), None);
        let asked = tokio::time::timeout(PATIENCE, async {
            exchange(used.insert(connected(&line, caller, giver).await?), giver, chunk).await
        });
        let came = asked.await.unwrap_or(Err(TakeError::Slow));
        if let (Some(connection), false) = (used, matches!(came, Ok(_) | Err(TakeError::Refused(_)))) {
            // Whatever else is under way on this one comes from elsewhere as well; the next request makes another.
            connection.close(0u32.into(), b"");
        }
        came
    }

    fn line(&self, node: NodeId) -> Line {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Of those that nobody uses now only a living connection is worth keeping.
        lines.retain(|_, line| {
            let lives = |held: &Option<Connection>| held.as_ref().is_some_and(|held| held.close_reason().is_none());
            Arc::strong_count(line) > 1 || line.try_lock().is_ok_and(|held| lives(&held))
        });
        Arc::clone(lines.entry(node).or_default())
    }
}

async fn connected(line: &Line, caller: &Caller, giver: &Giver) -> Result<Connection, TakeError> {
    let mut held = line.lock().await;
    if let Some(connection) = held.as_ref().filter(|connection| connection.close_reason().is_none()) {
        return Ok(connection.clone());
    }
    let connection = caller.dial_giver(giver).await?;
    *held = Some(connection.clone());
    Ok(connection)
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
