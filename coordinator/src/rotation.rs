//! From one CA to the next, without anybody being restarted: what a person asks for is written down, then done; and what nobody has
//! to decide – that the older CA is forgotten once everybody has done without it for a while – is done here by itself.
//!
//! `cluster/rotation.rs` decides who would be cut off, `link/trust.rs` holds the files.

use crate::{
    access::{Context, Refusal},
    clock::now,
    cluster::command::Command,
    driver::{Handle, as_system},
    link::{
        LinkError,
        trust::{Authorities, Trust},
    },
    record::Receipt,
};
use lorikeet_protocol::id::{Hash, UnixMillis};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

/// Often enough for an end in days.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Why a rotation did not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotationError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Files(#[from] LinkError),
}

/// Makes the next CA. One that is there stays, and nothing more is written down. A request that is repeated when its rotation is over makes
/// no second one: the receipt names the CA that it was about.
pub(crate) async fn begin(driver: &Handle, trust: &Trust, context: Context) -> Result<(), RotationError> {
    let changing = trust.change()?;
    let authorities = trust.now();
    if authorities.next().is_some() {
        return Ok(context.actor.require_admin("rotate the certificate authority")?);
    }
    let current = authorities.current().hash();
    let judged = driver.command(context, Command::BeginRotation { current }).await?;
    in_background(move || changing.begin(named(judged))).await
}

/// Forgets the older CA, unless nodes would be cut off by that and it is not forced. Nothing is written down where the files are in use, and
/// a request that is repeated forgets what was judged the first time or nothing.
pub(crate) async fn finish(driver: &Handle, trust: &Trust, context: Context, force: bool) -> Result<(), RotationError> {
    let changing = trust.change()?;
    let next = trust.now().next().map(|authority| authority.hash());
    let judged = driver.command(context, Command::FinishRotation { next, force }).await?;
    in_background(move || changing.finish(named(judged))).await
}

fn named(receipt: Receipt) -> Hash {
    let Receipt::Authority(hash) = receipt else { unreachable!("a rotation names an authority, not {receipt:?}") };
    hash
}

async fn in_background(work: impl FnOnce() -> Result<(), LinkError> + Send + 'static) -> Result<(), RotationError> {
    Ok(spawn_blocking(work).await.map_err(|_| Refusal::Unavailable)??)
}

/// When the older CA is forgotten by itself, if nobody is cut off by that.
pub(crate) fn finishes_at(authorities: &Authorities, overlap: Duration) -> Option<UnixMillis> {
    let after = authorities.next()?.made() + overlap;
    Some(UnixMillis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)))
}

/// Finishes what has lasted for `overlap` and cuts nobody off; until cancelled.
pub(crate) async fn run(driver: Handle, trust: Trust, overlap: Duration, cancel: CancellationToken) {
    let every = LOOK_EVERY.min(overlap);
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        if finishes_at(&trust.now(), overlap).is_none_or(|at| now() < at) {
            continue;
        }
        match finish(&driver, &trust, as_system("rotation"), false).await {
            // Said where it is asked for: `lorikeet ca status`.
            Ok(()) | Err(RotationError::Refused(_) | RotationError::Files(LinkError::Held)) => {}
            Err(error @ RotationError::Files(_)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a rotation could not be finished");
            }
        }
    }
}
