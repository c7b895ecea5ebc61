//! Certificates: a CA in its two files, the coordinator's own certificate, the nodes' certificates, and who is let in.
//!
//! ```text
//! ca/ca.key   PEM, 0600, written first      ca/ca.pem   written last: a CA without it has never been shown to anybody
//! ```
//!
//! Which CAs there are at a moment is said in `link/trust.rs`.
//!
//! TLS asks every client for a certificate and lets it go without, because rustls cannot ask per ALPN; `link.rs` closes a control
//! or blob connection that showed none. A node's certificate that ran out less than 90 days ago is let through and marked, so
//! that a machine which was off can renew it and do nothing else.

use super::{
    LinkError,
    trust::{Authorities, Trust},
};
use crate::{cluster::Shown, serial};
use lorikeet_protocol::{
    COORDINATOR_NAME,
    id::{Hash, NodeId},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use time::OffsetDateTime;

/// The CA outlives every machine it names; changing it is a procedure, not an expiry.
const CA_LIFE: Duration = Duration::from_secs(30 * 365 * 86_400);
/// The coordinator's own certificate lives in memory and is made anew at each start.
const SERVER_LIFE: Duration = Duration::from_secs(5 * 365 * 86_400);
/// A node that was off may be this late with its renewal.
const RENEWAL_GRACE: Duration = Duration::from_secs(90 * 86_400);
/// Clocks of machines differ: certificates begin this long before they are made, short ones less long, because a node renews in the
/// middle of the time that its certificate names.
const BACKDATE: Duration = Duration::from_secs(86_400);

/// The certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A node's certificate, as its connection showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    /// From its subject.
    pub node: NodeId,
    /// Which certificate of the node, and for which key.
    pub shown: Shown,
    /// It may renew and nothing else.
    pub expired: bool,
    /// Its last moment, since 1970.
    pub ends: Duration,
}

/// A certificate just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// DER.
    pub certificate: Vec<u8>,
    /// Its serial number in hex.
    pub serial: String,
}

impl Authority {
    /// Reads the CA in `folder`, or makes it.
    pub fn open(folder: &Path) -> Result<Self, LinkError> {
        if !folder.join("ca.pem").exists() {
            Self::make(folder, "ca")?;
        }
        Self::read(&folder.join("ca.pem"), &folder.join("ca.key"))
    }

    /// Makes one, in files of this name.
    pub(super) fn make(folder: &Path, name: &str) -> Result<(), LinkError> {
        std::fs::create_dir_all(folder).map_err(LinkError::disk("make", folder))?;
        let (pem, secret) = make_ca()?;
        write(&folder.join(name).with_extension("key"), &secret, 0o600)?;
        write(&folder.join(name).with_extension("pem"), &pem, 0o644)
    }

    /// Reads one from its two files.
    pub(super) fn read(certificate: &Path, key: &Path) -> Result<Self, LinkError> {
        let pem = std::fs::read_to_string(certificate).map_err(LinkError::disk("read", certificate))?;
        let secret = std::fs::read_to_string(key).map_err(LinkError::disk("read", key))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(damaged("read the CA's certificate", "a certificate in PEM", certificate))?;
        let pair = KeyPair::from_pem(&secret).map_err(damaged("read the CA's key", "a private key in PEM", key))?;
        if !is_for(&der, &pair) {
            let why = format!("{} is not for the key in {}", certificate.display(), key.display());
            return Err(LinkError::Certificate { what: "read the CA's certificate", why });
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair);
        let issuer =
            issuer.map_err(damaged("read the CA's certificate", "the certificate of an authority", certificate))?;
        Ok(Self { issuer, certificate: der, pem })
    }

    /// BLAKE3 of the CA's certificate (DER): what join strings carry.
    pub fn hash(&self) -> Hash {
        Hash(*blake3::hash(&self.certificate).as_bytes())
    }

    /// The CA's certificate, for people and clients.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The CA's certificate, DER.
    pub fn der(&self) -> &[u8] {
        &self.certificate
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When it was made, since 1970.
    pub fn made(&self) -> Duration {
        self.validity().0 + BACKDATE
    }

    /// Its last moment, since 1970.
    pub fn ends(&self) -> Duration {
        self.validity().1
    }

    fn validity(&self) -> (Duration, Duration) {
        let parsed = x509_parser::parse_x509_certificate(&self.certificate);
        let (_, parsed) = parsed.expect("what was read as a CA's certificate is one");
        let seconds = |time: x509_parser::time::ASN1Time| Duration::from_secs(time.timestamp().try_into().unwrap_or(0));
        (seconds(parsed.validity().not_before), seconds(parsed.validity().not_after))
    }

    /// The key of another CA, certified by this one: who trusts only this one follows it to what the other has signed.
    pub(super) fn vouch_for(&self, other: &Self) -> Result<CertificateDer<'static>, LinkError> {
        let what = "certify the next CA";
        let params = ca_params()?;
        let vouched = params.signed_by(other.issuer.key(), &self.issuer).map_err(LinkError::certificate(what))?;
        Ok(vouched.der().clone())
    }

    /// A key for another purpose, the same as long as this CA is.
    pub(super) fn derive_key(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, &self.issuer.key().serialize_der())
    }

    /// Signs a node's request; the subject is ours to set, everything else of the request but its key is ignored.
    pub fn certify(&self, node: NodeId, request: &[u8], ttl: Duration) -> Result<Issued, LinkError> {
        let request = read_request(request)?;
        let serial = random_serial()?;
        let mut params = params(&node.to_string(), ttl);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&request.public_key, &self.issuer);
        let certificate = signed.map_err(LinkError::certificate("sign a node's certificate"))?;
        Ok(Issued { certificate: certificate.der().to_vec(), serial: hex(&serial) })
    }

    /// A certificate of our own for the fixed name and `names`, with its key; behind it goes `chain`.
    pub(super) fn server(
        &self,
        names: &[String],
        chain: &[CertificateDer<'static>],
    ) -> Result<CertifiedKey, LinkError> {
        let what = "make the coordinator's certificate";
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(LinkError::certificate(what))?;
        let mut all = vec![COORDINATOR_NAME.to_owned()];
        all.extend(names.iter().cloned());
        let own = CertificateParams::new(all).map_err(LinkError::certificate(what))?;
        let mut params = params(COORDINATOR_NAME, SERVER_LIFE);
        params.subject_alt_names = own.subject_alt_names;
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(LinkError::certificate(what))?;
        let secret = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let secret = provider().key_provider.load_private_key(secret).map_err(LinkError::Tls)?;
        let chain = [certificate.der().clone()].into_iter().chain(chain.iter().cloned()).collect();
        Ok(CertifiedKey::new(chain, secret))
    }
}

/// TLS for HTTP, with a certificate from the config.
pub fn https_from_files(certificate: &Path, key: &Path) -> Result<ServerConfig, LinkError> {
    let wrong = |path: &Path, error: &dyn std::fmt::Display| LinkError::Certificate {
        what: "read the certificate or key of http",
        why: format!("{}: {error}", path.display()),
    };
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| wrong(certificate, &error))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
    let secret = provider().key_provider.load_private_key(secret).map_err(LinkError::Tls)?;
    https(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, secret))))
}

/// TLS for HTTP, with whatever certificate is in force.
pub(super) fn https(shown: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, LinkError> {
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let mut config = config.map_err(LinkError::Tls)?.with_no_client_auth().with_cert_resolver(shown);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// BLAKE3 of a request's public key, after its signature was verified: who asks to join.
pub fn key_of_request(request: &[u8]) -> Result<Hash, LinkError> {
    let request = read_request(request)?;
    Ok(Hash(*blake3::hash(&request.public_key.subject_public_key_info()).as_bytes()))
}

/// Whose certificate this is. The chain was verified by TLS; what it says is still read with care.
pub(super) fn identify(authorities: &Authorities, certificate: &CertificateDer<'_>) -> Option<NodeCertificate> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let node = parsed.subject().iter_common_name().next()?.as_str().ok()?.parse().ok()?;
    let ends = parsed.validity().not_after.timestamp();
    let expired = ends <= OffsetDateTime::now_utc().unix_timestamp();
    let ends = Duration::from_secs(ends.try_into().unwrap_or(0));
    let key = Hash(*blake3::hash(parsed.public_key().raw).as_bytes());
    let shown = Shown { serial: hex(parsed.raw_serial()), key, is_newest: authorities.have_issued(certificate) };
    Some(NodeCertificate { node, shown, expired, ends })
}

/// A file that holds something else: which, what was expected, what was found, and where a good one is.
fn damaged<E: std::fmt::Display>(what: &'static str, expected: &str, path: &Path) -> impl FnOnce(E) -> LinkError {
    move |error| {
        let why =
            format!("{} does not hold {expected} ({error}); bring `ca/` back from the newest backup", path.display());
        LinkError::Certificate { what, why }
    }
}

fn is_for(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    parsed.is_ok_and(|(_, parsed)| parsed.public_key().raw == key.subject_public_key_info())
}

/// The one crypto provider of the program.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

pub(super) fn read_request(request: &[u8]) -> Result<CertificateSigningRequestParams, LinkError> {
    CertificateSigningRequestParams::from_der(&request.into()).map_err(LinkError::certificate("read a signing request"))
}

fn make_ca() -> Result<(String, String), LinkError> {
    let what = "make the CA";
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(LinkError::certificate(what))?;
    let certificate = ca_params()?.self_signed(&key).map_err(LinkError::certificate(what))?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn ca_params() -> Result<CertificateParams, LinkError> {
    let mut params = params("Lorikeet CA", CA_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
    Ok(params)
}

fn params(name: &str, life: Duration) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = now - BACKDATE.min(life / 8);
    params.not_after = now + life;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn random_serial() -> Result<[u8; 16], LinkError> {
    let mut random = [0; 9];
    getrandom::fill(&mut random)
        .map_err(|error| LinkError::Certificate { what: "draw a serial", why: error.to_string() })?;
    Ok(serial::serial(crate::clock::now(), random))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Written aside, synced, renamed: a key is never half there, and never readable by others.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<(), LinkError> {
    let aside = path.with_extension("aside");
    // One that a crash left may have another mode, and be open in somebody's hands.
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(LinkError::disk("remove", &aside)(error));
        }
        _ => {}
    }
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside);
    let mut file = file.map_err(LinkError::disk("make", &aside))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(LinkError::disk("write", &aside))?;
    rename(&aside, path)
}

/// A rename that lasts.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), LinkError> {
    std::fs::rename(from, to).map_err(LinkError::disk("rename to", to))?;
    let folder = to.parent().expect("the files of the CA lie in its folder");
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(LinkError::disk("sync", folder))
}

/// Verifies nodes as webpki does, under the CAs of the moment, and lets those through that are late with their renewal.
#[derive(Debug)]
pub(super) struct NodeVerifier(pub(super) Trust, pub(super) Untimely);

impl ClientCertVerifier for NodeVerifier {
    /// No hints: a node has one certificate, and a CA that follows has the same name.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let authorities = self.0.now();
        let verified = authorities.nodes.verify_client_cert(certificate, intermediates, now);
        let expired = matches!(
            verified,
            Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }))
        );
        match last_second(certificate).filter(|last| expired && now.as_secs() < last + RENEWAL_GRACE.as_secs()) {
            // Everything else about it must hold, as it did in its last second.
            Some(last) => {
                let then = UnixTime::since_unix_epoch(Duration::from_secs(last));
                authorities.nodes.verify_client_cert(certificate, intermediates, then)
            }
            None => {
                self.1.judge(certificate, now, |then| {
                    authorities.nodes.verify_client_cert(certificate, intermediates, then).is_ok()
                });
                verified
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.now().nodes.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.now().nodes.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.now().nodes.supported_verify_schemes()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }
}

/// Says what a certificate of ours that is not of now says of this machine's clock; seldom, for whoever shows it comes back every half minute.
#[derive(Debug, Default)]
pub(super) struct Untimely(Mutex<Option<Instant>>);

/// Between two words about that.
const SAID_AGAIN: Duration = Duration::from_secs(600);

impl Untimely {
    /// `holds` says whether the certificate holds but for its time.
    fn judge(&self, certificate: &CertificateDer<'_>, now: UnixTime, holds: impl Fn(UnixTime) -> bool) {
        let Some((then, words)) = untimely(certificate, now).filter(|(then, _)| holds(*then)) else { return };
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= SAID_AGAIN) {
            *said = Some(Instant::now());
            tracing::error!(valid_until = then.as_secs(), "{words}");
        }
    }
}

/// A moment at which the certificate was valid, and what follows from its not being so now.
pub(super) fn untimely(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<(UnixTime, String)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).ok();
    let (from, to) = (seconds(parsed.validity().not_before)?, seconds(parsed.validity().not_after)?);
    let node = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or("a node");
    let days = |seconds| lorikeet_protocol::days(Duration::from_secs(seconds));
    let at = |then| UnixTime::since_unix_epoch(Duration::from_secs(then));
    match now.as_secs() {
        now if now < from => Some((
            at(from),
            format!(
                "the clock of this machine is off by {} or more: {node} shows a certificate that was issued here and begins only then; set the \
                 clock, then start the coordinator anew",
                days(from - now)
            ),
        )),
        now if now > to => Some((
            at(to),
            format!(
                "{node} shows a certificate that ran out {} ago, too long to be renewed: it has to join again, or the clock of this machine is off by \
                 that much",
                days(now - to)
            ),
        )),
        _ => None,
    }
}

pub(super) fn last_second(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const DAY: i64 = 86_400;

    #[test]
    fn a_clock_that_is_off_by_a_year_is_named_by_what_was_issued_here_and_ten_minutes_are_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (trust, ttl) = (Trust::open(folder.path()).unwrap(), Duration::from_secs(7 * 86_400));
        let certificate = issue(&Authority::open(folder.path()).unwrap(), ttl);
        let verifier = NodeVerifier(trust, Untimely::default());
        let takes = |offset: i64| verifier.verify_client_cert(&certificate, &[], at(offset)).is_ok();
        assert_eq!([-600, 0, 600, 96 * DAY].map(takes), [true; 4], "within the skew, and late with its renewal");
        assert!(verifier.1.0.lock().unwrap().is_none(), "nothing was said of clocks");
        assert_eq!([-365 * DAY, 365 * DAY].map(takes), [false; 2]);
        assert!(verifier.1.0.lock().unwrap().is_some());
        let words = |offset| untimely(&certificate, at(offset)).map(|(_, words)| words).unwrap_or_default();
        assert!(words(-365 * DAY).starts_with("the clock of this machine is off by 364 days"), "{}", words(-365 * DAY));
        assert!(words(365 * DAY).contains("ran out 358 days ago"), "{}", words(365 * DAY));
        assert_eq!(words(0), "");
    }

    #[test]
    fn a_strangers_certificate_says_nothing_about_our_clock() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let certificate = issue(&Authority::open(theirs.path()).unwrap(), Duration::from_secs(7 * 86_400));
        let verifier = NodeVerifier(Trust::open(ours.path()).unwrap(), Untimely::default());
        assert!(verifier.verify_client_cert(&certificate, &[], at(-365 * DAY)).is_err());
        assert!(verifier.1.0.lock().unwrap().is_none());
    }

    fn issue(authority: &Authority, ttl: Duration) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let node = NodeId(uuid::Uuid::from_u128(7));
        authority.certify(node, request.der(), ttl).unwrap().certificate.into()
    }

    fn at(offset: i64) -> UnixTime {
        let now = Duration::from_millis(clock::now().0).as_secs();
        UnixTime::since_unix_epoch(Duration::from_secs(now.checked_add_signed(offset).unwrap()))
    }
}
