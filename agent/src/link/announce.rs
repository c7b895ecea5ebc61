//! Says what is in the cache: after each welcome, when it changed, and every minute. The answer is what grants are judged by.

use super::{
    LinkState,
    blob::{Announced, Blobs},
    give::Desk,
    random,
};
use crate::cache::Cache;
use lorikeet_protocol::share::{ANNOUNCED, Announcement, Listens};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What moved is shown this fresh, and a clock that drifted is set again.
const EVERY: Duration = Duration::from_secs(60);
/// At most: all agents are welcomed together when a coordinator starts, and a base comes as many files.
const PAUSE: Duration = Duration::from_secs(1);

/// The task.
pub(crate) struct Announcer {
    pub(crate) blobs: Blobs,
    pub(crate) cache: Cache,
    pub(crate) desk: Desk,
    pub(crate) listens: Listens,
    /// Whether this node reads from others.
    pub(crate) reads: bool,
    pub(crate) state: watch::Receiver<LinkState>,
}

impl Announcer {
    /// Until cancelled, or until the link is gone. A node that neither gives nor reads keeps no second connection for it: what it has stands
    /// in its hello.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        if self.reads || self.listens != Listens::Nowhere {
            cancel.run_until_cancelled(self.announce()).await;
        }
    }

    async fn announce(&mut self) {
        let mut changes = self.cache.changes();
        while self.state.wait_for(|state| matches!(state, LinkState::Up { .. })).await.is_ok() {
            tokio::time::sleep(PAUSE.mul_f64(random() as f64 / u64::MAX as f64)).await;
            self.state.mark_unchanged();
            changes.mark_unchanged();
            let said =
                Announcement { listens: self.listens, files: self.cache.hashes(ANNOUNCED), moved: self.cache.moved() };
            let answer = self.blobs.announce(said).await;
            if let Announced::Heard(key, time) = answer {
                self.desk.told(key, time);
            }
            // A coordinator of before may have been replaced by the next welcome, and not sooner.
            let wanted = answer != Announced::Unwanted;
            tokio::select! {
                _ = self.state.changed() => {}
                _ = changes.changed(), if wanted => {}
                () = tokio::time::sleep(EVERY), if wanted => {}
            }
        }
    }
}
