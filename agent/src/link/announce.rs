//! Says what is in the cache: after each welcome, when it changed, and every minute. The answer is what grants are judged by.

use super::{
    LinkState,
    blob::{Announced, Blobs},
    give::Desk,
    random,
};
use crate::{cache::Cache, clock};
use lorikeet_protocol::{
    id::UnixMillis,
    share::{ANNOUNCED, Announcement, Listens},
};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What moved is shown this fresh, and a clock that drifted is set again.
const EVERY: Duration = Duration::from_secs(60);
/// At most: all agents are welcomed together when a coordinator starts, and a base comes as many files.
const PAUSE: Duration = Duration::from_secs(1);

/// Clocks that differ by less are nobody's trouble: what is given leave for is so for two minutes.
const TOLERATED: Duration = Duration::from_secs(60);

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
        } else {
            cancel.cancelled().await;
        }
    }

    async fn announce(&mut self) {
        let (mut changes, mut off) = (self.cache.changes(), false);
        while self.state.wait_for(|state| matches!(state, LinkState::Up { .. })).await.is_ok() {
            tokio::time::sleep(PAUSE.mul_f64(random() as f64 / u64::MAX as f64)).await;
            self.state.mark_unchanged();
            changes.mark_unchanged();
            let said =
                Announcement { listens: self.listens, files: self.cache.hashes(ANNOUNCED), moved: self.cache.moved() };
            let answer = self.blobs.announce(said).await;
            if let Announced::Heard(key, time) = answer {
                off = self.compare(time, off);
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

    /// Says once that the clocks differ, and once that they no longer do.
    fn compare(&self, theirs: UnixMillis, was_off: bool) -> bool {
        let ours = clock::wall();
        let off = Duration::from_millis(ours.0.abs_diff(theirs.0));
        let is_off = off > TOLERATED;
        let shown = humantime::format_duration(Duration::from_secs(off.as_secs()));
        match (was_off, is_off) {
            (false, true) => {
                let way = if ours.0 > theirs.0 { "ahead of" } else { "behind" };
                tracing::warn!(
                    "the clock of this machine is off by {shown}, {way} the coordinator's: times of metrics are as wrong; run a time service"
                );
            }
            (true, false) => tracing::info!("the clock of this machine is right again"),
            (true, true) | (false, false) => {}
        }
        is_off
    }
}
