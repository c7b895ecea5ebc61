//! Workers: started, followed, asked, killed, and found again.
//!
//! Every worker has a task of its own ([`watch`]) that follows its directory and tells [`News`](crate::host::News) in order. Nothing here
//! decides: the host says what to do, this carries it out. A worker is the agent's child but not its dependent: it leads its
//! own process group, nothing ties its life to ours, and when this is dropped it goes on (an agent that shall leave no work behind ties it by a pipe instead). The next agent knows it by its
//! directory: the lock says whether it lives, `worker.json` who it is, `events.jsonl` what it did.

mod bound;
pub(crate) mod group;
pub(crate) mod spawn;
pub(crate) mod spool;
mod stall;
pub(crate) mod stray;
pub(crate) mod tail;
mod watch;

#[cfg(test)]
pub(crate) mod stand_in;
#[cfg(test)]
mod tests;

use crate::{
    config,
    disk::DiskError,
    host::{Ask, Event},
};
use lorikeet_protocol::id::{AttemptId, BootId};
use spawn::Launch;
pub(crate) use spawn::environment;
use std::{collections::BTreeMap, path::PathBuf};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use watch::{Order, Watch};

/// Orders wait in a line no longer than this: a worker gets a handful in its life.
const ORDERS: usize = 32;

/// Why a worker could not be started or reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SupervisorError {
    /// The attempt directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The program.
    #[error("start the worker `{program}`")]
    Spawn {
        /// What was called.
        program: String,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// `/proc`.
    #[error("look at the worker's processes")]
    Proc(#[from] procfs::ProcError),
}

/// What is the same for all workers.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) config: config::Worker,
    pub(crate) boot: BootId,
    /// Where news go.
    pub(crate) events: mpsc::Sender<Event>,
}

/// The owner of the watching tasks.
#[derive(Debug)]
pub(crate) struct Supervisor {
    setting: Setting,
    orders: BTreeMap<AttemptId, mpsc::Sender<Order>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Supervisor {
    pub(crate) fn new(setting: Setting) -> Self {
        Self { setting, orders: BTreeMap::new(), tasks: TaskTracker::new(), cancel: CancellationToken::new() }
    }

    /// Starts a worker and follows it.
    pub(crate) fn start(&mut self, id: AttemptId, launch: Launch) {
        let setting = self.setting.clone();
        self.watch(id, |orders| Watch::start(setting, id, launch, orders));
    }

    /// Follows a worker that an earlier agent started, dead or alive.
    pub(crate) fn adopt(&mut self, id: AttemptId, directory: PathBuf, memory_limit: u64) {
        let setting = self.setting.clone();
        self.watch(id, |orders| Watch::adopt(setting, id, directory, memory_limit, orders));
    }

    /// Asks a worker for something; one that is gone cannot be asked.
    pub(crate) fn ask(&self, id: AttemptId, ask: Ask) {
        self.order(id, Order::Ask(ask));
    }

    /// Kills a worker's group. An order may reach nobody: the host gives it again.
    pub(crate) fn kill(&self, id: AttemptId) {
        self.order(id, Order::Kill);
    }

    /// Stops following; the attempt's directory may be removed.
    pub(crate) fn forget(&mut self, id: AttemptId) {
        self.orders.remove(&id);
    }

    /// Stops following all; the workers live on.
    pub(crate) async fn leave(self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn watch(&mut self, id: AttemptId, watch: impl FnOnce(mpsc::Receiver<Order>) -> Watch) {
        let (send, receive) = mpsc::channel(ORDERS);
        self.orders.insert(id, send);
        self.tasks.spawn(watch(receive).run(self.cancel.clone()));
    }

    fn order(&self, id: AttemptId, order: Order) {
        let Some(orders) = self.orders.get(&id) else { return };
        if let Err(error) = orders.try_send(order) {
            tracing::debug!(attempt = %id, %error, "an order reaches no worker");
        }
    }
}
