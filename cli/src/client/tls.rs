//! Trust in a coordinator: its own certificate authority, pinned by hash.
//!
//! A coordinator's certificate names the addresses its config knows and always `coordinator.lorikeet`. With a pinned authority
//! either name will do: who holds a certificate of that authority *is* the coordinator, wherever it is reached.
//!
//! While a coordinator rotates its authority, the older one vouches for the next in the chain that is shown, and that chain ends in the
//! next one's own certificate: so it is known to follow the pinned one, and the profile takes it over.

use crate::failure::Failure;
use lorikeet_protocol::{COORDINATOR_NAME, id::Hash};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use std::sync::{Arc, OnceLock};

/// BLAKE3 of an authority's certificate (DER), as `ca show` prints it.
pub(crate) fn hash(pem: &str) -> Result<Hash, Failure> {
    Ok(Hash(*blake3::hash(&certificate(pem)?).as_bytes()))
}

/// The hash of the authority that follows the pinned one, once a verified chain has shown it.
pub(crate) type Followed = Arc<OnceLock<Hash>>;

/// Trusts this authority and no other.
pub(crate) fn pinned(pem: &str, followed: &Followed) -> Result<ClientConfig, Failure> {
    let pinned = certificate(pem)?;
    let inner = verifier(&pinned)
        .map_err(|error| Failure::mistake(format!("use the pinned certificate authority: {error}")))?;
    config(Arc::new(Pinned { inner, pinned, followed: Arc::clone(followed) }))
}

fn verifier(authority: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    built.map_err(|error| Error::General(error.to_string()))
}

/// Trusts anybody: only for fetching a certificate authority whose hash is compared before anything else is said.
pub(crate) fn unverified() -> Result<ClientConfig, Failure> {
    config(Arc::new(Anybody { provider: provider() }))
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, Failure> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Failure::mistake(format!("read a certificate authority: {error}")))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn config(verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientConfig, Failure> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(Failure::bug)?.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The address, else the fixed name.
#[derive(Debug)]
struct Pinned {
    inner: Arc<WebPkiServerVerifier>,
    pinned: CertificateDer<'static>,
    followed: Followed,
}

impl Pinned {
    /// Of a chain that was verified. The certificate at its end is another authority's, and that one signed the coordinator's: the key that
    /// did so is the one that the pinned authority vouches for.
    fn look_for_another(&self, end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], now: UnixTime) {
        let Some(last) = intermediates.last().filter(|last| **last != self.pinned) else { return };
        let name = ServerName::try_from(COORDINATOR_NAME).expect("the fixed name is a host name");
        let signed = verifier(last).and_then(|last| last.verify_server_cert(end_entity, &[], &name, &[], now));
        if signed.is_ok() {
            let _ = self.followed.set(Hash(*blake3::hash(last).as_bytes()));
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |name: &ServerName<'_>| self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        let verified = match verify(name) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => verify(&ServerName::try_from(COORDINATOR_NAME).expect("the fixed name is a host name")),
            verdict => verdict,
        };
        if verified.is_ok() {
            self.look_for_another(end_entity, intermediates, now);
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whoever answers, as long as the handshake itself is sound.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
