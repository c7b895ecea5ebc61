//! TLS 1.3 towards the coordinator: the CA that signs and the fixed name are verified, never the address that was dialled.

pub(super) mod between;
pub(super) mod dated;

use super::{Timers, identity::Identity};
use dated::{ClockOff, Dated};
use lorikeet_protocol::{COORDINATOR_NAME, id::Hash};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::{Arc, OnceLock};

/// Why TLS cannot even begin.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key that rustls does not take.
    #[error("set up TLS with this node's identity")]
    Rustls(#[from] rustls::Error),
    /// rustls without the cipher that QUIC begins with: a build that cannot work.
    #[error("set up TLS for QUIC")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// For a node: both sides prove who they are.
pub(super) fn member(
    identity: &Identity,
    alpns: &[&[u8]],
    timers: &Timers,
) -> Result<(quinn::ClientConfig, Arc<Dated>), TlsError> {
    let mut roots = RootCertStore::empty();
    // The one that signs alone: the key of the one before may be why it was rotated, and whoever has that must not say whom to trust.
    roots.add(identity.authorities[0].clone())?;
    let (chain, key) = identity.chain_and_key();
    let dated = Dated::new(web(roots)?);
    let verifier: Arc<dyn ServerCertVerifier> = Arc::<Dated>::clone(&dated);
    let config = builder()?.dangerous().with_custom_certificate_verifier(verifier).with_client_auth_cert(chain, key)?;
    Ok((quic(config, alpns, timers)?, dated))
}

/// For a machine that joins: the coordinator proves that it holds the CA of the join string; the machine is nobody yet.
pub(super) fn stranger(
    verifier: Arc<PinnedHash>,
    alpn: &[u8],
    timers: &Timers,
) -> Result<quinn::ClientConfig, TlsError> {
    let config = builder()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    quic(config, &[alpn], timers)
}

/// Chain, name and time, as everywhere on the web.
fn web(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    verifier.map_err(|error| rustls::Error::General(error.to_string()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn builder() -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>, TlsError> {
    Ok(rustls::ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?)
}

fn quic(mut config: rustls::ClientConfig, alpns: &[&[u8]], timers: &Timers) -> Result<quinn::ClientConfig, TlsError> {
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    // A resumed session would keep the certificate of the one before it: a renewed or revoked one must be looked at.
    config.resumption = rustls::client::Resumption::disabled();
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    client.transport_config(Arc::new(timers.transport()));
    Ok(client)
}

/// Trusts exactly the CA with this hash, shown by the coordinator in its own chain.
#[derive(Debug)]
pub(super) struct PinnedHash {
    expected: Hash,
    provider: Arc<CryptoProvider>,
    /// Of a chain without that CA: the hash of its last certificate, for the error.
    found: OnceLock<Hash>,
    off: OnceLock<ClockOff>,
}

impl PinnedHash {
    pub(super) fn new(expected: Hash) -> Arc<Self> {
        Arc::new(Self { expected, provider: provider(), found: OnceLock::new(), off: OnceLock::new() })
    }

    /// What the join string says.
    pub(super) fn expected(&self) -> Hash {
        self.expected
    }

    /// What was shown in place of the expected CA, if that is why the handshake failed.
    pub(super) fn stranger(&self) -> Option<Hash> {
        self.found.get().copied()
    }

    /// Whether the time alone was wrong.
    pub(super) fn off(&self) -> Option<ClockOff> {
        self.off.get().copied()
    }
}

fn hash(certificate: &CertificateDer<'_>) -> Hash {
    Hash(*blake3::hash(certificate).as_bytes())
}

impl ServerCertVerifier for PinnedHash {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(ca) = intermediates.iter().find(|certificate| hash(certificate) == self.expected) else {
            let _ = self.found.set(hash(intermediates.last().unwrap_or(end_entity)));
            return Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = Dated::new(web(roots)?);
        let name = ServerName::try_from(COORDINATOR_NAME).expect("the coordinator's name is a DNS name");
        let verified = verifier.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now);
        verifier.off().map(|off| self.off.set(off));
        verified
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has no TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
