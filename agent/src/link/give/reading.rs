//! One reader's connection. A request is judged before it takes anything that readers share; who has no leave costs a few words.

use super::{Serving, door::Reader};
use crate::link::{frame, tls};
use lorikeet_protocol::{
    blob::Refusal,
    share::{Grant, ShareAnswer, ShareRequest},
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// As long as a reader waits for a chunk.
const CHUNK_PATIENCE: Duration = Duration::from_secs(30);
/// A reader that has asked nothing for so long makes room for another; a reader with several files comes back for the next.
const UNUSED: Duration = Duration::from_secs(10);
/// Grants that do not hold, on one connection. Two requests may be under way when one runs out.
const BAD_GRANTS: u32 = 3;

pub(super) struct Reading {
    shared: Arc<Serving>,
    connection: Connection,
    reader: Reader,
    bad_grants: AtomicU32,
}

impl Reading {
    pub(super) fn new(shared: &Arc<Serving>, connection: &Connection, reader: Reader) -> Arc<Self> {
        let (shared, connection) = (Arc::clone(shared), connection.clone());
        Arc::new(Self { shared, connection, reader, bad_grants: AtomicU32::new(0) })
    }

    /// Until it asks nothing any more, its certificate runs out, the coordinator sends it away, or one of its requests ended the connection.
    pub(super) async fn serve(self: &Arc<Self>) {
        let ends = tokio::time::sleep(tls::between::left(&self.reader.certificate));
        let expelled = self.shared.desk.expelled(self.reader.node);
        tokio::pin!(ends, expelled);
        // QUIC's own stream limit bounds these tasks.
        let streams = TaskTracker::new();
        loop {
            let stream = tokio::select! {
                biased;
                () = &mut ends => break,
                () = &mut expelled => {
                    self.close(b"this node was sent away");
                    break;
                }
                stream = timeout(UNUSED, self.connection.accept_bi()) => stream,
            };
            match stream {
                Ok(Ok((send, receive))) => drop(streams.spawn(Arc::clone(self).answer(send, receive))),
                Err(_) if !streams.is_empty() => {}
                Ok(Err(_)) | Err(_) => break,
            }
        }
        self.close(b"");
        streams.close();
        streams.wait().await;
    }

    async fn answer(self: Arc<Self>, mut send: SendStream, mut receive: RecvStream) {
        let done = tokio::select! {
            biased;
            // What waits for its time keeps no place for a reader that is gone.
            _ = self.connection.closed() => return,
            done = timeout(CHUNK_PATIENCE, self.exchange(&mut send, &mut receive)) => done,
        };
        if done.is_err() {
            // Before the stream is dropped: that would end it as if all had been sent.
            let _ = send.reset(VarInt::from_u32(0));
            self.close(b"a chunk took too long");
        }
    }

    async fn exchange(&self, send: &mut SendStream, receive: &mut RecvStream) {
        let Ok(Ok(ShareRequest { grant, chunk })) = timeout(super::PATIENCE, frame::read(receive)).await else {
            return;
        };
        if !self.shared.door.lets_in(&self.reader.certificate) {
            return self.close(b"this certificate counts no longer");
        }
        if !self.shared.desk.admits(&grant, self.reader.node) {
            return self.turn_away(send, &grant).await;
        }
        // Held until the bytes are with QUIC, which bounds them by its window.
        let place = self.shared.chunks.acquire().await;
        let Some(bytes) = self.shared.cache.lend(grant.file, chunk).await else {
            drop(place);
            return refuse(send, Refusal::Missing).await;
        };
        let length = bytes.len() as u64;
        self.shared.pace(length).await;
        let told = frame::write(send, &ShareAnswer::Bytes(length)).await;
        if told.is_ok() && send.write_all(&bytes).await.is_ok() {
            drop((bytes, place));
            let _ = send.finish();
            // All of it was acknowledged; a reader that has the chunk from elsewhere stops before.
            if matches!(send.stopped().await, Ok(None)) {
                self.shared.cache.gave(length);
            }
        }
    }

    async fn turn_away(&self, send: &mut SendStream, grant: &Grant) {
        tracing::debug!(reader = %self.reader.node, file = %grant.file, "a node may not read what it asks for");
        refuse(send, Refusal::NotYours).await;
        if self.bad_grants.fetch_add(1, Relaxed) + 1 >= BAD_GRANTS {
            self.close(b"none of these grants holds");
        }
    }

    fn close(&self, why: &[u8]) {
        self.connection.close(VarInt::from_u32(0), why);
    }
}

/// Until it was heard.
async fn refuse(send: &mut SendStream, refusal: Refusal) {
    if frame::write(send, &ShareAnswer::Refused(refusal)).await.is_ok() {
        let _ = send.finish();
        let _ = send.stopped().await;
    }
}
