//! A certificate that is right in everything but its time says that a clock is wrong, and by how much at least: the coordinator makes its own
//! anew at each start, a day back and five years ahead.

use crate::link::identity::validity;
use lorikeet_protocol::days;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

/// How this machine's clock stands to the coordinator's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClockOff {
    /// The certificate has not begun.
    #[error(
        "the clock of this machine is off by {} or more: by it, the coordinator's certificate begins in the future; set the clock and run a time \
         service",
        days(*.0)
    )]
    Behind(Duration),
    /// The certificate is over.
    #[error(
        "the clock of this machine is off by {} or more: by it, the coordinator's certificate is over; set the clock and run a time service (only \
         a coordinator that was not started for five years would show such a one)",
        days(*.0)
    )]
    Ahead(Duration),
}

/// Verifies as `inner` does, and remembers what a failure says of the clock.
#[derive(Debug)]
pub(in crate::link) struct Dated {
    inner: Arc<dyn ServerCertVerifier>,
    off: OnceLock<ClockOff>,
}

impl Dated {
    pub(super) fn new(inner: Arc<dyn ServerCertVerifier>) -> Arc<Self> {
        Arc::new(Self { inner, off: OnceLock::new() })
    }

    /// Whether the time alone was wrong.
    pub(in crate::link) fn off(&self) -> Option<ClockOff> {
        self.off.get().copied()
    }
}

impl ServerCertVerifier for Dated {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        dialled: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let at = |now| self.inner.verify_server_cert(end_entity, intermediates, dialled, ocsp_response, now);
        let verified = at(now);
        let untimely = matches!(
            verified,
            Err(Error::InvalidCertificate(
                CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. }
                    | CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
            ))
        );
        // Everything else about it must hold: a stranger's certificate says nothing about our clock.
        let seen = untimely.then(|| judge(end_entity, now)).flatten();
        if let Some((then, off)) = seen.filter(|(then, _)| at(*then).is_ok()) {
            tracing::debug!(?then, "the coordinator's certificate holds but for its time");
            let _ = self.off.set(off);
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

/// A moment at which the certificate was valid, and how far the clock is from it.
fn judge(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<(UnixTime, ClockOff)> {
    let (from, to) = validity(certificate).ok()?;
    let now = Duration::from_secs(now.as_secs());
    let (then, off) =
        if now < from { (from, ClockOff::Behind(from - now)) } else { (to, ClockOff::Ahead(now.saturating_sub(to))) };
    Some((UnixTime::since_unix_epoch(then), off))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_protocol::COORDINATOR_NAME;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::RootCertStore;

    const DAY: u64 = 86_400;
    const YEAR: u64 = 365 * DAY;
    /// When the coordinator was started.
    const START: u64 = 1_750_000_000;

    #[test]
    fn a_clock_that_is_off_by_a_year_is_named_and_one_that_is_off_by_ten_minutes_works() {
        for (now, off) in [
            (START, None),
            (START - 600, None),
            (START + 600, None),
            (START - YEAR, Some(ClockOff::Behind(Duration::from_secs(YEAR - DAY)))),
            (START + YEAR, None),
            (START + 6 * YEAR, Some(ClockOff::Ahead(Duration::from_secs(YEAR)))),
        ] {
            assert_eq!(verified(now, true), (off.is_none(), off), "{now}");
        }
        let words = ClockOff::Behind(Duration::from_secs(YEAR - DAY + 7)).to_string();
        assert!(words.starts_with("the clock of this machine is off by 364 days"), "{words}");
    }

    #[test]
    fn a_strangers_certificate_says_nothing_about_the_clock() {
        assert_eq!(verified(START - YEAR, false), (false, None));
    }

    /// Whether a coordinator is believed at that time, and what is said of the clock; its CA may be another than the trusted one.
    fn verified(now: u64, trusted: bool) -> (bool, Option<ClockOff>) {
        let (ca, other) = (authority(), authority());
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([COORDINATOR_NAME.to_owned()]).unwrap();
        params.not_before = time::OffsetDateTime::from_unix_timestamp((START - DAY) as i64).unwrap();
        params.not_after = time::OffsetDateTime::from_unix_timestamp((START + 5 * YEAR) as i64).unwrap();
        let shown = params.signed_by(&key, &ca.1).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(if trusted { ca.0 } else { other.0 }).unwrap();
        let inner = super::super::web(roots).unwrap();
        let dated = Dated::new(inner);
        let name = ServerName::try_from(COORDINATOR_NAME).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let answer = dated.verify_server_cert(shown.der(), &[], &name, &[], now);
        (answer.is_ok(), dated.off())
    }

    fn authority() -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.der().clone(), Issuer::new(params, key))
    }
}
