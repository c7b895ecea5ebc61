//! The cache against a source that counts, lies and fails on demand.

use super::*;
use lorikeet_protocol::{
    file::CHUNK_BYTES,
    id::{AttemptToken, JobId},
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

struct Content {
    bytes: Vec<u8>,
    manifest: FileManifest,
    refusal: Option<Refusal>,
    asked: AtomicU32,
}

impl Content {
    fn new(seed: u8, length: usize) -> Self {
        let bytes: Vec<u8> = (0..length).map(|i| seed.wrapping_mul(31).wrapping_add((i % 251) as u8)).collect();
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
    let cache = Cache::open(folder.path(), &config::Cache { budget, parallel: 2, bandwidth: None }).unwrap();
    (folder, cache)
}

fn attempt() -> AttemptId {
    AttemptId { job: JobId(uuid::Uuid::from_u128(7)), token: AttemptToken { generation: 1, number: 1 } }
}
