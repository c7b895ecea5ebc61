//! redb: what must not be lost. One writer thread; readers take a transaction for one request, never for a stream.
//!
//! Every commit is durable before it is answered (`Durability::Immediate`), with two-phase commit and quick repair, so that a
//! file is whole after any crash and opens at once. Nobody else imports redb.

pub mod tables;

use crate::record::Record;
use redb::{Database, Durability, ReadableDatabase, ReadableTable};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
pub use tables::Row;
use tables::{ALL, Definition, META, SCHEMA};

/// Why the store cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("open the store {path}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// A later program made it.
    #[error("open the store {path}: its layout is version {found}, this program knows {SCHEMA}; run the newer program")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// A row does not read.
    #[error("read a row of {table}")]
    Row {
        /// Which table.
        table: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The disk is full.
    #[error("write to the store: the disk is full")]
    NoSpace,
    /// Anything else that redb says.
    #[error("use the store")]
    Database(#[source] Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        let error = error.into();
        let full = matches!(&error, redb::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull);
        if full { Self::NoSpace } else { Self::Database(Box::new(error)) }
    }
}

/// The open store. Clones share it; writing is the driver's alone.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Database>,
}

impl Store {
    /// Opens the file, or makes it with every table in it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source: redb::Error| StoreError::Open { path: path.into(), source: Box::new(source) };
        let database = Database::create(path).map_err(|error| failed(error.into()))?;
        let store = Self { database: Arc::new(database) };
        let found = store.prepare()?;
        if found > SCHEMA { Err(StoreError::Newer { path: path.into(), found }) } else { Ok(store) }
    }

    fn prepare(&self) -> Result<u64, StoreError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        let found = {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get("schema")?.map(|value| value.value());
            if found.is_none() {
                meta.insert("schema", SCHEMA)?;
                meta.insert("generation", 1)?;
            }
            found.unwrap_or(SCHEMA)
        };
        for table in ALL {
            transaction.open_table(Definition::new(table))?;
        }
        transaction.commit()?;
        Ok(found)
    }

    /// The cluster generation: raised by a restore.
    pub fn generation(&self) -> Result<u32, StoreError> {
        let meta = self.database.begin_read()?.open_table(META)?;
        let generation = meta.get("generation")?.map_or(1, |value| value.value());
        Ok(u32::try_from(generation).unwrap_or(u32::MAX))
    }

    /// All or nothing, and on disk when it returns.
    pub fn commit(&self, records: &[Record]) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        for record in records {
            let (table, key, value) = tables::encode(record);
            transaction.open_table(Definition::new(table))?.insert(key.as_slice(), value.as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// One row by its key.
    pub fn get<R: Row>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        let table = self.database.begin_read()?.open_table(Definition::new(R::TABLE))?;
        table.get(key)?.map(|value| decode(value.value())).transpose()
    }

    /// The rows whose key starts with `prefix`, oldest first, that `keep` wants.
    pub fn scan<R: Row>(&self, prefix: &[u8], keep: impl Fn(&R) -> bool) -> Result<Vec<R>, StoreError> {
        let table = self.database.begin_read()?.open_table(Definition::new(R::TABLE))?;
        let mut rows = Vec::new();
        for entry in table.range(prefix..)? {
            let (key, value) = entry?;
            if !key.value().starts_with(prefix) {
                break;
            }
            let row = decode(value.value())?;
            if keep(&row) {
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// A page of a table, newest first, and how many rows `keep` wants in all.
    pub fn page<R: Row>(
        &self,
        offset: usize,
        limit: usize,
        keep: impl Fn(&R) -> bool,
    ) -> Result<(Vec<R>, usize), StoreError> {
        let table = self.database.begin_read()?.open_table(Definition::new(R::TABLE))?;
        let (mut rows, mut total) = (Vec::new(), 0);
        for entry in table.iter()?.rev() {
            let row = decode(entry?.1.value())?;
            if keep(&row) {
                if (offset..offset.saturating_add(limit)).contains(&total) {
                    rows.push(row);
                }
                total += 1;
            }
        }
        Ok((rows, total))
    }
}

fn decode<R: Row>(bytes: &[u8]) -> Result<R, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Row { table: R::TABLE, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{access::Role, record::User};
    use lorikeet_protocol::id::{UnixMillis, UserId};

    #[test]
    fn what_was_committed_is_there_after_reopening_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let store = Store::open(&path).unwrap();
        store.commit(&[Record::User(user(1)), Record::User(user(2))]).unwrap();
        let unfinished = store.database.begin_write().unwrap();
        drop((unfinished, store));
        let store = Store::open(&path).unwrap();
        assert_eq!(store.scan::<User>(&[], |_| true).unwrap(), [user(1), user(2)]);
        assert_eq!(store.get::<User>(&user(2).id.bytes()).unwrap(), Some(user(2)));
        assert_eq!(store.generation().unwrap(), 1);
    }

    #[test]
    fn a_page_is_newest_first_and_counts_what_it_leaves_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.redb")).unwrap();
        store.commit(&(1..=5).map(|n| Record::User(user(n))).collect::<Vec<_>>()).unwrap();
        let (rows, total) = store.page::<User>(1, 2, |row| row.id != user(4).id).unwrap();
        assert_eq!((rows, total), (vec![user(3), user(2)], 4));
    }

    #[test]
    fn a_file_that_is_no_store_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        std::fs::write(&path, b"this is not a store, and long enough to look at: ".repeat(200)).unwrap();
        assert!(Store::open(&path).unwrap_err().to_string().contains("state.redb"));
    }

    #[test]
    fn a_store_of_a_later_program_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.redb");
        let store = Store::open(&path).unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("schema", SCHEMA + 1).unwrap();
        transaction.commit().unwrap();
        drop(store);
        assert!(matches!(Store::open(&path), Err(StoreError::Newer { .. })));
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
}
