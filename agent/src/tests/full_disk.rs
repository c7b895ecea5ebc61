//! A disk without room: nothing is said that is not kept, nothing that was kept is lost, and all goes on once there is room.
//!
//! The test starts itself anew on a disk of its own: two megabytes of memory, mounted for that process alone.

use super::*;
use crate::outbox::Outbox;
use lorikeet_protocol::id::{Hash, UnixMillis};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    io::ErrorKind,
    path::PathBuf,
    process::{Command, Stdio},
};

/// Set for the process with the small disk: where that is, or empty where nobody may mount one.
const DISK: &str = "LORIKEET_TEST_DISK";

#[test]
fn a_full_disk_lets_nothing_be_said_and_loses_nothing() {
    let Some(disk) = std::env::var_os(DISK) else { return start_on_a_small_disk() };
    let disk = SmallDisk(Some(PathBuf::from(disk)).filter(|path| path.is_absolute()));
    the_outbox_keeps_its_word(&disk);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(an_agent_waits_for_room(&disk));
    if disk.0.is_some() {
        runtime.block_on(an_agent_gives_its_cache_back_rather_than_wait(&disk));
        runtime.block_on(a_file_that_found_no_room_leaves_none_of_it_taken());
        runtime.block_on(work_that_found_the_disk_full_makes_the_cache_give_room());
    }
    runtime.block_on(an_agent_that_waits_for_room_leaves_when_it_is_told_to(&disk));
}

fn the_outbox_keeps_its_word(disk: &SmallDisk) {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = Outbox::open(folder.path()).unwrap();
    let push = |outbox: &mut Outbox| outbox.push(attempt(1), UnixMillis(1), ReportBody::Finalizing);
    push(&mut outbox);
    outbox.commit().unwrap();
    disk.fill();
    (0..200).for_each(|_| push(&mut outbox));
    for _ in 0..2 {
        let error = outbox.commit().unwrap_err();
        assert!(error.is_full() && error.path.starts_with(folder.path()), "{error:?}");
    }
    assert_eq!(outbox.next().unwrap().number, 1);
    outbox.sent();
    assert_eq!(outbox.next(), None, "what is not on the disk leaves nobody's hands");
    disk.make_room();
    outbox.commit().unwrap();
    let numbers: Vec<u64> = Outbox::open(folder.path()).unwrap().waiting().map(|report| report.number).collect();
    assert_eq!(numbers, (1..=201).collect::<Vec<_>>());
}

async fn an_agent_waits_for_room(disk: &SmallDisk) {
    let mut scene = Scene::new(&Script::new(3, 1)).await;
    let mut talk = scene.start().await;
    says_nothing_of_an_attempt(&mut talk, &scene, disk).await;
    disk.make_room();
    assert_eq!(talk.until_ended().await.outcome, Outcome::Ok);
    assert!(talk.numbers_have_no_gaps());
    scene.shutdown().await;
}

async fn says_nothing_of_an_attempt(talk: &mut Talk, scene: &Scene, disk: &SmallDisk) {
    disk.fill();
    talk.offer(scene, 1, None).await;
    for _ in 0..8 {
        let said = talk.peer.hear().await;
        assert!(matches!(said, FromAgent::Heartbeat | FromAgent::Devices(_)), "{said:?} without a record of it");
    }
}

async fn an_agent_gives_its_cache_back_rather_than_wait(disk: &SmallDisk) {
    let mut scene = Scene::new(&Script::new(3, 1)).await;
    // No look comes to its help.
    scene.config.devices.probe = Duration::from_secs(3600);
    let cached = cache_a_megabyte(&scene);
    let mut talk = scene.start().await;
    disk.fill();
    talk.offer(&scene, 1, None).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Ok);
    assert!(!cached.exists());
    scene.shutdown().await;
    disk.make_room();
}

async fn a_file_that_found_no_room_leaves_none_of_it_taken() {
    let mut scene = Scene::new(&Script::new(3, 1)).await;
    let mut talk = scene.start().await;
    let large = scene.coordinator.shelve("large", &vec![7; 3 << 20]);
    let offer = Offer { base: vec![large.clone()], ..scene.offer(1, None) };
    talk.say(ToAgent::Offer(Box::new(offer))).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::DiskFull);
    assert!(!scene.places().cache().join("partial").join(large.manifest.hash.to_string()).exists());
    scene.shutdown().await;
}

async fn work_that_found_the_disk_full_makes_the_cache_give_room() {
    let mut scene = Scene::new(&Script { end: End::DiskFull, ..Script::new(1, 1) }).await;
    let cached = cache_a_megabyte(&scene);
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::DiskFull);
    assert!(!cached.exists(), "half of the disk was free, and too little for that");
    scene.shutdown().await;
}

/// A file that nothing uses.
fn cache_a_megabyte(scene: &Scene) -> PathBuf {
    let cached = scene.places().cache().join("files").join(Hash([1; 32]).to_string());
    std::fs::create_dir_all(cached.parent().unwrap()).unwrap();
    std::fs::write(&cached, vec![1; 1 << 20]).unwrap();
    cached
}

async fn an_agent_that_waits_for_room_leaves_when_it_is_told_to(disk: &SmallDisk) {
    let mut scene = Scene::new(&Script::new(3, 1)).await;
    let mut talk = scene.start().await;
    says_nothing_of_an_attempt(&mut talk, &scene, disk).await;
    scene.shutdown().await;
    disk.make_room();
}

/// A mounted one of two megabytes, or the large one with a limit on files: then none can grow any more.
struct SmallDisk(Option<PathBuf>);

impl SmallDisk {
    fn fill(&self) {
        match &self.0 {
            Some(path) => {
                let error = std::fs::write(path.join("ballast"), vec![1; 3 << 20]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::StorageFull);
            }
            None => limit_files(Some(0)),
        }
    }

    fn make_room(&self) {
        match &self.0 {
            Some(path) => std::fs::remove_file(path.join("ballast")).unwrap(),
            None => limit_files(getrlimit(Resource::Fsize).maximum),
        }
    }
}

fn limit_files(bytes: Option<u64>) {
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum: getrlimit(Resource::Fsize).maximum }).unwrap();
}

fn start_on_a_small_disk() {
    let mount = tempfile::tempdir().unwrap();
    let try_it = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "tmpfs"]).arg(mount.path()).status();
    let mut command;
    if try_it.is_ok_and(|status| status.success()) {
        command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", "mount -t tmpfs -o size=2m tmpfs \"$0\" && exec \"$@\""]).arg(mount.path());
        command.env(DISK, mount.path()).env("TMPDIR", mount.path());
    } else {
        command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]).env(DISK, "");
    }
    let test = "tests::full_disk::a_full_disk_lets_nothing_be_said_and_loses_nothing";
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
