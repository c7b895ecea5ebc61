//! What nobody names any more goes: a file without a record after a day, a deleted record's files after thirty, and what an
//! attempt that has ended had on its way in, at once.
//!
//! The records decide: what they name is read in one go, then compared with what is kept. A file that has just come, or has
//! just been offered again, looks young and stays until a record can name it.
//!
//! Jobs that ended long ago go too, if the config says so (`sweep/job.rs`).
//!
//! What a base's directory has and a model names too was only linked once: at a start it is copied in, and what could not be then,
//! with each sweep.

mod job;

use crate::{
    access::Actor,
    blob::{BlobError, Blobs, Kept},
    config::Storage,
    driver::Handle,
    record::{Base, Dataset, Job, Model, Orphan, StoredCheckpoint},
    series::Series,
    store::{Store, StoreError},
};
use lorikeet_protocol::id::{Hash, JobId, UnixMillis};
use std::{
    collections::{BTreeSet, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Often enough for a policy in days.
const EVERY: Duration = Duration::from_secs(3_600);
/// Deleted rows keep their bytes this long: a person may have been wrong.
const DELETED_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// A broken upload waits this long for its client.
const UPLOAD_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// How long what is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// Files that no record names.
    pub(crate) unreferenced: Duration,
    /// Metrics and logs of jobs that are over; `None`: for ever.
    pub(crate) series: Option<Duration>,
    /// Jobs that are over, with all that belongs to them but their models; `None`: for ever.
    pub(crate) jobs: Option<Duration>,
}

impl From<&Storage> for Keep {
    fn from(config: &Storage) -> Self {
        Self { unreferenced: config.unreferenced, series: config.keep_series, jobs: config.keep_jobs }
    }
}

/// Sweeps every hour until cancelled.
pub(crate) async fn run(driver: Handle, blobs: Blobs, series: Series, keep: Keep, cancel: CancellationToken) {
    let (mut changes, mut due) = (driver.changes(), Instant::now() + EVERY);
    let mut linked = named_of_ours(&driver).await;
    take_in(&blobs, &mut linked, &cancel).await;
    loop {
        match next(&mut changes, due, &cancel).await {
            Next::Cancelled => return,
            Next::Due => due += EVERY,
            Next::Changed(Ok(job)) => {
                drop_ended(&driver, &blobs, Some(job)).await;
                continue;
            }
            Next::Changed(Err(RecvError::Lagged(_))) => {
                drop_ended(&driver, &blobs, None).await;
                continue;
            }
            Next::Changed(Err(RecvError::Closed)) => return cancel.cancelled().await,
        }
        take_in(&blobs, &mut linked, &cancel).await;
        if let Some(kept) = keep.jobs {
            job::forget(&driver, &series, kept).await;
        }
        if let Some(kept) = keep.series {
            drop_series(&driver, &series, kept).await;
        }
        match sweep(&driver, &blobs, keep.unreferenced).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(gone, "files that no record names were removed"),
            Err(error) => tracing::error!(%error, "files that no record names could not be removed"),
        }
    }
}

/// What there is to do.
#[derive(Debug, PartialEq)]
enum Next {
    Cancelled,
    Due,
    Changed(Result<JobId, RecvError>),
}

/// The moment goes before what changes: where jobs move without pause, it would never come.
async fn next(changes: &mut Receiver<JobId>, due: Instant, cancel: &CancellationToken) -> Next {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Next::Cancelled,
        () = tokio::time::sleep_until(due) => Next::Due,
        changed = changes.recv() => Next::Changed(changed),
    }
}

/// Files that must be here, not in a directory of somebody else's.
async fn named_of_ours(driver: &Handle) -> Vec<Hash> {
    let facts = driver.read(|store| store.facts()).await;
    let files = facts.inspect_err(|error| tracing::error!(%error, "the files of models could not be looked up"));
    let files = files.map(|facts| facts.files).unwrap_or_default();
    let ours: BTreeSet<Hash> = files.iter().filter(|(kind, _)| kind.is_ours()).map(|(_, file)| file.hash).collect();
    ours.into_iter().collect()
}

/// Copies in what is only linked; what cannot be copied now is left in the list. Of the others only the manifest is read.
async fn take_in(blobs: &Blobs, linked: &mut Vec<Hash>, cancel: &CancellationToken) {
    let (mut left, mut taken) = (Vec::new(), 0);
    for file in std::mem::take(linked) {
        if cancel.is_cancelled() {
            return;
        }
        match blobs.take_in(file).await {
            Ok(was_linked) => taken += u32::from(was_linked),
            Err(error) => {
                tracing::warn!(%file, %error, "a model's or checkpoint's file could not be copied from its base's directory");
                left.push(file);
            }
        }
    }
    *linked = left;
    if taken > 0 {
        tracing::info!(taken, "files of models and checkpoints that lay only in a base's directory were copied in");
    }
}

/// Metrics and logs of jobs that ended longer ago than they are kept.
async fn drop_series(driver: &Handle, series: &Series, kept: Duration) {
    let cut = ago(kept);
    for id in series.jobs().await.unwrap_or_default() {
        let row = driver.read(move |store| store.get::<Job>(&id.bytes())).await;
        if !row.ok().flatten().is_some_and(|job| is_outlived(&job, cut)) {
            continue;
        }
        match series.remove(id).await {
            Ok(()) => tracing::info!(job = %id, "its metrics and logs were kept for as long as the config says"),
            Err(error) => tracing::error!(job = %id, %error, "its metrics and logs could not be removed"),
        }
    }
}

fn ago(time: Duration) -> UnixMillis {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    UnixMillis(crate::clock::now().0.saturating_sub(millis))
}

fn is_outlived(job: &Job, cut: UnixMillis) -> bool {
    job.completed_at.is_some_and(|ended| ended < cut)
}

/// Nothing of an attempt that has ended is uploaded any more: of this job's, or, where it is not known whose ended, of all.
async fn drop_ended(driver: &Handle, blobs: &Blobs, job: Option<JobId>) {
    for attempt in blobs.attempts().into_iter().filter(|attempt| job.is_none_or(|job| attempt.job == job)) {
        match driver.job(Actor::System, attempt.job).await {
            Ok(job) if job.current_attempt() != Some(attempt) => {}
            Ok(_) | Err(_) => continue,
        }
        if let Err(error) = blobs.drop_incoming(attempt).await {
            tracing::warn!(%attempt, %error, "what an attempt left unfinished could not be removed");
        }
    }
}

async fn sweep(driver: &Handle, blobs: &Blobs, unreferenced: Duration) -> Result<usize, BlobError> {
    let now = SystemTime::now();
    // The list first: what comes between list and records is not on it.
    let kept = blobs.list().await?;
    let read = driver.read(move |store| Ok((named(store, now)?, store.restored()?))).await;
    let Ok((named, restored)) = read else { return Err(BlobError::Closed) };
    let before = restored.map(|restored| UNIX_EPOCH + Duration::from_millis(restored.at.0));
    let superfluous = superfluous(&kept, &named, now, unreferenced, before);
    for kept in &superfluous {
        blobs.delete(*kept).await?;
    }
    blobs.sweep(now - UPLOAD_KEPT).await?;
    Ok(superfluous.len())
}

/// What came before a restore may belong to records that the backup did not have: it is kept as what a person deleted is.
fn superfluous(
    kept: &[Kept],
    named: &HashSet<Hash>,
    now: SystemTime,
    unreferenced: Duration,
    restored: Option<SystemTime>,
) -> Vec<Kept> {
    let old = |kept: &&Kept| match restored.filter(|at| kept.since < *at) {
        Some(at) => now.duration_since(at).is_ok_and(|age| age > DELETED_KEPT),
        None => now.duration_since(kept.since).is_ok_and(|age| age > unreferenced),
    };
    kept.iter().filter(old).filter(|kept| !named.contains(&kept.hash)).copied().collect()
}

/// Every file that a record names.
fn named(store: &Store, now: SystemTime) -> Result<HashSet<Hash>, StoreError> {
    let millis = now.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(DELETED_KEPT).as_millis();
    let cut = UnixMillis(u64::try_from(millis).unwrap_or(0));
    let counts = move |deleted: Option<UnixMillis>| deleted.is_none_or(|deleted| deleted > cut);
    let mut named = HashSet::new();
    for row in store.scan::<Dataset>(&[], |row| counts(row.deleted_at))? {
        named.extend(row.manifest.map(|manifest| manifest.hash));
    }
    for row in store.scan::<Base>(&[], |row| counts(row.deleted_at))? {
        named.extend(row.files.iter().map(|file| file.manifest.hash));
    }
    for row in store.scan::<Model>(&[], |row| counts(row.deleted_at))? {
        named.extend(row.files.iter().map(|file| file.manifest.hash));
    }
    // What it begins with, or goes on from, may be gone from the lists by now.
    for job in store.live_jobs()? {
        let checkpoint = job.checkpoint.iter().flat_map(|checkpoint| &checkpoint.files);
        named.extend(job.init_adapter.iter().chain(checkpoint).map(|file| file.manifest.hash));
    }
    for row in store.scan::<StoredCheckpoint>(&[], |row| row.removed_at.is_none() && !(row.orphan && row.at <= cut))? {
        named.extend(row.checkpoint.files.iter().map(|file| file.manifest.hash));
    }
    for row in store.scan::<Orphan>(&[], |row| counts(Some(row.at)))? {
        named.extend(row.files.iter().map(|file| file.manifest.hash));
    }
    Ok(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_old_and_unnamed_goes() {
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        let kept = |byte, age| Kept { hash: Hash([byte; 32]), since: now - age };
        let files = [kept(1, 2 * day), kept(2, 2 * day), kept(3, day / 2)];
        let named = HashSet::from([Hash([1; 32])]);
        assert_eq!(superfluous(&files, &named, now, day, None), [files[1]]);
    }

    #[test]
    fn what_was_here_before_a_restore_has_thirty_days() {
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        let files = [40, 3].map(|age| Kept { hash: Hash([age as u8; 32]), since: now - age * day });
        let gone = |restored: u32| superfluous(&files, &HashSet::new(), now, day, Some(now - restored * day));
        assert_eq!(gone(29), [files[1]], "only what came since goes by the ordinary rule");
        assert_eq!(gone(31).len(), 2);
    }

    #[tokio::test]
    async fn changes_without_end_do_not_keep_the_hourly_sweep_from_its_hour() {
        let (told, mut changes) = tokio::sync::broadcast::channel(4);
        let (job, cancel) = (JobId(uuid::Uuid::from_u128(1)), CancellationToken::new());
        let (past, future) = (Instant::now() - Duration::from_secs(1), Instant::now() + EVERY);
        for _ in 0..20 {
            told.send(job).unwrap();
            assert_eq!(next(&mut changes, past, &cancel).await, Next::Due);
        }
        assert!(matches!(next(&mut changes, future, &cancel).await, Next::Changed(_)));
        cancel.cancel();
        assert_eq!(next(&mut changes, past, &cancel).await, Next::Cancelled);
    }

    #[tokio::test]
    async fn what_was_only_linked_is_copied_in_as_soon_as_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let blobs = Blobs::open(&at("blobs"), &at("staging"), &[at("bases")], 0).unwrap();
        std::fs::create_dir(at("bases")).unwrap();
        std::fs::write(at("bases/tokenizer.json"), "bytes").unwrap();
        let file = blobs.link(at("bases/tokenizer.json")).await.unwrap();
        std::fs::rename(at("bases"), at("unmounted")).unwrap();
        let (mut linked, cancel) = (vec![file.hash], CancellationToken::new());
        take_in(&blobs, &mut linked, &cancel).await;
        assert_eq!(linked, [file.hash], "it is tried again");
        std::fs::rename(at("unmounted"), at("bases")).unwrap();
        take_in(&blobs, &mut linked, &cancel).await;
        assert!(linked.is_empty());
        std::fs::remove_dir_all(at("bases")).unwrap();
        assert_eq!(blobs.chunk(file.hash, 0).await.unwrap(), b"bytes");
    }

    #[tokio::test]
    async fn metrics_and_logs_of_a_job_that_is_over_go_in_time_and_those_of_a_live_one_never() {
        use crate::http::tests::World;
        use lorikeet_protocol::{
            agent::EventLines,
            id::{AttemptId, AttemptToken},
        };
        let world = World::new().await;
        let (id, series) = (world.job().await, &world.coordinator.series);
        let attempt = AttemptId { job: id, token: AttemptToken { generation: 1, number: 9 } };
        series.append(EventLines { attempt, first: 1, lines: vec!["{}".into()] }).await.unwrap();
        drop_series(&world.coordinator.driver, series, Duration::ZERO).await;
        assert_eq!(series.jobs().await.unwrap(), [id], "it is not over");
        let mut job = world.coordinator.driver.job(Actor::System, id).await.unwrap();
        job.completed_at = Some(UnixMillis(5));
        assert!(is_outlived(&job, UnixMillis(6)) && !is_outlived(&job, UnixMillis(5)));
        series.remove(id).await.unwrap();
        assert_eq!((series.jobs().await.unwrap(), series.read(attempt, 0, 9).await.unwrap()), (vec![], vec![]));
    }

    #[tokio::test]
    async fn the_files_of_the_checkpoint_that_a_live_job_goes_on_from_stay_whatever_the_lists_say() {
        use crate::{http::tests::World, record::Record};
        use lorikeet_protocol::{
            agent::{Checkpoint, CheckpointKind},
            file::{FileManifest, NamedFile},
        };
        let world = World::new().await;
        let id = world.job().await;
        let driver = &world.coordinator.driver;
        let mut job = driver.job(Actor::System, id).await.unwrap();
        let manifest = FileManifest { size: 1, hash: Hash([7; 32]), chunks: vec![Hash([7; 32])] };
        let files = vec![NamedFile { path: "adapter.bin".into(), manifest }];
        job.checkpoint = Some(Checkpoint { step: 3, loss: 1.0, kind: CheckpointKind::Periodic, files });
        let records = vec![Record::Job(Box::new(job))];
        driver.read(move |store| store.commit(&records)).await.unwrap();
        let named = driver.read(|store| named(store, SystemTime::now())).await.unwrap();
        assert!(named.contains(&Hash([7; 32])));
    }

    #[tokio::test]
    async fn what_an_attempt_that_has_ended_had_under_way_goes_at_once() {
        use crate::http::tests::World;
        use lorikeet_protocol::{
            file::FileManifest,
            id::{AttemptId, AttemptToken},
        };
        let world = World::new().await;
        let job = world.job().await;
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&folder.path().join("blobs"), &folder.path().join("staging"), &[], 0).unwrap();
        // The job waits: none of its attempts is current.
        let attempt = AttemptId { job, token: AttemptToken { generation: 1, number: 1 } };
        let manifest = FileManifest { size: 1, hash: Hash([1; 32]), chunks: vec![Hash([1; 32])] };
        blobs.offer(attempt, manifest, crate::blob::Limit(10)).await.unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("staging")).unwrap().count(), 1);
        drop_ended(&world.coordinator.driver, &blobs, Some(JobId(uuid::Uuid::nil()))).await;
        assert_eq!(blobs.attempts(), BTreeSet::from([attempt]), "another job has changed");
        drop_ended(&world.coordinator.driver, &blobs, Some(job)).await;
        assert!(blobs.attempts().is_empty());
        assert_eq!(std::fs::read_dir(folder.path().join("staging")).unwrap().count(), 0);
        // What came whole is forgotten as well.
        let hash = Hash(*blake3::hash(b"bytes").as_bytes());
        let brought = FileManifest { size: 5, hash, chunks: vec![hash] };
        blobs.offer(attempt, brought.clone(), crate::blob::Limit(10)).await.unwrap();
        blobs.put_chunk(attempt, hash, 0, b"bytes".to_vec()).await.unwrap();
        blobs.finish(attempt, hash).await.unwrap();
        assert!(blobs.has_brought(attempt, vec![brought.clone()]).await.unwrap());
        drop_ended(&world.coordinator.driver, &blobs, None).await;
        assert!(!blobs.has_brought(attempt, vec![brought]).await.unwrap());
    }
}
