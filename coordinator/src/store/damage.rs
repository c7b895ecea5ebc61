//! Whether the store's file is what was written to it: every page against its checksum, before anything else is done with it.
//!
//! redb mends what a crash leaves, and it would also mend a flipped bit, by going back to an older commit. That must never happen
//! unnoticed. So the file is first opened under a layer that keeps every write in memory: what redb would have to mend there is
//! damage, and the file on disk is still as it was found.

use super::StoreError;
use redb::{BackendError, Database, DatabaseError, StorageBackend};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::{File, TryLockError},
    io,
    ops::Bound,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Pages that redb keeps while it looks.
const LOOK_CACHE_BYTES: usize = 16 << 20;
/// redb's own page; only a unit of bookkeeping here.
const PAGE: u64 = 4_096;

/// Refuses a file that is damaged; one that is not there, or new and empty, is sound.
pub(super) fn refuse(path: &Path) -> Result<(), StoreError> {
    let is_new = match path.metadata() {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(file) => file.len() == 0,
    };
    if is_new { Ok(()) } else { open_unchanged(path).map(drop) }
}

/// Opens a sound file so that nothing that is done with it ever reaches the disk; it is locked as if it were written to.
pub(super) fn open_unchanged(path: &Path) -> Result<Database, StoreError> {
    let file = File::open(path).map_err(StoreError::file(path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path: path.into() }),
        Err(TryLockError::Error(error)) => return Err(StoreError::file(path)(error)),
    }
    let length = file.metadata().map_err(StoreError::file(path))?.len();
    // Bytes that make no sense may lead redb anywhere, a panic of its own included.
    let looked = catch_unwind(AssertUnwindSafe(|| look(Layer::over(file, length))));
    let found = match looked {
        Ok(Ok(Some(database))) => return Ok(database),
        Ok(Ok(None)) => "pages of it do not match their checksums".to_owned(),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => return Err(StoreError::InUse { path: path.into() }),
        Ok(Err(error)) => lorikeet_protocol::chain(&error),
        Err(_) => "its pages lead nowhere".to_owned(),
    };
    Err(StoreError::Damaged { path: path.into(), found })
}

/// `None`: there was something to mend.
fn look(layer: Layer) -> Result<Option<Database>, DatabaseError> {
    // Every page is read once: to keep them would only fill memory.
    let mut database = Database::builder().set_cache_size(LOOK_CACHE_BYTES).create_with_backend(layer)?;
    Ok(database.check_integrity()?.then_some(database))
}

/// The file as it is, and in memory what was written since.
#[derive(Debug)]
struct Layer {
    file: File,
    /// Of the file itself.
    length: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    length: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Layer {
    fn over(file: File, length: u64) -> Self {
        Self { file, length, state: Mutex::new(State { length, pages: BTreeMap::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page as it lies on the disk; zeros behind its end.
    fn page(&self, number: u64) -> io::Result<Box<[u8]>> {
        let mut page = vec![0; PAGE as usize].into_boxed_slice();
        let start = number * PAGE;
        let there = self.length.saturating_sub(start).min(PAGE) as usize;
        self.file.read_exact_at(&mut page[..there], start)?;
        Ok(page)
    }
}

/// The parts of `offset..offset + length` by page: its number, where in it, and where in the whole.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
    let end = offset + length as u64;
    (offset / PAGE..end.div_ceil(PAGE)).map(move |number| {
        let (from, to) = ((number * PAGE).max(offset), ((number + 1) * PAGE).min(end));
        (number, (from - number * PAGE) as usize..(to - number * PAGE) as usize, (from - offset) as usize)
    })
}

impl StorageBackend for Layer {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if state.length < offset.saturating_add(out.len() as u64) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if state.pages.is_empty() && offset + out.len() as u64 <= self.length {
            return self.file.read_exact_at(out, offset);
        }
        for (number, within, place) in parts(offset, out.len()) {
            let target = &mut out[place..place + within.len()];
            match state.pages.get(&number) {
                Some(page) => target.copy_from_slice(&page[within]),
                None => target.copy_from_slice(&self.page(number)?[within]),
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.state().length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        for (number, within, place) in parts(offset, data.len()) {
            let page = match state.pages.entry(number) {
                Entry::Occupied(page) => page.into_mut(),
                Entry::Vacant(place) => place.insert(self.page(number)?),
            };
            page[within.clone()].copy_from_slice(&data[place..place + within.len()]);
        }
        state.length = state.length.max(offset + data.len() as u64);
        Ok(())
    }

    // The file is locked as a whole as long as the layer lives: within it there is nobody to keep out.

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}
