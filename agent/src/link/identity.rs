//! What makes this machine a node, on its disk: key, certificate, the CA, and where the coordinator is.
//!
//! ```text
//! identity/
//!   node.key      PKCS #8, DER, mode 0600; made before the first word to a coordinator, so that a join can be repeated
//!   node.crt      the node's certificate, DER; replaced by each renewal
//!   ca.crt        the coordinator's CA, DER: the only one trusted
//!   node.json     node id and the coordinator's address
//! ```

use crate::disk::{self, Access, At, DiskError};
use lorikeet_protocol::id::NodeId;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use x509_parser::prelude::{FromDer, X509Certificate};

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
    /// The only CA trusted.
    pub(crate) ca: CertificateDer<'static>,
    /// The node's own.
    pub(crate) certificate: CertificateDer<'static>,
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
            ca: read("ca.crt")?.into(),
            certificate: read("node.crt")?.into(),
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
        disk::replace(&folder.join("ca.crt"), &joined.ca, Access::Plain)?;
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
        Self::load(&self.folder)
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
        let (_, parsed) = X509Certificate::from_der(&self.certificate).map_err(|error| self.broken(&error))?;
        let seconds = |time: x509_parser::time::ASN1Time| Duration::from_secs(time.timestamp().try_into().unwrap_or(0));
        Ok((seconds(parsed.validity().not_before), seconds(parsed.validity().not_after)))
    }

    pub(super) fn chain_and_key(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.clone()], self.key.private())
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), IdentityError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| self.broken(&error))?;
        let ours = self.key.0.subject_public_key_info();
        if parsed.public_key().raw == ours { Ok(()) } else { Err(self.broken(&"it is not for this node's key")) }
    }

    fn broken(&self, found: &dyn std::fmt::Display) -> IdentityError {
        IdentityError::Broken { path: self.folder.join("node.crt"), found: found.to_string() }
    }
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
