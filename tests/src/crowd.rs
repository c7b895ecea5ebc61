//! A crowd of simulated agents in one process: the product's protocol over real QUIC, with a script where machine and worker were.
//!
//! ```text
//!   crowd/member.rs   how each became a node        crowd/session.rs   its connection, made again for ever
//!   crowd/script.rs   what its attempts do: plain data, time comes in
//!   crowd/blob.rs     the files that it brings, where a measurement wants some
//! ```
//! A [`Crowd`] owns its tasks and ends them when it is dropped. What it saw is in its [`Board`].

mod blob;
mod member;
mod script;
mod session;

pub use blob::Bulk;
pub use member::Member;
pub use script::Script;

use lorikeet_protocol::id::{AttemptId, NodeId};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Agents that share one socket: few enough that its buffer is not what is measured.
const PER_SOCKET: usize = 64;

/// Everything that was seen, by all.
#[derive(Debug, Default)]
pub struct Board(Mutex<Seen>);

/// See [`Board`].
#[derive(Debug, Default)]
pub struct Seen {
    /// When each attempt was offered.
    pub offered: BTreeMap<AttemptId, Instant>,
    /// When its running was acknowledged: durable at the coordinator.
    pub running: BTreeMap<AttemptId, Instant>,
    /// When its end was.
    pub ended: BTreeMap<AttemptId, Instant>,
    /// Told to stop before their time.
    pub stopped: BTreeMap<AttemptId, Instant>,
    /// When each node was last welcomed, and how often.
    pub welcomed: BTreeMap<NodeId, (Instant, u32)>,
    /// Lines that were made, and that were acknowledged.
    pub lines: (u64, u64),
}

impl Board {
    /// What is on it now.
    pub fn read(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many attempts have ended.
    pub fn ended(&self) -> usize {
        self.read().ended.len()
    }
}

/// The agents, while they live.
#[derive(Debug)]
pub struct Crowd {
    /// What they see.
    pub board: Arc<Board>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Counts the times that every connection was dropped.
    drops: watch::Sender<u64>,
}

impl Crowd {
    /// Connects every member, each with the same script.
    ///
    /// # Panics
    /// When this machine gives no sockets.
    pub fn start(address: std::net::SocketAddr, members: Vec<Member>, script: &Script) -> Self {
        let (board, tasks, stop) = (Arc::<Board>::default(), TaskTracker::new(), CancellationToken::new());
        let (drops, _) = watch::channel(0);
        let mut members = members.into_iter().peekable();
        while members.peek().is_some() {
            let socket = session::socket();
            for member in members.by_ref().take(PER_SOCKET) {
                let agent = session::Agent::new(address, socket.clone(), member, script.clone(), Arc::clone(&board));
                tasks.spawn(agent.live(stop.clone(), drops.subscribe()));
            }
        }
        Self { board, tasks, stop, drops }
    }

    /// Every connection ends at once, and every agent comes back by its own patience.
    pub fn drop_all(&self) {
        self.drops.send_modify(|times| *times += 1);
    }

    /// Waits until so many were welcomed since `since`; how long each of them took, the soonest first.
    ///
    /// # Panics
    /// When that takes longer than `limit`.
    pub async fn until_welcomed(&self, many: usize, since: Instant, limit: Duration) -> Vec<Duration> {
        loop {
            let at = |(at, _): &(Instant, u32)| at.checked_duration_since(since);
            let mut took: Vec<_> = self.board.read().welcomed.values().filter_map(at).collect();
            if took.len() >= many {
                took.sort();
                return took;
            }
            assert!(since.elapsed() < limit, "{} of {many} are back after {limit:?}", took.len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Everybody leaves.
    pub async fn leave(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
