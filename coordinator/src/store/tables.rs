//! The tables: names carry a version, keys sort as people list them, values are JSON. And the indexes over them, which are
//! written with the rows and say nothing that the rows do not.
//!
//! ```text
//! *_listed_1     owner ++ id, and 16 zero bytes ++ id for all: the rows that are not deleted
//! jobs_live_1    id: the jobs that are not over
//! ```

use super::StoreError;
use crate::record::{
    Attempt, Audit, Base, Dataset, Job, JoinSecret, Model, Node, Orphan, Record, Replay, StoredCheckpoint, Sweep,
    Token, Usage, User,
};
use lorikeet_protocol::id::{AttemptId, UserId};
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{HashMap, HashSet, hash_map::Entry};

/// Bytes to bytes; what they are is the row's business.
pub(super) type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Keys alone.
pub(super) type Index = TableDefinition<'static, &'static [u8], ()>;

/// Small facts about the store itself: `schema`, `generation`.
pub(super) const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta_1");

/// The layout that this program reads and writes.
pub(super) const SCHEMA: u64 = 2;

/// The jobs that are not over.
pub(super) const LIVE_JOBS: &str = "jobs_live_1";

/// Something with a table of its own.
pub trait Row: Serialize + DeserializeOwned {
    /// Its table.
    const TABLE: &'static str;
    /// Where it stands in it.
    fn key(&self) -> Vec<u8>;
    /// Where indexes name it, or no longer do.
    fn entries(&self) -> Vec<IndexEntry> {
        Vec::new()
    }
}

/// A row that lists show until it is deleted.
pub trait Listed: Row {
    /// Its index, by owner.
    const INDEX: &'static str;
}

/// One key of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    index: &'static str,
    key: Vec<u8>,
    /// Whether it is to be there.
    stands: bool,
}

macro_rules! rows {
    ($($name:ident in $table:literal by |$row:ident| $key:expr $(, entries $entries:expr)?;)*) => {
        $(impl Row for $name {
            const TABLE: &'static str = $table;
            fn key(&self) -> Vec<u8> {
                let $row = self;
                $key
            }
            $(fn entries(&self) -> Vec<IndexEntry> {
                let $row = self;
                $entries
            })?
        })*

        /// Every table, so that reading one before its first row finds it empty.
        pub(super) const ALL: &[&str] = &[$($table),*];

        /// Reads every row there is.
        pub(super) fn read_all(store: &super::Store) -> Result<u64, StoreError> {
            let mut rows = 0;
            $(rows += store.count::<$name>()?;)*
            Ok(rows)
        }
    };
}

rows! {
    User in "users_1" by |row| row.id.bytes().to_vec();
    Token in "tokens_1" by |row| row.id.bytes().to_vec(), entries listed(row, Some(row.owner), row.deleted_at.is_none());
    JoinSecret in "join_secrets_1" by |row| row.hash.0.to_vec();
    Node in "nodes_1" by |row| row.id.bytes().to_vec();
    Dataset in "datasets_1" by |row| row.id.bytes().to_vec(), entries listed(row, Some(row.owner), row.deleted_at.is_none());
    Base in "bases_1" by |row| row.id.bytes().to_vec(), entries listed(row, None, row.deleted_at.is_none());
    Job in "jobs_1" by |row| row.id.bytes().to_vec(), entries job_entries(row);
    Attempt in "attempts_1" by |row| attempt_key(row.id);
    StoredCheckpoint in "checkpoints_1" by |row| [attempt_key(row.attempt), row.checkpoint.step.to_be_bytes().to_vec()].concat();
    Model in "models_1" by |row| row.id.bytes().to_vec(), entries listed(row, Some(row.owner), row.deleted_at.is_none());
    Orphan in "orphans_1" by |row| attempt_key(row.attempt);
    Audit in "audit_1" by |row| row.number.to_be_bytes().to_vec();
    Sweep in "sweeps_1" by |row| row.id.bytes().to_vec(), entries listed(row, Some(row.owner), true);
    Usage in "usage_1" by |row| row.user.bytes().to_vec();
    Replay in "replays_1" by |row| replay_key(row.owner, &row.key);
}

macro_rules! lists {
    ($($name:ident in $index:literal;)*) => {
        $(impl Listed for $name {
            const INDEX: &'static str = $index;
        })*

        /// Every index.
        pub(super) const INDEXES: &[&str] = &[LIVE_JOBS, $($index),*];
    };
}

lists! {
    Token in "tokens_listed_1";
    Dataset in "datasets_listed_1";
    Base in "bases_listed_1";
    Job in "jobs_listed_1";
    Sweep in "sweeps_listed_1";
    Model in "models_listed_1";
}

/// Among everybody's, and among its owner's if it has one.
fn listed<R: Listed>(row: &R, owner: Option<UserId>, stands: bool) -> Vec<IndexEntry> {
    let everybody = [None].into_iter().chain(owner.map(Some));
    let entry = |owner: Option<UserId>| IndexEntry {
        index: R::INDEX,
        key: [&owner_key(owner)[..], &row.key()].concat(),
        stands,
    };
    everybody.map(entry).collect()
}

fn job_entries(job: &Job) -> Vec<IndexEntry> {
    let mut entries = listed(job, Some(job.owner), true);
    entries.push(IndexEntry { index: LIVE_JOBS, key: job.key(), stands: !job.phase().is_terminal() });
    entries
}

/// What the keys of one owner begin with in an index; of everybody: zeros, which no user has for an id.
pub(super) fn owner_key(owner: Option<UserId>) -> [u8; 16] {
    owner.map_or([0; 16], |id| id.bytes())
}

/// Attempts of one job stand together, in the order of their tokens.
pub(super) fn attempt_key(id: AttemptId) -> Vec<u8> {
    [&id.job.bytes()[..], &id.token.generation.to_be_bytes(), &id.token.number.to_be_bytes()].concat()
}

fn replay_key(owner: Option<UserId>, key: &str) -> Vec<u8> {
    [&owner.map_or([0; 16], |id| id.bytes())[..], key.as_bytes()].concat()
}

/// A transaction that writes, with the tables that it has opened: to open one anew for each row costs more than the row.
pub(super) struct Writing<'t> {
    transaction: &'t WriteTransaction,
    tables: HashMap<&'static str, Table<'t, &'static [u8], &'static [u8]>>,
    indexes: HashMap<&'static str, Table<'t, &'static [u8], ()>>,
    /// Rows that were written, the newest first: older ones of the same place are not.
    written: HashSet<(&'static str, Vec<u8>)>,
}

impl<'t> Writing<'t> {
    pub(super) fn new(transaction: &'t WriteTransaction) -> Self {
        Self { transaction, tables: HashMap::new(), indexes: HashMap::new(), written: HashSet::new() }
    }

    fn table(&mut self, name: &'static str) -> Result<&mut Table<'t, &'static [u8], &'static [u8]>, StoreError> {
        Ok(match self.tables.entry(name) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(self.transaction.open_table(Definition::new(name))?),
        })
    }

    fn index(&mut self, name: &'static str) -> Result<&mut Table<'t, &'static [u8], ()>, StoreError> {
        Ok(match self.indexes.entry(name) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => place.insert(self.transaction.open_table(Index::new(name))?),
        })
    }

    /// Writes a record with everything that indexes say of it. Records come newest first.
    pub(super) fn put(&mut self, record: &Record) -> Result<(), StoreError> {
        match record {
            Record::User(row) => self.put_row(row),
            Record::Token(row) => self.put_row(row),
            Record::JoinSecret(row) => self.put_row(row),
            Record::Node(row) => self.put_row(row),
            Record::Dataset(row) => self.put_row(row),
            Record::Base(row) => self.put_row(row),
            Record::Job(row) => self.put_row(row.as_ref()),
            Record::Attempt(row) => self.put_row(row),
            Record::Checkpoint(row) => self.put_row(row),
            Record::Model(row) => self.put_row(row),
            Record::Orphan(row) => self.put_row(row),
            Record::Audit(row) => self.put_row(row),
            Record::Replay(row) => self.put_row(row),
            Record::Usage(row) => self.put_row(row),
            Record::Sweep(row) => self.put_row(row.as_ref()),
            Record::Forgotten(row) => self.forget(row),
        }
    }

    fn put_row<R: Row>(&mut self, row: &R) -> Result<(), StoreError> {
        let key = row.key();
        if !self.written.insert((R::TABLE, key.clone())) {
            return Ok(());
        }
        let value = serde_json::to_vec(row).expect("records are plain data with string keys");
        // JSON has no word for NaN: the link lets none in, and a row that cannot be read back would stop the next start.
        debug_assert!(serde_json::from_slice::<R>(&value).is_ok(), "a row of {} does not read back", R::TABLE);
        self.table(R::TABLE)?.insert(key.as_slice(), value.as_slice())?;
        self.index_row(row)
    }

    /// Brings the indexes to what a row says. Mostly they say it already, and a look costs less than a page written anew.
    pub(super) fn index_row<R: Row>(&mut self, row: &R) -> Result<(), StoreError> {
        for IndexEntry { index, key, stands } in row.entries() {
            let index = self.index(index)?;
            let stood = index.get(key.as_slice())?.is_some();
            if stands && !stood {
                index.insert(key.as_slice(), ())?;
            } else if !stands && stood {
                index.remove(key.as_slice())?;
            }
        }
        Ok(())
    }

    /// Of a row that is gone no index says anything.
    pub(super) fn unlist<R: Row>(&mut self, row: &R) -> Result<(), StoreError> {
        for IndexEntry { index, key, .. } in row.entries() {
            self.index(index)?.remove(key.as_slice())?;
        }
        Ok(())
    }

    /// A job that is over goes with everything that its id begins.
    fn forget(&mut self, job: &Job) -> Result<(), StoreError> {
        self.table(Job::TABLE)?.remove(job.key().as_slice())?;
        self.unlist(job)?;
        let (first, end) = (job.key(), [job.key().as_slice(), &[0xff; 17]].concat());
        for table in [Attempt::TABLE, StoredCheckpoint::TABLE, Orphan::TABLE] {
            self.table(table)?.retain_in(first.as_slice()..end.as_slice(), |_, _| false)?;
        }
        Ok(())
    }
}
