//! Leave to read from another node: what a node says of its cache, and the grants that are sealed for it.
//!
//! Each giver has a key of its own, drawn from `keys/share.key` and its id: it is told to nobody else, so no node can seal a grant for
//! another, and it is the same after every restart. It has nothing to do with the CA, so a rotation takes it from nobody, and who
//! holds a CA's key can seal nothing. Grants live for two minutes and only nodes with a session get any, so that is how
//! long a node whose attempt ended may go on reading what its attempt named. Of a node that was revoked every giver that is here is told at once
//! ([`ToAgent::Expelled`](lorikeet_protocol::agent::ToAgent::Expelled)).

use super::{LinkError, Shared, blob::Reply};
use crate::{
    clock::now,
    cluster::{Announced, GRANTED},
};
use lorikeet_protocol::{
    blob::{BlobAnswer, Refusal},
    id::{AttemptId, Hash, NodeId, UnixMillis},
    share::{ANNOUNCED, Announcement, Giver, Grant, GrantKey, Listens},
};
use std::net::{IpAddr, SocketAddr};

/// Seals grants.
pub(super) struct Sealer(pub(super) [u8; 32]);

impl Sealer {
    /// A giver's own key.
    pub(super) fn key(&self, giver: NodeId) -> GrantKey {
        GrantKey(*blake3::keyed_hash(&self.0, &giver.bytes()).as_bytes())
    }

    /// Good at this giver, for this reader and file.
    pub(super) fn grant(&self, giver: NodeId, reader: NodeId, file: Hash, expires: UnixMillis) -> Grant {
        let seal = blake3::keyed_hash(&self.key(giver).0, &Grant::words(reader, file, expires));
        Grant { reader, file, expires, seal: Hash(*seal.as_bytes()) }
    }
}

/// A node says what it has.
pub(super) async fn announce(
    shared: &Shared,
    node: NodeId,
    session: u64,
    from: SocketAddr,
    said: Announcement,
) -> Result<Reply, LinkError> {
    if said.files.len() > ANNOUNCED {
        return Err(LinkError::Misbehaved("it announces too many files"));
    }
    let gives_at = match said.listens {
        Listens::Nowhere => None,
        Listens::Port(port) => Some(SocketAddr::new(from.ip().to_canonical(), port)),
        Listens::At(address) => Some(address),
    };
    if gives_at.is_some_and(|address| !is_of_one_machine(address)) {
        return Err(LinkError::Misbehaved("it gives files at an address that is none"));
    }
    let announced = Announced { files: said.files, gives_at, moved: said.moved };
    shared.services.driver.announced(node, session, announced).await;
    Ok((BlobAnswer::Announced { key: shared.sealer.key(node), time: now() }, Vec::new()))
}

/// A packet to several machines, or to none, is no way to one of them.
fn is_of_one_machine(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let several = ip.is_multicast() || matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !several
}

/// A node asks who else has what its attempt names.
pub(super) async fn givers(
    shared: &Shared,
    reader: NodeId,
    from: SocketAddr,
    attempt: AttemptId,
    file: Hash,
) -> Result<Reply, Refusal> {
    let found = shared.services.givers(reader, attempt, file).await.ok_or(Refusal::NotYours)?;
    let expires = UnixMillis(now().0 + GRANTED.as_millis() as u64);
    let reachable = found.into_iter().filter(|(_, address)| can_reach(from.ip(), address.ip()));
    let seal = |(node, address)| Giver { node, address, grant: shared.sealer.grant(node, reader, file, expires) };
    Ok((BlobAnswer::Givers(reachable.map(seal).collect()), Vec::new()))
}

/// An address of the coordinator's own machine means another machine elsewhere.
fn can_reach(reader: IpAddr, giver: IpAddr) -> bool {
    reader.to_canonical().is_loopback() || !giver.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn every_giver_has_a_key_of_its_own_and_every_grant_a_seal_of_its_own() {
        let (sealer, node) = (Sealer([1; 32]), |n| NodeId(Uuid::from_u128(n)));
        assert_eq!(sealer.key(node(1)), sealer.key(node(1)));
        let grant = sealer.grant(node(1), node(2), Hash([3; 32]), UnixMillis(4));
        let others = [
            sealer.grant(node(9), node(2), Hash([3; 32]), UnixMillis(4)),
            sealer.grant(node(1), node(9), Hash([3; 32]), UnixMillis(4)),
            sealer.grant(node(1), node(2), Hash([9; 32]), UnixMillis(4)),
            sealer.grant(node(1), node(2), Hash([3; 32]), UnixMillis(9)),
            Sealer([2; 32]).grant(node(1), node(2), Hash([3; 32]), UnixMillis(4)),
        ];
        assert!(others.iter().all(|other| other.seal != grant.seal));
    }

    #[test]
    fn a_giver_beside_the_coordinator_is_named_only_to_who_is_there_too() {
        let [here, mapped, far] = ["127.0.0.1", "::ffff:127.0.0.1", "192.0.2.7"].map(|text| text.parse().unwrap());
        assert!(can_reach(here, mapped) && can_reach(mapped, here) && can_reach(far, far) && can_reach(here, far));
        assert!(!can_reach(far, here) && !can_reach(far, mapped));
    }
}
