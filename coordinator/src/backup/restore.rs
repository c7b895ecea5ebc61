//! The way back: everything is unpacked and compared beside the data directory first, then moved into it, the store last. Until the
//! store lies there no coordinator starts on it, so a restore that breaks off is simply begun again.

use super::{BackupError, FORMAT, Head, Sum, Verified, verify::verify, write::below};
use crate::{clock::now, cluster, store::Store};
use lorikeet_protocol::{file::is_plain_path, id::Hash};
use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Where a restore unpacks, in the data directory: renaming stays on one disk.
const UNPACKED: &str = "restoring";
/// What may be in a backup.
const PARTS: [&str; 7] = ["backup.json", "ca", "keys", "state.redb", "blobs.json", "blobs", "series"];

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Of the backup.
    pub head: Head,
    /// The cluster generation from now on.
    pub generation: u32,
    /// Records that were read.
    pub rows: u64,
    /// What its records name and what of it is here, if that was asked for.
    pub verified: Option<Verified>,
}

/// Restores `from` into `data`, which may hold blobs and series and must hold no store.
pub fn restore(from: &Path, data: &Path, check: bool) -> Result<Restored, BackupError> {
    refuse_occupied(data)?;
    let aside = data.join(UNPACKED);
    clear(&aside)?;
    let placed = unpack_and_place(from, &aside, data);
    // Keys are in it: it goes however that ended. If it cannot go, a failure says more than what is left of it.
    let cleared = clear(&aside);
    let (head, generation, rows) = placed?;
    cleared?;
    let verified = if check { Some(verify(data)?) } else { None };
    Ok(Restored { head, generation, rows, verified })
}

fn unpack_and_place(from: &Path, aside: &Path, data: &Path) -> Result<(Head, u32, u64), BackupError> {
    make_folder(aside)?;
    let head = unpack(from, aside)?;
    let keeps = keeps_authority(aside, data)?;
    let (generation, rows) = raise(&aside.join("state.redb"), &head)?;
    let parts = ["ca", "keys", "blobs", "series"];
    for part in parts.into_iter().filter(|part| !(keeps && *part == "ca")) {
        for file in below(&aside.join(part))? {
            place(aside, data, &file)?;
        }
    }
    place(aside, data, &aside.join("state.redb"))?;
    Ok((head, generation, rows))
}

fn clear(aside: &Path) -> Result<(), BackupError> {
    match std::fs::remove_dir_all(aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(BackupError::file("remove", aside)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn refuse_occupied(data: &Path) -> Result<(), BackupError> {
    let state = data.join("state.redb");
    if !state.exists() {
        return Ok(());
    }
    let found = format!(
        "a store is there; stop the coordinator and move it aside: `mv {state} {state}.before`",
        state = state.display()
    );
    Err(BackupError::Occupied { data: data.into(), found })
}

/// Agents trust the authority that they joined, or the one that followed it: two of them must not be mixed up. One here that follows the
/// backup's is kept, because agents have gone on to it.
fn keeps_authority(aside: &Path, data: &Path) -> Result<bool, BackupError> {
    let read = |folder: &Path, name: &str| std::fs::read(folder.join("ca").join(name)).ok();
    let is_whole = data.join("ca/ca.key").exists();
    match (read(aside, "ca.pem"), read(data, "ca.pem")) {
        (Some(ours), Some(theirs)) if ours == theirs => Ok(is_whole && data.join("ca/next.pem").exists()),
        (Some(ours), Some(_)) if is_whole && read(data, "former.pem").is_some_and(|all| names(&all, &ours)) => Ok(true),
        (Some(_), Some(_)) => {
            let found = format!(
                "its certificate authority is another than the backup's; if the backup's is the right one, move {} aside",
                data.join("ca").display()
            );
            Err(BackupError::Occupied { data: data.into(), found })
        }
        _ => Ok(false),
    }
}

/// Whether the certificate is among these.
fn names(all: &[u8], certificate: &[u8]) -> bool {
    let certificate = certificate.trim_ascii();
    !certificate.is_empty() && all.windows(certificate.len()).any(|here| here == certificate)
}

/// Every entry into `aside`, compared with the hashes at the end.
fn unpack(from: &Path, aside: &Path) -> Result<Head, BackupError> {
    let damaged = |found: String| BackupError::Damaged { path: from.into(), found };
    let file = File::open(from).map_err(BackupError::file("open", from))?;
    let mut archive = tar::Archive::new(file);
    let cut = |error: io::Error| damaged(format!("it is no backup of lorikeet, or not a whole one ({error})"));
    let (mut sums, mut expected) = (BTreeMap::new(), None::<BTreeMap<String, Hash>>);
    for entry in archive.entries().map_err(cut)? {
        let mut entry = entry.map_err(cut)?;
        let path = entry.path().map_err(cut)?.to_string_lossy().into_owned();
        if expected.is_some() {
            return Err(damaged(format!("{path} stands behind its end")));
        }
        if path == "hashes.json" {
            let mut text = String::new();
            entry.read_to_string(&mut text).map_err(cut)?;
            let read: Vec<Sum> =
                serde_json::from_str(&text).map_err(|error| damaged(format!("its hashes: {error}")))?;
            expected = Some(read.into_iter().map(|sum| (sum.path, sum.hash)).collect());
            continue;
        }
        let known = PARTS.iter().any(|part| path.split('/').next() == Some(part));
        if !known || !is_plain_path(&path) || !entry.header().entry_type().is_file() {
            return Err(damaged(format!("`{path}` has no place in a backup")));
        }
        let length = entry.size();
        let target = aside.join(&path);
        let (hash, found) = write(&mut entry, &target).map_err(BackupError::file("unpack", &target))?;
        if found != length {
            return Err(damaged(format!("{path} has {found} bytes of {length}")));
        }
        sums.insert(path, hash);
    }
    let Some(expected) = expected else { return Err(damaged("it was cut off: its end is missing".into())) };
    if let Some((path, _)) = sums.iter().find(|(path, hash)| expected.get(*path) != Some(*hash)) {
        return Err(damaged(format!("{path} is not what was backed up")));
    }
    if let Some((path, _)) = expected.iter().find(|(path, _)| !sums.contains_key(*path)) {
        return Err(damaged(format!("{path} is missing")));
    }
    head(from, aside)
}

fn head(from: &Path, aside: &Path) -> Result<Head, BackupError> {
    let damaged = |found: String| BackupError::Damaged { path: from.into(), found };
    for part in ["backup.json", "state.redb", "ca/ca.key", "ca/ca.pem"] {
        if !aside.join(part).exists() {
            return Err(damaged(format!("{part} is missing")));
        }
    }
    let text = std::fs::read_to_string(aside.join("backup.json")).map_err(BackupError::file("read", aside))?;
    let head: Head = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if head.format != FORMAT {
        return Err(damaged(format!("its format is {}, this program knows {FORMAT}", head.format)));
    }
    Ok(head)
}

fn write(from: &mut impl Read, target: &Path) -> io::Result<(Hash, u64)> {
    if let Some(folder) = target.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
    let (mut hasher, mut length, mut part) = (blake3::Hasher::new(), 0, vec![0; 1 << 16]);
    loop {
        let read = from.read(&mut part)?;
        if read == 0 {
            file.sync_all()?;
            return Ok((Hash(*hasher.finalize().as_bytes()), length));
        }
        hasher.update(&part[..read]);
        file.write_all(&part[..read])?;
        length += read as u64;
    }
}

/// Reads every row and raises the generation: above the backup's, and above what another restore of the same backup gave out, which is
/// why seconds are counted and not restores.
fn raise(state: &Path, head: &Head) -> Result<(u32, u64), BackupError> {
    let store = Store::open(state)?;
    let rows = store.read_all()?;
    let at = now();
    let seconds = u32::try_from(at.0 / 1_000).unwrap_or(u32::MAX);
    let generation = seconds.max(head.generation.saturating_add(1));
    store.mark_restored(generation, cluster::Restored { taken: head.taken, at })?;
    Ok((generation, rows))
}

/// Moves one file to the same place in `data`; blobs and series that are there already are newer or the same.
fn place(aside: &Path, data: &Path, file: &Path) -> Result<(), BackupError> {
    let name = file.strip_prefix(aside).unwrap_or(file);
    let target = data.join(name);
    let kept = name.starts_with("blobs") || name.starts_with("series");
    if kept && target.exists() {
        return Ok(());
    }
    let folder = target.parent().unwrap_or(data);
    make_folder(folder)?;
    std::fs::rename(file, &target).map_err(BackupError::file("move to", &target))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(BackupError::file("sync", folder))
}

fn make_folder(folder: &Path) -> Result<(), BackupError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(BackupError::file("make", folder))
}

/// What a backup says of itself, from its first entry alone.
pub fn head_of(from: &Path) -> Result<Head, BackupError> {
    let damaged = |found: String| BackupError::Damaged { path: from.into(), found };
    let file = File::open(from).map_err(BackupError::file("open", from))?;
    let mut archive = tar::Archive::new(file);
    let first = archive.entries().ok().and_then(|mut entries| entries.next()?.ok());
    let first = first.filter(|entry| entry.path().is_ok_and(|path| path == Path::new("backup.json")));
    let first = first.ok_or_else(|| damaged("it is no backup of lorikeet".into()))?;
    serde_json::from_reader(first).map_err(|error| damaged(error.to_string()))
}
