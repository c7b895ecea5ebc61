//! Certificates with a session at this moment: a request for bytes is served under one of them, and no longer.

use super::tls::NodeCertificate;
use lorikeet_protocol::id::{Hash, NodeId};
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Signs of life that are handed on: leases last seconds, traffic comes by the thousand.
const BEAT: Duration = Duration::from_secs(1);

/// Each node's session with its key and the serials it may use.
#[derive(Debug, Default)]
pub(super) struct Admitted(Mutex<HashMap<NodeId, Session>>);

#[derive(Debug)]
struct Session {
    number: u64,
    key: Hash,
    serials: HashSet<String>,
    beat: Option<Instant>,
    /// Ends with the session.
    _ends: DropGuard,
    over: CancellationToken,
}

impl Admitted {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A newer session of the node stays: this one is only late.
    pub(super) fn enter(&self, certificate: &NodeCertificate, number: u64) {
        let mut admitted = self.lock();
        if admitted.get(&certificate.node).is_none_or(|current| current.number < number) {
            let (serials, over) = (HashSet::from([certificate.shown.serial.clone()]), CancellationToken::new());
            let key = certificate.shown.key;
            let session = Session { number, key, serials, beat: None, _ends: over.clone().drop_guard(), over };
            admitted.insert(certificate.node, session);
        }
    }

    pub(super) fn renewed(&self, node: NodeId, serial: String) {
        if let Some(session) = self.lock().get_mut(&node) {
            session.serials.insert(serial);
        }
    }

    /// Whether it was this session that left; a newer one of the node stays.
    pub(super) fn leave(&self, node: NodeId, number: u64) -> bool {
        let mut admitted = self.lock();
        let ours = admitted.get(&node).is_some_and(|current| current.number == number);
        if ours {
            admitted.remove(&node);
        }
        ours
    }

    pub(super) fn holds(&self, certificate: &NodeCertificate) -> bool {
        self.session_of(certificate).is_some()
    }

    /// Until the certificate has had no session for as long as `grace`: one that reconnects keeps what it has open.
    pub(super) async fn dismissed(&self, certificate: &NodeCertificate, grace: Duration) {
        while let Some(over) = self.session_of(certificate) {
            over.cancelled().await;
            tokio::time::sleep(grace).await;
        }
    }

    /// Of the certificate's session, if it has one.
    pub(super) fn number(&self, certificate: &NodeCertificate) -> Option<u64> {
        self.of(certificate, |session| session.number)
    }

    fn session_of(&self, certificate: &NodeCertificate) -> Option<CancellationToken> {
        self.of(certificate, |session| session.over.clone())
    }

    /// What is wanted of the session that a certificate of its node may speak for.
    fn of<T>(&self, certificate: &NodeCertificate, wanted: impl FnOnce(&Session) -> T) -> Option<T> {
        let (admitted, shown) = (self.lock(), &certificate.shown);
        let session = admitted.get(&certificate.node)?;
        (session.key == shown.key && session.serials.contains(&shown.serial)).then(|| wanted(session))
    }

    /// Traffic of a node is a sign of life of its session; `None`: one was handed on a moment ago.
    pub(super) fn beat(&self, node: NodeId) -> Option<u64> {
        let mut admitted = self.lock();
        let session = admitted.get_mut(&node)?;
        if session.beat.is_some_and(|last| last.elapsed() < BEAT) {
            return None;
        }
        session.beat = Some(Instant::now());
        Some(session.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Shown;

    fn named(serial: &str) -> NodeCertificate {
        let shown = Shown { serial: serial.into(), key: Hash([1; 32]), is_newest: true };
        NodeCertificate { node: NodeId(uuid::Uuid::nil()), shown, expired: false, ends: Duration::MAX }
    }

    #[test]
    fn a_session_that_is_late_does_not_take_the_place_of_a_newer() {
        let admitted = Admitted::default();
        let (old, new) = (named("old"), named("new"));
        admitted.enter(&new, 2);
        admitted.enter(&old, 1);
        assert!(admitted.holds(&new) && !admitted.holds(&old));
        assert!(!admitted.leave(old.node, 1) && admitted.holds(&new));
        assert!(admitted.leave(new.node, 2) && !admitted.holds(&new));
    }

    #[test]
    fn a_certificate_with_the_number_of_another_and_a_key_of_its_own_has_no_session() {
        let (admitted, certificate) = (Admitted::default(), named("s"));
        admitted.enter(&certificate, 1);
        let forged = Shown { key: Hash([2; 32]), ..certificate.shown.clone() };
        assert!(!admitted.holds(&NodeCertificate { shown: forged, ..certificate.clone() }));
        assert!(admitted.holds(&certificate));
    }

    #[test]
    fn a_flood_of_traffic_is_one_sign_of_life() {
        let admitted = Admitted::default();
        let certificate = named("s");
        assert_eq!(admitted.beat(certificate.node), None);
        admitted.enter(&certificate, 7);
        assert_eq!((0..1_000).filter_map(|_| admitted.beat(certificate.node)).collect::<Vec<_>>(), [7]);
    }
}
