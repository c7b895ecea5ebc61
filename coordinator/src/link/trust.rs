//! The CAs of the moment: the one in force and, while a rotation lasts, the one that follows it.
//!
//! ```text
//!             begin                                    finish
//! settled ────────────► overlap ─────────────────────────────────► settled
//!    ca                 ca, next: both are trusted, next signs      ca (was next); former.pem says which ones it followed
//!
//! begin    next.key, next.pem                    cut off before next.pem: nothing has begun
//! finish   former.pem, next.key ► ca.key, next.pem ► ca.pem        cut off before the last: next.pem without its key; it is finished
//! ```
//!
//! The files are the state: each is whole, synced and under its name before anybody is told. Whoever trusts only the older CA follows it to what
//! the next one has signed, because the older one vouches for the key of the next in the chain that the coordinator shows
//! (`docs/design/0013`). [`Trust`] is a cheap handle; [`Authorities`] never change, they are replaced.

mod shown;

use super::{
    LinkError,
    tls::{self, Authority, Issued, NodeVerifier, Untimely},
};
use lorikeet_protocol::{
    ALPN_BLOB, ALPN_BLOB_SHARE, ALPN_CONTROL, ALPN_CONTROL_EXPEL, ALPN_CONTROL_METER, ALPN_CONTROL_TRUST, ALPN_JOIN,
    id::{Hash, NodeId},
};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::{
    RootCertStore, ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use shown::Shown;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};

/// The end of a certificate in PEM.
const END: &str = "-----END CERTIFICATE-----";
/// CAs that are remembered after their end: a backup older than as many rotations is of another time.
const FORMERS: usize = 16;

/// What is trusted at one moment.
pub struct Authorities {
    current: Authority,
    next: Option<Authority>,
    /// Shown behind the coordinator's certificate; the CA that signs comes last.
    chain: Vec<CertificateDer<'static>>,
    /// Verifies nodes under each of them.
    pub(super) nodes: Arc<dyn ClientCertVerifier>,
    /// Under the one that signs alone.
    newest: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.trusted().map(Authority::hash)).finish()
    }
}

impl Authorities {
    /// As the files in `folder` say; nothing is changed.
    pub fn read(folder: &Path) -> Result<Self, LinkError> {
        let at = |name: &str| folder.join(name);
        let (current, next) = match (at("next.pem").exists(), at("next.key").exists()) {
            (true, true) => {
                let next = Authority::read(&at("next.pem"), &at("next.key"))?;
                let current = Authority::read(&at("ca.pem"), &at("ca.key"))?;
                if current.hash() == next.hash() {
                    // No rotation makes such a file: trusting one CA twice, agents would be told of it without end.
                    let why = format!(
                        "{} is {} once more, and a CA does not follow itself; remove {} and next.key beside it, then `lorikeet ca rotate` makes the next one",
                        at("next.pem").display(),
                        at("ca.pem").display(),
                        at("next.pem").display()
                    );
                    return Err(LinkError::Certificate { what: "read the next CA", why });
                }
                (current, Some(next))
            }
            // Its key is in its last place already.
            (true, false) => (Authority::read(&at("next.pem"), &at("ca.key"))?, None),
            (false, _) => (Authority::read(&at("ca.pem"), &at("ca.key"))?, None),
        };
        Self::new(current, next)
    }

    fn new(current: Authority, next: Option<Authority>) -> Result<Self, LinkError> {
        let vouched = next.as_ref().map(|next| current.vouch_for(next)).transpose()?;
        let issuing = next.as_ref().unwrap_or(&current);
        let chain = vouched.into_iter().chain([issuing.certificate().clone()]).collect();
        let newest = verifier([issuing])?;
        let nodes = verifier([Some(&current), next.as_ref()].into_iter().flatten())?;
        Ok(Self { current, next, chain, nodes, newest })
    }

    /// The one in force until a rotation is finished.
    pub fn current(&self) -> &Authority {
        &self.current
    }

    /// The one that follows it, while a rotation lasts.
    pub fn next(&self) -> Option<&Authority> {
        self.next.as_ref()
    }

    /// The one that signs, and that join strings and logins pin.
    pub fn issuing(&self) -> &Authority {
        self.next.as_ref().unwrap_or(&self.current)
    }

    /// All of them, the one that signs first.
    pub fn trusted(&self) -> impl Iterator<Item = &Authority> {
        [self.next.as_ref(), Some(&self.current)].into_iter().flatten()
    }

    /// Their names.
    pub fn hashes(&self) -> Vec<Hash> {
        self.trusted().map(Authority::hash).collect()
    }

    /// What agents are told to trust.
    pub(super) fn certificates(&self) -> Vec<Vec<u8>> {
        self.trusted().map(|authority| authority.der().to_vec()).collect()
    }

    /// Whether somebody trusts these and no others.
    pub(super) fn are(&self, hashes: &[Hash]) -> bool {
        self.trusted().count() == hashes.len() && self.trusted().all(|authority| hashes.contains(&authority.hash()))
    }

    /// Whether one of them has signed it: a connection that stands is let in again as far as trust goes. Its end in time is another's to judge.
    pub(super) fn let_in(&self, certificate: &CertificateDer<'_>) -> bool {
        held(&self.nodes, certificate)
    }

    /// Whether it was signed by the one that signs now.
    pub(super) fn have_issued(&self, certificate: &CertificateDer<'_>) -> bool {
        held(&self.newest, certificate)
    }

    /// Signs a node's request.
    pub fn certify(&self, node: NodeId, request: &[u8], ttl: Duration) -> Result<Issued, LinkError> {
        self.issuing().certify(node, request, ttl)
    }

    fn server(&self, names: &[String]) -> Result<CertifiedKey, LinkError> {
        self.issuing().server(names, &self.chain)
    }
}

fn verifier<'a>(
    authorities: impl IntoIterator<Item = &'a Authority>,
) -> Result<Arc<dyn ClientCertVerifier>, LinkError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.certificate().clone()).map_err(LinkError::Tls)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider());
    let verifier = verifier.allow_unauthenticated().build();
    verifier.map_err(|error| LinkError::Certificate { what: "prepare to verify nodes", why: error.to_string() })
}

/// Whether a certificate is good now, or was in its last second.
fn held(verifier: &Arc<dyn ClientCertVerifier>, certificate: &CertificateDer<'_>) -> bool {
    let now = UnixTime::now();
    let last = tls::last_second(certificate).map_or(now, |last| UnixTime::since_unix_epoch(Duration::from_secs(last)));
    verifier.verify_client_cert(certificate, &[], now.min(last)).is_ok()
}

/// The CAs, and the way from one to the next.
#[derive(Debug, Clone)]
pub struct Trust {
    folder: PathBuf,
    now: Arc<watch::Sender<Arc<Authorities>>>,
    /// Read by who copies the files, written by who changes them.
    files: Arc<RwLock<()>>,
}

impl Trust {
    /// Reads the CAs in `folder`, or makes the first one; a rotation that was cut off while it was finished is finished.
    pub fn open(folder: &Path) -> Result<Self, LinkError> {
        let (pem, key) = (folder.join("next.pem"), folder.join("next.key"));
        if pem.exists() && !key.exists() {
            // Refused where the key in force is not its own: then it is the key that was lost.
            Authorities::read(folder)?;
            tls::rename(&pem, &folder.join("ca.pem"))?;
        }
        Authority::open(folder)?;
        let now = Arc::new(watch::Sender::new(Arc::new(Authorities::read(folder)?)));
        Ok(Self { folder: folder.to_owned(), now, files: Arc::default() })
    }

    /// The CAs of this moment.
    pub fn now(&self) -> Arc<Authorities> {
        Arc::clone(&self.now.borrow())
    }

    /// Tells of every change.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Authorities>> {
        self.now.subscribe()
    }

    /// While it is held no file changes; `None`: they are changing now.
    pub fn hold_still(&self) -> Option<OwnedRwLockReadGuard<()>> {
        Arc::clone(&self.files).try_read_owned().ok()
    }

    /// For one change; until it is made or given up nobody else reads or changes the files. Refused where somebody does.
    pub fn change(&self) -> Result<Change, LinkError> {
        let files = Arc::clone(&self.files).try_write_owned().map_err(|_| LinkError::Held)?;
        Ok(Change { trust: self.clone(), _files: files })
    }

    fn take_up(&self) -> Result<(), LinkError> {
        self.now.send_replace(Arc::new(Authorities::read(&self.folder)?));
        Ok(())
    }

    /// TLS for the link.
    pub(super) fn link(&self) -> Result<QuicServerConfig, LinkError> {
        let config = ServerConfig::builder_with_provider(tls::provider());
        let config = config.with_protocol_versions(&[&rustls::version::TLS13]).map_err(LinkError::Tls)?;
        let config = config.with_client_cert_verifier(Arc::new(NodeVerifier(self.clone(), Untimely::default())));
        let mut config = config.with_cert_resolver(Arc::new(Shown::new(self.clone(), vec![])?));
        // The newer conversations first: the server's order counts.
        let control = [ALPN_CONTROL_METER, ALPN_CONTROL_EXPEL, ALPN_CONTROL_TRUST, ALPN_CONTROL];
        let spoken = control.into_iter().chain([ALPN_BLOB_SHARE, ALPN_BLOB, ALPN_JOIN]);
        config.alpn_protocols = spoken.map(<[u8]>::to_vec).collect();
        // Early data can be replayed by whoever saw it, and a resumed session is let in without a look at its certificate.
        config.max_early_data_size = 0;
        (config.send_tls13_tickets, config.session_storage) = (0, Arc::new(NoServerSessionStorage {}));
        QuicServerConfig::try_from(config)
            .map_err(|error| LinkError::Certificate { what: "prepare TLS for the link", why: error.to_string() })
    }

    /// TLS for HTTP, with a certificate for `names`.
    pub fn https(&self, names: Vec<String>) -> Result<ServerConfig, LinkError> {
        tls::https(Arc::new(Shown::new(self.clone(), names)?))
    }
}

/// A CA and those that it followed, newest first. What cannot be read is not carried on: it only spares a person a question at a restore.
fn formers(path: &Path, newest: &str) -> String {
    let before = std::fs::read_to_string(path).unwrap_or_default();
    let mut all = vec![newest.trim_end().to_owned()];
    let blocks = before.split_inclusive(END).map(str::trim).filter(|block| block.ends_with(END));
    // A finish that was cut off has written it already.
    all.extend(blocks.filter(|block| *block != newest.trim_end()).map(str::to_owned));
    all.truncate(FORMERS);
    all.join("\n") + "\n"
}

/// The files of the CAs, held for one change.
pub struct Change {
    trust: Trust,
    _files: OwnedRwLockWriteGuard<()>,
}

impl Change {
    /// Makes the CA that follows `current`, durably, and lets it sign from now on. Does nothing where another is in force, or one follows.
    pub fn begin(self, current: Hash) -> Result<(), LinkError> {
        let now = self.trust.now();
        if now.next.is_some() || now.current.hash() != current {
            return Ok(());
        }
        Authority::make(&self.trust.folder, "next")?;
        self.trust.take_up()?;
        tracing::info!(authorities = ?self.trust.now(), "a new certificate authority signs from now on");
        Ok(())
    }

    /// Forgets the older CA, its key first. Does nothing where `next` is not the next one (any more).
    pub fn finish(self, next: Hash) -> Result<(), LinkError> {
        let now = self.trust.now();
        if now.next().map(Authority::hash) != Some(next) {
            return Ok(());
        }
        let at = |name: &str| self.trust.folder.join(name);
        // A backup of before is recognised by it, and one of before that.
        tls::write(&at("former.pem"), &formers(&at("former.pem"), now.current.pem()), 0o644)?;
        if at("next.key").exists() {
            tls::rename(&at("next.key"), &at("ca.key"))?;
        }
        tls::rename(&at("next.pem"), &at("ca.pem"))?;
        self.trust.take_up()?;
        tracing::info!(authorities = ?self.trust.now(), "the certificate authority before this one is forgotten");
        Ok(())
    }
}

#[cfg(test)]
mod tests;
