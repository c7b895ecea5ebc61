//! Metrics and logs: the lines of each attempt's events file, kept as long as the config says, never passing through `Cluster`.
//!
//! One thread owns all writing. It takes the waiting requests as a batch, writes them, syncs each touched file once and only
//! then answers, so what is acknowledged is on disk. Lines carry their sequence numbers: a line that is here already is
//! skipped, a gap is not filled, and the answer says up to where everything is here, so an agent that resends after a lost
//! answer does no harm. What cannot be read is never taken for what was never there: a torn or damaged tail is left as it lies, a new
//! segment begins behind the last whole line, and who reads is told which lines are [`Missing`].
//!
//! ```text
//! series/<job>/<attempt token>/<first seq, 20 digits>.seg      format: series/segment.rs and docs/store.md
//!                              <first seq, 20 digits>.torn     one of which no line can be read
//!                              through                         how far the attempt is, where its last lines are not kept
//! ```
//!
//! What a job, and all jobs together, may take is bounded (`series/shed.rs`): beyond that words, then numbers are acknowledged and not kept.
//!
//! Readers read the files themselves, up to what the thread has synced, and remember where they left off
//! (`series/marks.rs`); [`Series::follow`] wakes them.

mod marks;
mod segment;
mod shed;
mod writer;

use crate::space::Short;
use lorikeet_api::job::MissingLines;
use lorikeet_protocol::{
    agent::EventLines,
    id::{AttemptId, AttemptToken, JobId},
};
use marks::Marks;
use segment::Wanted;
pub use shed::Limits;
use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};
use tokio::sync::{mpsc, oneshot, watch};
use writer::{Held, Request, Writer};

/// Requests that may wait for the thread: each holds at most one frame (1 MiB), and senders wait beyond that.
const WAITING_REQUESTS: usize = 64;

/// Why lines could not be kept or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SeriesError {
    /// The disk said no.
    #[error("{what} {path}", path = path.display())]
    Disk {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// What must stay free on the disk would not: the sender keeps the lines and sends them again.
    #[error("keep lines")]
    NoSpace(#[from] Short),
    /// The thread is gone: the coordinator is on its way down.
    #[error("keep lines: the series are closed")]
    Closed,
}

impl SeriesError {
    fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::Disk { what, path, source: Arc::new(error) }
    }
}

/// One kept line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its place in the attempt's events.
    pub seq: u64,
    /// As the worker wrote it.
    pub text: String,
}

/// Lines that were here and cannot be read: the disk has not kept them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The first of them.
    pub from: u64,
    /// The last; `None`: nobody knows how many there were.
    pub through: Option<u64>,
}

impl Missing {
    /// As others see it.
    pub(crate) fn of(self, attempt: AttemptId) -> MissingLines {
        MissingLines { attempt, from: self.from, through: self.through }
    }
}

/// What was read of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<T> {
    /// Lines in order, each as it was made.
    pub lines: Vec<T>,
    /// What is missing before the last of them; of a part without lines, everything that is missing behind where it was to begin.
    pub missing: Vec<Missing>,
}

/// The handle that everybody holds.
#[derive(Debug, Clone)]
pub struct Series {
    root: Arc<PathBuf>,
    requests: mpsc::Sender<Request>,
    followers: Arc<Followers>,
    marks: Arc<Marks>,
}

/// Who waits for news of which job.
#[derive(Debug, Default)]
struct Followers(Mutex<HashMap<JobId, watch::Sender<u64>>>);

impl Series {
    /// Starts the thread over `root`, within these limits. The thread ends, and can be joined, when the last handle is gone.
    pub fn open(root: &Path, limits: Limits) -> Result<(Self, JoinHandle<()>), SeriesError> {
        std::fs::create_dir_all(root).map_err(SeriesError::disk("make", root))?;
        let (sender, receiver) = mpsc::channel(WAITING_REQUESTS);
        let followers = Arc::new(Followers::default());
        let marks = Arc::<Marks>::default();
        let writer = Writer::new(root.to_owned(), limits, Arc::clone(&followers), Arc::clone(&marks));
        let thread = std::thread::Builder::new().name("series".into()).spawn(move || writer.run(receiver));
        let thread = thread.map_err(SeriesError::disk("start the thread of", root))?;
        let root = Arc::new(root.to_owned());
        Ok((Self { root, requests: sender, followers, marks }, thread))
    }

    /// Keeps lines; answers, once they are on disk, up to which `seq` everything is here.
    pub async fn append(&self, lines: EventLines) -> Result<u64, SeriesError> {
        Ok(self.ask(|reply| Request::Append { lines, reply }).await?.through)
    }

    /// Up to which `seq` everything of an attempt is here; 0: nothing.
    pub async fn through(&self, attempt: AttemptId) -> Result<u64, SeriesError> {
        Ok(self.held(attempt).await?.through)
    }

    async fn held(&self, attempt: AttemptId) -> Result<Held, SeriesError> {
        self.ask(|reply| Request::Look { attempt, reply }).await
    }

    /// Everything of a job goes: what is asked for afterwards is empty.
    pub async fn remove(&self, job: JobId) -> Result<(), SeriesError> {
        self.ask(|reply| Request::Remove { job, reply }).await.map(drop)
    }

    /// The jobs that left lines.
    pub async fn jobs(&self) -> Result<Vec<JobId>, SeriesError> {
        let root = Arc::clone(&self.root);
        let listing = tokio::task::spawn_blocking(move || {
            let entries = std::fs::read_dir(&*root).map_err(SeriesError::disk("list", &root))?;
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            Ok(names.filter_map(|name| name.parse().ok()).collect())
        });
        listing.await.map_err(|_| SeriesError::Closed)?
    }

    async fn ask(&self, request: impl FnOnce(writer::Reply) -> Request) -> Result<Held, SeriesError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| SeriesError::Closed)?;
        answer.await.map_err(|_| SeriesError::Closed)?
    }

    /// At most `limit` lines behind `after`, in order.
    pub async fn read(&self, attempt: AttemptId, after: u64, limit: usize) -> Result<Vec<Line>, SeriesError> {
        Ok(self.read_as(attempt, after, limit, |line| line).await?.lines)
    }

    /// The same, each line as what `make` makes of it on the thread that reads, and what is missing.
    pub async fn read_as<T: Send + 'static>(
        &self,
        attempt: AttemptId,
        after: u64,
        limit: usize,
        make: impl Fn(Line) -> T + Send + 'static,
    ) -> Result<Part<T>, SeriesError> {
        let Held { through: _, kept, is_torn } = self.held(attempt).await?;
        if kept <= after {
            let missing = is_torn.then_some(Missing { from: kept + 1, through: None });
            return Ok(Part { lines: Vec::new(), missing: missing.into_iter().collect() });
        }
        let (folder, marks) = (folder(&self.root, attempt), Arc::clone(&self.marks));
        let wanted = Wanted { after, through: kept, is_torn, limit };
        let reading = tokio::task::spawn_blocking(move || segment::read_folder(&folder, wanted, &marks, make));
        let mut part = reading.await.map_err(|_| SeriesError::Closed)??;
        // No file at all: everything of the job went a moment ago, or somebody took the files.
        if part.lines.is_empty() && part.missing.is_empty() && self.held(attempt).await?.kept >= kept {
            part.missing.push(Missing { from: after + 1, through: (!is_torn).then_some(kept) });
        }
        Ok(part)
    }

    /// The attempts of a job that left lines, oldest first.
    pub async fn attempts(&self, job: JobId) -> Result<Vec<AttemptId>, SeriesError> {
        let folder = self.root.join(job.to_string());
        let listing = tokio::task::spawn_blocking(move || list_tokens(&folder));
        let tokens = listing.await.map_err(|_| SeriesError::Closed)??;
        Ok(tokens.into_iter().map(|token| AttemptId { job, token }).collect())
    }

    /// Until the thread has ended, which is right only in a shutdown.
    pub async fn ended(&self) {
        self.requests.closed().await;
    }

    /// Changes whenever lines of the job were kept.
    pub fn follow(&self, job: JobId) -> watch::Receiver<u64> {
        let mut followers = self.followers.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody listens to any more go whenever a new one comes, so the table follows the open streams.
        followers.retain(|_, sender| !sender.is_closed());
        followers.entry(job).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }
}

impl Followers {
    fn wake(&self, job: JobId) {
        let followers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followers.get(&job) {
            sender.send_modify(|count| *count += 1);
        }
    }
}

/// One segment: the last line's `seq` as whoever writes on sees it, and the lines as whoever reads sees them. For the tests that look at every
/// decoder.
#[doc(hidden)]
pub fn read_segment(path: &Path) -> Result<(Option<u64>, Vec<Line>), SeriesError> {
    Ok((segment::extent(path)?.last, segment::read_one(path)?))
}

/// Where an attempt's segments lie.
fn folder(root: &Path, attempt: AttemptId) -> PathBuf {
    root.join(attempt.job.to_string()).join(attempt.token.to_string())
}

fn list_tokens(folder: &Path) -> Result<Vec<AttemptToken>, SeriesError> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(SeriesError::disk("list", folder))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut tokens: Vec<AttemptToken> = names.filter_map(|name| name.parse().ok()).collect();
    tokens.sort_unstable();
    Ok(tokens)
}

#[cfg(test)]
mod tests;
