//! redb: what must not be lost. One writer thread; readers take a transaction for one request, never for a stream.
//!
//! Every commit is durable before it is answered (`Durability::Immediate`), with two-phase commit and quick repair, so that a
//! file is whole after any crash and opens at once. A write that failed closes redb for good, reads included; so when the disk
//! was full, [`Store::reopen`] gives the reserve away and opens the file anew. Nobody else imports redb.
//!
//! ```text
//! store/open.rs     opening, the layout's version, migrations        store/tables.rs   rows and the indexes over them
//! store/copy.rs     a copy of one moment, what a restore leaves      store/damage.rs   whether the file is what was written
//! ```

mod copy;
mod damage;
mod open;
pub mod tables;

pub use copy::{Facts, FileKind};

use crate::{
    access::Actor,
    record::{Audit, Job, JoinSecret, Model, Orphan, Record, Replay, Token},
    space::{self, Reserve},
};
use lorikeet_protocol::id::{ModelId, UnixMillis, UserId};
use open::Disk;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, WriteTransaction};
use std::{
    collections::HashSet,
    fmt::Write,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};
use tables::{Definition, Index, LIVE_JOBS, META, SCHEMA, Writing};
pub use tables::{Listed, Row};

/// A late result without a job is kept for as long as its files are: somebody may look for it after a restore.
const ORPHAN_KEPT_MILLIS: u64 = 30 * 86_400_000;

/// Rows that go in one transaction: others wait for it.
const EXPIRED_AT_ONCE: usize = 4_096;

/// What went because it was old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// How much.
    pub rows: usize,
    /// Nothing is left that is as old.
    pub is_all: bool,
}

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
    /// The file is not what was written to it.
    #[error(
        "open the store {path}: {found}. Nothing was changed in it. Move it aside and restore a backup beside the blobs that are \
        there: `mv {path} {path}.damaged`, then `lorikeet restore --from BACKUP --data {folder} --verify`",
        path = path.display(), folder = path.parent().unwrap_or(path).display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// Another process holds it.
    #[error("open the store {path}: another process has it open", path = path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// A file beside the store: the copy before a migration, the reserve.
    #[error("use {path}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A row does not read.
    #[error("read row {key} of {table}")]
    Row {
        /// Which table.
        table: &'static str,
        /// Its key, in hex.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An index names a row that is not there.
    #[error("read row {key} of {table}: an index names it, and it is not there")]
    Lost {
        /// Which table.
        table: &'static str,
        /// Its key, in hex.
        key: String,
    },
    /// A table that this program does not know: a later one made it.
    #[error("copy the store: this program does not know its table {table}; run the newer program")]
    Unknown {
        /// Its name.
        table: String,
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
        let full = matches!(&error, redb::Error::Io(io) if space::is_full(io));
        if full { Self::NoSpace } else { Self::Database(Box::new(error)) }
    }
}

/// The open store. Clones share it; writing is the driver's alone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    disk: Disk,
    reserve: Reserve,
    /// None only while it is opened again, and after that has failed.
    database: RwLock<Option<Database>>,
}

impl Store {
    /// Opens the file, or makes it with every table in it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        damage::refuse(path)?;
        Self::open_on(path, Disk::default())
    }

    fn open_on(path: &Path, disk: Disk) -> Result<Self, StoreError> {
        let database = open::open(path, &disk)?;
        let reserve = Reserve::at(path.with_extension("reserve"));
        if !reserve.take().map_err(StoreError::file(path))? {
            tracing::warn!(path = %path.display(), "the disk has no room for the store's reserve");
        }
        let inner = Inner { path: path.to_owned(), disk, reserve, database: RwLock::new(Some(database)) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Opens the file anew, with the reserve given away: after a commit for which the disk had no room.
    pub fn reopen(&self) -> Result<(), StoreError> {
        let mut place = self.inner.database.write().unwrap_or_else(PoisonError::into_inner);
        // The old one first: it holds the file's lock.
        drop(place.take());
        self.inner.reserve.release().map_err(StoreError::file(&self.inner.path))?;
        *place = Some(open::open(&self.inner.path, &self.inner.disk)?);
        Ok(())
    }

    /// Whether the reserve is held again: only then may anything be written after [`reopen`](Self::reopen).
    pub fn has_room(&self) -> bool {
        self.inner.disk.has_room() && self.inner.reserve.take().unwrap_or(false)
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let place = self.inner.database.read().unwrap_or_else(PoisonError::into_inner);
        work(place.as_ref().ok_or(StoreError::NoSpace)?)
    }

    /// The cluster generation: raised by a restore.
    pub fn generation(&self) -> Result<u32, StoreError> {
        self.with(|database| {
            let meta = database.begin_read()?.open_table(META)?;
            let generation = meta.get("generation")?.map_or(1, |value| value.value());
            Ok(u32::try_from(generation).unwrap_or(u32::MAX))
        })
    }

    /// All or nothing, and on disk when it returns.
    pub fn commit(&self, records: &[Record]) -> Result<(), StoreError> {
        self.with(|database| {
            let transaction = begin(database)?;
            // The newest first: a job under load moves on several times in one batch, and only its last row counts.
            let mut writing = Writing::new(&transaction);
            records.iter().rev().try_for_each(|record| writing.put(record))?;
            drop(writing);
            Ok(transaction.commit()?)
        })
    }

    /// Removes what nobody can ask for any more – answers to repeated requests, join secrets, tokens, late results of jobs that are not here –
    /// and audit records from before `old_audit`; so many at a time.
    pub fn expire(&self, now: UnixMillis, old_audit: UnixMillis) -> Result<Expired, StoreError> {
        let replays = self.scan(&[], |row: &Replay| row.expires <= now)?;
        let secrets = self.scan(&[], |row: &JoinSecret| row.is_over(now))?;
        let tokens = self.scan(&[], |row: &Token| row.is_over(now))?;
        let old = |row: &Orphan| row.at.0.saturating_add(ORPHAN_KEPT_MILLIS) <= now.0;
        let orphans = self.scan(&[], old)?;
        let keys = replays.iter().map(|row| (Replay::TABLE, row.key()));
        let keys = keys.chain(self.without_job(orphans)?.into_iter().map(|key| (Orphan::TABLE, key)));
        let keys = keys.chain(secrets.iter().map(|row| (JoinSecret::TABLE, row.key())));
        let keys = keys.chain(tokens.iter().map(|row| (Token::TABLE, row.key())));
        let mut keys: Vec<_> =
            keys.chain(self.audits_before(old_audit)?.into_iter().map(|key| (Audit::TABLE, key))).collect();
        let is_all = keys.len() <= EXPIRED_AT_ONCE;
        keys.truncate(EXPIRED_AT_ONCE);
        let gone: HashSet<_> =
            keys.iter().filter(|(table, _)| *table == Token::TABLE).map(|(_, key)| key.clone()).collect();
        let expired = Expired { rows: keys.len(), is_all };
        if keys.is_empty() {
            return Ok(expired);
        }
        self.with(|database| {
            let transaction = begin(database)?;
            for (table, key) in &keys {
                transaction.open_table(Definition::new(table))?.remove(key.as_slice())?;
            }
            let mut writing = Writing::new(&transaction);
            tokens.iter().filter(|row| gone.contains(&row.key())).try_for_each(|row| writing.unlist(row))?;
            drop(writing);
            Ok(transaction.commit()?)
        })?;
        Ok(expired)
    }

    /// Of these, those whose job was forgotten before they came, or was never known here.
    fn without_job(&self, orphans: Vec<Orphan>) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut keys = Vec::new();
        for row in orphans {
            if self.get::<Job>(&row.attempt.job.bytes())?.is_none() {
                keys.push(row.key());
            }
        }
        Ok(keys)
    }

    /// The oldest ones, a few more than go at once. The newest of all stays: the next one counts on from it.
    fn audits_before(&self, moment: UnixMillis) -> Result<Vec<Vec<u8>>, StoreError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(Definition::new(Audit::TABLE))?;
            let older = usize::try_from(table.len()?.saturating_sub(1)).unwrap_or(usize::MAX);
            let mut keys = Vec::new();
            for entry in table.iter()?.take(older.min(EXPIRED_AT_ONCE + 1)) {
                let (key, value) = entry?;
                let row: Audit = decode(key.value(), value.value())?;
                if row.time >= moment {
                    break;
                }
                keys.push(key.value().to_vec());
            }
            Ok(keys)
        })
    }

    /// One row by its key.
    pub fn get<R: Row>(&self, key: &[u8]) -> Result<Option<R>, StoreError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(Definition::new(R::TABLE))?;
            table.get(key)?.map(|value| decode(key, value.value())).transpose()
        })
    }

    /// The rows whose key starts with `prefix`, oldest first, that `keep` wants.
    pub fn scan<R: Row>(&self, prefix: &[u8], keep: impl Fn(&R) -> bool) -> Result<Vec<R>, StoreError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(Definition::new(R::TABLE))?;
            let mut rows = Vec::new();
            for entry in table.range(prefix..)? {
                let (key, value) = entry?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                let row = decode(key.value(), value.value())?;
                if keep(&row) {
                    rows.push(row);
                }
            }
            Ok(rows)
        })
    }

    /// The rows of a whole table that read and that `keep` wants, oldest first.
    pub fn readable<R: Row>(&self, keep: impl Fn(&R) -> bool) -> Result<Vec<R>, StoreError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(Definition::new(R::TABLE))?;
            let mut rows = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                rows.extend(decode_or_tell(key.value(), value.value()).filter(&keep));
            }
            Ok(rows)
        })
    }

    /// The first rows, at most `limit`, with keys in this range that read and that `keep` wants.
    pub fn between<R: Row>(
        &self,
        keys: Range<[u8; 16]>,
        limit: usize,
        keep: impl Fn(&R) -> bool,
    ) -> Result<Vec<R>, StoreError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(Definition::new(R::TABLE))?;
            let mut rows = Vec::new();
            for entry in table.range(keys.start.as_slice()..keys.end.as_slice())? {
                let (key, value) = entry?;
                rows.extend(decode_or_tell(key.value(), value.value()).filter(&keep));
                if rows.len() == limit {
                    break;
                }
            }
            Ok(rows)
        })
    }

    /// A page of a whole table, newest first, and how many rows it has.
    pub fn page<R: Row>(&self, offset: usize, limit: usize) -> Result<(Vec<R>, usize), StoreError> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(Definition::new(R::TABLE))?;
            let mut rows = Vec::new();
            for entry in table.iter()?.rev().skip(offset).take(limit) {
                let (key, value) = entry?;
                rows.push(decode(key.value(), value.value())?);
            }
            Ok((rows, usize::try_from(table.len()?).unwrap_or(usize::MAX)))
        })
    }

    /// A page of the rows that lists show – of one owner, or of all – newest first, and how many there are. Without `keep` only
    /// the rows of the page are read, the others are merely counted.
    pub fn listed<R: Listed>(
        &self,
        owner: Option<UserId>,
        offset: usize,
        limit: usize,
        keep: Option<impl Fn(&R) -> bool>,
    ) -> Result<(Vec<R>, usize), StoreError> {
        let prefix = tables::owner_key(owner);
        let page = offset..offset.saturating_add(limit);
        self.with(|database| {
            let transaction = database.begin_read()?;
            let (index, table) =
                (transaction.open_table(Index::new(R::INDEX))?, transaction.open_table(Definition::new(R::TABLE))?);
            let end = [prefix.as_slice(), &[0xff; 17]].concat();
            let (mut rows, mut total) = (Vec::new(), 0);
            for entry in index.range(prefix.as_slice()..end.as_slice())?.rev() {
                let (key, _) = entry?;
                if keep.is_none() && !page.contains(&total) {
                    total += 1;
                    continue;
                }
                let key = &key.value()[prefix.len()..];
                let value = table.get(key)?.ok_or_else(|| lost(R::TABLE, key))?;
                let row = match &keep {
                    Some(keep) => decode_or_tell(key, value.value()).filter(keep),
                    None => Some(decode(key, value.value())?),
                };
                if let Some(row) = row {
                    if page.contains(&total) {
                        rows.push(row);
                    }
                    total += 1;
                }
            }
            Ok((rows, total))
        })
    }

    /// Models that `init_adapter` may mean in a job of this actor, by id or name, oldest first. One's own go before another's: others are
    /// read only where none of one's own is called so.
    pub fn adapters(&self, actor: Actor, name: &str) -> Result<Vec<Model>, StoreError> {
        if let Ok(id) = name.parse::<ModelId>() {
            return Ok(self.get(&id.bytes())?.into_iter().collect());
        }
        let called = |model: &Model| model.name == name;
        let newest_first = |owner| Ok::<_, StoreError>(self.listed(owner, 0, usize::MAX, Some(called))?.0);
        let mut found = actor.user().map_or(Ok(vec![]), |user| newest_first(Some(user)))?;
        if found.is_empty() && actor.sees_everything() {
            found = newest_first(None)?;
        }
        found.reverse();
        Ok(found)
    }

    /// The jobs that are not over, oldest first.
    pub fn live_jobs(&self) -> Result<Vec<crate::record::Job>, StoreError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let index = transaction.open_table(Index::new(LIVE_JOBS))?;
            let table = transaction.open_table(Definition::new(crate::record::Job::TABLE))?;
            let mut rows = Vec::new();
            for entry in index.iter()? {
                let (key, _) = entry?;
                let value = table.get(key.value())?.ok_or_else(|| lost(crate::record::Job::TABLE, key.value()))?;
                rows.push(decode(key.value(), value.value())?);
            }
            Ok(rows)
        })
    }
}

impl StoreError {
    /// Whether only one row is at fault, and everything else reads as ever.
    pub(crate) fn is_of_one_row(&self) -> bool {
        matches!(self, Self::Row { .. } | Self::Lost { .. })
    }

    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| if space::is_full(&source) { Self::NoSpace } else { Self::File { path, source } }
    }
}

fn begin(database: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_quick_repair(true);
    Ok(transaction)
}

fn decode<R: Row>(key: &[u8], bytes: &[u8]) -> Result<R, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Row { table: R::TABLE, key: hex(key), source })
}

/// One of many among which something is looked for: one that does not read is not it, and nobody's fault who looks.
fn decode_or_tell<R: Row>(key: &[u8], bytes: &[u8]) -> Option<R> {
    let told = |error: &StoreError| {
        tracing::error!(error = error as &dyn std::error::Error, "a row that does not read was passed over");
    };
    decode(key, bytes).inspect_err(told).ok()
}

fn lost(table: &'static str, key: &[u8]) -> StoreError {
    StoreError::Lost { table, key: hex(key) }
}

fn hex(key: &[u8]) -> String {
    key.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
pub(crate) mod tests;
