//! What a start needs once: folders, the first ADMIN, addresses, certificates. Every fault names its file or address.

use crate::{
    access::{Refusal, Role},
    blob::BlobError,
    clock::now,
    cluster::{Settings, Timers, command::Command, schedule::Rules},
    config::{self, ConfigError},
    driver::{Handle, as_system},
    guard::Guards,
    http::{self, HttpError},
    inspector::InspectError,
    link::{
        LinkError, tls,
        trust::{Authorities, Trust},
    },
    record::{Closed, Node, Token, User},
    series::{Limits, SeriesError},
    store::{Store, StoreError},
};
use lorikeet_protocol::{
    codec::CodecError,
    id::{Hash, TokenId, UnixMillis, UserId},
};
use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use uuid::Uuid;

/// How long a join string made by the coordinator itself works.
const INVITATION: Duration = Duration::from_secs(3_600);
/// Whose doing it is, in the audit record.
const HERE: &str = "this coordinator";

/// Why a coordinator did not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each wraps the error of one part")]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file or folder of the data directory.
    #[error("use {path}", path = .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A coordinator has lived here, and what it remembered is gone.
    #[error(
        "open the store {state}: {found}, though {data} holds a certificate authority. An empty store would make every agent a \
        stranger; restore a backup: `lorikeet restore --from BACKUP --data {data} --verify`, or move {data}/ca aside to begin anew",
        state = .state.display(), data = .state.parent().unwrap_or(.state).display()
    )]
    NoStore {
        /// Where it should be.
        state: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// Machines have joined an authority that is gone.
    #[error(
        "open the certificate authority {ca}: it is not whole, though the store knows {nodes} machines that trust it. A new one would \
        make each of them a stranger; bring it back from the newest backup: `tar -xf BACKUP -C {data} ca`, or move {data} aside to begin anew",
        ca = .ca.display(), data = .ca.parent().unwrap_or(.ca).display()
    )]
    NoAuthority {
        /// Where it should be.
        ca: PathBuf,
        /// How many machines would have to join again.
        nodes: usize,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error(transparent)]
    Series(#[from] SeriesError),
    #[error(transparent)]
    Inspector(#[from] InspectError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The first commands were not taken.
    #[error("make the first administrator or join secret")]
    Refused(#[from] Refusal),
    /// The system gives no random numbers.
    #[error("draw a secret: {0}")]
    Random(getrandom::Error),
    /// A join string was not made.
    #[error("make a join string")]
    JoinString(#[source] CodecError),
}

impl StartError {
    /// Whether nobody but us could put it right: not the config, not this machine's files, ports and disks.
    pub fn is_ours(&self) -> bool {
        match self {
            Self::Refused(_) | Self::JoinString(_) => true,
            Self::Config(_)
            | Self::File { .. }
            | Self::NoStore { .. }
            | Self::NoAuthority { .. }
            | Self::Store(_)
            | Self::Blobs(_)
            | Self::Series(_)
            | Self::Inspector(_)
            | Self::Link(_)
            | Self::Http(_)
            | Self::Random(_) => false,
        }
    }

    /// What would help, where it is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Http(HttpError::Bind { .. }) => {
                Some("does a coordinator run here already? `listen` in [http] of its config names another address")
            }
            Self::Link(LinkError::Bind { .. }) => {
                Some("does a coordinator run here already? `listen` in [link] of its config names another address")
            }
            Self::Store(StoreError::InUse { .. }) => {
                Some("a coordinator runs on this data directory already; `data` in the config names another")
            }
            Self::Http(_)
            | Self::Link(_)
            | Self::Store(_)
            | Self::Config(_)
            | Self::File { .. }
            | Self::NoStore { .. }
            | Self::Blobs(_)
            | Self::Series(_)
            | Self::Inspector(_)
            | Self::Refused(_)
            | Self::Random(_)
            | Self::NoAuthority { .. }
            | Self::JoinString(_) => None,
        }
    }

    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Before anything is made: whether both addresses can be had.
pub(crate) fn refuse_taken(config: &config::Config) -> Result<(), StartError> {
    let (http, link) = (config.http.listen, config.link.listen);
    TcpListener::bind(http).map_err(|source| HttpError::Bind { address: http, source })?;
    UdpSocket::bind(link).map_err(|source| LinkError::Bind { address: link, source })?;
    Ok(())
}

/// What lies where under the data directory.
pub(crate) struct Folders(PathBuf);

impl Folders {
    /// Makes the directory, readable by its owner alone, and shows that it can be written to. One that is there already and that
    /// others can read is closed to them: records, uploads and keys lie in it.
    pub(crate) fn make(data: &Path) -> Result<Self, StartError> {
        let folders = Self(data.to_owned());
        for folder in [data, &folders.0.join("keys")] {
            private_folder(folder).map_err(StartError::file(folder))?;
        }
        // Their names: a key in a folder that a crash takes away is no key.
        File::open(data).and_then(|folder| folder.sync_all()).map_err(StartError::file(data))?;
        let probe = data.join(".writable");
        File::create(&probe).and_then(|_| std::fs::remove_file(&probe)).map_err(StartError::file(data))?;
        Ok(folders)
    }

    /// Makes the authority's folder. A start that is refused for want of one leaves none behind that is in the way of bringing it back.
    pub(crate) fn make_ca(&self) -> Result<PathBuf, StartError> {
        let ca = self.ca();
        private_folder(&ca).map_err(StartError::file(&ca))?;
        File::open(&self.0).and_then(|folder| folder.sync_all()).map_err(StartError::file(&self.0))?;
        Ok(ca)
    }

    /// Of a directory that may not be there; nothing is made.
    pub(crate) fn at(data: &Path) -> Self {
        Self(data.to_owned())
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("state.redb")
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.0.join("ca")
    }

    /// The authority is made after the store, so one without the other has lost it: nothing new is made in its place.
    pub(crate) fn refuse_without_store(&self) -> Result<(), StartError> {
        let state = self.state();
        let found = match state.metadata() {
            Ok(file) if file.len() > 0 => return Ok(()),
            Ok(_) => "the file is empty",
            Err(_) => "there is none",
        };
        if self.ca().join("ca.pem").exists() { Err(StartError::NoStore { state, found }) } else { Ok(()) }
    }

    /// The other way round: what agents trust is not made anew while the store knows agents.
    pub(crate) fn refuse_without_authority(&self, store: &Store) -> Result<(), StartError> {
        let ca = self.ca();
        if ["ca.pem", "ca.key"].iter().all(|file| ca.join(file).exists()) {
            return Ok(());
        }
        let trusts = |node: &Node| !node.serials.is_empty() && node.closed != Some(Closed::Retired);
        let nodes = store.scan(&[], trusts)?.len();
        if nodes == 0 { Ok(()) } else { Err(StartError::NoAuthority { ca, nodes }) }
    }

    /// Names the machines that trust none of the authorities that are here, as the store heard them last: a folder from an older backup
    /// shuts them all out, and nothing else would say why. It may be meant, after a rotation that was forced.
    pub(crate) fn tell_strangers(store: &Store, authorities: &Authorities) -> Result<(), StartError> {
        let is_strange =
            |node: &Node| node.closed != Some(Closed::Retired) && node.is_strange_to(&authorities.hashes());
        let strangers: Vec<Node> = store.scan(&[], is_strange)?;
        for Node { id, name, .. } in &strangers {
            tracing::error!(node = %id, name, "it trusts no certificate authority that is here and cannot come back; if this \
                folder is from an older backup, bring back the newest, else have it join again");
        }
        Ok(())
    }

    pub(crate) fn key(&self, of: &str) -> PathBuf {
        self.0.join("keys").join(format!("{of}.key"))
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.0.join("blobs")
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.0.join("staging")
    }

    pub(crate) fn series(&self) -> PathBuf {
        self.0.join("series")
    }

    pub(crate) fn admin_token(&self) -> PathBuf {
        self.0.join("admin.token")
    }

    pub(crate) fn addresses(&self) -> PathBuf {
        self.0.join("addresses.json")
    }
}

fn private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mode = folder.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(folder = %folder.display(), mode = format!("{:o}", mode & 0o777), "closed to others");
        std::fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// What metrics and logs may take.
pub(crate) fn series_limits(storage: &config::Storage) -> Limits {
    Limits { keep_free: storage.keep_free, job: storage.series_limit, all: storage.series_total }
}

/// What the cluster goes by, from the config.
pub(crate) fn settings(config: &config::Config) -> Settings {
    let (timers, scheduler) = (&config.timers, &config.scheduler);
    Settings {
        timers: Timers {
            heartbeat: timers.heartbeat,
            lease: timers.lease,
            offer: timers.offer,
            back_off: timers.back_off,
            back_off_most: timers.back_off_limit,
        },
        rules: Rules {
            jobs_per_user: scheduler.jobs_per_user,
            devices_per_user: scheduler.gpus_per_user,
            preemption_margin: scheduler.preemption_margin,
            weights: scheduler.weights.clone(),
        },
        guards: Guards::default(),
        keep_audit: config.storage.keep_audit,
    }
}

/// Weights of addresses that no user has: not wrong, for users come, and not what somebody who mistyped wants.
pub(crate) async fn warn_of_strangers(driver: &Handle, config: &config::Config) -> Result<(), StartError> {
    let weights = &config.scheduler.weights;
    if weights.is_empty() {
        return Ok(());
    }
    let users = driver.read(|store: &Store| store.scan::<User>(&[], |_| true)).await?;
    for user in weights.keys().filter(|email| users.iter().all(|user| user.email != **email)) {
        tracing::warn!(user, "[scheduler.weights] names an address that no user has");
    }
    Ok(())
}

/// Makes the first ADMIN and its token, unless they are there; a start that broke off between the two is completed. A token is made
/// again when none of an ADMIN works any more, all withdrawn or run out: nobody could come in otherwise.
pub(crate) async fn first_admin(driver: &Handle, email: &str, path: &Path) -> Result<(), StartError> {
    let is_admin = |user: &User| user.role == Role::Admin;
    let read = move |store: &Store| {
        Ok((store.scan::<User>(&[], is_admin)?, store.scan::<Token>(&[], |token| token.works(now()))?))
    };
    let (admins, tokens) = driver.read(read).await?;
    let user = match admins.first() {
        Some(user) => user.id,
        None => {
            let (id, email) = (UserId(Uuid::now_v7()), email.to_lowercase());
            let command = Command::CreateUser { id, email, name: "Administrator".into(), role: Role::Admin };
            driver.command(as_system(HERE), command).await?;
            id
        }
    };
    if !tokens.iter().any(|token| admins.iter().any(|admin| admin.id == token.owner)) {
        let secret = http::new_secret().map_err(StartError::Random)?;
        // The file first: a token that is valid and known to nobody could never be used or withdrawn.
        write_private(path, &format!("{secret}\n")).map_err(StartError::file(path))?;
        let (id, hash) = (TokenId(Uuid::now_v7()), http::hash_of(&secret));
        let command = Command::CreateToken { id, user, name: "made at a start".into(), hash, expires: None };
        driver.command(as_system(HERE), command).await?;
        tracing::info!(path = %path.display(), "an administrator's token was written");
    }
    Ok(())
}

/// A fresh join secret.
pub(crate) async fn invite(driver: &Handle) -> Result<[u8; 32], StartError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(StartError::Random)?;
    let expires = UnixMillis(now().0 + INVITATION.as_millis() as u64);
    let hash = Hash(*blake3::hash(&secret).as_bytes());
    driver.command(as_system(HERE), Command::CreateJoinSecret { hash, expires }).await?;
    Ok(secret)
}

/// TLS for HTTP; none on loopback, where nobody else listens, unless the config brings a certificate.
pub(crate) fn https(config: &config::Http, trust: &Trust) -> Result<Option<rustls::ServerConfig>, StartError> {
    if let (Some(certificate), Some(key)) = (&config.certificate, &config.key) {
        return Ok(Some(tls::https_from_files(certificate, key)?));
    }
    if config.listen.ip().is_loopback() {
        return Ok(None);
    }
    let mut names = config.names.clone();
    names.extend(["localhost".into(), Ipv4Addr::LOCALHOST.to_string(), reachable(config.listen).ip().to_string()]);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // A machine may call itself something that is no DNS name.
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    names.extend(Some(host).filter(|host| !host.is_empty() && host.chars().all(is_name)));
    names.sort();
    names.dedup();
    Ok(Some(trust.https(names)?))
}

/// What join strings carry.
pub(crate) fn link_address(config: &config::Link, bound: SocketAddr) -> String {
    config.advertise.clone().unwrap_or_else(|| reachable(bound).to_string())
}

/// An address that others can dial: of a wildcard, the one this machine would speak from.
pub(crate) fn reachable(bound: SocketAddr) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    // Connecting a UDP socket sends nothing; it only asks the routing table. The target is an address for documentation.
    let outward = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).and_then(|()| socket.local_addr()));
    let ip = outward.map(|address| address.ip()).ok().filter(|ip| !ip.is_unspecified());
    SocketAddr::new(ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), bound.port())
}

/// Tells who waits for it that both addresses answer.
pub(crate) fn announce(path: &Path, http: &str, link: &str) -> Result<(), StartError> {
    let text = serde_json::json!({ "http": http, "link": link }).to_string();
    let aside = path.with_extension("aside");
    let written = std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, path));
    written.map_err(StartError::file(path))
}

/// A secret that is never half there and never readable by others.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let aside = path.with_extension("aside");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
