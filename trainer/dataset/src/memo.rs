//! The hash of a file's content, remembered beside the caches, so that a second start need not read ten gigabytes to learn
//! that nothing has changed.
//!
//! A file is taken for unchanged when device, inode, size and the time of its last change are. The time is the kernel's own
//! (ctime), which no program sets back; and because its clock ticks coarsely, a hash taken within two seconds of the last
//! change is not remembered.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::DatasetError;
use crate::read::open;

const SETTLED_SECONDS: i64 = 2;

/// What a file looked like when it was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Look {
    device: u64,
    inode: u64,
    bytes: u64,
    changed_seconds: i64,
    changed_nanos: i64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Memo {
    look: Look,
    /// In hexadecimal.
    content: String,
}

/// BLAKE3 of a file's bytes.
pub(crate) fn content_hash(file: &Path, cache_dir: &Path) -> Result<blake3::Hash, DatasetError> {
    let failed = |source: io::Error| DatasetError::Read { path: file.to_owned(), source };
    let place = place(file, cache_dir);
    let before = look(file).map_err(failed)?;
    // a pipe would be waited for
    let known = fs::metadata(&place).is_ok_and(|there| there.is_file()).then(|| fs::read(&place).ok()).flatten();
    if let Some(memo) = known.and_then(|text| serde_json::from_slice::<Memo>(&text).ok())
        && memo.look == before
        && let Ok(content) = blake3::Hash::from_hex(&memo.content)
    {
        return Ok(content);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(open(file)?).map_err(failed)?;
    let content = hasher.finalize();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    if look(file).map_err(failed)? == before && before.changed_seconds + SETTLED_SECONDS < now {
        remember(&place, &Memo { look: before, content: content.to_hex().to_string() });
    }
    Ok(content)
}

fn look(file: &Path) -> io::Result<Look> {
    let metadata = fs::metadata(file)?;
    Ok(Look {
        device: metadata.dev(),
        inode: metadata.ino(),
        bytes: metadata.len(),
        changed_seconds: metadata.ctime(),
        changed_nanos: metadata.ctime_nsec(),
    })
}

fn place(file: &Path, cache_dir: &Path) -> PathBuf {
    let whole = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let name = blake3::hash(whole.as_os_str().as_encoded_bytes()).to_hex();
    cache_dir.join(format!("{}.content", &name[..32]))
}

/// A memo that cannot be kept costs time and nothing else.
fn remember(place: &Path, memo: &Memo) {
    let aside = place.with_extension(format!("{}.partial", std::process::id()));
    let json = serde_json::to_vec(memo).expect("plain data is always JSON");
    let kept = place.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&aside, json));
    if kept.and_then(|()| fs::rename(&aside, place)).is_err() {
        let _nothing_to_remove = fs::remove_file(&aside);
    }
}
