//! How much one agent may say in a time, and how fast files leave for all of them. What must arrive waits, and QUIC makes its sender wait with it;
//! what may get lost is dropped.

use lorikeet_protocol::{agent::FromAgent, rate::Bucket};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Messages: an agent of sixteen devices says some tens in a second; after an outage it says what it kept.
const MESSAGES: (u64, u64) = (1_000, 10_000);
/// Lines of metrics and logs: a worker writes a few per step.
const LINES: (u64, u64) = (50_000, 250_000);
/// Datagrams: one per device and probe.
const DATAGRAMS: (u64, u64) = (256, 512);
/// Requests for bytes: each may carry 16 MiB, and small files come by the dozen.
const REQUESTS: (u64, u64) = (200, 1_000);
/// Renewals: each costs a signature and a commit, and an agent asks for one in days.
const RENEWALS: (u64, u64) = (1, 5);
/// A lease is renewed by words; nobody is made silent for so long that it runs out.
const LONGEST: Duration = Duration::from_millis(500);
/// Bytes of files that wait already for so long are waited for by nobody else: a request has a few minutes in all, and one that is given up has
/// taken what others could have had.
const QUEUE: Duration = Duration::from_secs(60);
/// The same for so many of them: those that wait are in memory.
const QUEUE_BYTES: u64 = 1 << 30;

/// How fast bytes of files leave, for all agents together.
#[derive(Debug)]
pub(super) struct Outgoing {
    start: Instant,
    /// Without one as fast as the line takes them.
    bytes: Option<Mutex<Bucket>>,
    /// Who would wait behind more is refused.
    queue: Duration,
}

impl Outgoing {
    /// So many bytes a second; as many may leave at once.
    pub(super) fn new(bandwidth: Option<u64>) -> Self {
        let queue = QUEUE.min(Duration::from_secs_f64(QUEUE_BYTES as f64 / bandwidth.unwrap_or(1).max(1) as f64));
        let bytes = bandwidth.map(|bytes| Mutex::new(Bucket::new(bytes, bytes)));
        Self { start: Instant::now(), bytes, queue }
    }

    /// Whether too many wait already: bytes need not be read that would be refused.
    pub(super) fn is_full(&self) -> bool {
        let owed = |bytes: &Mutex<Bucket>| lock(bytes).owed(self.start.elapsed());
        self.bytes.as_ref().is_some_and(|bytes| owed(bytes) > self.queue)
    }

    /// How long so many bytes wait before they leave; `None`: too many wait already, and these are to be asked for again.
    pub(super) fn wait(&self, bytes: usize) -> Option<Duration> {
        let Some(outgoing) = &self.bytes else { return Some(Duration::ZERO) };
        let mut outgoing = lock(outgoing);
        // A word takes no time, and waits behind nothing.
        if bytes == 0 {
            return Some(Duration::ZERO);
        }
        outgoing.take_behind(bytes as u64, self.queue, self.start.elapsed())
    }
}

fn lock(bytes: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of one connection.
#[derive(Debug)]
pub(super) struct Rate {
    start: Instant,
    messages: Bucket,
    lines: Bucket,
    datagrams: Bucket,
    requests: Bucket,
    renewals: Bucket,
}

impl Default for Rate {
    fn default() -> Self {
        let bucket = |(per_second, burst)| Bucket::new(per_second, burst);
        Self {
            start: Instant::now(),
            messages: bucket(MESSAGES),
            lines: bucket(LINES),
            datagrams: bucket(DATAGRAMS),
            requests: bucket(REQUESTS),
            renewals: bucket(RENEWALS),
        }
    }
}

impl Rate {
    /// How long the next message waits after this one.
    pub(super) fn message(&mut self, message: &FromAgent) -> Duration {
        let now = self.start.elapsed();
        let lines = if let FromAgent::Events(said) = message { said.lines.len() as u64 } else { 0 };
        let renewals = u64::from(matches!(message, FromAgent::Renew(_)));
        let waits = [self.messages.take(1, now), self.lines.take(lines, now), self.renewals.take(renewals, now)];
        waits.into_iter().max().unwrap_or_default().min(LONGEST)
    }

    /// Whether a datagram is heard.
    pub(super) fn datagram(&mut self) -> bool {
        self.datagrams.take_if_there(1, self.start.elapsed())
    }

    /// How long the next request for bytes waits.
    pub(super) fn request(&mut self) -> Duration {
        self.requests.take(1, self.start.elapsed()).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::{
        agent::EventLines,
        id::{AttemptId, AttemptToken, JobId},
    };

    fn lines(count: usize) -> FromAgent {
        let attempt = AttemptId { job: JobId(uuid::Uuid::nil()), token: AttemptToken { generation: 1, number: 1 } };
        FromAgent::Events(EventLines { attempt, first: 1, lines: vec![String::new(); count] })
    }

    #[test]
    fn a_million_metrics_wait_and_what_a_worker_writes_does_not() {
        let mut rate = Rate::default();
        assert_eq!(rate.message(&lines(2_000)), Duration::ZERO);
        assert!(rate.message(&lines(1_000_000)) > Duration::ZERO);
        let mut rate = Rate::default();
        let waits = (0..20_000).filter(|_| !rate.message(&FromAgent::Heartbeat).is_zero()).count();
        assert!((9_000..=10_001).contains(&waits), "{waits}");
    }

    #[test]
    fn a_renewal_in_days_does_not_wait_and_one_after_another_do() {
        let mut rate = Rate::default();
        let waits: Vec<_> = (0..10).map(|_| rate.message(&FromAgent::Renew(vec![]))).collect();
        assert!(
            waits[..5].iter().all(Duration::is_zero) && waits[6..].iter().all(|wait| *wait == LONGEST),
            "{waits:?}"
        );
    }

    #[test]
    fn whoever_is_let_wait_gets_its_chunk_in_time_however_many_ask() {
        let (chunk, bandwidth) = (16 << 20, 1 << 20);
        let outgoing = Outgoing::new(Some(bandwidth));
        let waits: Vec<_> = (0..1_000).filter_map(|_| outgoing.wait(chunk)).collect();
        assert!((4..=6).contains(&waits.len()), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait < Duration::from_secs(80)), "{waits:?}");
        assert_eq!(outgoing.wait(0), Some(Duration::ZERO), "a word does not wait behind bytes");
        assert_eq!(Outgoing::new(None).wait(chunk), Some(Duration::ZERO));
    }

    #[test]
    fn no_more_bytes_wait_than_memory_is_meant_for_however_broad_the_line() {
        let (chunk, bandwidth) = (16 << 20, 200 << 20);
        let outgoing = Outgoing::new(Some(bandwidth));
        let held = (0..4_000).map_while(|_| outgoing.wait(chunk)).filter(|wait| !wait.is_zero()).count() as u64;
        // More may become free while the test runs.
        assert!((60..=100).contains(&held), "{held} chunks wait");
        assert!(!Outgoing::new(None).is_full());
        let slow = Outgoing::new(Some(1));
        assert!(!slow.is_full() && slow.wait(1 << 30).is_some() && slow.is_full());
    }

    #[test]
    fn datagrams_beyond_measure_are_not_heard() {
        let mut rate = Rate::default();
        let heard = (0..100_000).filter(|_| rate.datagram()).count();
        assert!((512..2_000).contains(&heard), "{heard}");
    }
}
