//! What the coordinator said last, and the grants that it lets in.

use lorikeet_protocol::{
    id::{NodeId, UnixMillis},
    share::{Grant, GrantKey},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// What the coordinator said last: what seals grants for this node, and what time it is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desk(Arc<Mutex<Option<Told>>>);

#[derive(Debug, Clone, Copy)]
struct Told {
    key: GrantKey,
    time: UnixMillis,
    at: Instant,
}

impl Desk {
    /// It said so now.
    pub(in crate::link) fn told(&self, key: GrantKey, time: UnixMillis) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Told { key, time, at: Instant::now() });
    }

    /// Whether this reader may read what the grant names. Before the coordinator has said anything nobody may.
    pub(in crate::link) fn admits(&self, grant: &Grant, reader: NodeId) -> bool {
        let told = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
