//! What is wrong with this machine as a coordinator, and what to do: looked at from outside, whether one runs here or not. Nothing is
//! changed by looking.

use crate::{
    clock::now,
    config::{Config, Inspect},
    inspector,
    link::trust::Authorities,
    space::free_bytes,
    start::Folders,
    store::{Store, StoreError},
};
use lorikeet_protocol::{chain, health::Finding, id::UnixMillis};
use std::{
    io,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

/// A clock that is behind the newest file by more than this was set back.
const BEHIND: Duration = Duration::from_secs(60);

/// Days before the end of a CA from which on that is said: a machine may be off for months, and has to be here once before.
const NEAR_ITS_END: u64 = 365;

/// Looks at everything that the config names.
pub async fn look(config: &Config) -> Vec<Finding> {
    let folders = Folders::at(&config.data);
    let (store, runs) = store(&folders);
    let mut found = vec![data(&config.data), store, authority(&folders), disk(config), clock(&folders)];
    found.extend(config.base_roots.iter().map(|root| base_root(root)));
    if let Some(program) = &config.inspect.program {
        found.push(inspect_program(program, &config.inspect).await);
    }
    found.push(port("http.listen", runs, TcpListener::bind(config.http.listen).map(drop), config.http.listen));
    found.push(port("link.listen", runs, UdpSocket::bind(config.link.listen).map(drop), config.link.listen));
    found
}

fn data(data: &Path) -> Finding {
    let what = "data directory";
    let mode = match data.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::warning(what, format!("{} is not there", data.display()), "the first start makes it");
        }
        Err(error) => {
            return Finding::bad(what, format!("{}: {error}", data.display()), "run this as the coordinator's user");
        }
        Ok(folder) => folder.permissions().mode() & 0o777,
    };
    let writable = rustix::fs::access(data, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    if let Err(error) = writable {
        let advice = "run the coordinator, and this, as the user that owns it";
        return Finding::bad(what, format!("{} cannot be written to: {error}", data.display()), advice);
    }
    if mode & 0o077 != 0 {
        let found = format!("{} is open to others (mode {mode:o})", data.display());
        return Finding::warning(what, found, "keys lie in it; the next start closes it, or `chmod 700`");
    }
    Finding::ok(what, format!("{}, closed to others", data.display()))
}

/// And whether a coordinator runs on it.
fn store(folders: &Folders) -> (Finding, bool) {
    let (what, path) = ("store", folders.state());
    if let Err(error) = folders.refuse_without_store() {
        return (Finding::bad(what, chain(&error), "restore the newest backup"), false);
    }
    if !path.exists() {
        return (Finding::warning(what, "there is none yet", "the first start makes it"), false);
    }
    match Store::look(&path) {
        Ok(facts) => {
            let found = format!("sound; layout {}, generation {}", facts.schema, facts.generation);
            (Finding::ok(what, found), false)
        }
        Err(StoreError::InUse { .. }) => (Finding::ok(what, "a coordinator runs on it"), true),
        Err(error @ StoreError::Damaged { .. }) => (Finding::bad(what, "it is damaged", chain(&error)), false),
        Err(error) => (Finding::bad(what, chain(&error), "run this as the coordinator's user"), false),
    }
}

fn authority(folders: &Folders) -> Finding {
    let what = "certificate authority";
    if !folders.ca().join("ca.pem").exists() && folders.state().exists() {
        return Finding::bad(
            what,
            "there is none, beside a store that may know machines",
            "bring ca/ back from the newest backup",
        );
    }
    if !folders.ca().join("ca.pem").exists() {
        return Finding::warning(what, "there is none yet", "the first start makes it");
    }
    for key in ["ca.key", "next.key"].map(|name| folders.ca().join(name)) {
        let mode = key.metadata().map_or(0, |key| key.permissions().mode() & 0o777);
        if mode & 0o077 != 0 {
            return Finding::bad(what, format!("{} is open to others (mode {mode:o})", key.display()), "chmod 600 it");
        }
    }
    match Authorities::read(&folders.ca()) {
        Ok(authorities) => standing(what, &authorities),
        Err(error) => Finding::bad(what, chain(&error), "restore ca/ from the newest backup"),
    }
}

fn standing(what: &str, authorities: &Authorities) -> Finding {
    let issuing = authorities.issuing();
    let days = issuing.ends().saturating_sub(Duration::from_millis(now().0)).as_secs() / 86_400;
    let hash = issuing.hash();
    let found = match authorities.next() {
        Some(_) => format!("{hash} follows {}: a rotation is under way", authorities.current().hash()),
        None => format!("its hash is {hash}, for {days} more days"),
    };
    if days < NEAR_ITS_END {
        return Finding::warning(
            what,
            found,
            format!("it ends in {days} days: `lorikeet ca rotate` makes the next one"),
        );
    }
    Finding::ok(what, found)
}

fn disk(config: &Config) -> Finding {
    let (what, keep) = ("disk", config.storage.keep_free);
    let folder = config.data.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let show = |bytes: u64| bytesize::ByteSize(bytes).to_string();
    match free_bytes(folder) {
        Err(error) => Finding::bad(what, format!("{}: {error}", folder.display()), "mount it"),
        Ok(free) if free < keep => Finding::bad(
            what,
            format!("{} free, storage.keep_free is {}", show(free), show(keep)),
            "new work is refused (507): make room or lower storage.keep_free",
        ),
        Ok(free) if free < keep.saturating_mul(2) => {
            Finding::warning(what, format!("{} free", show(free)), "make room before it is full")
        }
        Ok(free) => Finding::ok(what, format!("{} free", show(free))),
    }
}

/// Files of ours that were written in the future tell that the clock was set back; leases do not mind, certificates do.
fn clock(folders: &Folders) -> Finding {
    let written = [folders.state(), folders.addresses()]
        .iter()
        .filter_map(|path| path.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok())
        .max()
        .unwrap_or_default();
    let UnixMillis(millis) = now();
    let wall = Duration::from_millis(millis);
    let newest = lorikeet_api::Timestamp(UnixMillis(written.as_millis() as u64));
    if written > wall + BEHIND {
        return Finding::bad(
            "clock",
            format!("it is behind what was written at {newest}"),
            "set it; run a time service",
        );
    }
    Finding::ok("clock", lorikeet_api::Timestamp(now()))
}

fn base_root(root: &Path) -> Finding {
    let what = "base_roots";
    match std::fs::read_dir(root) {
        Ok(entries) => match entries.count() {
            1 => Finding::ok(what, format!("{} holds 1 entry", root.display())),
            many => Finding::ok(what, format!("{} holds {many} entries", root.display())),
        },
        Err(error) => Finding::warning(
            what,
            format!("{}: {error}", root.display()),
            "make it readable for the coordinator's user, or take it out of the config",
        ),
    }
}

async fn inspect_program(program: &Path, config: &Inspect) -> Finding {
    let what = "inspect.program";
    match inspector::program::check(config).await {
        Ok(()) => Finding::ok(what, program.display()),
        Err(fault) => Finding::bad(what, fault, "name the `lorikeet` binary, or leave the key out"),
    }
}

fn port(what: &str, runs: bool, bound: io::Result<()>, address: impl std::fmt::Display) -> Finding {
    match bound {
        Ok(()) if runs => Finding::bad(
            what,
            format!("a coordinator runs, and nobody listens on {address}"),
            "compare with its config: it was started with another",
        ),
        Ok(()) => Finding::ok(what, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && runs => {
            Finding::ok(what, format!("{address} answers"))
        }
        Err(error) => Finding::bad(what, format!("{address}: {error}"), "name another address, or stop who has it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::health::State;
    use std::{fs::File, net::Ipv4Addr};

    fn config(data: &Path) -> Config {
        let mut config = Config { data: data.into(), base_roots: vec![data.join("bases")], ..Config::default() };
        config.http.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.link.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.storage.keep_free = 1;
        config
    }

    fn of(found: &[Finding], what: &str) -> Finding {
        found.iter().find(|finding| finding.what == what).unwrap().clone()
    }

    #[tokio::test]
    async fn a_machine_that_is_fit_has_nothing_bad_and_looking_makes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let found = look(&config(&data)).await;
        assert!(found.iter().all(|finding| finding.state < State::Bad), "{found:#?}");
        assert!(!data.exists());
    }

    #[tokio::test]
    async fn an_authority_that_nears_its_end_is_told_a_year_ahead_and_so_is_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let ca = folder.path().join("ca");
        std::fs::create_dir(&ca).unwrap();
        for (days, state) in [(300, State::Warning), (400, State::Ok)] {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days) + time::Duration::HOUR;
            std::fs::write(ca.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
            std::fs::write(ca.join("ca.key"), key.serialize_pem()).unwrap();
            std::fs::set_permissions(ca.join("ca.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
            let finding = of(&look(&config).await, "certificate authority");
            assert_eq!(finding.state, state, "{finding:#?}");
            assert!(finding.found.contains(&format!("for {days} more days")), "{finding:#?}");
            let advice = finding.advice.is_some_and(|advice| advice.contains("`lorikeet ca rotate`"));
            assert_eq!(advice, state == State::Warning);
        }
        crate::link::trust::Trust::open(&ca).unwrap().begin().unwrap();
        let finding = of(&look(&config).await, "certificate authority");
        assert!(finding.state == State::Ok && finding.found.contains("a rotation is under way"), "{finding:#?}");
        std::fs::set_permissions(ca.join("next.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
        let finding = of(&look(&config).await, "certificate authority");
        assert!(finding.state == State::Bad && finding.found.contains("next.key is open to others"), "{finding:#?}");
    }

    #[tokio::test]
    async fn a_missing_authority_beside_a_store_is_no_new_installation() {
        let folder = tempfile::tempdir().unwrap();
        drop(crate::store::Store::open(&folder.path().join("state.redb")).unwrap());
        let finding = of(&look(&config(folder.path())).await, "certificate authority");
        assert!(finding.state == State::Bad && finding.found.contains("beside a store"), "{finding:#?}");
    }

    #[tokio::test]
    async fn everything_that_is_wrong_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o755)).unwrap();
        crate::link::tls::Authority::open(&data.join("ca")).unwrap();
        std::fs::set_permissions(data.join("ca/ca.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut config = config(data);
        config.http.listen = taken.local_addr().unwrap();
        config.storage.keep_free = u64::MAX;
        config.inspect.program = Some(data.join("lorikeet"));
        let found = look(&config).await;
        for (what, words) in [
            ("store", "certificate authority"),
            ("certificate authority", "open to others"),
            ("disk", "storage.keep_free"),
            ("http.listen", "in use"),
            ("inspect.program", "No such file"),
        ] {
            let finding = of(&found, what);
            assert!(finding.state == State::Bad && finding.advice.is_some(), "{finding:#?}");
            assert!(finding.found.contains(words), "{finding:#?}");
        }
        assert_eq!(of(&found, "data directory").state, State::Warning);
        // A file of tomorrow.
        let store = Store::open(&data.join("state.redb")).unwrap();
        assert_eq!(of(&look(&config).await, "store").found, "a coordinator runs on it");
        drop(store);
        let tomorrow = std::time::SystemTime::now() + Duration::from_secs(86_400);
        File::options().append(true).open(data.join("state.redb")).unwrap().set_modified(tomorrow).unwrap();
        assert_eq!(of(&look(&config).await, "clock").state, State::Bad);
        std::fs::write(data.join("state.redb"), [1; 9_000]).unwrap();
        assert!(of(&look(&config).await, "store").advice.unwrap().contains("lorikeet restore"));
    }
}
