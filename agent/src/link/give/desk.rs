//! What the coordinator said last, the grants that it lets in, and the nodes that it has sent away.

use lorikeet_protocol::{
    id::{NodeId, UnixMillis},
    share::{Grant, GrantKey},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::sync::watch;

/// Nodes that were sent away, the last ones: as many as the coordinator names at once. A grant of one before these has run out by itself.
const EXPELLED: usize = 256;

/// What the coordinator said last: what seals grants for this node, what time it is there, and with whom nothing is exchanged any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desk {
    told: Arc<Mutex<Option<Told>>>,
    expelled: Arc<watch::Sender<VecDeque<NodeId>>>,
}

#[derive(Debug, Clone, Copy)]
struct Told {
    key: GrantKey,
    time: UnixMillis,
    at: Instant,
}

impl Desk {
    /// It said so now.
    pub(in crate::link) fn told(&self, key: GrantKey, time: UnixMillis) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(Told { key, time, at: Instant::now() });
    }

    /// A node was sent away for ever.
    pub(in crate::link) fn expel(&self, node: NodeId) {
        self.expelled.send_if_modified(|expelled| {
            let is_news = !expelled.contains(&node);
            if is_news {
                expelled.push_back(node);
                expelled.drain(..expelled.len().saturating_sub(EXPELLED));
            }
            is_news
        });
    }

    pub(in crate::link) fn has_expelled(&self, node: NodeId) -> bool {
        self.expelled.borrow().contains(&node)
    }

    /// Until the node is sent away.
    pub(in crate::link) async fn expelled(&self, node: NodeId) {
        let mut expelled = self.expelled.subscribe();
        // This holds the sender: it does not end.
        let _ = expelled.wait_for(|expelled| expelled.contains(&node)).await;
    }

    /// Whether this reader may read what the grant names. Before the coordinator has said anything nobody may.
    pub(in crate::link) fn admits(&self, grant: &Grant, reader: NodeId) -> bool {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.filter(|_| !self.has_expelled(reader));
        told.is_some_and(|told| {
            let passed = u64::try_from(told.at.elapsed().as_millis()).unwrap_or(u64::MAX);
            holds(grant, reader, &told.key, UnixMillis(told.time.0.saturating_add(passed)))
        })
    }
}

/// A grant counts for one reader, until its end, under this node's own seal.
fn holds(grant: &Grant, reader: NodeId, key: &GrantKey, now: UnixMillis) -> bool {
    let seal = blake3::keyed_hash(&key.0, &Grant::words(grant.reader, grant.file, grant.expires));
    // Compared in constant time.
    seal == blake3::Hash::from_bytes(grant.seal.0) && grant.reader == reader && now < grant.expires
}
