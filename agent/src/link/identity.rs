//! What makes this machine a node, on its disk: key, certificate, the CA, and where the coordinator is.
//!
//! ```text
//! identity/
//!   node.key      PKCS #8, DER, mode 0600; made before the first word to a coordinator, so that a join can be repeated
//!   node.crt      the node's certificate, DER; replaced by each renewal
//!   ca.crt        the coordinator's CA, DER
//!   ca.next.crt   the CA that follows it, DER, while a rotation lasts; it signs, and the coordinator has to be of it; of nodes both are trusted
//!   node.json     node id and the coordinator's address
//! ```

use crate::{
    clock,
    disk::{self, Access, At, DiskError},
};
use lorikeet_protocol::{
    agent::{AUTHORITIES, Trusts},
    id::{Hash, NodeId},
};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate, X509Error};

const CA: &str = "ca.crt";
const NEXT_CA: &str = "ca.next.crt";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The machine never joined.
    #[error("find this node's identity in {}: the machine has not joined a coordinator", .0.display())]
    NotJoined(PathBuf),
    /// The machine is already a node.
    #[error("join: {} already holds the identity of {node}; if that was retired or revoked, move the folder aside and join again", folder.display())]
    AlreadyJoined {
        /// Where.
        folder: PathBuf,
        /// Who.
        node: NodeId,
    },
    /// A file is not what it should be.
    #[error("read {}: {found}", path.display())]
    Broken {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// What the coordinator says that it wants trusted cannot be.
    #[error("trust the coordinator's certificate authorities: {found}")]
    Authority {
        /// What is wrong with them.
        found: String,
    },
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The crypto library refused.
    #[error("make a key or a signing request")]
    Crypto(#[from] rcgen::Error),
}

/// The key, made once.
pub(super) struct Key(KeyPair);

impl Key {
    /// The key in `folder`, made if there is none.
    pub(super) fn load_or_create(folder: &Path) -> Result<Self, IdentityError> {
        disk::create_folder(folder)?;
        let path = folder.join("node.key");
        match std::fs::read(&path) {
            Ok(der) => Self::parse(&path, &der),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate()?;
                disk::replace(&path, key.serialized_der(), Access::Secret)?;
                Ok(Self(key))
            }
            Err(error) => Err(error).at("read", &path).map_err(IdentityError::Disk),
        }
    }

    fn parse(path: &Path, der: &[u8]) -> Result<Self, IdentityError> {
        let broken = |error: rcgen::Error| IdentityError::Broken { path: path.to_owned(), found: error.to_string() };
        KeyPair::try_from(der).map(Self).map_err(broken)
    }

    /// PKCS #10, DER. The subject is left empty: the coordinator sets it.
    pub(super) fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        Ok(CertificateParams::default().serialize_request(&self.0)?.der().to_vec())
    }

    fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

/// Everything that [`link`](super) needs to be recognised.
pub(crate) struct Identity {
    folder: PathBuf,
    key: Key,
    /// Who.
    pub(crate) node: NodeId,
    /// `host:port` of the coordinator's link.
    pub(crate) address: String,
    /// The CAs that are trusted, at least one; the first one signs.
    pub(crate) authorities: Vec<CertificateDer<'static>>,
    /// The node's own.
    pub(crate) certificate: CertificateDer<'static>,
    /// When the coordinator gave it, where that was in this life of the agent, since the machine booted: then no wall clock is needed to know how old it is.
    given: Option<Duration>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("node", &self.node).field("address", &self.address).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct NodeFile {
    node: NodeId,
    address: String,
}

impl Identity {
    /// Reads what joining left.
    pub(crate) fn load(folder: &Path) -> Result<Self, IdentityError> {
        let NodeFile { node, address } =
            read_node(folder)?.ok_or_else(|| IdentityError::NotJoined(folder.to_owned()))?;
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).at("read", &path)
        };
        let key = Key::parse(&folder.join("node.key"), &read("node.key")?)?;
        let identity = Self {
            folder: folder.to_owned(),
            key,
            node,
            address,
            authorities: read_authorities(folder)?,
            certificate: read("node.crt")?.into(),
            given: None,
        };
        identity.check(&identity.certificate)?;
        Ok(identity)
    }

    /// Keeps what a join brought. `node.json` comes last: it is what makes the folder an identity.
    pub(super) fn store(
        folder: &Path,
        address: &str,
        joined: &lorikeet_protocol::join::Identity,
    ) -> Result<(), IdentityError> {
        disk::replace(&folder.join(CA), &joined.ca, Access::Plain)?;
        disk::remove_file(&folder.join(NEXT_CA))?;
        disk::replace(&folder.join("node.crt"), &joined.certificate, Access::Plain)?;
        let file = NodeFile { node: joined.node, address: address.to_owned() };
        let json = serde_json::to_vec_pretty(&file).expect("two strings are JSON");
        Ok(disk::replace(&folder.join("node.json"), &json, Access::Plain)?)
    }

    /// Whether `folder` already makes this machine a node.
    pub(super) fn refuse_existing(folder: &Path) -> Result<(), IdentityError> {
        match read_node(folder)? {
            Some(file) => Err(IdentityError::AlreadyJoined { folder: folder.to_owned(), node: file.node }),
            None => Ok(()),
        }
    }

    /// For a renewal: the same key again.
    pub(crate) fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        self.key.signing_request()
    }

    /// Takes a renewed certificate, if it is for our key.
    pub(crate) fn renew(&self, certificate: Vec<u8>) -> Result<Self, IdentityError> {
        let certificate = CertificateDer::from(certificate);
        self.check(&certificate)?;
        disk::replace(&self.folder.join("node.crt"), &certificate, Access::Plain)?;
        Ok(Self { given: Some(clock::uptime()), ..Self::load(&self.folder)? })
    }

    /// Trusts these CAs from now on, the one that signs first, and no others. Cut off in between it still trusts the older of them, which
    /// vouches for the one that signs: that one goes first to where it stays.
    pub(crate) fn trust(&self, authorities: &[Vec<u8>]) -> Result<Self, IdentityError> {
        if !(1..=AUTHORITIES).contains(&authorities.len()) {
            return Err(self.untrusted(&format!("{} were named, expected one or two", authorities.len())));
        }
        for authority in authorities {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority.clone().into()).map_err(|error| self.untrusted(&error))?;
        }
        let (ca, next) = (self.folder.join(CA), self.folder.join(NEXT_CA));
        match authorities {
            [signs, older, ..] => {
                disk::replace(&ca, older, Access::Plain)?;
                disk::replace(&next, signs, Access::Plain)?;
            }
            only => {
                disk::replace(&ca, &only[0], Access::Plain)?;
                disk::remove_file(&next)?;
                disk::sync_parent(&next)?;
            }
        }
        Self::load(&self.folder)
    }

    /// What is trusted, as the disk has it.
    pub(super) fn trusts(&self) -> Trusts {
        let signer = signer_of(&self.certificate);
        let issuer = self.authorities.iter().find(|ca| signer.is_some() && key_of(ca) == signer);
        Trusts { authorities: self.authorities.iter().map(|ca| hash(ca)).collect(), issuer: issuer.map(|ca| hash(ca)) }
    }

    /// Whether the certificate is of a CA before the one that signs now.
    pub(super) fn is_of_an_older_authority(&self) -> bool {
        let signer = signer_of(&self.certificate);
        signer.is_some() && self.authorities.first().is_some_and(|signs| key_of(signs) != signer)
    }

    /// Whether the coordinator gave the certificate less than a third of its time ago. The third leaves out by how much it was dated back; a clock
    /// that is wrong would have one renewed every minute, or never.
    pub(super) fn is_fresh(&self) -> bool {
        let third = self.validity().map(|(from, to)| to.saturating_sub(from) / 3).unwrap_or_default();
        let age = self.given.map(|given| clock::uptime().saturating_sub(given));
        age.is_some_and(|age| age < third)
    }

    /// What a certificate that was given a moment ago says of this machine's clock.
    pub(super) fn clock_off(&self, wall: Duration) -> Option<String> {
        let (from, to) = self.validity().ok()?;
        let off = if wall < from { from - wall } else { wall.checked_sub(to)? };
        let off = humantime::format_duration(Duration::from_secs(off.as_secs()));
        Some(format!(
            "the clock of this machine is off by {off} or more: by it, a certificate that the coordinator gave it a moment ago is not valid; set the clock and run a time service"
        ))
    }

    /// When half of the certificate's life is over, since 1970.
    pub(crate) fn half_life(&self) -> Result<Duration, IdentityError> {
        let (from, to) = self.validity()?;
        Ok(from + to.saturating_sub(from) / 2)
    }

    /// When the certificate runs out, since 1970.
    pub(crate) fn end_of_life(&self) -> Result<Duration, IdentityError> {
        Ok(self.validity()?.1)
    }

    /// From when and until when it is valid, since 1970.
    pub(crate) fn validity(&self) -> Result<(Duration, Duration), IdentityError> {
        validity(&self.certificate).map_err(|error| self.broken(&error))
    }

    pub(super) fn chain_and_key(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.clone()], self.key.private())
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), IdentityError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| self.broken(&error))?;
        let ours = self.key.0.subject_public_key_info();
        if parsed.public_key().raw == ours { Ok(()) } else { Err(self.broken(&"it is not for this node's key")) }
    }

    fn untrusted(&self, found: &dyn std::fmt::Display) -> IdentityError {
        IdentityError::Authority { found: found.to_string() }
    }

    fn broken(&self, found: &dyn std::fmt::Display) -> IdentityError {
        IdentityError::Broken { path: self.folder.join("node.crt"), found: found.to_string() }
    }
}

/// From when and until when a certificate is valid, since 1970.
pub(super) fn validity(certificate: &[u8]) -> Result<(Duration, Duration), x509_parser::nom::Err<X509Error>> {
    let (_, parsed) = X509Certificate::from_der(certificate)?;
    let seconds = |time: x509_parser::time::ASN1Time| Duration::from_secs(time.timestamp().try_into().unwrap_or(0));
    Ok((seconds(parsed.validity().not_before), seconds(parsed.validity().not_after)))
}

/// The one that signs first.
fn read_authorities(folder: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut authorities = Vec::new();
    for (path, is_there) in [(folder.join(NEXT_CA), folder.join(NEXT_CA).exists()), (folder.join(CA), true)] {
        if is_there {
            authorities.push(CertificateDer::from(std::fs::read(&path).at("read", &path)?));
        }
    }
    // Both are the same where the end of a rotation was cut off.
    authorities.dedup();
    Ok(authorities)
}

fn hash(certificate: &CertificateDer<'_>) -> Hash {
    Hash(*blake3::hash(certificate).as_bytes())
}

/// What a CA's certificate calls its key.
fn key_of(ca: &CertificateDer<'_>) -> Option<Vec<u8>> {
    extension(
        ca,
        |found| if let ParsedExtension::SubjectKeyIdentifier(key) = found { Some(key.0.to_vec()) } else { None },
    )
}

/// What a certificate calls the key that signed it.
fn signer_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    extension(certificate, |found| {
        let ParsedExtension::AuthorityKeyIdentifier(signer) = found else { return None };
        signer.key_identifier.as_ref().map(|key| key.0.to_vec())
    })
}

fn extension<T>(certificate: &CertificateDer<'_>, of: impl Fn(&ParsedExtension<'_>) -> Option<T>) -> Option<T> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    parsed.extensions().iter().find_map(|extension| of(extension.parsed_extension()))
}

fn read_node(folder: &Path) -> Result<Option<NodeFile>, IdentityError> {
    let path = folder.join("node.json");
    match std::fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|error| IdentityError::Broken { path, found: error.to_string() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at("read", &path).map_err(IdentityError::Disk),
    }
}

/// The identity in force; renewals swap it.
pub(crate) type Shared = Arc<std::sync::RwLock<Arc<Identity>>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_a_node_already_is_told_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = NodeFile { node: NodeId(uuid::Uuid::from_u128(1)), address: "c:7171".to_owned() };
        std::fs::write(folder.path().join("node.json"), serde_json::to_vec(&file).unwrap()).unwrap();
        let refused = Identity::refuse_existing(folder.path()).unwrap_err().to_string();
        assert!(
            refused.contains("already holds the identity of") && refused.contains("move the folder aside"),
            "{refused}"
        );
    }
}
