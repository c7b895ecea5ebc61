//! What is kept is whole, what is torn is asked for again, and what fails is named.

use super::*;
use lorikeet_protocol::{
    file::CHUNK_BYTES,
    id::{AttemptToken, DatasetId, JobId},
};
use uuid::Uuid;

struct Place {
    folder: tempfile::TempDir,
    blobs: Blobs,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let blobs = open(folder.path());
        Self { folder, blobs }
    }

    /// As after a restart: nothing is remembered but what is on disk.
    fn restart(&mut self) {
        self.blobs = open(self.folder.path());
    }

    /// A path below the root of base models.
    fn base(&self, path: &str) -> PathBuf {
        let path = self.folder.path().join("bases").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn staged(&self, name: &str) -> PathBuf {
        self.folder.path().join("staging").join(name)
    }
}

fn open(folder: &Path) -> Blobs {
    Blobs::open(&folder.join("blobs"), &folder.join("staging"), &[folder.join("bases")], 0).unwrap()
}

const ROOM: Limit = Limit(1 << 30);

fn attempt() -> AttemptId {
    AttemptId { job: JobId(Uuid::from_u128(1)), token: AttemptToken { generation: 1, number: 1 } }
}

fn dataset() -> DatasetId {
    DatasetId(Uuid::from_u128(2))
}

/// A little more than two chunks that differ.
fn large() -> Vec<u8> {
    (0..2 * CHUNK_BYTES + 5).map(|index| (index / 7) as u8 ^ (index >> 20) as u8).collect()
}

fn manifest(bytes: &[u8]) -> FileManifest {
    let chunks = bytes.chunks(CHUNK_BYTES as usize).map(disk::hash).collect();
    FileManifest { size: bytes.len() as u64, hash: disk::hash(bytes), chunks }
}

fn piece(bytes: &[u8], index: usize) -> Vec<u8> {
    bytes.chunks(CHUNK_BYTES as usize).nth(index).unwrap().to_vec()
}

#[tokio::test]
async fn an_agent_uploads_in_any_order_and_the_file_reads_back() {
    let place = Place::new();
    let (bytes, blobs) = (large(), &place.blobs);
    let file = manifest(&bytes);
    assert_eq!(blobs.offer(attempt(), file.clone(), ROOM).await.unwrap(), [0, 1, 2]);
    for index in [2, 0, 1] {
        blobs.put_chunk(attempt(), file.hash, index, piece(&bytes, index as usize)).await.unwrap();
    }
    assert!(!blobs.have_all(vec![file.clone()]).await.unwrap());
    blobs.finish(attempt(), file.hash).await.unwrap();
    assert!(blobs.have_all(vec![file.clone()]).await.unwrap());
    assert_eq!(blobs.chunk(file.hash, 2).await.unwrap(), piece(&bytes, 2));
    assert_eq!(blobs.offer(attempt(), file, ROOM).await.unwrap(), Vec::<u32>::new());
    assert_eq!(std::fs::read_dir(place.folder.path().join("staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_torn_staging_is_hashed_again_and_only_the_rest_is_wanted() {
    let mut place = Place::new();
    let bytes = large();
    let file = manifest(&bytes);
    place.blobs.offer(attempt(), file.clone(), ROOM).await.unwrap();
    for index in [0, 1] {
        place.blobs.put_chunk(attempt(), file.hash, index, piece(&bytes, index as usize)).await.unwrap();
    }
    let part = place.staged(&format!("{}-{}.part", attempt(), file.hash));
    std::fs::OpenOptions::new().write(true).open(part).unwrap().write_all_at(b"torn", CHUNK_BYTES + 9).unwrap();
    place.restart();
    let forgotten = place.blobs.put_chunk(attempt(), file.hash, 2, piece(&bytes, 2)).await;
    assert!(matches!(forgotten, Err(BlobError::Missing { .. })), "a chunk needs an offer in this run");
    assert_eq!(place.blobs.offer(attempt(), file.clone(), ROOM).await.unwrap(), [1, 2]);
    for index in [1, 2] {
        place.blobs.put_chunk(attempt(), file.hash, index, piece(&bytes, index as usize)).await.unwrap();
    }
    place.restart();
    let wanted = place.blobs.offer(attempt(), file.clone(), ROOM).await.unwrap();
    assert!(wanted.is_empty(), "everything had come");
    assert!(place.blobs.have_all(vec![file]).await.unwrap());
}

#[tokio::test]
async fn bytes_that_are_not_what_their_hash_says_are_refused() {
    let place = Place::new();
    let bytes = large();
    let file = manifest(&bytes);
    place.blobs.offer(attempt(), file.clone(), ROOM).await.unwrap();
    let wrong = place.blobs.put_chunk(attempt(), file.hash, 0, piece(&bytes, 1)).await.unwrap_err();
    assert!(matches!(wrong, BlobError::Corrupt { .. }), "{wrong}");
    let short = place.blobs.put_chunk(attempt(), file.hash, 0, vec![1, 2]).await.unwrap_err();
    assert!(matches!(short, BlobError::Inconsistent { .. }), "{short}");

    let lie = FileManifest { hash: Hash([9; 32]), ..manifest(b"honest chunk") };
    place.blobs.offer(attempt(), lie.clone(), ROOM).await.unwrap();
    place.blobs.put_chunk(attempt(), lie.hash, 0, b"honest chunk".to_vec()).await.unwrap();
    let whole = place.blobs.finish(attempt(), lie.hash).await.unwrap_err();
    assert!(matches!(whole, BlobError::Corrupt { .. }), "{whole}");
    assert!(place.blobs.manifest(lie.hash).await.unwrap().is_none());

    let uncounted = FileManifest { chunks: Vec::new(), ..file };
    let refused = place.blobs.offer(attempt(), uncounted, ROOM).await.unwrap_err();
    assert!(matches!(refused, BlobError::Inconsistent { .. }), "{refused}");
}

#[tokio::test]
async fn an_end_that_the_disk_did_not_take_is_made_good_by_the_next_offer() {
    let place = Place::new();
    let file = manifest(b"bytes");
    // In the way of the manifest's file: the bytes have been moved to their place when the write fails.
    let in_the_way = place.blobs.inner.entry_path(file.hash);
    place.blobs.offer(attempt(), file.clone(), ROOM).await.unwrap();
    place.blobs.put_chunk(attempt(), file.hash, 0, b"bytes".to_vec()).await.unwrap();
    std::fs::create_dir_all(&in_the_way).unwrap();
    for _ in 0..2 {
        assert!(place.blobs.finish(attempt(), file.hash).await.is_err());
    }
    std::fs::remove_dir(&in_the_way).unwrap();
    for index in place.blobs.offer(attempt(), file.clone(), ROOM).await.unwrap() {
        place.blobs.put_chunk(attempt(), file.hash, index, b"bytes".to_vec()).await.unwrap();
    }
    place.blobs.finish(attempt(), file.hash).await.unwrap();
    assert_eq!(place.blobs.chunk(file.hash, 0).await.unwrap(), b"bytes");
}

#[tokio::test]
async fn an_attempt_stages_no_more_than_its_limit() {
    let place = Place::new();
    let (first, second) = (manifest(b"12345"), manifest(b"678"));
    place.blobs.offer(attempt(), first, Limit(7)).await.unwrap();
    let refused = place.blobs.offer(attempt(), second, Limit(7)).await.unwrap_err();
    assert!(matches!(refused, BlobError::TooLarge { found: 8, limit: 7, .. }), "{refused}");
}

#[tokio::test]
async fn what_an_attempt_brought_counts_until_a_report_names_it_and_so_does_what_was_copied_for_it() {
    let place = Place::new();
    let (blobs, sent, next) = (&place.blobs, manifest(b"12345"), manifest(b"678"));
    blobs.offer(attempt(), sent.clone(), Limit(7)).await.unwrap();
    blobs.put_chunk(attempt(), sent.hash, 0, b"12345".to_vec()).await.unwrap();
    blobs.finish(attempt(), sent.hash).await.unwrap();
    let refused = blobs.offer(attempt(), next.clone(), Limit(7)).await.unwrap_err();
    assert!(matches!(refused, BlobError::TooLarge { found: 8, limit: 7, .. }), "{refused}");
    blobs.reported(attempt(), &[sent.hash]);
    let outside = place.base("tiny/merges.txt");
    std::fs::write(&outside, b"abcdef").unwrap();
    let linked = blobs.link(outside).await.unwrap();
    assert!(blobs.offer_own(attempt(), linked, Limit(7)).await.unwrap().is_empty());
    let refused = blobs.offer(attempt(), next, Limit(7)).await.unwrap_err();
    assert!(matches!(refused, BlobError::TooLarge { found: 9, limit: 7, .. }), "{refused}");
}

/// Sent whole.
async fn bring(blobs: &Blobs, bytes: &[u8], limit: Limit) -> FileManifest {
    let file = manifest(bytes);
    blobs.offer(attempt(), file.clone(), limit).await.unwrap();
    blobs.put_chunk(attempt(), file.hash, 0, bytes.to_vec()).await.unwrap();
    blobs.finish(attempt(), file.hash).await.unwrap();
    file
}

#[tokio::test]
async fn what_an_attempt_gave_up_counts_until_a_report_names_something_newer_or_its_bytes_go() {
    let place = Place::new();
    let (blobs, limit) = (&place.blobs, Limit(12));
    // Of a checkpoint that broke off, and of the next.
    bring(blobs, b"123456", limit).await;
    let named = bring(blobs, b"78901", limit).await;
    let newer = manifest(b"ab");
    let refused = blobs.offer(attempt(), newer.clone(), limit).await.unwrap_err();
    assert!(matches!(refused, BlobError::TooLarge { found: 13, .. }), "{refused}");
    blobs.reported(attempt(), &[named.hash]);
    let next = bring(blobs, b"abcdefghijkl", limit).await;
    blobs.offer(attempt(), newer.clone(), limit).await.unwrap_err();
    let since = SystemTime::now();
    blobs.delete(Kept { hash: next.hash, since }).await.unwrap();
    blobs.offer(attempt(), newer, limit).await.unwrap();
}

#[tokio::test]
async fn a_file_too_many_is_refused_for_good() {
    let place = Place::new();
    for number in 0..brought::FILES as u64 {
        place.blobs.inner.brought.note(attempt(), disk::hash(&number.to_le_bytes()), 1);
    }
    let refused = place.blobs.offer(attempt(), manifest(b"more"), ROOM).await.unwrap_err();
    assert!(matches!(refused, BlobError::TooMany { .. }), "{refused}");
}

#[tokio::test]
async fn who_only_knows_the_hash_of_a_file_has_not_brought_it() {
    let place = Place::new();
    let (blobs, bytes) = (&place.blobs, large());
    let source = place.folder.path().join("source");
    std::fs::write(&source, &bytes).unwrap();
    let file = blobs.put(source).await.unwrap();
    assert_eq!(blobs.offer(attempt(), file.clone(), ROOM).await.unwrap(), [0, 1, 2], "all of it, though it is here");
    assert!(!blobs.has_brought(attempt(), vec![file.clone()]).await.unwrap());
    blobs.finish(attempt(), file.hash).await.unwrap_err();
    assert_eq!(blobs.offer(attempt(), file.clone(), ROOM).await.unwrap(), [0, 1, 2]);
    for index in [0, 1, 2] {
        blobs.put_chunk(attempt(), file.hash, index, piece(&bytes, index as usize)).await.unwrap();
    }
    blobs.finish(attempt(), file.hash).await.unwrap();
    assert!(blobs.has_brought(attempt(), vec![file.clone()]).await.unwrap());
    assert!(
        blobs.offer(attempt(), file.clone(), ROOM).await.unwrap().is_empty(),
        "it is offered again with each report"
    );
    let next = AttemptId { token: AttemptToken { generation: 1, number: 2 }, ..attempt() };
    assert!(!blobs.has_brought(next, vec![file.clone()]).await.unwrap());
    assert!(blobs.offer_own(next, file.clone(), ROOM).await.unwrap().is_empty(), "its job's checkpoint has it");
    assert!(blobs.has_brought(next, vec![file]).await.unwrap());
}

#[tokio::test]
async fn a_report_does_not_copy_in_what_is_only_linked() {
    let place = Place::new();
    let outside = place.base("tiny/tokenizer.json");
    std::fs::write(&outside, b"bytes").unwrap();
    let file = place.blobs.link(outside).await.unwrap();
    assert!(!place.blobs.have_all(vec![file.clone()]).await.unwrap());
    assert!(!place.blobs.inner.content(file.hash).exists());
}

#[tokio::test]
async fn an_empty_file_is_whole_as_soon_as_it_is_offered() {
    let place = Place::new();
    let empty = manifest(b"");
    assert!(place.blobs.offer(attempt(), empty.clone(), ROOM).await.unwrap().is_empty());
    assert!(place.blobs.have_all(vec![empty]).await.unwrap());
}

#[tokio::test]
async fn an_upload_goes_on_at_the_last_synced_byte() {
    let mut place = Place::new();
    let mut upload = place.blobs.resume_upload(dataset(), 10).await.unwrap();
    upload.write(b"01234").await.unwrap();
    assert_eq!(upload.sync().await.unwrap(), 5);
    drop(upload);
    // Bytes that reached the file and were never synced.
    let part = place.staged(&format!("{}.part", dataset()));
    let mut file = std::fs::OpenOptions::new().append(true).open(part).unwrap();
    std::io::Write::write_all(&mut file, b"garbage").unwrap();
    place.restart();
    assert_eq!(place.blobs.upload_offset(dataset()).await.unwrap(), 5);
    let mut upload = place.blobs.resume_upload(dataset(), 10).await.unwrap();
    upload.write(b"56789").await.unwrap();
    upload.sync().await.unwrap();
    drop(upload);
    let expected = disk::hash(b"0123456789");
    let kept = place.blobs.complete_upload(dataset(), 10, Some(expected)).await.unwrap();
    assert_eq!(kept.hash, expected);
    assert_eq!(place.blobs.chunk(expected, 0).await.unwrap(), b"0123456789");
    place.restart();
    let again = place.blobs.complete_upload(dataset(), 10, None).await.unwrap();
    assert_eq!(again, kept, "a confirmation may be repeated");
    place.blobs.drop_upload(dataset()).await.unwrap();
    assert_eq!(std::fs::read_dir(place.folder.path().join("staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_completion_that_the_disk_did_not_take_is_made_good_by_the_next() {
    let place = Place::new();
    let mut upload = place.blobs.resume_upload(dataset(), 5).await.unwrap();
    upload.write(b"bytes").await.unwrap();
    upload.sync().await.unwrap();
    drop(upload);
    let in_the_way = place.blobs.inner.entry_path(disk::hash(b"bytes"));
    std::fs::create_dir_all(&in_the_way).unwrap();
    for _ in 0..2 {
        place.blobs.complete_upload(dataset(), 5, None).await.unwrap_err();
    }
    std::fs::remove_dir(&in_the_way).unwrap();
    let kept = place.blobs.complete_upload(dataset(), 5, None).await.unwrap();
    assert_eq!(place.blobs.chunk(kept.hash, 0).await.unwrap(), b"bytes");
}

#[tokio::test]
async fn an_upload_has_one_writer_and_a_declared_end() {
    let place = Place::new();
    let mut upload = place.blobs.resume_upload(dataset(), 4).await.unwrap();
    let second = place.blobs.resume_upload(dataset(), 4).await.unwrap_err();
    assert!(matches!(second, BlobError::Busy { .. }), "{second}");
    let more = upload.write(b"12345").await.unwrap_err();
    assert!(matches!(more, BlobError::TooLarge { found: 5, limit: 4, .. }), "{more}");
    upload.write(b"123").await.unwrap();
    upload.sync().await.unwrap();
    drop(upload);
    let early = place.blobs.complete_upload(dataset(), 4, None).await.unwrap_err();
    assert!(matches!(early, BlobError::Incomplete { found: 3, expected: 4, .. }), "{early}");
    let mut upload = place.blobs.resume_upload(dataset(), 4).await.unwrap();
    upload.write(b"4").await.unwrap();
    upload.sync().await.unwrap();
    drop(upload);
    let other = place.blobs.complete_upload(dataset(), 4, Some(Hash([1; 32]))).await.unwrap_err();
    assert!(matches!(other, BlobError::Corrupt { .. }), "{other}");
}

#[tokio::test]
async fn a_write_that_fails_is_named_and_nothing_is_acknowledged() {
    let place = Place::new();
    let part = place.staged(&format!("{}.part", dataset()));
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let mut upload = place.blobs.resume_upload(dataset(), 10).await.unwrap();
    upload.write(b"0123456789").await.unwrap();
    let error = upload.sync().await.unwrap_err();
    assert!(matches!(&error, BlobError::NoSpace { path, .. } if *path == part), "{error}");
    drop(upload);
    assert_eq!(place.blobs.upload_offset(dataset()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_linked_file_stays_where_it_is_and_a_change_is_noticed() {
    let place = Place::new();
    let outside = place.base("weights");
    std::fs::write(&outside, b"weights").unwrap();
    let file = place.blobs.link(outside.clone()).await.unwrap();
    assert_eq!(place.blobs.chunk(file.hash, 0).await.unwrap(), b"weights");
    std::fs::write(&outside, b"altered").unwrap();
    assert!(matches!(place.blobs.chunk(file.hash, 0).await, Err(BlobError::Changed { .. })));
    std::fs::remove_file(&outside).unwrap();
    assert!(matches!(place.blobs.chunk(file.hash, 0).await, Err(BlobError::Changed { .. })));
}

#[tokio::test]
async fn what_was_deleted_is_gone_and_what_nobody_finished_is_swept() {
    let place = Place::new();
    let source = place.folder.path().join("source");
    std::fs::write(&source, b"bytes").unwrap();
    let file = place.blobs.put(source).await.unwrap();
    let kept = place.blobs.list().await.unwrap();
    assert_eq!(kept.iter().map(|kept| kept.hash).collect::<Vec<_>>(), [file.hash]);
    place.blobs.delete(kept[0]).await.unwrap();
    place.blobs.delete(kept[0]).await.unwrap();
    assert!(place.blobs.list().await.unwrap().is_empty());
    place.blobs.offer(attempt(), manifest(b"never finished"), ROOM).await.unwrap();
    let later = SystemTime::now() + std::time::Duration::from_secs(60);
    place.blobs.sweep(later).await.unwrap();
    assert_eq!(std::fs::read_dir(place.folder.path().join("staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_was_offered_again_since_somebody_listed_it_is_not_deleted() {
    let place = Place::new();
    let source = place.folder.path().join("source");
    std::fs::write(&source, b"bytes").unwrap();
    let file = place.blobs.put(source).await.unwrap();
    let listed = place.blobs.list().await.unwrap()[0];
    let old = Kept { since: listed.since - std::time::Duration::from_secs(60), ..listed };
    assert!(place.blobs.offer_own(attempt(), file.clone(), ROOM).await.unwrap().is_empty());
    place.blobs.delete(old).await.unwrap();
    assert_eq!(place.blobs.chunk(file.hash, 0).await.unwrap(), b"bytes");
}

#[tokio::test]
async fn a_chunk_that_would_take_what_is_kept_free_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&folder.path().join("blobs"), &folder.path().join("staging"), &[], u64::MAX).unwrap();
    let file = manifest(b"bytes");
    blobs.offer(attempt(), file.clone(), ROOM).await.unwrap();
    let refused = blobs.put_chunk(attempt(), file.hash, 0, b"bytes".to_vec()).await;
    assert!(matches!(refused, Err(BlobError::NoSpace { .. })), "{refused:?}");
}

#[test]
fn many_writers_of_one_small_file_do_not_tear_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("entry.json");
    std::thread::scope(|scope| {
        for letter in b'a'..b'i' {
            let path = &path;
            scope.spawn(move || (0..25).for_each(|_| disk::write_whole(path, &[letter; 4_096]).unwrap()));
        }
    });
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() == 4_096 && bytes.iter().all(|byte| *byte == bytes[0]));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left aside");
}

#[tokio::test]
async fn a_linked_file_lies_below_a_root_whatever_links_lead_to_it() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    let secret = place.folder.path().join("ca.key");
    std::fs::write(&secret, b"secret").unwrap();
    // As a hub's cache lays a model out.
    let (blob, snapshot) = (place.base("blobs/1"), place.base("snapshots/main/model.safetensors"));
    std::fs::write(&blob, b"weights").unwrap();
    symlink("../../blobs/1", &snapshot).unwrap();
    let kept = place.blobs.link(snapshot.clone()).await.unwrap();
    assert_eq!(place.blobs.chunk(kept.hash, 0).await.unwrap(), b"weights");

    let merges = place.base("snapshots/main/merges.txt");
    symlink(&secret, &merges).unwrap();
    let refused = place.blobs.link(merges).await.unwrap_err();
    assert!(matches!(refused, BlobError::Refused { .. }), "{refused}");
    // The same after it was let in: a link that is bent to the outside serves nothing, even with the right bytes behind it.
    std::fs::write(&secret, b"weights").unwrap();
    std::fs::remove_file(&snapshot).unwrap();
    symlink(&secret, &snapshot).unwrap();
    let refused = place.blobs.chunk(kept.hash, 0).await.unwrap_err();
    assert!(matches!(refused, BlobError::Refused { .. }), "{refused}");
}

#[tokio::test]
async fn what_is_no_regular_file_is_never_waited_for_and_named_among_the_strays() {
    let place = Place::new();
    let base = place.base("tiny/config.json");
    let directory = base.parent().unwrap();
    std::fs::create_dir_all(directory.join("onnx")).unwrap();
    std::fs::write(&base, b"{}").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, directory.join("merges.txt"), rustix::fs::Mode::RUSR).unwrap();
    std::os::unix::fs::symlink("/dev/zero", directory.join("vocab.json")).unwrap();
    std::os::unix::fs::symlink("/etc", directory.join("original")).unwrap();
    std::os::unix::fs::symlink("nowhere", directory.join("dangling")).unwrap();
    let refused = place.blobs.link(directory.join("merges.txt")).await.unwrap_err();
    assert!(refused.to_string().contains("not a regular file"), "{refused}");
    let strays: Vec<_> = place.blobs.strays(directory).await.unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(strays, ["merges.txt", "original", "vocab.json"]);
}

#[tokio::test]
async fn what_an_agent_offers_and_a_base_has_too_is_copied_in_and_outlives_the_base() {
    let place = Place::new();
    let outside = place.base("tiny/tokenizer.json");
    let bytes = large();
    std::fs::write(&outside, &bytes).unwrap();
    let file = place.blobs.link(outside.clone()).await.unwrap();
    assert!(place.blobs.offer_own(attempt(), file.clone(), ROOM).await.unwrap().is_empty(), "nothing has to be sent");
    std::fs::remove_file(&outside).unwrap();
    assert_eq!(place.blobs.chunk(file.hash, 2).await.unwrap(), piece(&bytes, 2));
    assert_eq!(std::fs::read_dir(place.folder.path().join("staging")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_an_agent_offers_and_a_base_no_longer_has_is_sent() {
    let place = Place::new();
    let outside = place.base("tiny/tokenizer.json");
    std::fs::write(&outside, b"bytes").unwrap();
    let file = place.blobs.link(outside.clone()).await.unwrap();
    std::fs::write(&outside, b"other").unwrap();
    assert!(!place.blobs.have_all(vec![file.clone()]).await.unwrap(), "a link is no possession");
    assert_eq!(place.blobs.offer_own(attempt(), file.clone(), ROOM).await.unwrap(), [0]);
    place.blobs.put_chunk(attempt(), file.hash, 0, b"bytes".to_vec()).await.unwrap();
    place.blobs.finish(attempt(), file.hash).await.unwrap();
    assert_eq!(place.blobs.chunk(file.hash, 0).await.unwrap(), b"bytes");
    assert!(place.blobs.have_all(vec![file]).await.unwrap());
}

#[tokio::test]
async fn a_file_that_is_here_is_not_replaced_by_the_same_again_unless_it_was_damaged() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let source = place.folder.path().join("source");
    std::fs::write(&source, b"bytes").unwrap();
    let file = place.blobs.put(source.clone()).await.unwrap();
    let path = place.blobs.path(file.hash).await.unwrap();
    let inode = || path.metadata().unwrap().ino();
    // Open, and so its number is not given away again.
    let (before, _open) = (inode(), File::open(&path).unwrap());
    place.blobs.put(source.clone()).await.unwrap();
    assert_eq!(inode(), before, "whoever was allowed that file may read it still");
    assert_eq!(std::fs::read_dir(place.folder.path().join("staging")).unwrap().count(), 0);
    std::fs::write(&path, b"bitez").unwrap();
    place.blobs.put(source).await.unwrap();
    assert_eq!(place.blobs.chunk(file.hash, 0).await.unwrap(), b"bytes");
}

#[tokio::test]
async fn a_file_of_two_bases_is_read_from_whichever_still_has_it() {
    let place = Place::new();
    let (first, second) = (place.base("first/tokenizer.json"), place.base("second/tokenizer.json"));
    for path in [&first, &second] {
        std::fs::write(path, b"bytes").unwrap();
    }
    let file = place.blobs.link(first.clone()).await.unwrap();
    for path in [&second, &first, &second] {
        place.blobs.link(path.clone()).await.unwrap();
    }
    assert_eq!(place.blobs.inner.entry(file.hash).unwrap().unwrap().links(), [first.clone(), second.clone()]);
    let moved = second.with_extension("moved");
    std::fs::rename(&second, &moved).unwrap();
    assert_eq!(place.blobs.chunk(file.hash, 0).await.unwrap(), b"bytes");
    std::fs::rename(&moved, &second).unwrap();
    std::fs::write(&first, b"other").unwrap();
    assert_eq!(place.blobs.chunk(file.hash, 0).await.unwrap(), b"bytes");
    assert_eq!(look_at(&place.blobs.inner.blobs, &file), Found::Whole);
    std::fs::remove_file(&second).unwrap();
    assert!(matches!(place.blobs.chunk(file.hash, 0).await, Err(BlobError::Changed { .. })));
}

#[test]
fn a_manifest_with_one_place_reads_as_it_was_written_before_there_could_be_several() {
    let file = manifest(b"bytes");
    let read = |place: serde_json::Value| -> Entry {
        let text = serde_json::json!({ "manifest": file, "place": place });
        let entry: Entry = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&entry).unwrap(), text);
        entry
    };
    assert_eq!(read(serde_json::json!(null)).place, entry::Place::Here);
    assert_eq!(read(serde_json::json!("/a")).links(), [PathBuf::from("/a")]);
    assert_eq!(read(serde_json::json!(["/a", "/b"])).links().len(), 2);
}
