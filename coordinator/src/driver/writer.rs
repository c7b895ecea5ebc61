//! The store's one writer: a thread, because a commit waits for the disk.

use super::DriverError;
use crate::{
    record::Record,
    store::{Store, StoreError},
};
use std::sync::mpsc as thread_channel;
use tokio::sync::oneshot;

/// The thread. It does one thing at a time, in the order it was asked.
pub(super) struct Writer {
    orders: thread_channel::Sender<Order>,
    thread: std::thread::JoinHandle<()>,
}

type Order = Box<dyn FnOnce(&Store) + Send>;

impl Writer {
    pub(super) fn start(store: Store) -> Self {
        let (orders, received) = thread_channel::channel::<Order>();
        let work = move || received.iter().for_each(|order| order(&store));
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(work)
            .expect("a process that cannot start a thread cannot start");
        Self { orders, thread }
    }

    /// Rows in one transaction; durable when it returns.
    pub(super) async fn commit(&self, records: Vec<Record>) -> Result<(), DriverError> {
        self.run(move |store| store.commit(&records)).await
    }

    /// Something else that waits for the disk.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let (done, answer) = oneshot::channel();
        let order = move |store: &Store| drop(done.send(work(store)));
        self.orders.send(Box::new(order)).map_err(|_| DriverError::WriterGone)?;
        answer.await.map_err(|_| DriverError::WriterGone)?.map_err(DriverError::Commit)
    }

    /// Ends the thread and waits for it: it holds the store, and who comes next wants to open it.
    pub(super) async fn close(self) -> Result<(), DriverError> {
        let Self { orders, thread } = self;
        drop(orders);
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        joined.map_err(|_| DriverError::WriterGone)?.map_err(|_| DriverError::WriterGone)
    }
}
