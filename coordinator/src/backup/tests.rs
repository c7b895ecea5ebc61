//! There and back, and everything that must not be taken for a backup.

use super::*;
use crate::{
    access::Role,
    link::trust::Trust,
    record::{Base, BaseState, Dataset, DatasetState, Model, Record, User},
    store::FileKind,
};
use lorikeet_protocol::{
    file::{FileManifest, NamedFile},
    id::{AttemptToken, BaseId, DatasetId, JobId, ModelId, UserId},
};
use std::{fs, path::PathBuf};
use uuid::Uuid;

struct Place {
    folder: tempfile::TempDir,
    /// Of the only file that records name.
    file: Hash,
}

impl Place {
    /// A data directory as a coordinator leaves it: a user, a dataset with its bytes, keys, a segment.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let bytes = b"conversations".to_vec();
        let file = Hash(*blake3::hash(&bytes).as_bytes());
        let manifest = FileManifest { size: bytes.len() as u64, hash: file, chunks: vec![file] };
        let name = file.to_string();
        let entry = serde_json::json!({ "manifest": manifest, "place": null });
        for (path, content) in [
            ("ca/ca.key", b"secret".to_vec()),
            ("ca/ca.pem", b"certificate".to_vec()),
            ("keys/upload.key", vec![7; 32]),
            ("keys/share.key", vec![8; 32]),
            (&format!("blobs/{}/{name}", &name[..2]), bytes),
            (&format!("blobs/{}/{name}.json", &name[..2]), entry.to_string().into_bytes()),
            ("series/job_1/1.1/00000000000000000001.seg", b"LKSEG\0\0\x01".to_vec()),
            ("staging/half.part", b"half".to_vec()),
        ] {
            let path = data.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let store = Store::open(&data.join("state.redb")).unwrap();
        store.commit(&[Record::User(user(1)), Record::Dataset(dataset(manifest))]).unwrap();
        Self { folder, file }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn take(&self, full: bool) -> PathBuf {
        self.take_as("backup.tar", full)
    }

    fn take_as(&self, name: &str, full: bool) -> PathBuf {
        let (scratch, out) = (tempfile::tempdir().unwrap(), self.at(name));
        take_at_rest(&self.at("data"), scratch.path(), full, fs::File::create(&out).unwrap()).unwrap();
        out
    }
}

#[test]
fn a_full_backup_makes_the_same_directory_again_under_a_higher_generation() {
    let place = Place::new();
    let backup = place.take(true);
    assert_eq!(head_of(&backup).unwrap().generation, 1);
    let restored = restore(&backup, &place.at("new"), true).unwrap();
    assert!(restored.generation > 1 && restored.rows == 2, "{restored:?}");
    assert_eq!(restored.verified, Some(Verified { named: 1, whole: 1, missing: vec![] }));
    let store = Store::open(&place.at("new/state.redb")).unwrap();
    assert_eq!(store.generation().unwrap(), restored.generation);
    assert_eq!(store.restored().unwrap().unwrap().taken, restored.head.taken);
    assert_eq!(store.scan::<User>(&[], |_| true).unwrap(), [user(1)]);
    for path in
        ["ca/ca.key", "ca/ca.pem", "keys/upload.key", "keys/share.key", "series/job_1/1.1/00000000000000000001.seg"]
    {
        let read = |root: &str| fs::read(place.at(root).join(path)).unwrap();
        assert_eq!(read("data"), read("new"), "{path}");
    }
    assert!(!place.at("new/staging").exists() && !place.at("new/restoring").exists());
}

#[test]
fn a_full_backup_holds_a_models_file_that_only_a_bases_directory_has_and_no_base() {
    let place = Place::new();
    let link = |name: &str| {
        let path = place.at(name);
        fs::write(&path, name).unwrap();
        let hash = Hash(*blake3::hash(name.as_bytes()).as_bytes());
        let manifest = FileManifest { size: name.len() as u64, hash, chunks: vec![hash] };
        let entry = place.at("data/blobs").join(&hash.to_string()[..2]).join(hash.to_string()).with_extension("json");
        fs::create_dir_all(entry.parent().unwrap()).unwrap();
        fs::write(entry, serde_json::json!({ "manifest": manifest, "place": path }).to_string()).unwrap();
        NamedFile { path: name.into(), manifest }
    };
    let files = [link("tokenizer.json"), link("model.safetensors")];
    let store = Store::open(&place.at("data/state.redb")).unwrap();
    store.commit(&[Record::Base(base(files.to_vec())), Record::Model(model(files[..1].to_vec()))]).unwrap();
    drop(store);
    let backup = place.take(true);
    files.iter().for_each(|file| fs::remove_file(place.at(&file.path)).unwrap());
    let missing = restore(&backup, &place.at("new"), true).unwrap().verified.unwrap().missing;
    assert_eq!(missing, [Missing { hash: files[1].manifest.hash, kind: FileKind::Base, is_changed: false }]);
}

#[test]
fn two_restores_of_one_backup_never_share_a_generation() {
    let place = Place::new();
    let backup = place.take(false);
    let first = restore(&backup, &place.at("first"), false).unwrap().generation;
    // Generations count seconds; the second restore comes in another one.
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_millis(1_001) {
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
    assert!(restore(&backup, &place.at("second"), false).unwrap().generation > first);
}

#[test]
fn a_backup_of_the_state_alone_goes_beside_the_files_that_are_there_and_names_those_that_are_not() {
    let place = Place::new();
    let backup = place.take(false);
    fs::rename(place.at("data/state.redb"), place.at("broken")).unwrap();
    let restored = restore(&backup, &place.at("data"), true).unwrap();
    assert_eq!(restored.verified.unwrap().whole, 1);
    let missing = restore(&backup, &place.at("empty"), true).unwrap().verified.unwrap().missing;
    assert_eq!(missing, [Missing { hash: place.file, kind: FileKind::Dataset, is_changed: false }]);
    let name = place.file.to_string();
    fs::remove_file(place.at("data/state.redb")).unwrap();
    fs::write(place.at("data/blobs").join(&name[..2]).join(&name), "conversationz").unwrap();
    let changed = restore(&backup, &place.at("data"), true).unwrap().verified.unwrap().missing;
    assert_eq!(changed, [Missing { hash: place.file, kind: FileKind::Dataset, is_changed: true }]);
}

#[test]
fn what_is_there_is_never_overwritten() {
    let place = Place::new();
    let backup = place.take(false);
    let error = restore(&backup, &place.at("data"), false).unwrap_err().to_string();
    assert!(error.contains("a store is there") && error.contains("mv "), "{error}");
    fs::create_dir_all(place.at("other/ca")).unwrap();
    fs::write(place.at("other/ca/ca.pem"), "another").unwrap();
    let error = restore(&backup, &place.at("other"), false).unwrap_err().to_string();
    assert!(error.contains("certificate authority is another"), "{error}");
    assert!(!place.at("other/state.redb").exists());
}

#[test]
fn an_authority_that_follows_the_backups_is_kept_and_both_are_in_a_backup_of_the_overlap() {
    let place = Place::new();
    let ca = |root: &str| place.at(root).join("ca");
    let trust = |root: &str| Trust::open(&ca(root)).unwrap();
    fs::remove_dir_all(ca("data")).unwrap();
    let old = trust("data").now().current().hash();
    let before = place.take_as("before.tar", false);
    trust("data").begin().unwrap();
    let next = trust("data").now().issuing().hash();
    let during = place.take_as("during.tar", false);
    restore(&during, &place.at("new"), false).unwrap();
    assert_eq!((trust("new").now().current().hash(), trust("new").now().issuing().hash()), (old, next));
    // Onto the directory as it is at each stage, after its store was lost.
    let onto = |backup: &Path| {
        fs::remove_file(place.at("data/state.redb")).unwrap();
        restore(backup, &place.at("data"), false).unwrap();
        trust("data").now().trusted().map(|authority| authority.hash()).collect::<Vec<_>>()
    };
    assert_eq!(onto(&before), [next, old]);
    // As a crash in the last moment leaves it: the older key is gone.
    fs::rename(ca("data").join("next.key"), ca("data").join("ca.key")).unwrap();
    fs::write(ca("data").join("former.pem"), fs::read(ca("data").join("ca.pem")).unwrap()).unwrap();
    assert_eq!(onto(&before), [next]);
    assert_eq!(onto(&during), [next]);
    // One rotation more, from its first step to its last.
    trust("data").begin().unwrap();
    let third = trust("data").now().issuing().hash();
    assert_eq!(onto(&before), [third, next]);
    trust("data").finish(third).unwrap();
    assert_eq!((onto(&before), onto(&during)), (vec![third], vec![third]), "nodes have gone on to it, twice");
}

#[test]
fn a_backup_that_was_cut_off_or_changed_anywhere_restores_nothing() {
    let place = Place::new();
    let whole = fs::read(place.take(true)).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        let (from, to) = (place.at("bad.tar"), place.at("target"));
        fs::write(&from, bytes).unwrap();
        let error = restore(&from, &to, false).expect_err(what);
        assert!(error.to_string().contains("bad.tar") || matches!(error, BackupError::File { .. }), "{what}: {error}");
        let left = fs::read_dir(&to).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{what} left something behind");
    };
    for cut in [0, 100, 512, 700, whole.len() / 2, whole.len() - 3_000] {
        refused(&whole[..cut], &format!("cut off after {cut} bytes"));
    }
    // A byte in the content of each entry.
    let mut offset = 0;
    let mut archive = tar::Archive::new(whole.as_slice());
    let places: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().display().to_string(), entry.raw_file_position(), entry.size())
        })
        .collect();
    assert!(places.len() >= 9, "{places:?}");
    for (path, start, size) in places {
        offset = (offset + 41) % size.max(1);
        let mut changed = whole.clone();
        changed[usize::try_from(start + offset).unwrap()] ^= 0x10;
        refused(&changed, &format!("a changed byte in {path}"));
    }
    refused(b"something else entirely", "a file that is no tar");
}

#[test]
fn a_path_that_leads_out_of_the_directory_is_refused() {
    let place = Place::new();
    for name in ["staging/x", "ca/../../evil", "state.redb/x/y/z/w", "ca/.hidden"] {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(1);
        header.set_cksum();
        tar.append(&header, &b"x"[..]).unwrap();
        fs::write(place.at("evil.tar"), tar.into_inner().unwrap()).unwrap();
        let error = restore(&place.at("evil.tar"), &place.at("target"), false).unwrap_err().to_string();
        assert!(error.contains("no place in a backup"), "{name}: {error}");
    }
}

#[test]
fn a_directory_at_rest_is_left_as_it_is_and_one_in_use_is_refused() {
    let place = Place::new();
    let before = fs::read(place.at("data/state.redb")).unwrap();
    place.take(false);
    assert!(fs::read(place.at("data/state.redb")).unwrap() == before, "the store was written to");
    let _open = Store::open(&place.at("data/state.redb")).unwrap();
    let error = take_at_rest(&place.at("data"), tempfile::tempdir().unwrap().path(), false, Vec::new()).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
}

#[test]
fn a_copy_is_of_one_moment_while_the_store_is_written_to() {
    let place = Place::new();
    let store = Store::open(&place.at("data/state.redb")).unwrap();
    let writing = std::thread::spawn({
        let store = store.clone();
        move || (2..200).for_each(|n| store.commit(&[Record::User(user(n)), Record::User(user(1_000 + n))]).unwrap())
    });
    for n in 0..5 {
        let copy = place.at(&format!("copy-{n}.redb"));
        store.copy_to(&copy).unwrap();
        let users = Store::open(&copy).unwrap().scan::<User>(&[], |_| true).unwrap();
        assert!(users.len() % 2 == 1, "half of a commit is in the copy: {}", users.len());
    }
    writing.join().unwrap();
}

fn user(n: u128) -> User {
    let (id, email) = (UserId(Uuid::from_u128(n)), format!("{n}@example.org"));
    User { id, email, name: "A".into(), role: Role::User, created: UnixMillis(1) }
}

fn dataset(manifest: FileManifest) -> Dataset {
    Dataset {
        id: DatasetId(Uuid::from_u128(1)),
        owner: user(1).id,
        name: "set".into(),
        description: None,
        file_name: "x.jsonl".into(),
        size: manifest.size,
        declared_format: None,
        state: DatasetState::Ready,
        manifest: Some(manifest),
        findings: None,
        faults: vec![],
        created: UnixMillis(1),
        uploaded_at: None,
        validated_at: None,
        deleted_at: None,
    }
}

fn base(files: Vec<NamedFile>) -> Base {
    Base {
        id: BaseId(Uuid::from_u128(3)),
        name: "tiny".into(),
        owner: UserId(Uuid::from_u128(1)),
        path: "/bases/tiny".into(),
        state: BaseState::Ready,
        findings: None,
        files,
        faults: vec![],
        created: UnixMillis(1),
        deleted_at: None,
    }
}

fn model(files: Vec<NamedFile>) -> Model {
    Model {
        id: ModelId(Uuid::from_u128(4)),
        owner: UserId(Uuid::from_u128(1)),
        job: JobId(Uuid::from_u128(4)),
        token: AttemptToken { generation: 1, number: 1 },
        name: "tone".into(),
        version: "1.0.0".into(),
        description: None,
        files,
        summary: None,
        dataset: DatasetId(Uuid::from_u128(2)),
        base: BaseId(Uuid::from_u128(3)),
        spec: None,
        created: UnixMillis(1),
        deleted_at: None,
    }
}
