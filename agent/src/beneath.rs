//! Opening what a worker wrote, without being led anywhere by it: below its own directory, over no symbolic link, and nothing but a regular
//! file. A worker may be anybody's program, and what an agent opens by a name it reads, cuts or uploads in the agent's own name.

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, open, openat, openat2},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

/// One word of a worker is no longer: its manifest, or who it is.
const WORD_BYTES: u64 = 16 << 20;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    Reading,
    /// Reading, and writing at its end.
    Appending,
    /// A lock: made where it is not there.
    Locking,
}

impl For {
    fn flags(self) -> OFlags {
        // A pipe in a file's place is not waited for.
        let all = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        all | match self {
            Self::Reading => OFlags::RDONLY,
            Self::Appending => OFlags::RDWR | OFlags::APPEND,
            Self::Locking => OFlags::WRONLY | OFlags::CREATE,
        }
    }
}

/// Opens a regular file by its path relative to `directory`.
pub(crate) fn open_file(directory: &Path, path: &Path, purpose: For) -> io::Result<File> {
    let root = open(directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = purpose.flags();
    let opened = match in_one(&root, path, flags) {
        // Linux before 5.6, or a filter of system calls that does not know it.
        Err(Errno::NOSYS | Errno::PERM) => step_by_step(root, path, flags),
        opened => opened,
    };
    let file = File::from(opened.map_err(|errno| named(errno, path))?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok(file)
}

/// All of a short file.
pub(crate) fn read(directory: &Path, path: &Path) -> io::Result<Vec<u8>> {
    let (file, mut bytes) = (open_file(directory, path, For::Reading)?, Vec::new());
    if file.take(WORD_BYTES + 1).read_to_end(&mut bytes)? as u64 > WORD_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is far too long"));
    }
    Ok(bytes)
}

/// Who can make a lock may read it.
fn mode(flags: OFlags) -> Mode {
    if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o644) } else { Mode::empty() }
}

fn in_one(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat2(root, path, flags, mode(flags), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn step_by_step(mut at: OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        // Only these lead nowhere else.
        let Component::Normal(name) = part else { return Err(Errno::XDEV) };
        let flags = if parts.peek().is_some() { OFlags::DIRECTORY | OFlags::CLOEXEC } else { flags };
        at = openat(at.as_fd(), name, flags | OFlags::NOFOLLOW, mode(flags))?;
    }
    Ok(at)
}

/// The system says of a link in the way that there are too many, or, where a folder was asked for, that it is none.
fn named(errno: Errno, path: &Path) -> io::Error {
    match errno {
        Errno::LOOP | Errno::NOTDIR => io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "there is a symbolic link in {}, where no link is followed, or a file in a folder's place",
                path.display()
            ),
        ),
        Errno::XDEV => {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{} leads out of its directory", path.display()))
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    type Opener = fn(&Path, &Path) -> Result<OwnedFd, Errno>;

    /// As the kernel does it, and as we do it where it does not.
    const WAYS: [Opener; 2] = [
        |root, path| in_one(&open(root, OFlags::DIRECTORY, Mode::empty())?, path, For::Reading.flags()),
        |root, path| step_by_step(open(root, OFlags::DIRECTORY, Mode::empty())?, path, For::Reading.flags()),
    ];

    #[test]
    fn what_lies_below_is_opened_and_no_link_leads_elsewhere_whoever_walks() {
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(elsewhere.path().join("secret"), "s").unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b/file"), "mine").unwrap();
        symlink(elsewhere.path(), folder.path().join("link")).unwrap();
        symlink(elsewhere.path().join("secret"), folder.path().join("a/secret")).unwrap();
        symlink("b/file", folder.path().join("a/near")).unwrap();
        for way in WAYS {
            let opens = |path: &str| way(folder.path(), Path::new(path)).map(drop);
            assert_eq!(opens("a/b/file"), Ok(()));
            for led_away in ["link/secret", "a/secret", "a/near", "../x", "a/../../x", "/etc/passwd"] {
                let error = named(opens(led_away).unwrap_err(), Path::new(led_away));
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{led_away}: {error}");
            }
            assert_eq!(opens("a/none"), Err(Errno::NOENT));
        }
        assert_eq!(read(folder.path(), Path::new("a/b/file")).unwrap(), b"mine");
        let error = read(folder.path(), Path::new("a/secret")).unwrap_err().to_string();
        assert!(error.contains("symbolic link in a/secret"), "{error}");
    }

    #[test]
    fn a_pipe_or_a_folder_in_a_files_place_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("events.jsonl");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        for name in ["events.jsonl", "folder"] {
            let error = open_file(folder.path(), Path::new(name), For::Reading).unwrap_err().to_string();
            assert!(error.contains("no regular file"), "{name}: {error}");
        }
    }

    #[test]
    fn a_lock_is_made_where_there_is_none() {
        let folder = tempfile::tempdir().unwrap();
        open_file(folder.path(), Path::new("lock"), For::Locking).unwrap().try_lock().unwrap();
        symlink("elsewhere", folder.path().join("other")).unwrap();
        assert!(open_file(folder.path(), Path::new("other"), For::Locking).is_err());
        assert!(!folder.path().join("elsewhere").exists());
    }
}
