//! What memory begins with: the heads that decisions need, read at a start and after every trouble.

use crate::{
    cluster::Loaded,
    record::{Attempt, Audit, Base, Dataset, StoredCheckpoint},
    store::{Listed, Row, Store, StoreError},
};

/// Reads them. What is over or deleted is not among them, however much of it there is.
pub(super) fn load(store: &Store) -> Result<Loaded, StoreError> {
    let live = store.live_jobs()?;
    let mut attempts = Vec::new();
    for id in live.iter().filter_map(|job| job.current_attempt()) {
        attempts.extend(store.scan(&id.job.bytes(), |attempt: &Attempt| attempt.id == id)?);
    }
    let mut checkpoints = Vec::new();
    for job in &live {
        checkpoints.extend(store.scan(&job.id.bytes(), |_: &StoredCheckpoint| true)?);
    }
    let newest: (Vec<Audit>, usize) = store.page(0, 1)?;
    Ok(Loaded {
        generation: store.generation()?,
        users: all(store)?,
        tokens: all(store)?,
        secrets: all(store)?,
        nodes: all(store)?,
        datasets: standing::<Dataset>(store)?,
        bases: standing::<Base>(store)?,
        jobs: live,
        attempts,
        checkpoints,
        replays: all(store)?,
        usages: all(store)?,
        sweeps: standing(store)?,
        audits: newest.0.first().map_or(0, |audit| audit.number),
        restored: store.restored()?,
    })
}

fn all<R: Row>(store: &Store) -> Result<Vec<R>, StoreError> {
    store.scan(&[], |_| true)
}

/// Those that are not deleted.
fn standing<R: Listed>(store: &Store) -> Result<Vec<R>, StoreError> {
    Ok(store.listed(None, 0, usize::MAX, None::<fn(&R) -> bool>)?.0)
}
