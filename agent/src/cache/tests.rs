//! The cache against a source that counts, lies and fails on demand.

use super::*;
use crate::link::{stand_in::within, take::TakeError};
use futures_util::FutureExt;
use lorikeet_protocol::{
    id::{AttemptToken, JobId, NodeId, UnixMillis},
    share::{Giver, Grant},
};
use std::sync::atomic::{AtomicU32, Ordering};

#[tokio::test]
async fn a_file_is_fetched_once_and_then_here() {
    let (_folder, cache) = cache(1 << 30);
    let file = Content::new(1, 1000);
    let first = cache.get(&file, attempt(), &file.manifest).await.unwrap();
    assert_eq!(std::fs::read(first.path()).unwrap(), file.bytes);
    drop(first);
    cache.get(&file, attempt(), &file.manifest).await.unwrap();
    assert_eq!(file.asked.load(Ordering::Relaxed), 1);
    assert_eq!(cache.hashes(10), [file.manifest.hash]);
}

#[tokio::test]
async fn two_attempts_that_want_one_file_fetch_it_once() {
    let (_folder, cache) = cache(1 << 30);
    let file = Content::new(1, 1000);
    let both = futures_util::future::join(
        cache.get(&file, attempt(), &file.manifest),
        cache.get(&file, attempt(), &file.manifest),
    );
    let (a, b) = both.await;
    assert_eq!(a.unwrap().path(), b.unwrap().path());
    assert_eq!(file.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let (_folder, cache) = cache(1 << 30);
    let file = Content::new(1, 0);
    let pin = cache.get(&file, attempt(), &file.manifest).await.unwrap();
    assert_eq!(std::fs::metadata(pin.path()).unwrap().len(), 0);
}

#[tokio::test]
async fn only_chunks_that_are_not_whole_are_fetched_again() {
    let (folder, cache) = cache(1 << 30);
    let file = Content::new(2, CHUNK_BYTES as usize * 2 + 77);
    let mut torn = file.bytes[..CHUNK_BYTES as usize + 500].to_vec();
    torn.extend([0; 100]);
    let partial = folder.path().join("partial").join(file.manifest.hash.to_string());
    std::fs::write(&partial, torn).unwrap();
    let pin = cache.get(&file, attempt(), &file.manifest).await.unwrap();
    assert_eq!(file.asked.load(Ordering::Relaxed), 2, "the first chunk was whole");
    assert_eq!(std::fs::read(pin.path()).unwrap(), file.bytes);
    assert!(!partial.exists());
}

#[tokio::test]
async fn a_chunk_that_keeps_coming_damaged_is_refused_and_nothing_is_kept() {
    let (_folder, cache) = cache(1 << 30);
    let mut file = Content::new(1, 1000);
    file.bytes[3] ^= 1;
    let error = cache.get(&file, attempt(), &file.manifest).await.unwrap_err();
    assert!(matches!(error, CacheError::Corrupt(_)), "{error}");
    assert!(cache.hashes(10).is_empty());
    assert_eq!(cache.index().reserved, 0);
}

#[tokio::test]
async fn a_manifest_whose_whole_contradicts_its_chunks_is_refused() {
    let (folder, cache) = cache(1 << 30);
    let mut file = Content::new(1, 1000);
    file.manifest.hash = Hash([9; 32]);
    let error = cache.get(&file, attempt(), &file.manifest).await.unwrap_err();
    assert!(matches!(error, CacheError::Corrupt(_)), "{error}");
    assert_eq!(std::fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_is_longest_unused_goes_first_and_what_is_pinned_never() {
    let (_folder, cache) = cache(2500);
    let (a, b, c, d) = (Content::new(1, 1000), Content::new(2, 1000), Content::new(3, 1000), Content::new(4, 2000));
    let pinned = cache.get(&a, attempt(), &a.manifest).await.unwrap();
    drop(cache.get(&b, attempt(), &b.manifest).await.unwrap());
    drop(cache.get(&c, attempt(), &c.manifest).await.unwrap());
    assert!(pinned.path().exists());
    let mut here = cache.hashes(10);
    here.sort_unstable();
    let mut expected = [a.manifest.hash, c.manifest.hash];
    expected.sort_unstable();
    assert_eq!(here, expected);

    let error = cache.get(&d, attempt(), &d.manifest).await.unwrap_err();
    assert!(matches!(error, CacheError::NoRoom { needed: 2000, budget: 2500, pinned: 1000 }), "{error}");
    drop(pinned);
    cache.get(&d, attempt(), &d.manifest).await.unwrap();
}

#[tokio::test]
async fn tokens_and_half_fetched_files_count_and_go_when_they_are_longest_unused_and_nobody_holds_them() {
    let (folder, cache) = cache(100_000);
    let lay = |name: &str, age: u64| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, noise(1, 32 << 10)).unwrap();
        let file = File::open(&path).unwrap();
        // Its blocks are counted from now on.
        file.sync_all().unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        (path, file)
    };
    let (read, lock) = lay("tokens/a.tokens", 400);
    let ((old, _), (half, _)) = (lay("tokens/b.tokens", 300), lay(&format!("partial/{}", Hash([7; 32])), 200));
    lock.lock_shared().unwrap();
    let (first, second) = (Content::new(1, 30_000), Content::new(2, 30_000));
    drop(cache.get(&first, attempt(), &first.manifest).await.unwrap());
    assert_eq!([read.exists(), old.exists(), half.exists()], [true, false, true], "the oldest that nobody reads");
    assert!(cache.shed(1) > 30_000);
    assert_eq!([read.exists(), half.exists()], [true, false], "older than the file");
    drop(cache.get(&second, attempt(), &second.manifest).await.unwrap());
    assert!(cache.lend(first.manifest.hash, 0).await.is_some(), "there is room for both");
    assert!(taken(folder.path()) >= 2 * 30_000 + (32 << 10));
    assert_eq!(cache.shed(1 << 20), 60_000);
    assert!(read.exists(), "what is read stays whatever happens");
}

#[tokio::test]
async fn a_cache_opened_again_knows_its_files() {
    let (folder, cache) = cache(1 << 30);
    let file = Content::new(1, 1000);
    drop(cache.get(&file, attempt(), &file.manifest).await.unwrap());
    let again = Cache::open(folder.path(), &config::Cache::default()).unwrap();
    assert!(again.pin(file.manifest.hash).is_some());
    assert!(again.pin(Hash([0; 32])).is_none());
}

#[tokio::test]
async fn a_file_that_was_damaged_here_is_fetched_anew() {
    let (folder, cache) = cache(1 << 30);
    let file = Content::new(1, 1000);
    let path = folder.path().join("files").join(file.manifest.hash.to_string());
    let whole = async |cache: &Cache, fetched: u32, why: &str| {
        let pin = cache.get(&file, attempt(), &file.manifest).await.unwrap();
        assert!(std::fs::read(pin.path()).unwrap() == file.bytes, "{why}");
        assert_eq!(file.asked.load(Ordering::Relaxed), fetched, "{why}");
        pin
    };
    let put = |bytes: &[u8], time: SystemTime| {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::File::open(&path).unwrap().set_modified(time).unwrap();
    };
    let time = || std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut flipped = file.bytes.clone();
    flipped[500] ^= 1;
    drop(whole(&cache, 1, "it came").await);
    put(&file.bytes[..10], time());
    let held = whole(&cache, 2, "cut short, at whatever time").await;
    put(&flipped, SystemTime::UNIX_EPOCH);
    let second = whole(&cache, 3, "one bit, and another time").await;
    drop((held, second));
    assert_eq!(cache.index().files[&file.manifest.hash].pins, 0, "pins outlive what they were made for");
    std::fs::remove_file(&path).unwrap();
    drop(whole(&cache, 4, "gone").await);
    put(&flipped, time());
    let again = Cache::open(folder.path(), &config::Cache::default()).unwrap();
    drop(whole(&again, 5, "one bit, found after a start").await);
    put(&file.bytes, SystemTime::UNIX_EPOCH);
    drop(whole(&again, 5, "another time, and whole").await);
}

#[tokio::test]
async fn a_file_that_is_distrusted_is_read_to_its_end_before_it_is_given_out_again() {
    let (folder, cache) = cache(1 << 30);
    let file = Content::new(1, 1000);
    drop(cache.get(&file, attempt(), &file.manifest).await.unwrap());
    rot(&folder.path().join("files").join(file.manifest.hash.to_string()));
    drop(cache.get(&file, attempt(), &file.manifest).await.unwrap());
    assert_eq!(file.asked.load(Ordering::Relaxed), 1, "its time and size are what they were");
    let path = folder.path().join("files").join(file.manifest.hash.to_string());
    assert!(!cache.is_still(file.manifest.hash, &File::open(&path).unwrap()));
    let pin = cache.get(&file, attempt(), &file.manifest).await.unwrap();
    assert_eq!(file.asked.load(Ordering::Relaxed), 2);
    assert!(
        std::fs::read(pin.path()).unwrap() == file.bytes
            && cache.is_still(file.manifest.hash, &File::open(pin.path()).unwrap())
    );
}

#[tokio::test]
async fn what_rots_unnoticed_is_found_by_reading_everything_again_a_piece_at_a_time() {
    let (folder, cache) = cache(1 << 30);
    let files = [1, 2].map(|seed| Content::new(seed, (3 << 20) + 7));
    for file in &files {
        drop(cache.get(file, attempt(), &file.manifest).await.unwrap());
    }
    let (sound, rotten) = (files[0].manifest.hash, files[1].manifest.hash);
    rot(&folder.path().join("files").join(rotten.to_string()));
    assert!(cache.due(Duration::from_secs(600)).is_some_and(|(_, rest)| rest > Duration::from_secs(500)));
    let mut pace = scrub::Pace::new(1 << 40);
    for _ in 0..2 {
        let (hash, rest) = cache.due(Duration::ZERO).unwrap();
        assert_eq!(rest, Duration::ZERO);
        cache.look_over(hash, &mut pace).await;
    }
    // Each file's pieces, and the look that finds its end.
    assert_eq!(pace.passed, 2 * (5 << 20), "no byte is read that was not asked for");
    assert_eq!(cache.hashes(9), [sound]);
    drop(cache.get(&files[1], attempt(), &files[1].manifest).await.unwrap());
    assert_eq!(files[1].asked.load(Ordering::Relaxed), 2, "it is fetched anew");
    assert_eq!(cache.due(Duration::ZERO).map(|(hash, _)| hash), Some(sound), "the one read longest ago comes next");
}

#[tokio::test]
async fn a_file_that_was_fetched_anew_while_the_old_one_was_read_stays() {
    let (folder, cache) = cache(1 << 30);
    let file = Content::new(1, 1000);
    let path = folder.path().join("files").join(file.manifest.hash.to_string());
    drop(cache.get(&file, attempt(), &file.manifest).await.unwrap());
    rot(&path);
    let read = File::open(&path).unwrap();
    cache.distrust(file.manifest.hash);
    drop(cache.get(&file, attempt(), &file.manifest).await.unwrap());
    cache.judge(file.manifest.hash, Ok(Hash([0; 32])), Some(&read));
    assert!(std::fs::read(&path).unwrap() == file.bytes);
    // A moment of too many open files says nothing of the file.
    cache.judge(file.manifest.hash, Err(std::io::Error::other("too many open files")), None);
    assert!(path.exists() && cache.hashes(9) == [file.manifest.hash]);
    std::fs::remove_file(&path).unwrap();
    cache.judge(file.manifest.hash, Err(std::io::ErrorKind::NotFound.into()), None);
    assert!(cache.hashes(9).is_empty(), "it is gone");
}

/// One bit of a file flips, and nothing says so.
fn rot(path: &Path) {
    let time = std::fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[500] ^= 1;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
    File::open(path).unwrap().set_modified(time).unwrap();
}

#[tokio::test]
async fn a_refusal_is_named_with_its_file() {
    let (_folder, cache) = cache(1 << 30);
    let mut file = Content::new(1, 1000);
    file.refusal = Some(Refusal::NotYours);
    let error = cache.get(&file, attempt(), &file.manifest).await.unwrap_err().to_string();
    assert!(error.contains("NotYours") && error.contains(&file.manifest.hash.to_string()), "{error}");
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let error = Cache::open(Path::new("/proc/nowhere"), &config::Cache::default()).unwrap_err().to_string();
    assert!(error.contains("/proc/nowhere"), "{error}");
}

#[tokio::test]
async fn a_short_disk_takes_what_is_longest_unused_and_never_what_is_in_use() {
    let (folder, cache) = cache(1_000);
    let contents = [1, 2, 3].map(|seed| Content::new(seed, 100));
    let used = cache.get(&contents[0], attempt(), &contents[0].manifest).await.unwrap();
    for content in &contents[1..] {
        drop(cache.get(content, attempt(), &content.manifest).await.unwrap());
    }
    let there = |content: &Content| folder.path().join("files").join(content.manifest.hash.to_string()).exists();
    assert_eq!(cache.shed(1), 100);
    assert_eq!([there(&contents[0]), there(&contents[1]), there(&contents[2])], [true, false, true]);
    assert_eq!(cache.shed(1_000), 100);
    assert!(there(&contents[0]) && used.path().exists());
}

#[tokio::test]
async fn a_node_that_never_answers_holds_nothing_up() {
    let (_folder, cache) = impatient(Duration::from_millis(50), FAR);
    let file = Content::new(1, CHUNK_BYTES as usize * 4 + 9);
    let source = Beside { gives: false, ..Beside::new(&file) };
    let pin = within(cache.get(&source, attempt(), &file.manifest)).await.unwrap();
    assert!(std::fs::read(pin.path()).unwrap() == file.bytes);
    assert_eq!(file.asked.load(Ordering::Relaxed), 5, "the coordinator brings all of it, and nothing twice");
    assert_eq!(source.taken.load(Ordering::Relaxed), 1, "one that brings nothing is given no more than a request");
}

#[tokio::test]
async fn a_node_that_has_the_file_only_by_now_is_asked_as_well() {
    let (_folder, cache) = impatient(FAR, Duration::from_millis(10));
    let file = Content::new(1, CHUNK_BYTES as usize * 9);
    let source = Beside { named_from: 3, slow: true, ..Beside::new(&file) };
    let pin = within(cache.get(&source, attempt(), &file.manifest)).await.unwrap();
    assert!(std::fs::read(pin.path()).unwrap() == file.bytes);
    let moved = cache.moved();
    assert!(moved.from_nodes > 0 && moved.from_nodes + moved.from_coordinator == file.manifest.size, "{moved:?}");
}

#[tokio::test]
async fn what_fits_into_a_chunk_comes_from_the_coordinator() {
    let (_folder, cache) = impatient(FAR, FAR);
    let file = Content::new(1, CHUNK_BYTES as usize);
    let source = Beside::new(&file);
    drop(within(cache.get(&source, attempt(), &file.manifest)).await.unwrap());
    assert_eq!((file.asked.load(Ordering::Relaxed), source.names.load(Ordering::Relaxed)), (1, 0));
}

#[tokio::test]
async fn what_others_read_goes_last_but_is_never_in_the_way_of_this_nodes_own_work() {
    let (_folder, cache) = cache(2_500);
    let contents = [1, 2, 3].map(|seed| Content::new(seed, 1_000));
    for content in &contents[..2] {
        drop(cache.get(content, attempt(), &content.manifest).await.unwrap());
    }
    assert!(cache.lend(contents[0].manifest.hash, 0).await.unwrap() == contents[0].bytes);
    drop(cache.get(&contents[2], attempt(), &contents[2].manifest).await.unwrap());
    assert_eq!(cache.lend(contents[1].manifest.hash, 0).await, None, "it was used before the other was read");
    assert!(cache.lend(contents[0].manifest.hash, 0).await.is_some());
    let large = Content::new(4, 2_400);
    drop(cache.get(&large, attempt(), &large.manifest).await.unwrap());
    assert_eq!(cache.lend(contents[0].manifest.hash, 0).await, None);
}

#[test]
fn a_file_that_is_being_read_for_another_node_makes_room_and_the_chunk_still_comes_whole() {
    // One thread reads the disk, and it is busy: the chunk is not read before the room was made.
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_time().build().unwrap();
    let (folder, cache) = cache(1_000);
    let (lent, own) = (Content::new(1, 700), Content::new(2, 900));
    cache.hold(lent.manifest.hash, &lent.bytes);
    let (release, held) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        tokio::task::spawn_blocking(move || held.recv());
        let mut lending = Box::pin(cache.lend(lent.manifest.hash, 0));
        assert!((&mut lending).now_or_never().is_none());
        let room = cache.reserve(own.manifest.size).map(drop);
        release.send(()).unwrap();
        room.expect("what others read is not in the way of this node's own work");
        assert!(within(lending).await == Some(lent.bytes.clone()));
        assert_eq!(std::fs::read_dir(folder.path().join("files")).unwrap().count(), 0);
        drop(cache.get(&own, attempt(), &own.manifest).await.unwrap());
    });
}

#[tokio::test]
async fn files_that_come_and_go_are_told() {
    let (_folder, cache) = cache(1_500);
    let mut changes = cache.changes();
    assert!(!changes.has_changed().unwrap());
    let file = Content::new(1, 1_000);
    for why in ["it came", "it went"] {
        if why == "it went" {
            cache.shed(1);
        } else {
            drop(cache.get(&file, attempt(), &file.manifest).await.unwrap());
        }
        assert!(changes.has_changed().unwrap(), "{why}");
        changes.mark_unchanged();
    }
    drop(cache.get(&file, attempt(), &file.manifest).await.unwrap());
    changes.mark_unchanged();
    drop(cache.get(&file, attempt(), &file.manifest).await.unwrap());
    assert!(!changes.has_changed().unwrap(), "it was here");
}

#[tokio::test]
async fn names_that_come_late_are_taken_up_and_not_asked_for_again() {
    let (folder, content) = (tempfile::tempdir().unwrap(), Content::new(1, CHUNK_BYTES as usize * 4));
    let source = Beside { slow: true, names_late: true, ..Beside::new(&content) };
    let manners = Manners { parallel: 2, late: FAR, names_within: Duration::from_millis(1), ask_again: FAR };
    let path = folder.path().join("partial");
    let tally = Tally::default();
    let fetched = fetch::fetch(&source, attempt(), &content.manifest, &path, manners, &tally);
    within(fetched).await.unwrap();
    assert_eq!(source.names.load(Ordering::Relaxed), 1);
    assert!(source.taken.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn this_nodes_own_brake_makes_nobody_late() {
    let (folder, content) = (tempfile::tempdir().unwrap(), Content::new(1, CHUNK_BYTES as usize + 1));
    let (late, brake) = (Duration::from_secs(1), Duration::from_millis(1_500));
    let source = Beside { brake, ..Beside::new(&content) };
    let manners = Manners { parallel: 2, late, names_within: FAR, ask_again: FAR };
    let (path, tally) = (folder.path().join("partial"), Tally::default());
    let started = std::time::Instant::now();
    within(fetch::fetch(&source, attempt(), &content.manifest, &path, manners, &tally)).await.unwrap();
    assert!(started.elapsed() >= brake);
    let asked = source.taken.load(Ordering::Relaxed) + content.asked.load(Ordering::Relaxed);
    assert_eq!(asked, 2, "each chunk once");
    assert_eq!(tally.moved().from_nodes + tally.moved().from_coordinator, content.manifest.size);
}

/// Nothing in these tests takes longer.
const FAR: Duration = Duration::from_secs(600);

/// A coordinator with a node beside it that has the same file.
struct Beside<'a> {
    content: &'a Content,
    /// The node is named from this question on.
    named_from: u32,
    names: AtomicU32,
    /// Whether the node brings what it is asked for; else it never answers.
    gives: bool,
    taken: AtomicU32,
    /// The coordinator brings its first chunks only once the node was asked.
    slow: bool,
    /// The first names come once the coordinator was asked for a chunk.
    names_late: bool,
    brake: Duration,
}

impl<'a> Beside<'a> {
    fn new(content: &'a Content) -> Self {
        let (names, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        Self {
            content,
            named_from: 1,
            names,
            gives: true,
            taken,
            slow: false,
            names_late: false,
            brake: Duration::ZERO,
        }
    }
}

impl Source for Beside<'_> {
    async fn chunk(&self, attempt: AttemptId, file: Hash, index: u32) -> Result<Vec<u8>, Refusal> {
        let first = self.content.asked.load(Ordering::Relaxed) < 2;
        while self.slow && !first && self.taken.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        self.content.chunk(attempt, file, index).await
    }

    async fn givers(&self, _attempt: AttemptId, file: Hash) -> Vec<Giver> {
        let asked = 1 + self.names.fetch_add(1, Ordering::Relaxed);
        while self.names_late && self.content.asked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let node = NodeId(uuid::Uuid::from_u128(1));
        let grant = Grant { reader: node, file, expires: UnixMillis(1), seal: file };
        let giver = Giver { node, address: "127.0.0.1:9".parse().unwrap(), grant };
        (asked >= self.named_from).then_some(giver).into_iter().collect()
    }

    fn brake(&self, _bytes: u64) -> Duration {
        self.brake
    }

    async fn take(&self, _giver: &Giver, index: u32) -> Result<Vec<u8>, TakeError> {
        self.taken.fetch_add(1, Ordering::Relaxed);
        if !self.gives {
            std::future::pending::<()>().await;
        }
        Ok(self.content.bytes.chunks(CHUNK_BYTES as usize).nth(index as usize).unwrap_or(&[]).to_vec())
    }
}

struct Content {
    bytes: Vec<u8>,
    manifest: FileManifest,
    refusal: Option<Refusal>,
    asked: AtomicU32,
}

/// Bytes that take as much of a disk as they are many, also where it compresses.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

impl Content {
    fn new(seed: u8, length: usize) -> Self {
        let bytes = noise(seed, length);
        let hash = |bytes: &[u8]| Hash(*blake3::hash(bytes).as_bytes());
        let chunks = bytes.chunks(CHUNK_BYTES as usize).map(hash).collect();
        let manifest = FileManifest { size: length as u64, hash: hash(&bytes), chunks };
        Self { bytes, manifest, refusal: None, asked: AtomicU32::new(0) }
    }
}

impl Source for Content {
    async fn chunk(&self, _attempt: AttemptId, _file: Hash, index: u32) -> Result<Vec<u8>, Refusal> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        let chunk = self.bytes.chunks(CHUNK_BYTES as usize).nth(index as usize).unwrap_or(&[]);
        self.refusal.clone().map_or_else(|| Ok(chunk.to_vec()), Err)
    }
}

fn cache(budget: u64) -> (tempfile::TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), &config::Cache { budget, parallel: 2, ..config::Cache::default() }).unwrap();
    (folder, cache)
}

fn impatient(late: Duration, ask_again: Duration) -> (tempfile::TempDir, Cache) {
    let (folder, mut cache) = cache(1 << 30);
    let inner = Arc::get_mut(&mut cache.inner).unwrap();
    inner.manners = Manners { late, ask_again, ..inner.manners };
    (folder, cache)
}

fn attempt() -> AttemptId {
    AttemptId { job: JobId(uuid::Uuid::from_u128(7)), token: AttemptToken { generation: 1, number: 1 } }
}
