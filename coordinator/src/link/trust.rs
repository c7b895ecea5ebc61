//! The CAs of the moment: the one in force and, while a rotation lasts, the one that follows it.
//!
//! ```text
//!             begin                                    finish
//! settled ────────────► overlap ─────────────────────────────────► settled
//!    ca                 ca, next: both are trusted, next signs      ca (was next); former.pem says which it followed
//!
//! begin    next.key, next.pem                    cut off before next.pem: nothing has begun
//! finish   former.pem, next.key ► ca.key, next.pem ► ca.pem        cut off before the last: next.pem without its key; it is finished
//! ```
//!
//! The files are the state: each is whole, synced and under its name before anybody is told. Whoever trusts only the older CA follows it to what
//! the next one has signed, because the older one vouches for the key of the next in the chain that the coordinator shows
//! (`docs/design/0013`). [`Trust`] is a cheap handle; [`Authorities`] never change, they are replaced.

use super::{
    LinkError,
    tls::{self, Authority, Issued, NodeVerifier},
};
use lorikeet_protocol::{
    ALPN_BLOB, ALPN_BLOB_SHARE, ALPN_CONTROL, ALPN_CONTROL_TRUST, ALPN_JOIN,
    id::{Hash, NodeId},
};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::{
    RootCertStore, ServerConfig,
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};

/// What is trusted at one moment.
pub struct Authorities {
    current: Authority,
    next: Option<Authority>,
    /// Shown behind the coordinator's certificate; the CA that signs comes last.
    chain: Vec<CertificateDer<'static>>,
    /// Verifies nodes under each of them.
    pub(super) nodes: Arc<dyn ClientCertVerifier>,
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
                (Authority::read(&at("ca.pem"), &at("ca.key"))?, Some(next))
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
        let mut roots = RootCertStore::empty();
        for authority in [Some(&current), next.as_ref()].into_iter().flatten() {
            roots.add(authority.certificate().clone()).map_err(LinkError::Tls)?;
        }
        let nodes = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider());
        let nodes = nodes.allow_unauthenticated().build();
        let nodes = nodes
            .map_err(|error| LinkError::Certificate { what: "prepare to verify nodes", why: error.to_string() })?;
        Ok(Self { current, next, chain, nodes })
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

    /// What agents are told to trust.
    pub(super) fn certificates(&self) -> Vec<Vec<u8>> {
        self.trusted().map(|authority| authority.der().to_vec()).collect()
    }

    /// Whether somebody trusts these and no others.
    pub(super) fn are(&self, hashes: &[Hash]) -> bool {
        self.trusted().count() == hashes.len() && self.trusted().all(|authority| hashes.contains(&authority.hash()))
    }

    /// Whether a connection that stands would be let in again.
    pub(super) fn let_in(&self, certificate: &CertificateDer<'_>) -> bool {
        self.nodes.verify_client_cert(certificate, &[], UnixTime::now()).is_ok()
    }

    /// Signs a node's request.
    pub fn certify(&self, node: NodeId, request: &[u8], ttl: Duration) -> Result<Issued, LinkError> {
        self.issuing().certify(node, request, ttl)
    }

    fn server(&self, names: &[String]) -> Result<CertifiedKey, LinkError> {
        self.issuing().server(names, &self.chain)
    }
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

    /// Makes the next CA, durably, and lets it sign from now on. Does nothing where that was done.
    pub fn begin(&self) -> Result<(), LinkError> {
        let _files = self.files.try_write().map_err(|_| LinkError::Held)?;
        if self.now().next.is_some() {
            return Ok(());
        }
        Authority::make(&self.folder, "next")?;
        self.take_up()
    }

    /// Forgets the older CA, its key first. Does nothing where `next` is not the next one (any more).
    pub fn finish(&self, next: Hash) -> Result<(), LinkError> {
        let _files = self.files.try_write().map_err(|_| LinkError::Held)?;
        let now = self.now();
        if now.next().map(Authority::hash) != Some(next) {
            return Ok(());
        }
        let at = |name: &str| self.folder.join(name);
        // A backup of before is recognised by it.
        tls::write(&at("former.pem"), now.current.pem(), 0o644)?;
        if at("next.key").exists() {
            tls::rename(&at("next.key"), &at("ca.key"))?;
        }
        tls::rename(&at("next.pem"), &at("ca.pem"))?;
        self.take_up()
    }

    fn take_up(&self) -> Result<(), LinkError> {
        self.now.send_replace(Arc::new(Authorities::read(&self.folder)?));
        Ok(())
    }

    /// TLS for the link.
    pub(super) fn link(&self) -> Result<QuicServerConfig, LinkError> {
        let config = ServerConfig::builder_with_provider(tls::provider());
        let config = config.with_protocol_versions(&[&rustls::version::TLS13]).map_err(LinkError::Tls)?;
        let config = config.with_client_cert_verifier(Arc::new(NodeVerifier(self.clone())));
        let mut config = config.with_cert_resolver(Arc::new(Shown::new(self.clone(), vec![])?));
        // The newer conversations first: the server's order counts.
        let spoken = [ALPN_CONTROL_TRUST, ALPN_CONTROL, ALPN_BLOB_SHARE, ALPN_BLOB, ALPN_JOIN];
        config.alpn_protocols = spoken.map(<[u8]>::to_vec).to_vec();
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

/// The coordinator's own certificate: made at the start, and anew when another CA signs.
struct Shown {
    trust: Trust,
    names: Vec<String>,
    last: Mutex<(Arc<Authorities>, Arc<CertifiedKey>)>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Shown {
    fn new(trust: Trust, names: Vec<String>) -> Result<Self, LinkError> {
        let now = trust.now();
        let key = Arc::new(now.server(&names)?);
        Ok(Self { trust, names, last: Mutex::new((now, key)) })
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let now = self.trust.now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&last.0, &now) {
            match now.server(&self.names) {
                Ok(key) => *last = (now, Arc::new(key)),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the older certificate is shown")
                }
            }
        }
        Some(Arc::clone(&last.1))
    }
}

#[cfg(test)]
mod tests;
