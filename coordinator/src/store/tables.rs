//! The tables: names carry a version, keys sort as people list them, values are JSON.

use crate::record::{
    Attempt, Audit, Base, Dataset, Job, JoinSecret, Model, Node, Orphan, Record, Replay, StoredCheckpoint, Token,
    Usage, User,
};
use lorikeet_protocol::id::{AttemptId, UserId};
use redb::TableDefinition;
use serde::{Serialize, de::DeserializeOwned};

/// Bytes to bytes; what they are is the row's business.
pub(super) type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Small facts about the store itself: `schema`, `generation`.
pub(super) const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta_1");

/// The layout that this program reads and writes.
pub(super) const SCHEMA: u64 = 1;

/// Something with a table of its own.
pub trait Row: Serialize + DeserializeOwned {
    /// Its table.
    const TABLE: &'static str;
    /// Where it stands in it.
    fn key(&self) -> Vec<u8>;
}

macro_rules! rows {
    ($($name:ident in $table:literal by |$row:ident| $key:expr;)*) => {
        $(impl Row for $name {
            const TABLE: &'static str = $table;
            fn key(&self) -> Vec<u8> {
                let $row = self;
                $key
            }
        })*

        /// Every table, so that reading one before its first row finds it empty.
        pub(super) const ALL: &[&str] = &[$($table),*];
    };
}

rows! {
    User in "users_1" by |row| row.id.bytes().to_vec();
    Token in "tokens_1" by |row| row.id.bytes().to_vec();
    JoinSecret in "join_secrets_1" by |row| row.hash.0.to_vec();
    Node in "nodes_1" by |row| row.id.bytes().to_vec();
    Dataset in "datasets_1" by |row| row.id.bytes().to_vec();
    Base in "bases_1" by |row| row.id.bytes().to_vec();
    Job in "jobs_1" by |row| row.id.bytes().to_vec();
    Attempt in "attempts_1" by |row| attempt_key(row.id);
    StoredCheckpoint in "checkpoints_1" by |row| [attempt_key(row.attempt), row.checkpoint.step.to_be_bytes().to_vec()].concat();
    Model in "models_1" by |row| row.id.bytes().to_vec();
    Orphan in "orphans_1" by |row| attempt_key(row.attempt);
    Audit in "audit_1" by |row| row.number.to_be_bytes().to_vec();
    Usage in "usage_1" by |row| row.user.bytes().to_vec();
    Replay in "replays_1" by |row| replay_key(row.owner, &row.key);
}

/// Attempts of one job stand together, in the order of their tokens.
pub(super) fn attempt_key(id: AttemptId) -> Vec<u8> {
    [&id.job.bytes()[..], &id.token.generation.to_be_bytes(), &id.token.number.to_be_bytes()].concat()
}

fn replay_key(owner: Option<UserId>, key: &str) -> Vec<u8> {
    [&owner.map_or([0; 16], |id| id.bytes())[..], key.as_bytes()].concat()
}

/// Table, key and value of a record.
pub(super) fn encode(record: &Record) -> (&'static str, Vec<u8>, Vec<u8>) {
    match record {
        Record::User(row) => row_parts(row),
        Record::Token(row) => row_parts(row),
        Record::JoinSecret(row) => row_parts(row),
        Record::Node(row) => row_parts(row),
        Record::Dataset(row) => row_parts(row),
        Record::Base(row) => row_parts(row),
        Record::Job(row) => row_parts(row.as_ref()),
        Record::Attempt(row) => row_parts(row),
        Record::Checkpoint(row) => row_parts(row),
        Record::Model(row) => row_parts(row),
        Record::Orphan(row) => row_parts(row),
        Record::Audit(row) => row_parts(row),
        Record::Replay(row) => row_parts(row),
        Record::Usage(row) => row_parts(row),
    }
}

fn row_parts<R: Row>(row: &R) -> (&'static str, Vec<u8>, Vec<u8>) {
    (R::TABLE, row.key(), serde_json::to_vec(row).expect("records are plain data with string keys and finite numbers"))
}
