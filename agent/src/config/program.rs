//! Programs that the config names: whether this machine can start them, which is asked before it offers anything.

use super::{Config, ConfigError, check::refuse_unless};
use lorikeet_protocol::settings::Fault;
use rustix::fs::{Access, access};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

impl Config {
    /// Whether every program is there. It is not a part of [`check`](Self::check): a machine may join before they are installed.
    pub(crate) fn check_programs(&self) -> Result<(), ConfigError> {
        let faults = self.program_faults();
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::Values(faults)) }
    }

    /// Every program that cannot be started.
    pub(crate) fn program_faults(&self) -> Vec<Fault> {
        let burn_in = self.devices.burn_in.iter().flatten().next();
        let named = [("worker.command", self.worker.command.first()), ("devices.burn_in", burn_in)];
        named.into_iter().filter_map(|(key, program)| self.fault_of(key, program?)).collect()
    }

    fn fault_of(&self, key: &str, program: &str) -> Option<Fault> {
        let path = Path::new(program);
        // A worker starts in its attempt directory, a test in the agent's: what is relative would be found by one and not by the other.
        let is_bare = path.components().count() == 1 && !path.has_root() && !program.contains('/');
        let expected = "an absolute path of a program, or the name of one in PATH";
        if !path.is_absolute() && !is_bare {
            return refuse_unless(false, key, expected, &format!("`{program}`"));
        }
        let places = if is_bare { self.in_path(program) } else { vec![path.to_owned()] };
        let found = if places.iter().any(|place| may_be_started(place)) {
            return None;
        } else if is_bare {
            format!("`{program}`, which no folder of PATH has")
        } else if path.is_file() {
            format!("{program}, which may not be executed by the agent's user")
        } else {
            format!("{program}, where there is no file")
        };
        refuse_unless(false, key, expected, &found)
    }

    /// Where a worker's environment has it.
    fn in_path(&self, name: &str) -> Vec<PathBuf> {
        let path = self.worker.env.get("PATH").map(OsString::from).or_else(|| std::env::var_os("PATH"));
        // Without one the C library looks there.
        let path = path.unwrap_or_else(|| "/bin:/usr/bin".into());
        std::env::split_paths(&path).map(|folder| folder.join(name)).collect()
    }
}

fn may_be_started(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Worker;

    #[test]
    fn a_program_that_cannot_be_started_is_named_with_what_would_do() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "no program").unwrap();
        let plain = plain.to_str().unwrap();
        for (program, found) in [
            ("/nowhere/train", "/nowhere/train, where there is no file"),
            (folder.path().to_str().unwrap(), "where there is no file"),
            (plain, "which may not be executed"),
            ("bin/train", "found `bin/train`"),
            ("./train", "found `./train`"),
            ("no-such-program-anywhere", "which no folder of PATH has"),
            ("", "found ``"),
        ] {
            let error = worker(program).check_programs().unwrap_err().to_string();
            assert!(error.contains("worker.command: must be an absolute path"), "{program}: {error}");
            assert!(error.contains(found), "{program}: {error}");
            let mut config = Config::default();
            config.devices.burn_in = Some(vec![program.into(), "-x".into()]);
            let error = config.check_programs().unwrap_err().to_string();
            assert!(error.contains("devices.burn_in: ") && error.contains(found), "{program}: {error}");
        }
    }

    #[test]
    fn a_program_is_looked_for_where_a_worker_finds_it() {
        Config::default().check_programs().unwrap();
        worker("sh").check_programs().unwrap();
        worker("/bin/sh").check_programs().unwrap();
        let mut config = worker("sh");
        config.worker.env.insert("PATH".into(), "/nowhere".into());
        config.check_programs().unwrap_err();
    }

    fn worker(program: &str) -> Config {
        Config { worker: Worker { command: vec![program.into()], ..Worker::default() }, ..Config::default() }
    }
}
