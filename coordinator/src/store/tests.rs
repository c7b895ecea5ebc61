//! What was committed is there; what the disk refused is not, and the store goes on.

mod damage;
pub(crate) mod power;

use super::*;
use crate::{
    access::{Refusal, Role},
    record::{Dataset, DatasetState, User},
};
use full::Full;
use lorikeet_protocol::{
    id::{AttemptId, AttemptToken, DatasetId, Hash, JobId, TokenId, UnixMillis, UserId},
    job::Outcome,
};

/// A disk that is full when a test says so, except for what the store's own reserve leaves when it is given away.
pub(crate) mod full {
    use redb::{Database, DatabaseError, StorageBackend};
    use std::{
        fs::{File, OpenOptions},
        io,
        os::unix::fs::FileExt,
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicI64, Ordering},
        },
    };

    /// Room for everything.
    const PLENTY: i64 = i64::MAX;

    /// How many bytes may still be written.
    #[derive(Debug, Clone)]
    pub(crate) struct Full(Arc<AtomicI64>);

    impl Default for Full {
        fn default() -> Self {
            Self(Arc::new(AtomicI64::new(PLENTY)))
        }
    }

    impl Full {
        /// No byte more, from now on.
        pub(crate) fn fill(&self) {
            self.0.store(0, Ordering::SeqCst);
        }

        /// Somebody removed something.
        pub(crate) fn free(&self) {
            self.0.store(PLENTY, Ordering::SeqCst);
        }

        pub(in crate::store) fn has_room(&self) -> bool {
            self.0.load(Ordering::SeqCst) == PLENTY
        }

        pub(in crate::store) fn database(&self, path: &Path) -> Result<Database, DatabaseError> {
            if !self.has_room() {
                // What the reserve was.
                self.0.store(1 << 20, Ordering::SeqCst);
            }
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            Database::builder().create_with_backend(OnIt { file, full: self.clone() })
        }
    }

    #[derive(Debug)]
    struct OnIt {
        file: File,
        full: Full,
    }

    impl StorageBackend for OnIt {
        fn len(&self) -> io::Result<u64> {
            Ok(self.file.metadata()?.len())
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read_exact_at(out, offset)
        }

        fn set_len(&self, length: u64) -> io::Result<()> {
            self.file.set_len(length)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let taken = |left: i64| match left {
                PLENTY => Some(PLENTY),
                left => left.checked_sub_unsigned(data.len() as u64).filter(|left| *left >= 0),
            };
            let room = self.full.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, taken);
            room.map_err(|_| io::Error::from(io::ErrorKind::QuotaExceeded))?;
            self.file.write_all_at(data, offset)
        }
    }
}

impl Store {
    /// On a disk that a test can fill.
    pub(crate) fn open_full(path: &Path) -> (Self, Full) {
        let full = Full::default();
        let store = Self::open_on(path, Disk { full: Some(full.clone()), ..Disk::default() }).unwrap();
        (store, full)
    }

    /// Puts something in a row's place that is none.
    pub(crate) fn damage<R: Row>(&self, key: &[u8]) {
        let broken = |database: &Database| {
            let transaction = begin(database)?;
            transaction.open_table(Definition::new(R::TABLE))?.insert(key, b"{\"id\":null}".as_slice())?;
            Ok(transaction.commit()?)
        };
        self.with(broken).unwrap();
    }
}

#[test]
fn an_adapter_is_looked_for_among_ones_own_and_among_others_only_by_who_sees_them() {
    use crate::{access::Actor, record::Model};
    use lorikeet_protocol::id::{BaseId, ModelId, TokenId};
    use uuid::Uuid;
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    let model = |n: u128, owner: u128, name: &str| Model {
        id: ModelId(Uuid::from_u128(n)),
        owner: UserId(Uuid::from_u128(owner)),
        job: JobId(Uuid::from_u128(n)),
        token: AttemptToken { generation: 1, number: 1 },
        name: name.into(),
        version: "1.0.0".into(),
        description: None,
        files: vec![],
        summary: None,
        dataset: DatasetId(Uuid::from_u128(1)),
        base: BaseId(Uuid::from_u128(1)),
        spec: None,
        created: UnixMillis(1),
        deleted_at: None,
    };
    let rows =
        [model(1, 7, "tone"), model(2, 7, "tone"), model(3, 7, "other"), model(4, 8, "tone"), model(5, 8, "mine")];
    store.commit(&rows.map(Record::Model)).unwrap();
    let of = |owner: u128, role| Actor::User { id: UserId(Uuid::from_u128(owner)), role, token: TokenId(Uuid::nil()) };
    let found = |actor, name: &str| {
        let rows = store.adapters(actor, name).unwrap();
        rows.iter().map(|model| model.id.0.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(found(of(7, Role::User), "tone"), [1, 2], "oldest first");
    assert_eq!(found(of(7, Role::User), "mine"), []);
    assert_eq!((found(of(7, Role::Admin), "tone"), found(of(7, Role::Admin), "mine")), (vec![1, 2], vec![5]));
    assert_eq!(found(Actor::System, "tone"), [1, 2, 4]);
    // Nobody else's row is read for it.
    store.damage::<Model>(&ModelId(Uuid::from_u128(4)).bytes());
    assert_eq!(found(of(7, Role::User), "tone"), [1, 2]);
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    (folder, path)
}

#[test]
fn what_was_committed_is_there_after_reopening_and_nothing_else() {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    store.commit(&[Record::User(user(1)), Record::User(user(2))]).unwrap();
    let unfinished = |database: &Database| {
        database.begin_write()?;
        Ok(())
    };
    store.with(unfinished).unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.scan::<User>(&[], |_| true).unwrap(), [user(1), user(2)]);
    assert_eq!(store.get::<User>(&user(2).id.bytes()).unwrap(), Some(user(2)));
    assert_eq!(store.generation().unwrap(), 1);
}

#[test]
fn of_two_that_make_a_store_at_once_the_later_takes_nothing_from_the_other() {
    let (folder, path) = place();
    let store = Store::open(&path).unwrap();
    store.commit(&[Record::User(user(1))]).unwrap();
    // It saw no store a moment before, and has one of its own ready now.
    open::make(&path, &Disk::default()).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::InUse { .. })));
    store.commit(&[Record::User(user(2))]).unwrap();
    drop(store);
    assert_eq!(Store::open(&path).unwrap().scan::<User>(&[], |_| true).unwrap(), [user(1), user(2)]);
    let left = folder
        .path()
        .read_dir()
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|kind| kind == "new"));
    assert_eq!(left.count(), 0, "its own is gone");
}

#[test]
fn a_page_is_newest_first_and_counts_what_it_leaves_out() {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    store.commit(&(1..=5).map(|n| Record::User(user(n))).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.page::<User>(1, 2).unwrap(), (vec![user(4), user(3)], 5));
}

#[test]
fn a_list_reads_the_rows_of_its_owner_and_of_its_page_alone() {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    let rows: Vec<_> = (1..=6).map(|n| dataset(n, n % 2)).collect();
    store.commit(&rows.iter().cloned().map(Record::Dataset).collect::<Vec<_>>()).unwrap();
    let mut deleted = rows[0].clone();
    deleted.deleted_at = Some(UnixMillis(9));
    store.commit(&[Record::Dataset(deleted)]).unwrap();
    let (one, all) = (Some(owner(1)), None::<fn(&Dataset) -> bool>);
    assert_eq!(store.listed(one, 0, 9, all).unwrap(), (vec![rows[4].clone(), rows[2].clone()], 2));
    assert_eq!(store.listed(None, 1, 2, all).unwrap(), (vec![rows[4].clone(), rows[3].clone()], 5));
    let keep = Some(|row: &Dataset| row.id != rows[4].id);
    assert_eq!(store.listed(one, 0, 9, keep).unwrap(), (vec![rows[2].clone()], 1));
    // A row of another that cannot be read does not matter to this list, and is named by one that it belongs to.
    store.damage::<Dataset>(&rows[1].key());
    assert_eq!(store.listed(one, 0, 9, all).unwrap().1, 2);
    let error = store.listed(Some(owner(0)), 0, 9, all).unwrap_err().to_string();
    assert!(error.contains("datasets_1") && error.contains(&hex(&rows[1].key())), "{error}");
}

#[test]
fn answers_and_secrets_that_have_expired_go_and_others_stay() {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    let replay = |key: &str, expires| Replay {
        owner: None,
        key: key.into(),
        body: Hash([0; 32]),
        answer: Err(Refusal::NoSpace),
        expires: UnixMillis(expires),
    };
    let secret = |byte, expires| JoinSecret { hash: Hash([byte; 32]), expires: UnixMillis(expires), used: None };
    let now = 2 * JoinSecret::KEPT_MILLIS;
    let rows = [replay("old", now), replay("new", now + 1)].map(Record::Replay);
    let secrets = [secret(1, now - JoinSecret::KEPT_MILLIS), secret(2, now)].map(Record::JoinSecret);
    store.commit(&[&rows[..], &secrets].concat()).unwrap();
    let expire =
        |rows| assert_eq!(store.expire(UnixMillis(now), UnixMillis(0)).unwrap(), Expired { rows, is_all: true });
    expire(2);
    expire(0);
    assert_eq!(store.scan::<Replay>(&[], |_| true).unwrap(), [replay("new", now + 1)]);
    assert_eq!(store.scan::<JoinSecret>(&[], |_| true).unwrap(), [secret(2, now)]);
}

#[test]
fn tokens_that_were_withdrawn_or_have_expired_go_with_their_places_in_lists() {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    let (day, owner) = (86_400_000, UserId(uuid::Uuid::from_u128(7)));
    let now = 2 * day;
    let token = |n: u128, expires: Option<u64>, withdrawn: Option<u64>| Token {
        id: TokenId(uuid::Uuid::from_u128(n)),
        owner,
        name: "a".into(),
        hash: Hash([n as u8; 32]),
        created: UnixMillis(1),
        expires: expires.map(UnixMillis),
        deleted_at: withdrawn.map(UnixMillis),
    };
    let rows = [
        token(1, Some(now - day), None),
        token(2, Some(now), None),
        token(3, None, Some(now - day)),
        token(4, Some(now + day), Some(now - day)),
        token(5, None, None),
    ];
    store.commit(&rows.clone().map(Record::Token)).unwrap();
    let expired = store.expire(UnixMillis(now), UnixMillis(0)).unwrap();
    assert_eq!(expired, Expired { rows: 3, is_all: true });
    assert_eq!(store.scan::<Token>(&[], |_| true).unwrap(), [rows[1].clone(), rows[4].clone()]);
    let listed = |owner| store.listed::<Token>(owner, 0, 9, None::<fn(&Token) -> bool>).unwrap();
    assert_eq!((listed(Some(owner)).1, listed(None).1), (2, 2), "no list names what is gone");
}

#[test]
fn a_late_result_without_a_job_goes_after_thirty_days() {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    let now = 2 * ORPHAN_KEPT_MILLIS;
    let orphan = |n, at| {
        let token = AttemptToken { generation: 1, number: n };
        let attempt = AttemptId { job: JobId(uuid::Uuid::from_u128(1)), token };
        let (outcome, reason) = (Outcome::Ok, "its token was no longer current".into());
        Orphan { attempt, outcome, files: vec![], at: UnixMillis(at), reason }
    };
    let rows = [orphan(1, now - ORPHAN_KEPT_MILLIS), orphan(2, now)];
    store.commit(&rows.clone().map(Record::Orphan)).unwrap();
    let expired = store.expire(UnixMillis(now), UnixMillis(0)).unwrap();
    assert_eq!(expired, Expired { rows: 1, is_all: true });
    assert_eq!(store.scan::<Orphan>(&[], |_| true).unwrap(), rows[1..]);
}

#[test]
fn old_audit_records_go_some_at_a_time_and_the_newest_never() {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    let audit = |number| {
        let (action, subject) = ("job.submit".into(), "job".into());
        Record::Audit(Audit {
            number,
            time: UnixMillis(number),
            actor: None,
            request: None,
            from: "here".into(),
            action,
            subject,
            before: None,
            after: None,
        })
    };
    let last = EXPIRED_AT_ONCE as u64 + 20;
    store.commit(&(1..=last).map(audit).collect::<Vec<_>>()).unwrap();
    let expire = |before| store.expire(UnixMillis(0), UnixMillis(before)).unwrap();
    let left = || store.scan::<Audit>(&[], |_| true).unwrap().into_iter().map(|row| row.number).collect::<Vec<_>>();
    assert_eq!(expire(0), Expired { rows: 0, is_all: true });
    assert_eq!(expire(last - 9), Expired { rows: EXPIRED_AT_ONCE, is_all: false });
    assert_eq!(expire(last - 9), Expired { rows: 10, is_all: true });
    assert_eq!(left(), (last - 9..=last).collect::<Vec<_>>());
    assert_eq!(expire(u64::MAX), Expired { rows: 9, is_all: true });
    assert_eq!(left(), [last], "the next one counts on from it");
}

#[test]
fn a_store_whose_disk_was_full_is_opened_again_and_nothing_is_half_there() {
    let (_folder, path) = place();
    let (store, disk) = Store::open_full(&path);
    store.commit(&[Record::User(user(1))]).unwrap();
    disk.fill();
    assert!(matches!(store.commit(&[Record::User(user(2))]), Err(StoreError::NoSpace)));
    // This is why it must be opened again: after a failed write redb takes nothing, room or not.
    disk.free();
    assert!(store.commit(&[Record::User(user(3))]).is_err());
    disk.fill();
    store.reopen().unwrap();
    assert!(!path.with_extension("reserve").exists(), "the reserve is there to be given away");
    assert_eq!(store.scan::<User>(&[], |_| true).unwrap(), [user(1)]);
    assert!(!store.has_room());
    disk.free();
    assert!(store.has_room() && path.with_extension("reserve").exists());
    store.commit(&[Record::User(user(4))]).unwrap();
    assert_eq!(store.scan::<User>(&[], |_| true).unwrap(), [user(1), user(4)]);
}

#[test]
fn a_file_that_is_no_store_is_named() {
    let (_folder, path) = place();
    std::fs::write(&path, b"this is not a store, and long enough to look at: ".repeat(200)).unwrap();
    assert!(Store::open(&path).unwrap_err().to_string().contains("state.redb"));
}

#[test]
fn a_store_of_a_later_program_is_left_as_it_is() {
    let (_folder, path) = place();
    drop(Store::open(&path).unwrap());
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("schema", SCHEMA + 1).unwrap();
    // Its own idea of what tables there are.
    transaction.delete_table(Index::new(LIVE_JOBS)).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert!(matches!(Store::open(&path), Err(StoreError::Newer { .. })));
    let database = Database::create(&path).unwrap();
    assert!(database.begin_read().unwrap().open_table(Index::new(LIVE_JOBS)).is_err(), "a table was made in it");
}

#[test]
fn a_store_of_the_first_layout_gets_its_indexes_and_a_copy_of_it_stays() {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    store.commit(&[Record::Dataset(dataset(1, 1)), Record::Dataset(dataset(2, 2))]).unwrap();
    drop(store);
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("schema", 1).unwrap();
    tables::INDEXES.iter().for_each(|index| assert!(transaction.delete_table(Index::new(index)).unwrap()));
    transaction.commit().unwrap();
    drop(database);
    let store = Store::open(&path).unwrap();
    let listed = store.listed(Some(owner(2)), 0, 9, None::<fn(&Dataset) -> bool>).unwrap();
    assert_eq!(listed, (vec![dataset(2, 2)], 1));
    assert_eq!(store.live_jobs().unwrap(), []);
    assert!(path.with_extension("redb.1").exists());
}

#[test]
fn a_process_that_dies_while_it_brings_a_store_forward_begins_anew() {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    store.commit(&[Record::Dataset(dataset(1, 1)), Record::Dataset(dataset(2, 2))]).unwrap();
    drop(store);
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("schema", 1).unwrap();
    tables::INDEXES.iter().for_each(|index| assert!(transaction.delete_table(Index::new(index)).unwrap()));
    transaction.commit().unwrap();
    // It dies before the commit, and what it had copied aside is only half there.
    let transaction = begin(&database).unwrap();
    open::rewrite(&transaction).unwrap();
    drop(transaction);
    drop(database);
    let old = std::fs::read(&path).unwrap();
    std::fs::write(path.with_extension("redb.1"), &old[..old.len() / 2]).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.scan::<Dataset>(&[], |_| true).unwrap(), [dataset(1, 1), dataset(2, 2)]);
    drop(store);
    let aside = path.with_file_name("aside.redb");
    std::fs::copy(path.with_extension("redb.1"), &aside).unwrap();
    let database = Database::open(&aside).unwrap();
    let schema = database.begin_read().unwrap().open_table(META).unwrap().get("schema").unwrap().unwrap().value();
    assert_eq!(schema, 1, "the way back to the program of before");
}

#[test]
fn a_table_that_is_new_in_this_program_is_made() {
    let (_folder, path) = place();
    drop(Store::open(&path).unwrap());
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.delete_table(Definition::new(User::TABLE)).unwrap();
    transaction.commit().unwrap();
    drop(database);
    assert_eq!(Store::open(&path).unwrap().scan::<User>(&[], |_| true).unwrap(), []);
}

#[test]
fn of_several_rows_for_one_place_the_last_is_there_and_so_is_what_indexes_say_of_it() {
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    let gone = Dataset { deleted_at: Some(UnixMillis(5)), ..dataset(1, 1) };
    let renamed = Dataset { name: "after".into(), ..dataset(2, 1) };
    let rows = [dataset(1, 1), gone.clone(), dataset(2, 1), renamed.clone()];
    store.commit(&rows.map(Record::Dataset)).unwrap();
    assert_eq!(store.scan::<Dataset>(&[], |_| true).unwrap(), [gone, renamed.clone()]);
    let listed = store.listed(Some(owner(1)), 0, 9, None::<fn(&Dataset) -> bool>).unwrap();
    assert_eq!(listed, (vec![renamed], 1));
}

#[tokio::test]
async fn a_forgotten_job_leaves_no_row_and_no_index_and_its_neighbours_stay() {
    use crate::{
        access::Actor,
        cluster::job::JobState,
        http::tests::World,
        record::{Attempt, Job, Member, Orphan},
    };
    use lorikeet_protocol::{
        id::{AttemptId, AttemptToken, JobId, NodeId},
        job::{AttemptPhase, Outcome},
    };
    let world = World::new().await;
    let live = world.job().await;
    let live = world.coordinator.driver.job(Actor::System, live).await.unwrap();
    let (_folder, path) = place();
    let store = Store::open(&path).unwrap();
    let node = NodeId(uuid::Uuid::nil());
    let mut rows = Vec::new();
    let jobs = [1, 2, u128::MAX].map(|n| Job {
        id: JobId(uuid::Uuid::from_u128(n)),
        state: JobState::Cancelled,
        ..live.clone()
    });
    for job in &jobs {
        let id = AttemptId { job: job.id, token: AttemptToken { generation: u32::MAX, number: u32::MAX } };
        rows.push(Record::Job(Box::new(job.clone())));
        rows.push(Record::Attempt(Attempt {
            id,
            owner: job.owner,
            members: vec![Member { node, devices: vec![] }],
            planned_bytes: 0,
            phase: AttemptPhase::Done,
            from_step: None,
            offered_at: UnixMillis(1),
            running_at: None,
            leave: None,
            energy_joules: None,
            end: None,
        }));
        let (outcome, files, at) = (Outcome::Ok, vec![], UnixMillis(1));
        rows.push(Record::Orphan(Orphan { attempt: id, outcome, files, at, reason: "late".into() }));
    }
    store.commit(&rows).unwrap();
    store.commit(&[Record::Forgotten(Box::new(jobs[1].clone()))]).unwrap();
    let ids = [jobs[0].id, jobs[2].id];
    let left = store.listed(Some(live.owner), 0, 9, None::<fn(&Job) -> bool>).unwrap();
    assert_eq!((left.0.iter().map(|job| job.id).rev().collect::<Vec<_>>(), left.1), (ids.to_vec(), 2));
    let attempts = store.scan::<Attempt>(&[], |_| true).unwrap();
    assert_eq!(attempts.iter().map(|row| row.id.job).collect::<Vec<_>>(), ids);
    assert_eq!(store.scan::<Orphan>(&[], |_| true).unwrap().len(), 2);
}

fn owner(n: u128) -> UserId {
    UserId(uuid::Uuid::from_u128(n + 1_000))
}

fn dataset(n: u128, whose: u128) -> Dataset {
    Dataset {
        id: DatasetId(uuid::Uuid::from_u128(n)),
        owner: owner(whose),
        name: format!("set {n}"),
        description: None,
        file_name: "x.jsonl".into(),
        size: 1,
        declared_format: None,
        state: DatasetState::Uploading,
        manifest: None,
        findings: None,
        faults: vec![],
        created: UnixMillis(1),
        uploaded_at: None,
        validated_at: None,
        deleted_at: None,
    }
}

fn user(n: u128) -> User {
    User {
        id: UserId(uuid::Uuid::from_u128(n)),
        email: format!("{n}@example.org"),
        name: "A".into(),
        role: Role::User,
        created: UnixMillis(1),
    }
}
