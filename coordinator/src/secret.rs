//! Keys of 32 random bytes, each in a file of its own: made at the first start, whole and synced before it is used, 0600.

use std::{fs::File, io, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

/// Reads the key, or makes it. A file of another length is an error of the kind `InvalidData`.
pub(crate) fn open(path: &Path) -> io::Result<[u8; 32]> {
    match std::fs::read(path) {
        Ok(bytes) => bytes.try_into().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a key has 32 bytes")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path),
        Err(error) => Err(error),
    }
}

fn make(path: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let aside = path.with_extension("aside");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(&key)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_another_length_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("share.key");
        let key = open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(open(&path).unwrap(), key);
        assert_ne!(open(&folder.path().join("another.key")).unwrap(), key);
        std::fs::write(&path, [1; 31]).unwrap();
        assert_eq!(open(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(std::fs::read(&path).unwrap().len(), 31, "what is there is not made anew");
    }
}
