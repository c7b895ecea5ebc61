//! Whom to talk to: flags, then the environment, then the profile that `lorikeet login` wrote.
//!
//! Token and certificate authority of a profile belong to its server: with another `--server` neither is used.

use crate::{args::Global, failure::Failure, file};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// A profile has a server, a token and a certificate authority.
const MAX_BYTES: u64 = 1 << 20;

const NAME_A_SERVER: &str = "give --server URL or LORIKEET_SERVER, or run `lorikeet login`; `lorikeet demo` needs none";

/// A profile file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// The coordinator's URL.
    pub(crate) server: String,
    /// The bearer token.
    pub(crate) token: Option<String>,
    /// The pinned certificate authority, PEM.
    pub(crate) ca: Option<String>,
}

/// A server and what to show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    /// The coordinator's URL, without a slash at its end.
    pub(crate) server: String,
    /// The bearer token.
    pub(crate) token: Option<String>,
    /// The pinned certificate authority, PEM.
    pub(crate) ca: Option<String>,
}

impl Connection {
    /// From all three sources.
    pub(crate) fn find(global: &Global) -> Result<Self, Failure> {
        let path = path(global);
        let profile = path.as_deref().map(Profile::read).transpose()?.flatten();
        if let (None, None, Some(named)) = (&profile, &global.server, &global.profile) {
            let message = format!("no server is named, and there is no profile {}", named.display());
            return Err(Failure::mistake(message).hint(NAME_A_SERVER));
        }
        Self::merge(global, profile)
    }

    fn merge(global: &Global, profile: Option<Profile>) -> Result<Self, Failure> {
        let server = global.server.as_deref().map(plain);
        let profile = profile.filter(|profile| server.is_none_or(|server| server == plain(&profile.server)));
        let server = server
            .or(profile.as_ref().map(|profile| plain(&profile.server)))
            .ok_or_else(|| Failure::mistake("no server is named").hint(NAME_A_SERVER))?;
        let (token, ca) = profile.as_ref().map_or((None, None), |known| (known.token.clone(), known.ca.clone()));
        let token = global.token.clone().or(token);
        if token.as_ref().is_some_and(|token| token.contains(|c: char| c.is_control() || c.is_whitespace())) {
            return Err(Failure::mistake("what was given as a token is none: it has blanks or line ends in it"));
        }
        Ok(Self { server: server.to_owned(), token, ca })
    }
}

/// Flags, and where one is missing its variable.
pub(crate) fn with_environment(flags: Global) -> Global {
    let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Global {
        server: flags.server.or_else(|| text("LORIKEET_SERVER")),
        token: flags.token.or_else(|| text("LORIKEET_TOKEN")),
        profile: flags.profile.or_else(|| text("LORIKEET_PROFILE").map(PathBuf::from)),
        output: flags.output,
    }
}

impl Profile {
    /// `None` when there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, Failure> {
        if fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return Ok(None);
        }
        let text = file::text("read the profile", path, MAX_BYTES)?;
        let profile = toml::from_str(&text);
        profile
            .map(Some)
            .map_err(|error| Failure::mistake(format!("read the profile {}: {}", path.display(), error.message())))
    }

    /// Written aside and renamed, readable by its owner alone: there is a token in it.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self).map_err(Failure::bug)?;
        let write = || {
            let folder = path.parent().unwrap_or(Path::new("."));
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            // a name of its own, which two commands that write at once do not share
            let mut aside = tempfile::NamedTempFile::new_in(folder)?;
            aside.write_all(text.as_bytes())?;
            aside.as_file().sync_all()?;
            aside.persist(path).map(drop).map_err(|error| error.error)
        };
        write().map_err(|error| Failure::file("write the profile", path, &error))
    }
}

/// Where the profile is; `None` on a machine without a home.
pub(crate) fn path(global: &Global) -> Option<PathBuf> {
    let config = || {
        let config = std::env::var_os("XDG_CONFIG_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
        config.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))
    };
    global.profile.clone().or_else(|| Some(config()?.join("lorikeet/profile.toml")))
}

/// A URL as it is compared and extended.
pub(crate) fn plain(server: &str) -> &str {
    server.trim().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Form;
    use std::os::{fd::AsRawFd, unix::fs::PermissionsExt};

    #[test]
    fn a_pipe_that_somebody_writes_is_read_to_its_end() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let path = PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd()));
        let profile = std::thread::scope(|scope| {
            scope.spawn(move || writer.write_all(b"server = \"https://a\"").unwrap());
            Profile::read(&path).unwrap().unwrap()
        });
        assert_eq!(profile.server, "https://a");
        assert!(Profile::read(&path).is_err(), "it has ended");
    }

    #[test]
    fn a_pipe_in_a_profiles_place_is_named_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.toml");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let refused = Profile::read(&path).unwrap_err();
        assert_eq!(refused.message, format!("read the profile {}: it is a pipe that nobody writes", path.display()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Profile::read(&path).unwrap(), None);
    }

    #[test]
    fn a_token_never_goes_to_another_server_than_its_own() {
        let known = Profile { server: "https://a:1/".into(), token: Some("secret".into()), ca: Some("pem".into()) };
        let merged = |server, token| Connection::merge(&global(server, token), Some(known.clone())).unwrap();
        assert_eq!(merged(None, None).token.as_deref(), Some("secret"));
        assert_eq!(merged(Some("https://a:1"), None).ca.as_deref(), Some("pem"));
        assert_eq!(merged(Some("https://b:1"), None).token, None);
        assert_eq!(merged(Some("https://b:1"), None).ca, None);
        assert_eq!(merged(None, Some("other")).token.as_deref(), Some("other"));
        assert!(Connection::merge(&global(None, None), None).is_err());
    }

    #[test]
    fn a_profile_that_is_named_and_not_there_is_told_of_where_it_would_be_needed() {
        let folder = tempfile::tempdir().unwrap();
        let named = |server| Global { profile: Some(folder.path().join("none.toml")), ..global(server, None) };
        let failure = Connection::find(&named(None)).unwrap_err();
        assert!(failure.message.contains("there is no profile") && failure.message.ends_with("none.toml"));
        assert_eq!(Connection::find(&named(Some("https://a"))).unwrap().server, "https://a");
    }

    #[test]
    fn a_profile_is_read_as_written_and_by_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/profile.toml");
        assert_eq!(Profile::read(&path).unwrap(), None);
        let profile = Profile { server: "https://a".into(), token: Some("t".into()), ca: Some("line\nline".into()) };
        profile.write(&path).unwrap();
        assert_eq!(Profile::read(&path).unwrap(), Some(profile));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "server = 3").unwrap();
        assert_eq!(Profile::read(&path).unwrap_err().kind.exit_code(), 2);
    }

    fn global(server: Option<&str>, token: Option<&str>) -> Global {
        let (server, token) = (server.map(Into::into), token.map(Into::into));
        Global { server, token, profile: None, output: Form::Table }
    }
}
