//! What one node may have open here, and how often it may begin: none takes the places of the others, or makes the driver write for nothing.
//!
//! A node is counted by its id and its key, so that a certificate with a node's name that somebody else made takes none of that node's places.

use super::tls::NodeCertificate;
use lorikeet_protocol::{
    id::{Hash, NodeId},
    rate::Bucket,
};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Connections of one node for one purpose: the one that it uses, and a few that a wire which comes and goes has left behind; their end is heard of
/// after `IDLE`, and an agent waits longer after each dial.
pub(super) const OF_ONE_NODE: usize = 4;
/// Hellos of one node in a second, and at once: each writes a row and is compared with everything that is placed there. An agent says one when it starts and
/// one after each break.
pub(super) const HELLOS: (u64, u64) = (1, 20);
/// Renewals of one node in a second, and at once, whichever connections they come by: each costs a signature and a commit, and an agent asks for one
/// in days.
pub(super) const RENEWALS: (u64, u64) = (1, 5);
/// Guests that are remembered although nothing of theirs is open: their hellos and renewals. A cluster has fewer nodes.
const REMEMBERED: usize = 4_096;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Control,
    Blobs,
}

type Name = (NodeId, Hash);

/// Every node with something open, and those that had lately.
#[derive(Debug)]
pub(super) struct Guests {
    started: Instant,
    known: Mutex<HashMap<Name, Guest>>,
}

#[derive(Debug)]
struct Guest {
    open: [usize; 2],
    hellos: Bucket,
    renewals: Bucket,
}

/// One connection's place, as long as this lives.
#[derive(Debug)]
pub(super) struct Place<'a> {
    guests: &'a Guests,
    name: Name,
    purpose: Purpose,
}

impl Default for Guests {
    fn default() -> Self {
        Self { started: Instant::now(), known: Mutex::default() }
    }
}

impl Guests {
    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Guest>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it has as many as one node may have.
    pub(super) fn enter(&self, certificate: &NodeCertificate, purpose: Purpose) -> Option<Place<'_>> {
        let name = (certificate.node, certificate.shown.key);
        let mut known = self.lock();
        if known.len() >= REMEMBERED && !known.contains_key(&name) {
            known.retain(|_, guest| guest.open != [0, 0]);
        }
        let open = &mut known.entry(name).or_default().open[purpose as usize];
        (*open < OF_ONE_NODE).then(|| {
            *open += 1;
            Place { guests: self, name, purpose }
        })
    }

    /// Whether a hello of this node is heard now.
    pub(super) fn may_say_hello(&self, certificate: &NodeCertificate) -> bool {
        self.may(certificate, |guest| &mut guest.hellos)
    }

    /// Whether a renewal of this node is answered now.
    pub(super) fn may_renew(&self, certificate: &NodeCertificate) -> bool {
        self.may(certificate, |guest| &mut guest.renewals)
    }

    fn may(&self, certificate: &NodeCertificate, what: impl Fn(&mut Guest) -> &mut Bucket) -> bool {
        let now = self.started.elapsed();
        let mut known = self.lock();
        let guest = known.get_mut(&(certificate.node, certificate.shown.key));
        // Who says anything has a place.
        guest.is_none_or(|guest| what(guest).take_if_there(1, now))
    }
}

impl Default for Guest {
    fn default() -> Self {
        let bucket = |(per_second, burst)| Bucket::new(per_second, burst);
        Self { open: [0, 0], hellos: bucket(HELLOS), renewals: bucket(RENEWALS) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(guest) = self.guests.lock().get_mut(&self.name) {
            guest.open[self.purpose as usize] -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Shown;
    use std::time::Duration;

    fn named(node: u128, key: u8) -> NodeCertificate {
        let shown = Shown { serial: "s".into(), key: Hash([key; 32]), is_newest: true };
        NodeCertificate { node: NodeId(uuid::Uuid::from_u128(node)), shown, expired: false, ends: Duration::MAX }
    }

    #[test]
    fn a_node_has_its_places_for_each_purpose_and_gets_them_back() {
        let (guests, node) = (Guests::default(), named(1, 1));
        let mut places: Vec<_> = (0..OF_ONE_NODE).map(|_| guests.enter(&node, Purpose::Blobs).unwrap()).collect();
        assert!(guests.enter(&node, Purpose::Blobs).is_none());
        assert!(guests.enter(&node, Purpose::Control).is_some(), "the one is not the other's");
        assert!(guests.enter(&named(2, 1), Purpose::Blobs).is_some(), "another node");
        assert!(guests.enter(&named(1, 2), Purpose::Blobs).is_some(), "somebody under its name");
        places.pop();
        assert!(guests.enter(&node, Purpose::Blobs).is_some());
    }

    #[test]
    fn guests_that_are_gone_are_not_remembered_for_ever() {
        let guests = Guests::default();
        let (here, stays) = (named(0, 1), named(1, 1));
        let place = guests.enter(&stays, Purpose::Control);
        for node in 2..20_000 {
            guests.enter(&named(node, 1), Purpose::Control).unwrap();
        }
        assert!(guests.lock().len() <= REMEMBERED, "{}", guests.lock().len());
        assert_eq!(guests.lock()[&(stays.node, stays.shown.key)].open, [1, 0], "who is here is");
        drop((place, here));
    }

    #[test]
    fn hellos_beyond_measure_are_not_heard() {
        let (guests, node) = (Guests::default(), named(1, 1));
        let _place = guests.enter(&node, Purpose::Control);
        let heard = (0..1_000).filter(|_| guests.may_say_hello(&node)).count();
        assert!((20..30).contains(&heard), "{heard}");
    }

    #[test]
    fn renewals_beyond_measure_are_not_answered_by_whichever_connection_they_come() {
        let (guests, node) = (Guests::default(), named(1, 1));
        let _place = guests.enter(&node, Purpose::Control);
        let answered = (0..1_000).filter(|_| {
            let _one_more = guests.enter(&node, Purpose::Control);
            guests.may_renew(&node)
        });
        let answered = answered.count();
        assert!((5..15).contains(&answered), "{answered}");
        assert!(guests.may_say_hello(&node), "the one is not the other");
    }
}
