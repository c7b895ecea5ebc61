//! The blob connection: bytes of files, one request per stream, on a connection of its own beside the control connection.
//!
//! What the line loses is asked for again, for as long as it takes: whoever waits here is cancelled from outside. What the
//! coordinator refuses for good comes back as a [`Refusal`]. It speaks of other nodes' files where the coordinator does (`lorikeet-blob/2`).

use super::{
    Caller, LinkError, LinkState, chain, frame, negotiated, random,
    take::{Lines, TakeError},
};
use lorikeet_protocol::{
    ALPN_BLOB, ALPN_BLOB_SHARE,
    blob::{BlobAnswer, BlobRequest, Refusal},
    file::{CHUNK_BYTES, FileManifest},
    id::{AttemptId, Hash, UnixMillis},
    rate::Bucket,
    share::{Announcement, Giver, GrantKey},
};
use quinn::Connection;
use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, watch};

/// A chunk on a line of 1 Mbit/s takes 134 s.
const PATIENCE: Duration = Duration::from_secs(300);
/// A chunk that arrives damaged this often is damaged at its source.
const CORRUPT_TRIES: u32 = 4;

/// Where chunks come from. The cache knows no more of the network than this.
pub(crate) trait Source: Send + Sync {
    /// One chunk, as it came: the caller verifies it.
    fn chunk(
        &self,
        attempt: AttemptId,
        file: Hash,
        index: u32,
    ) -> impl Future<Output = Result<Vec<u8>, Refusal>> + Send;

    /// Other nodes that have the file, with leave to read it.
    fn givers(&self, attempt: AttemptId, file: Hash) -> impl Future<Output = Vec<Giver>> + Send {
        let _ = (attempt, file);
        std::future::ready(Vec::new())
    }

    /// So many bytes are asked for now; nothing more should be before this is over.
    fn brake(&self, bytes: u64) -> Duration {
        let _ = bytes;
        Duration::ZERO
    }

    /// One chunk of a node's, as it came: the caller verifies it.
    fn take(&self, giver: &Giver, index: u32) -> impl Future<Output = Result<Vec<u8>, TakeError>> + Send {
        let _ = (giver, index);
        std::future::ready(Err(TakeError::Refused(Refusal::Missing)))
    }
}

/// A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    caller: Caller,
    state: watch::Receiver<LinkState>,
    connection: Arc<Mutex<Option<Connection>>>,
    /// To other nodes; `None`: they are not asked.
    lines: Option<Lines>,
    /// What is fetched in a second, if that is bounded.
    incoming: Option<Arc<std::sync::Mutex<Bucket>>>,
    started: Instant,
}

impl Source for Blobs {
    async fn chunk(&self, attempt: AttemptId, file: Hash, index: u32) -> Result<Vec<u8>, Refusal> {
        let request = BlobRequest::Fetch { attempt, file, chunk: index };
        match self.ask(&request, &[]).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            Answer::Wanted(_) | Answer::Stored | Answer::Announced(..) | Answer::Givers(_) => Err(Refusal::Missing),
        }
    }

    async fn givers(&self, attempt: AttemptId, file: Hash) -> Vec<Giver> {
        if self.lines.is_none() || !self.speaks_of_sharing().await {
            return Vec::new();
        }
        match self.ask(&BlobRequest::Givers { attempt, file }, &[]).await {
            Ok(Answer::Givers(givers)) => givers,
            // What is refused here is refused to a fetch as well, which says so.
            _ => Vec::new(),
        }
    }

    async fn take(&self, giver: &Giver, index: u32) -> Result<Vec<u8>, TakeError> {
        let lines = self.lines.as_ref().ok_or(TakeError::Refused(Refusal::Missing))?;
        lines.take(&self.caller, giver, index).await
    }

    fn brake(&self, bytes: u64) -> Duration {
        let now = self.started.elapsed();
        let take = |bucket: &Arc<std::sync::Mutex<Bucket>>| {
            bucket.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, now)
        };
        self.incoming.as_ref().map_or(Duration::ZERO, take)
    }
}

/// What came of saying what is in the cache.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Announced {
    /// The key that seals grants for this node, and the coordinator's clock.
    Heard(GrantKey, UnixMillis),
    /// The coordinator is one of before.
    Unwanted,
    /// No answer, or a refusal.
    Lost,
}

#[derive(Debug)]
enum Answer {
    Bytes(Vec<u8>),
    Wanted(Vec<u32>),
    Stored,
    Announced(GrantKey, UnixMillis),
    Givers(Vec<Giver>),
}

impl Blobs {
    /// Dials once `state` says that the control connection is up.
    pub(crate) fn new(caller: Caller, state: watch::Receiver<LinkState>) -> Self {
        let connection = Arc::new(Mutex::new(None));
        Self { caller, state, connection, lines: None, incoming: None, started: Instant::now() }
    }

    /// Other nodes are asked too.
    pub(crate) fn with_nodes(mut self) -> Self {
        self.lines = Some(self.caller.lines.clone());
        self
    }

    /// Fetches so many bytes in a second, a second's worth at once.
    pub(crate) fn bounded(mut self, bandwidth: Option<u64>) -> Self {
        let bucket = |bytes| Arc::new(std::sync::Mutex::new(Bucket::new(bytes, bytes)));
        self.incoming = bandwidth.map(bucket);
        self
    }

    /// Which chunks of a file are still wanted.
    pub(crate) async fn offer(&self, attempt: AttemptId, manifest: FileManifest) -> Result<Vec<u32>, Refusal> {
        match self.ask(&BlobRequest::Offer { attempt, manifest }, &[]).await? {
            Answer::Wanted(chunks) => Ok(chunks),
            Answer::Bytes(_) | Answer::Stored | Answer::Announced(..) | Answer::Givers(_) => Ok(Vec::new()),
        }
    }

    /// One chunk of an offered file.
    pub(crate) async fn put(&self, attempt: AttemptId, file: Hash, chunk: u32, bytes: &[u8]) -> Result<(), Refusal> {
        self.ask(&BlobRequest::Put { attempt, file, chunk }, bytes).await.map(drop)
    }

    /// Every chunk is there.
    pub(crate) async fn finish(&self, attempt: AttemptId, file: Hash) -> Result<(), Refusal> {
        self.ask(&BlobRequest::Finish { attempt, file }, &[]).await.map(drop)
    }

    /// Says what is in the cache.
    pub(crate) async fn announce(&self, said: Announcement) -> Announced {
        if !self.speaks_of_sharing().await {
            return Announced::Unwanted;
        }
        let asked = tokio::time::timeout(PATIENCE, self.ask(&BlobRequest::Announce(said), &[])).await;
        if let Ok(Ok(Answer::Announced(key, time))) = asked { Announced::Heard(key, time) } else { Announced::Lost }
    }

    /// Whether the coordinator knows of other nodes' files.
    async fn speaks_of_sharing(&self) -> bool {
        let mut backoff = self.caller.timers.backoff();
        loop {
            match self.connection().await {
                Ok(connection) => return negotiated(&connection).as_deref() == Some(ALPN_BLOB_SHARE),
                Err(LinkError::Stopping) => return false,
                Err(error) => tracing::debug!("could not {}", chain(&error)),
            }
            tokio::time::sleep(backoff.wait(random())).await;
        }
    }

    /// Asks until there is an answer that asking again would not change.
    async fn ask(&self, request: &BlobRequest, bytes: &[u8]) -> Result<Answer, Refusal> {
        let mut backoff = self.caller.timers.backoff();
        let mut corrupt = 0;
        loop {
            match self.ask_once(request, bytes).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Refusal::Corrupt)) if corrupt < CORRUPT_TRIES => corrupt += 1,
                Ok(Err(refusal @ (Refusal::Busy | Refusal::NoSpace))) => {
                    tracing::debug!(?refusal, "the coordinator cannot take or give bytes now");
                }
                Ok(Err(refusal)) => return Err(refusal),
                Err(error) => tracing::debug!("could not {}", chain(&error)),
            }
            tokio::time::sleep(backoff.wait(random())).await;
        }
    }

    async fn ask_once(&self, request: &BlobRequest, bytes: &[u8]) -> Result<Result<Answer, Refusal>, LinkError> {
        let connection = self.connection().await?;
        let asked = tokio::time::timeout(PATIENCE, exchange(&connection, request, bytes)).await;
        let answer = asked.unwrap_or(Err(LinkError::Silence(PATIENCE)));
        if answer.is_err() {
            self.forget(&connection).await;
        }
        answer
    }

    /// The connection in use, or a new one; waits until the coordinator has welcomed this agent.
    async fn connection(&self) -> Result<Connection, LinkError> {
        let mut state = self.state.clone();
        state.wait_for(|state| matches!(state, LinkState::Up { .. })).await.map_err(|_| LinkError::Stopping)?;
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| connection.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        let connection = self.caller.dial(&[ALPN_BLOB_SHARE, ALPN_BLOB]).await?;
        *held = Some(connection.clone());
        Ok(connection)
    }

    async fn forget(&self, connection: &Connection) {
        let mut held = self.connection.lock().await;
        if held.as_ref().is_some_and(|held| held.stable_id() == connection.stable_id()) {
            *held = None;
        }
    }
}

async fn exchange(
    connection: &Connection,
    request: &BlobRequest,
    bytes: &[u8],
) -> Result<Result<Answer, Refusal>, LinkError> {
    let (mut send, mut receive) = connection.open_bi().await?;
    frame::write(&mut send, request).await?;
    // A refusal may come before all bytes have left: then writing fails, and the answer says why.
    let written = send.write_all(bytes).await;
    let _ = send.finish();
    let answer = match frame::read(&mut receive).await {
        Ok(answer) => answer,
        Err(error) => {
            return Err(written.err().map_or(LinkError::Frame(error), |error| LinkError::Frame(error.into())));
        }
    };
    Ok(match answer {
        BlobAnswer::Refused(refusal) => Err(refusal),
        BlobAnswer::Wanted(chunks) => Ok(Answer::Wanted(chunks)),
        BlobAnswer::Stored => Ok(Answer::Stored),
        BlobAnswer::Announced { key, time } => Ok(Answer::Announced(key, time)),
        BlobAnswer::Givers(givers) => Ok(Answer::Givers(givers)),
        BlobAnswer::Bytes(length) if length <= CHUNK_BYTES => {
            let mut bytes = vec![0; usize::try_from(length).expect("a chunk is 16 MiB at most")];
            receive.read_exact(&mut bytes).await.map_err(frame::FrameError::Read)?;
            Ok(Answer::Bytes(bytes))
        }
        BlobAnswer::Bytes(_) => return Err(LinkError::Misbehaved("announced more bytes than a chunk has")),
    })
}
