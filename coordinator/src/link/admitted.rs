//! Certificates with a session at this moment: a blob connection may speak only while one of them has its session.

use super::tls::NodeCertificate;
use lorikeet_protocol::id::NodeId;
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

type Sessions = HashMap<NodeId, (u64, HashSet<String>)>;

/// Each node's session with the serials it may use.
#[derive(Debug, Default)]
pub(super) struct Admitted(Mutex<Sessions>);

impl Admitted {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, certificate: &NodeCertificate, session: u64) {
        self.lock().insert(certificate.node, (session, HashSet::from([certificate.serial.clone()])));
    }

    pub(super) fn renewed(&self, node: NodeId, serial: String) {
        if let Some((_, serials)) = self.lock().get_mut(&node) {
            serials.insert(serial);
        }
    }

    /// A newer session of the node stays.
    pub(super) fn leave(&self, node: NodeId, session: u64) {
        let mut admitted = self.lock();
        if admitted.get(&node).is_some_and(|(current, _)| *current == session) {
            admitted.remove(&node);
        }
    }

    pub(super) fn holds(&self, certificate: &NodeCertificate) -> bool {
        self.lock().get(&certificate.node).is_some_and(|(_, serials)| serials.contains(&certificate.serial))
    }
}
