//! Writing a cache: examples as they come, the index in a second file until the end, nothing held in memory.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::entry::check_of;
use super::{Entry, HEAD_BYTES, TokenCache, head};
use crate::{DatasetError, Example};

/// Writes a cache aside; nothing stands under its name before [`CacheWriter::finish`].
pub struct CacheWriter {
    path: PathBuf,
    data: Aside,
    index: Aside,
    offset: u64,
    len: u64,
}

impl CacheWriter {
    /// Begins a cache that will stand at `path`; its directory is made.
    pub fn create(path: &Path) -> Result<CacheWriter, DatasetError> {
        let fail = |error: io::Error| not_written(path, error);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(fail)?;
            remove_left_over(dir);
        }
        let process = std::process::id();
        let data = Aside::create(path.with_extension(format!("{process}.partial"))).map_err(fail)?;
        let index = Aside::create(path.with_extension(format!("{process}.index.partial"))).map_err(fail)?;
        let mut writer = CacheWriter { path: path.to_owned(), data, index, offset: HEAD_BYTES as u64, len: 0 };
        writer.data.file.write_all(&head()).map_err(fail)?;
        Ok(writer)
    }

    /// Adds an example.
    pub fn push(&mut self, example: &Example) -> Result<(), DatasetError> {
        let block = block(example);
        let entry = Entry { offset: self.offset, check: check_of(&block), ..Entry::of(example) };
        let written = self.data.file.write_all(&block).and_then(|()| self.index.file.write_all(&entry.write()));
        written.map_err(|error| not_written(&self.path, error))?;
        self.offset += block.len() as u64;
        self.len += 1;
        Ok(())
    }

    /// How many examples were added.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Nothing was added yet.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes index and tail, syncs, renames, and reads what now stands there.
    pub fn finish(mut self, notes: &serde_json::Value) -> Result<TokenCache, DatasetError> {
        let tail = serde_json::to_vec(notes).expect("plain data is always JSON");
        let written = self.publish(&tail).and_then(|()| self.data.file.get_ref().try_clone());
        // The very file, and its lock with it: somebody who makes room may take the name at any moment that it is free.
        TokenCache::of(&self.path, written.map_err(|error| not_written(&self.path, error))?)
    }

    fn publish(&mut self, tail: &[u8]) -> io::Result<()> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head());
        let mut index = self.index.reread()?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = index.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            self.data.file.write_all(&buffer[..count])?;
        }
        let numbers = [self.offset, self.len, tail.len() as u64].map(u64::to_le_bytes).concat();
        hasher.update(tail).update(&numbers);
        for part in [tail, &numbers, hasher.finalize().as_bytes()] {
            self.data.file.write_all(part)?;
        }
        self.data.file.flush()?;
        self.data.file.get_ref().sync_all()?;
        fs::rename(&self.data.path, &self.path)?;
        match self.path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// Tokens, bits, name.
fn block(example: &Example) -> Vec<u8> {
    let mut bytes: Vec<u8> = example.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    for chunk in example.supervised.chunks(32) {
        let bits = chunk.iter().enumerate().fold(0u32, |bits, (i, on)| bits | u32::from(*on) << i);
        bytes.extend(bits.to_le_bytes());
    }
    bytes.extend(example.key.conversation.as_bytes());
    bytes
}

/// Takes away what killed processes left half written: nobody holds its lock. What cannot be judged or removed stays.
fn remove_left_over(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_file())
            && entry.file_name().to_str().is_some_and(is_partial)
            && File::open(&path).is_ok_and(|file| file.try_lock().is_ok())
        {
            let _next_time = fs::remove_file(&path);
        }
    }
}

/// `NAME.PROCESS.partial` or `NAME.PROCESS.index.partial`.
fn is_partial(name: &str) -> bool {
    let rest = name.strip_suffix(".partial").map(|rest| rest.strip_suffix(".index").unwrap_or(rest));
    let process = rest.and_then(|rest| rest.rsplit_once('.'));
    process.is_some_and(|(_, process)| !process.is_empty() && process.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A file that goes away with its owner, unless it was renamed. It is locked for as long, so that others can tell it from what
/// a killed process left.
struct Aside {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Aside {
    fn create(path: PathBuf) -> io::Result<Aside> {
        loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            file.lock()?;
            // between the two somebody may have taken it for left over
            if is_at(&file, &path)? {
                if file.metadata()?.len() > 0 {
                    file.set_len(0)?;
                }
                return Ok(Aside { path, file: BufWriter::with_capacity(1 << 20, file) });
            }
        }
    }

    /// The file from its beginning.
    fn reread(&mut self) -> io::Result<File> {
        self.file.flush()?;
        let mut file = self.file.get_ref().try_clone()?;
        file.rewind()?;
        Ok(file)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _already_renamed = fs::remove_file(&self.path);
    }
}

/// Whether the open file is the one of that name.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let of = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match fs::metadata(path) {
        Ok(there) => Ok(of(there) == of(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn not_written(path: &Path, source: io::Error) -> DatasetError {
    DatasetError::Cache { verb: "write", path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{Cut, Key};

    #[test]
    fn a_disk_that_is_full_is_told_as_one() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("full.tokens");
        let aside = dir.path().join(format!("full.{}.partial", std::process::id()));
        std::os::unix::fs::symlink("/dev/full", &aside).expect("linked");
        let mut writer = CacheWriter::create(&path).expect("nothing is written yet");
        writer.push(&example()).expect("it is buffered");
        match writer.finish(&serde_json::Value::Null) {
            Err(DatasetError::Cache { verb: "write", source, .. }) => {
                assert_eq!(source.kind(), io::ErrorKind::StorageFull);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_somebody_writes_stays() {
        let dir = tempfile::tempdir().expect("dir");
        let names = ["a.4194305.partial", "a.4194305.index.partial", "a.partial", "a.tokens", "b.7.partial"];
        let paths = names.map(|name| dir.path().join(name));
        paths.iter().for_each(|path| fs::write(path, "x").expect("written"));
        let held = File::open(&paths[4]).expect("opened");
        held.lock().expect("locked");
        let mut writer = CacheWriter::create(&dir.path().join("c.tokens")).expect("created");
        writer.push(&example()).expect("added");
        // another that begins meanwhile leaves this one alone
        CacheWriter::create(&dir.path().join("d.tokens")).expect("created");
        assert_eq!(writer.finish(&serde_json::Value::Null).expect("written").len(), 1);
        assert_eq!(paths.map(|path| path.exists()), [false, false, true, true, true]);
    }

    #[test]
    fn a_cache_that_is_read_is_locked_for_as_long_and_was_used_then() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("c.tokens");
        let mut writer = CacheWriter::create(&path).expect("created");
        writer.push(&example()).expect("added");
        let is_free = || File::open(&path).expect("opened").try_lock().is_ok();
        let written = writer.finish(&serde_json::Value::Null).expect("written");
        assert!(!is_free(), "by who wrote it");
        drop(written);
        File::open(&path).expect("opened").set_modified(std::time::SystemTime::UNIX_EPOCH).expect("aged");
        let readers = [(); 2].map(|()| TokenCache::open(&path).expect("whole"));
        assert!(!is_free() && fs::metadata(&path).expect("there").mtime() > 0);
        drop(readers);
        assert!(is_free());
    }

    #[test]
    fn a_cache_that_was_written_is_read_whoever_makes_room_meanwhile() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("c.tokens");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
                        let _gone = fs::remove_file(&path);
                    }
                }
            });
            let read = (0..200).map(|_| {
                let mut writer = CacheWriter::create(&path)?;
                writer.push(&example())?;
                writer.finish(&serde_json::Value::Null)?.example(0)
            });
            let failed = read.filter_map(Result::err).map(|error| error.to_string()).collect::<Vec<_>>();
            done.store(true, Ordering::Relaxed);
            assert_eq!(failed, [""; 0]);
        });
    }

    fn example() -> Example {
        Example {
            tokens: vec![1, 2, 3],
            supervised: vec![false, true, true],
            conversation: 0,
            key: Key { conversation: "a".into(), turn: 1 },
            cut: Cut::default(),
        }
    }
}
