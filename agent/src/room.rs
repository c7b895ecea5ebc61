//! Whether the disk still takes what the agent must write before it may say or start anything. Where it does not, its devices are
//! reported as unusable, so that nothing is placed here.

use crate::places::Places;
use lorikeet_protocol::job::Device;
use rustix::{fs::statvfs, io::Errno};
use std::path::Path;

/// Of the disk, that must be free; between the two below.
const SHARE: u64 = 100;
/// Reports and records of many attempts.
const LEAST: u64 = 256 << 10;
/// On a large disk.
const MOST: u64 = 256 << 20;

/// Says of usable devices why nothing can be run on them all the same.
pub(crate) fn judge(devices: &mut [Device], places: &Places) {
    let trouble = [places.outbox(), places.records()].iter().find_map(|folder| trouble(folder));
    if let Some(trouble) = trouble {
        devices
            .iter_mut()
            .filter(|device| device.usable.is_ok())
            .for_each(|device| device.usable = Err(trouble.clone()));
    }
}

/// Bytes that the cache should give back, so that work goes on: the limit is met twice before it is met, or so many are free.
pub(crate) fn short(places: &Places, wanted: u64) -> u64 {
    free_and_size(&places.cache()).map_or(0, |(free, size)| (2 * limit(size)).max(wanted).saturating_sub(free))
}

/// Bytes to have free for work, since some found the disk full: what it lacked nobody knows, and fourfold is soon enough.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) bytes: u64,
    /// Whether they were asked for since the last look: many that find one disk full at once lack no more than one does.
    is_new: bool,
}

impl Wanted {
    pub(crate) fn found_full(&mut self, places: &Places) {
        if !std::mem::replace(&mut self.is_new, true) {
            let (_, size) = free_and_size(&places.cache()).unwrap_or_default();
            self.bytes = (2 * limit(size)).max(self.bytes).saturating_mul(4).min(size);
        }
    }

    pub(crate) fn looked(&mut self) {
        self.is_new = false;
    }
}

/// Bytes that a folder's disk still takes; none where it cannot be asked.
pub(crate) fn free(folder: &Path) -> u64 {
    free_and_size(folder).map_or(0, |(free, _)| free)
}

fn free_and_size(folder: &Path) -> Result<(u64, u64), Errno> {
    let disk = statvfs(folder)?;
    Ok((disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize))
}

fn limit(size: u64) -> u64 {
    (size / SHARE).clamp(LEAST, MOST)
}

/// Why a folder's disk takes nothing more.
pub(crate) fn trouble(folder: &Path) -> Option<String> {
    let (free, size) = match free_and_size(folder) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Some("the agent's data directory is gone".into()),
        Err(error) => return Some(format!("the agent's disk cannot be used: {error}")),
    };
    (free < limit(size)).then(|| "the agent's disk is full".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_was_too_full_is_to_have_fourfold_free_once_for_all_who_found_it_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = Places::new(folder.path());
        std::fs::create_dir_all(places.cache()).expect("made");
        let (_, size) = free_and_size(&places.cache()).expect("a disk");
        let mut wanted = Wanted::default();
        let mut found_full = |times: u32| {
            (0..times).for_each(|_| wanted.found_full(&places));
            wanted.looked();
            wanted.bytes
        };
        let first = (8 * limit(size)).min(size);
        assert_eq!([found_full(8), found_full(1)], [first, (4 * first).min(size)]);
    }

    #[test]
    fn a_folder_that_is_gone_and_a_disk_that_is_full_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(trouble(&folder.path().join("none")).as_deref(), Some("the agent's data directory is gone"));
        // A file system without a single block.
        assert_eq!(trouble(Path::new("/proc")).as_deref(), Some("the agent's disk is full"));
    }
}
