//! Opening the store's file: its layout's version is read before anything is written, an older layout is copied aside and brought
//! forward in one transaction.
//!
//! ```text
//! 1   rows by id                     2   and indexes: what lists show, by owner; the jobs that are not over
//! ```

use super::{
    StoreError, begin, damage, decode,
    tables::{self, Definition, Index, META, Row, SCHEMA, Writing},
};
use crate::record::{Base, Dataset, Job, Model, Token};
use redb::{Database, ReadableDatabase, ReadableTable, TableError, TableHandle, WriteTransaction};
use std::{fs::File, io, path::Path};
use tempfile::TempPath;

/// Pages that redb keeps in memory. Its own default is a gigabyte, which a long past fills; what is live is a few megabytes.
const CACHE_BYTES: usize = 128 << 20;

/// Opens or makes the file; afterwards it has this program's layout.
pub(super) fn open(path: &Path, disk: &Disk) -> Result<Database, StoreError> {
    if !path.exists() {
        make(path, disk)?;
    }
    let failed = |source: redb::Error| StoreError::Open { path: path.into(), source: Box::new(source) };
    let database = disk.database(path).map_err(|error| failed(error.into()))?;
    match version(&database)? {
        Some(found) if found > SCHEMA => Err(StoreError::Newer { path: path.into(), found }),
        Some(SCHEMA) if has_every_table(&database)? => Ok(database),
        Some(SCHEMA) | None => {
            add_tables(&database)?;
            Ok(database)
        }
        Some(found) => {
            drop(database);
            copy_aside(path, found)?;
            let database = disk.database(path).map_err(|error| failed(error.into()))?;
            bring_forward(&database)?;
            tracing::info!(path = %path.display(), from = found, to = SCHEMA, "the store has a new layout");
            Ok(database)
        }
    }
}

/// Makes the file aside and whole: a power failure in the middle of it leaves none, and not one that looks damaged. Of two
/// coordinators that begin in one directory only one gives its file the name; both then open that, and redb lets one of them.
pub(super) fn make(path: &Path, disk: &Disk) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let aside = tempfile::Builder::new().prefix("state.").suffix(".new").tempfile_in(folder);
    let aside = aside.map_err(StoreError::file(path))?.into_temp_path();
    let failed = |error: redb::DatabaseError| StoreError::Open { path: path.into(), source: Box::new(error.into()) };
    add_tables(&disk.database(&aside).map_err(failed)?)?;
    disk.settle(aside, path).map_err(StoreError::file(path))
}

fn add_tables(database: &Database) -> Result<(), StoreError> {
    let transaction = begin(database)?;
    prepare(&transaction)?;
    Ok(transaction.commit()?)
}

/// Opens a file that is there, whatever its layout.
pub(super) fn as_it_is(path: &Path) -> Result<Database, StoreError> {
    damage::refuse(path)?;
    Database::open(path).map_err(|error| StoreError::Open { path: path.into(), source: Box::new(error.into()) })
}

/// `None`: the file is new.
fn version(database: &Database) -> Result<Option<u64>, StoreError> {
    match database.begin_read()?.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        meta => Ok(meta?.get("schema")?.map(|value| value.value())),
    }
}

/// A table that came with a later program of the same layout is made when that first opens the store.
fn has_every_table(database: &Database) -> Result<bool, StoreError> {
    let transaction = database.begin_read()?;
    let there: Vec<_> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
    Ok(tables::ALL.iter().all(|table| there.iter().any(|name| name == table)))
}

fn prepare(transaction: &WriteTransaction) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    meta.insert("schema", SCHEMA)?;
    if meta.get("generation")?.is_none() {
        meta.insert("generation", 1)?;
    }
    for table in tables::ALL {
        transaction.open_table(Definition::new(table))?;
    }
    for index in tables::INDEXES {
        transaction.open_table(Index::new(index))?;
    }
    Ok(())
}

/// `state.redb.1` beside `state.redb`: the way back to the program of before.
fn copy_aside(path: &Path, version: u64) -> Result<(), StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{version}"));
    let copied = std::fs::copy(path, &name).and_then(|_| std::fs::File::open(&name)?.sync_all());
    copied.map_err(StoreError::file(Path::new(&name)))
}

/// From 1 to 2: the indexes, from the rows.
fn bring_forward(database: &Database) -> Result<(), StoreError> {
    let transaction = begin(database)?;
    rewrite(&transaction)?;
    Ok(transaction.commit()?)
}

pub(super) fn rewrite(transaction: &WriteTransaction) -> Result<(), StoreError> {
    prepare(transaction)?;
    let mut writing = Writing::new(transaction);
    index_rows::<Dataset>(transaction, &mut writing)?;
    index_rows::<Base>(transaction, &mut writing)?;
    index_rows::<Job>(transaction, &mut writing)?;
    index_rows::<Model>(transaction, &mut writing)?;
    index_rows::<Token>(transaction, &mut writing)
}

fn index_rows<R: Row>(transaction: &WriteTransaction, writing: &mut Writing<'_>) -> Result<(), StoreError> {
    let table = transaction.open_table(Definition::new(R::TABLE))?;
    for entry in table.iter()? {
        let (key, value) = entry?;
        writing.index_row(&decode::<R>(key.value(), value.value())?)?;
    }
    Ok(())
}

/// How the file is reached. Tests put a disk under it that is full when they say so, or loses its power: a file system of our own
/// would need a privilege that whoever runs the tests may not have.
#[derive(Debug, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) full: Option<super::tests::full::Full>,
    #[cfg(test)]
    pub(super) power: Option<super::tests::power::Power>,
}

impl Disk {
    fn database(&self, path: &Path) -> Result<Database, redb::DatabaseError> {
        #[cfg(test)]
        if let Some(full) = &self.full {
            return full.database(path);
        }
        #[cfg(test)]
        if let Some(power) = &self.power {
            return power.database();
        }
        Database::builder().set_cache_size(CACHE_BYTES).create(path)
    }

    /// Gives a whole file its name, if nobody else's has it.
    fn settle(&self, aside: TempPath, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        if self.power.is_some() {
            return Ok(());
        }
        match aside.persist_noclobber(path) {
            Err(kept) if kept.error.kind() != io::ErrorKind::AlreadyExists => return Err(kept.error),
            Ok(()) | Err(_) => {}
        }
        File::open(path.parent().unwrap_or(path))?.sync_all()
    }

    /// Whether there may be room at all.
    pub(super) fn has_room(&self) -> bool {
        #[cfg(test)]
        if let Some(full) = &self.full {
            return full.has_room();
        }
        true
    }
}
