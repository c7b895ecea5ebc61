//! A copy of the store as it is at one moment, while it is written to; and the mark that a restore leaves in one.

use super::{
    Store, StoreError, begin, damage, decode, open,
    tables::{self, Definition, Index, META, Row},
};
use crate::{
    cluster::Restored,
    record::{Base, Dataset, Model, Orphan, StoredCheckpoint},
};
use lorikeet_protocol::{file::FileManifest, id::UnixMillis};
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableHandle, WriteTransaction,
};
use std::path::Path;

/// What a store says of itself, and of what lies beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its layout.
    pub schema: u64,
    /// The cluster generation.
    pub generation: u32,
    /// Every file that a record names, in the order of their kinds; one that several name is there several times.
    pub files: Vec<(FileKind, FileManifest)>,
}

impl std::fmt::Display for FileKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dataset => "dataset",
            Self::Base => "base",
            Self::Model => "model",
            Self::Checkpoint => "checkpoint",
            Self::Orphan => "orphan",
        })
    }
}

/// Kinds of files that records name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A training file.
    Dataset,
    /// Of a base model.
    Base,
    /// Of an adapter.
    Model,
    /// Of a checkpoint.
    Checkpoint,
    /// Of a result that came too late.
    Orphan,
}

impl FileKind {
    /// Whether the bytes must be in the data directory: a base's stay where they are.
    pub(crate) fn is_ours(self) -> bool {
        self != Self::Base
    }
}

impl Store {
    /// Writes everything that is committed at this moment to a new file, without its free pages. The copy is sound on its own.
    pub fn copy_to(&self, path: &Path) -> Result<Facts, StoreError> {
        self.with(|database| copy(&database.begin_read()?, path))
    }

    /// A copy of a store that nobody has open, which stays as it is, its layout included.
    pub fn copy_of(from: &Path, to: &Path) -> Result<Facts, StoreError> {
        copy(&damage::open_unchanged(from)?.begin_read()?, to)
    }

    /// What a store at rest says of itself; it stays as it is.
    pub fn look(path: &Path) -> Result<Facts, StoreError> {
        facts(&damage::open_unchanged(path)?.begin_read()?)
    }

    /// Gives the room of removed rows back to the disk, of a store that nobody has open; sizes in bytes before and after. A crash
    /// in the middle does no harm.
    pub fn compact(path: &Path) -> Result<(u64, u64), StoreError> {
        let size = || path.metadata().map(|file| file.len()).map_err(StoreError::file(path));
        let mut database = open::as_it_is(path)?;
        let before = size()?;
        while database.compact()? {}
        drop(database);
        Ok((before, size()?))
    }

    /// Marks a store as restored: its generation is higher than any that was ever used.
    pub fn mark_restored(&self, generation: u32, restored: Restored) -> Result<(), StoreError> {
        self.with(|database| {
            let transaction = begin(database)?;
            {
                let mut meta = transaction.open_table(META)?;
                meta.insert("generation", u64::from(generation))?;
                meta.insert("restored_at", restored.at.0)?;
                meta.insert("backup_taken", restored.taken.0)?;
            }
            Ok(transaction.commit()?)
        })
    }

    /// Whether and when it was restored.
    pub fn restored(&self) -> Result<Option<Restored>, StoreError> {
        self.with(|database| {
            let meta = database.begin_read()?.open_table(META)?;
            let time = |key: &str| Ok::<_, StoreError>(meta.get(key)?.map(|value| UnixMillis(value.value())));
            Ok(time("backup_taken")?.zip(time("restored_at")?).map(|(taken, at)| Restored { taken, at }))
        })
    }

    /// What it says of itself at this moment.
    pub fn facts(&self) -> Result<Facts, StoreError> {
        self.with(|database| facts(&database.begin_read()?))
    }

    /// Reads every row of every table; says how many there are.
    pub fn read_all(&self) -> Result<u64, StoreError> {
        tables::read_all(self)
    }

    /// How many rows of one kind read.
    pub(super) fn count<R: Row>(&self) -> Result<u64, StoreError> {
        Ok(self.scan(&[], |_: &R| true)?.len() as u64)
    }
}

fn copy(from: &ReadTransaction, to: &Path) -> Result<Facts, StoreError> {
    let database = Database::create(to)?;
    let transaction = begin(&database)?;
    let names: Vec<String> = from.list_tables()?.map(|table| table.name().to_owned()).collect();
    for name in &names {
        if name == META.name() {
            copy_table(from, &transaction, META)?;
        } else if let Some(table) = tables::ALL.iter().find(|table| *table == name) {
            copy_table(from, &transaction, Definition::new(table))?;
        } else if let Some(index) = tables::INDEXES.iter().find(|index| *index == name) {
            copy_table(from, &transaction, Index::new(index))?;
        } else {
            return Err(StoreError::Unknown { table: name.clone() });
        }
    }
    transaction.commit()?;
    facts(from)
}

fn facts(from: &ReadTransaction) -> Result<Facts, StoreError> {
    let meta = from.open_table(META)?;
    let fact = |key: &str| Ok::<_, StoreError>(meta.get(key)?.map_or(1, |value| value.value()));
    let (schema, generation) = (fact("schema")?, u32::try_from(fact("generation")?).unwrap_or(u32::MAX));
    let mut files = Vec::new();
    let mut add = |kind, named: &mut dyn Iterator<Item = FileManifest>| files.extend(named.map(|file| (kind, file)));
    for row in rows::<Dataset>(from)?.filter(|row| row.deleted_at.is_none()) {
        add(FileKind::Dataset, &mut row.manifest.into_iter());
    }
    for row in rows::<Base>(from)?.filter(|row| row.deleted_at.is_none()) {
        add(FileKind::Base, &mut row.files.into_iter().map(|file| file.manifest));
    }
    for row in rows::<Model>(from)?.filter(|row| row.deleted_at.is_none()) {
        add(FileKind::Model, &mut row.files.into_iter().map(|file| file.manifest));
    }
    for row in rows::<StoredCheckpoint>(from)?.filter(|row| row.removed_at.is_none()) {
        add(FileKind::Checkpoint, &mut row.checkpoint.files.into_iter().map(|file| file.manifest));
    }
    for row in rows::<Orphan>(from)? {
        add(FileKind::Orphan, &mut row.files.into_iter().map(|file| file.manifest));
    }
    Ok(Facts { schema, generation, files })
}

fn rows<R: Row>(from: &ReadTransaction) -> Result<impl Iterator<Item = R>, StoreError> {
    let mut rows = Vec::new();
    for entry in from.open_table(Definition::new(R::TABLE))?.iter()? {
        let (key, value) = entry?;
        rows.push(decode::<R>(key.value(), value.value())?);
    }
    Ok(rows.into_iter())
}

fn copy_table<K: redb::Key + 'static, V: redb::Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'static, K, V>,
) -> Result<(), StoreError> {
    let (source, mut target) = (from.open_table(table)?, to.open_table(table)?);
    for entry in source.iter()? {
        let (key, value) = entry?;
        target.insert(key.value(), value.value())?;
    }
    Ok(())
}
