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

/// Bytes that the cache should give back, so that work goes on: the limit is met twice before it is met.
pub(crate) fn short(places: &Places) -> u64 {
    let Ok(disk) = statvfs(places.cache()) else { return 0 };
    let (free, size) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
    (2 * limit(size)).saturating_sub(free)
}

fn limit(size: u64) -> u64 {
    (size / SHARE).clamp(LEAST, MOST)
}

/// Why a folder's disk takes nothing more.
pub(crate) fn trouble(folder: &Path) -> Option<String> {
    let disk = match statvfs(folder) {
        Ok(disk) => disk,
        Err(Errno::NOENT) => return Some("the agent's data directory is gone".into()),
        Err(error) => return Some(format!("the agent's disk cannot be used: {error}")),
    };
    let (free, size) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
    (free < limit(size)).then(|| "the agent's disk is full".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_gone_and_a_disk_that_is_full_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(trouble(&folder.path().join("none")).as_deref(), Some("the agent's data directory is gone"));
        // A file system without a single block.
        assert_eq!(trouble(Path::new("/proc")).as_deref(), Some("the agent's disk is full"));
    }
}
