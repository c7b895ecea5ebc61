//! The host's records on disk: one JSON file per attempt, and one that names the devices that are out; replaced whole.

use crate::{
    beneath,
    disk::{self, Access, At, DiskError},
    host::{Reasons, Record},
};
use lorikeet_protocol::id::AttemptId;
use std::path::{Path, PathBuf};

/// No record of an attempt: those end in `.json`.
const QUARANTINE: &str = "devices.out";

/// The folder of records.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    folder: PathBuf,
}

impl Records {
    /// Makes the folder.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, DiskError> {
        disk::create_folder(&folder)?;
        Ok(Self { folder })
    }

    /// Every record that can be read. One that cannot is set aside and named: an attempt without a record is unknown here, its worker
    /// is ended ([`stray`](crate::supervisor::stray)), and the coordinator learns it from the next hello.
    pub(crate) fn load(&self) -> Result<Vec<Record>, DiskError> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.folder).at("list", &self.folder)? {
            let path = entry.at("list", &self.folder)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let name = Path::new(path.file_name().unwrap_or_default());
            let read =
                beneath::read(&self.folder, name).and_then(|bytes| Ok(serde_json::from_slice::<Record>(&bytes)?));
            match read {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the record of an attempt cannot be read and is set aside; its worker is stopped if it runs");
                    std::fs::rename(&path, path.with_extension("unreadable")).at("set aside", &path)?;
                }
            }
        }
        Ok(records)
    }

    /// Makes a record last.
    pub(crate) fn keep(&self, record: &Record) -> Result<(), DiskError> {
        let json = serde_json::to_vec(record).expect("a record has string keys only");
        disk::replace(&self.path(record.id()), &json, Access::Plain)
    }

    /// Devices that an earlier agent had taken out. A file that cannot be read took none out.
    pub(crate) fn quarantine(&self) -> Reasons {
        let bytes = beneath::read(&self.folder, Path::new(QUARANTINE)).unwrap_or_default();
        let known = |error| tracing::warn!(%error, "which devices were out cannot be read");
        if bytes.is_empty() {
            Reasons::new()
        } else {
            serde_json::from_slice(&bytes).map_err(known).unwrap_or_default()
        }
    }

    /// Makes it last which devices are out.
    pub(crate) fn keep_quarantine(&self, reasons: &Reasons) -> Result<(), DiskError> {
        let json = serde_json::to_vec(reasons).expect("a map of strings");
        disk::replace(&self.folder.join(QUARANTINE), &json, Access::Plain)
    }

    /// The attempt is forgotten.
    pub(crate) fn remove(&self, id: AttemptId) -> Result<(), DiskError> {
        disk::remove_file(&self.path(id))?;
        disk::sync_parent(&self.path(id))
    }

    fn path(&self, id: AttemptId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_cannot_be_read_is_set_aside_whatever_stands_in_its_way() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.json"), "{").unwrap();
        std::fs::create_dir(folder.path().join("b.json")).unwrap();
        std::os::unix::fs::symlink("/nowhere", folder.path().join("c.json")).unwrap();
        let records = Records::open(folder.path().to_owned()).unwrap();
        assert_eq!(records.load().unwrap(), []);
        for name in ["a", "b", "c"] {
            assert!(folder.path().join(name).with_extension("unreadable").symlink_metadata().is_ok(), "{name}");
        }
    }
}
