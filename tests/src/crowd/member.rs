//! How a simulated agent becomes a node: the product's own join, with the coordinator's CA read from its folder.

use super::session;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use lorikeet_protocol::{
    ALPN_BLOB, ALPN_CONTROL, ALPN_JOIN, COORDINATOR_NAME, codec,
    file::CHUNK_BYTES,
    id::NodeId,
    join::{JoinAnswer, JoinRequest, JoinTicket, PREFIX},
};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{sync::Arc, time::Duration};

/// A node with a certificate of its own.
#[derive(Debug, Clone)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    pub(super) config: quinn::ClientConfig,
    /// For its blob connection.
    pub(super) blob: quinn::ClientConfig,
}

impl Member {
    /// Uses a join string, as `lorikeet node token` prints it.
    ///
    /// # Errors
    /// What went wrong, for the person who measures.
    pub async fn join(text: &str, name: &str) -> Result<Self, String> {
        let body = text.strip_prefix(PREFIX).ok_or("no join string")?;
        let ticket = URL_SAFE_NO_PAD.decode(body).map_err(|error| error.to_string())?;
        let ticket: JoinTicket = codec::decode(&ticket).map_err(|error| error.to_string())?;
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let signing_request =
            CertificateParams::default().serialize_request(&key).map_err(|error| error.to_string())?.der().to_vec();
        let stranger = Stranger::builder(ticket.ca_hash).with_no_client_auth();
        let request = JoinRequest { secret: ticket.secret, signing_request, name: name.into() };
        let answer = ask(&ticket.address, quic(stranger, ALPN_JOIN)?, &request).await?;
        let JoinAnswer::Joined(identity) = answer else { return Err(format!("{answer:?}")) };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(identity.ca)).map_err(|error| error.to_string())?;
        let secret = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![CertificateDer::from(identity.certificate)];
        let config = tls13().with_root_certificates(roots).with_client_auth_cert(chain, secret);
        let config = config.map_err(|error| error.to_string())?;
        let blob = quic(config.clone(), ALPN_BLOB)?;
        Ok(Self { node: identity.node, config: quic(config, ALPN_CONTROL)?, blob })
    }
}

async fn ask(address: &str, config: quinn::ClientConfig, request: &JoinRequest) -> Result<JoinAnswer, String> {
    let address = address.parse().map_err(|_| format!("{address} is no address"))?;
    let connecting =
        session::socket().connect_with(config, address, COORDINATOR_NAME).map_err(|error| error.to_string())?;
    let connection = connecting.await.map_err(|error| error.to_string())?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
    session::write(&mut send, request).await?;
    let _ = send.finish();
    let answer = session::read(&mut receive).await;
    connection.close(0u32.into(), b"joined");
    answer
}

fn tls13() -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    builder.with_protocol_versions(&[&rustls::version::TLS13]).expect("the provider speaks TLS 1.3")
}

fn quic(mut config: rustls::ClientConfig, alpn: &[u8]) -> Result<quinn::ClientConfig, String> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(config).map_err(|error| error.to_string())?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    // As the product's agents: the same bytes on the wire while nothing happens, and the same wait until silence is noticed.
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(2)));
    transport.max_idle_timeout(quinn::IdleTimeout::try_from(Duration::from_secs(15)).ok());
    // A whole chunk may be on its way.
    transport.send_window(CHUNK_BYTES);
    transport.max_concurrent_bidi_streams(0u32.into());
    transport.max_concurrent_uni_streams(0u32.into());
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Trusts who shows the CA of the join string. That a wrong one gets no secret is the agent's own test; here the coordinator is ours.
#[derive(Debug)]
struct Stranger {
    expected: lorikeet_protocol::id::Hash,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl Stranger {
    fn builder(
        expected: lorikeet_protocol::id::Hash,
    ) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        tls13().dangerous().with_custom_certificate_verifier(Arc::new(Self { expected, provider }))
    }
}

impl rustls::client::danger::ServerCertVerifier for Stranger {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &rustls_pki_types::ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        let shown = intermediates.iter().any(|der| blake3::hash(der).as_bytes() == &self.expected.0);
        let stranger = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        shown.then(rustls::client::danger::ServerCertVerified::assertion).ok_or_else(stranger)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has no TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
