//! `/api/backup`: everything that a coordinator cannot make again, as one file, while it runs. For administrators: keys are in it.

use super::{App, ask::Params, caller::Caller, failure::Failure};
use crate::{
    access::Refusal,
    backup::{self, Head},
    cluster::command::Command,
    start::Folders,
    store::Facts,
};
use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use lorikeet_api::{ErrorCode, route};
use serde::Deserialize;
use std::{
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{runtime, sync::mpsc, task::spawn_blocking};
use tokio_stream::wrappers::ReceiverStream;

/// A client that takes nothing for so long has gone; it begins again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Parts ahead of the client.
const AHEAD: usize = 4;
/// Bytes of a part: many small files are sent together.
const PART: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    #[serde(default)]
    full: bool,
}

/// A backup of this moment, as a tar file. It holds the keys of the coordinator.
#[utoipa::path(get, path = route::BACKUP, tag = "server",
    params(("full" = Option<bool>, Query, description = "also datasets, checkpoints, adapters, metrics and logs")),
    responses((status = 200, content_type = "application/x-tar", body = String)))]
pub(super) async fn take(
    State(app): State<Arc<App>>,
    caller: Caller,
    Params(wish): Params<Wish>,
) -> Result<Response, Failure> {
    caller.actor.require_admin("take a backup")?;
    let place = Arc::clone(&app.backup).try_acquire_owned();
    let place =
        place.map_err(|_| Failure::new(ErrorCode::RateLimited, "a backup is under way, and there is one at a time"))?;
    let still = app.trust.hold_still();
    let still =
        still.ok_or_else(|| Failure::new(ErrorCode::Conflict, "the certificate authority is changing; try again"))?;
    let data = app.config.data.clone();
    // The copy is no larger than the store, and must not take what is kept free for it.
    let store = Folders::at(&data).state().metadata().map_or(0, |file| file.len());
    app.space.check(store)?;
    // Nothing speaks against it any more, and no key has left yet.
    app.driver.command(caller.context_with(None), Command::TakeBackup).await?;
    let copy = Copy(data.join("staging").join(format!("backup-{}.redb", uuid::Uuid::now_v7().simple())));
    let path = copy.0.clone();
    let facts: Facts = app.driver.read(move |store| store.copy_to(&path)).await?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let reading = data.clone();
    let authority = spawn_blocking(move || backup::AuthorityFiles::read(&reading)).await;
    let authority = authority
        .map_err(|_| Refusal::Unavailable)?
        .map_err(|error| Failure::internal("a backup was not taken", &error))?;
    // What is as of this moment is read. The rest takes as long as the client likes, and nobody waits for it.
    drop(still);
    let (head, sending) = (Head::new(&facts, wish.full), runtime::Handle::current());
    app.tasks.spawn_blocking(move || {
        let mut out = Parts { sender: sender.clone(), sending, part: Vec::with_capacity(PART) };
        if let Err(error) = backup::write(&data, &authority, &copy.0, &facts, &head, &mut out) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a backup was broken off");
            // Whatever fails breaks the connection, so that half is never taken for whole.
            let _ = sender.try_send(Err(io::Error::other("the backup was broken off")));
        }
        drop((copy, place));
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar")),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"lorikeet-backup.tar\"")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::from_stream(ReceiverStream::new(receiver))).into_response())
}

/// The copy of the store, which goes when it was sent.
struct Copy(PathBuf);

impl Drop for Copy {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "the copy for a backup could not be removed");
        }
    }
}

/// A writer on a thread of its own whose bytes leave as an answer.
struct Parts {
    sender: mpsc::Sender<io::Result<Bytes>>,
    sending: runtime::Handle,
    part: Vec<u8>,
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART));
        let sent = self.sending.block_on(self.sender.send_timeout(Ok(part.into()), PATIENCE));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "whoever asked for it has gone"))
    }
}
