//! TLS 1.3 between two nodes: each shows the certificate that the coordinator gave it, and the id in it is who it is.
//!
//! A node's certificate is a client's, so that no node can pass for the coordinator. The reader therefore judges the giver's as a server
//! would judge a client's – the CA, the time, what it is for – and then whether it names the node that it was sent to.

use super::{Identity, Timers, TlsError, builder, provider, quic};
use lorikeet_protocol::{ALPN_SHARE, id::NodeId};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::{
    CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// For a node that reads: who answers must be `node`.
pub(in crate::link) fn reader(
    identity: &Identity,
    node: NodeId,
    timers: &Timers,
) -> Result<quinn::ClientConfig, TlsError> {
    let verifier = Arc::new(TheNode { node, inner: of_the_cluster(identity)? });
    let (chain, key) = identity.chain_and_key();
    let config = builder()?.dangerous().with_custom_certificate_verifier(verifier);
    quic(config.with_client_auth_cert(chain, key)?, &[ALPN_SHARE], timers)
}

/// For a node that gives: who asks must be one of these.
pub(in crate::link) fn giver(
    identity: &Identity,
    nodes: Arc<dyn ClientCertVerifier>,
) -> Result<QuicServerConfig, TlsError> {
    let config = rustls::ServerConfig::builder_with_provider(provider());
    let config = config.with_protocol_versions(&[&rustls::version::TLS13])?;
    let (chain, key) = identity.chain_and_key();
    let mut config = config.with_client_cert_verifier(nodes).with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_SHARE.to_vec()];
    // Early data can be replayed by whoever saw it, and a resumed session would keep a certificate that ran out.
    config.max_early_data_size = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(QuicServerConfig::try_from(config)?)
}

/// Whose certificate it is. The chain was verified by TLS; what it says is still read with care.
pub(in crate::link) fn named(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    parsed.subject().iter_common_name().next()?.as_str().ok()?.parse().ok()
}

/// How long the certificate is still valid.
pub(in crate::link) fn left(certificate: &CertificateDer<'_>) -> Duration {
    let ends = X509Certificate::from_der(certificate).map(|(_, parsed)| parsed.validity().not_after.timestamp());
    let ends = Duration::from_secs(ends.unwrap_or(0).try_into().unwrap_or(0));
    ends.saturating_sub(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// Judges nodes under the CAs that this one trusts.
pub(in crate::link) fn of_the_cluster(identity: &Identity) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for ca in &identity.authorities {
        roots.add(ca.clone())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    Ok(verifier.map_err(|error| rustls::Error::General(error.to_string()))?)
}

/// Takes the certificate of one node.
#[derive(Debug)]
struct TheNode {
    node: NodeId,
    inner: Arc<dyn ClientCertVerifier>,
}

/// Somebody of the cluster, but not who was looked for.
#[derive(Debug, thiserror::Error)]
#[error("it is another node")]
struct AnotherNode;

impl ServerCertVerifier for TheNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if named(end_entity) == Some(self.node) {
            return Ok(ServerCertVerified::assertion());
        }
        let other = OtherError(Arc::new(AnotherNode));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
