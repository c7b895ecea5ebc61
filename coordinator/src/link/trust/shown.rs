//! What the coordinator shows to whoever dials, agents and people: a certificate of the CA that signs.

use super::{Authorities, LinkError, Trust};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// The coordinator's own certificate: made at the start, and anew when another CA signs.
pub(super) struct Shown {
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
    pub(super) fn new(trust: Trust, names: Vec<String>) -> Result<Self, LinkError> {
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
