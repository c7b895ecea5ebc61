//! How many bytes of files came from where, and went to others, since the agent started.

use lorikeet_protocol::share::Moved;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counted as they are verified, or sent.
#[derive(Debug, Default)]
pub(super) struct Tally {
    from_coordinator: AtomicU64,
    from_nodes: AtomicU64,
    to_nodes: AtomicU64,
}

impl Tally {
    /// From the coordinator.
    pub(super) fn fetched(&self, bytes: u64) {
        self.from_coordinator.fetch_add(bytes, Relaxed);
    }

    /// From another node.
    pub(super) fn took(&self, bytes: u64) {
        self.from_nodes.fetch_add(bytes, Relaxed);
    }

    /// To another node.
    pub(super) fn gave(&self, bytes: u64) {
        self.to_nodes.fetch_add(bytes, Relaxed);
    }

    /// All of it.
    pub(super) fn moved(&self) -> Moved {
        Moved {
            from_coordinator: self.from_coordinator.load(Relaxed),
            from_nodes: self.from_nodes.load(Relaxed),
            to_nodes: self.to_nodes.load(Relaxed),
        }
    }
}
