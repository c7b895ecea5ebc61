//! Files from node to node: who has what, and the leave to read it.
//!
//! ```text
//!  giver ── Announcement ──► coordinator            "I have these files, and listen here"; the answer is a key of the giver's own
//!  reader ── Givers{attempt, file} ──► coordinator  "who else has it?"; the answer names givers, each with a grant
//!  reader ── ShareRequest{grant, chunk} ──► giver   judged by the grant's seal alone: nobody is asked
//! ```
//! A [`Grant`] names the reader, the file and the end of its life, and is sealed with the one giver's key, which only that giver and
//! the coordinator have. The reader proves who it is with its certificate, so a grant that was seen is of no use to another node, at
//! another giver, or for another file. Lives are counted by the coordinator's clock, which it tells with the key.

use crate::{
    blob::Refusal,
    id::{Hash, NodeId, UnixMillis},
};
use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr};

/// Files that an announcement names at most, as in a hello.
pub const ANNOUNCED: usize = 4_096;
/// Givers that an answer names at most: with more, each would bring too few chunks to be worth its handshake.
pub const GIVERS: usize = 4;

/// What an agent says of its cache, after each welcome, when it changed, and every minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Where others may read from it.
    pub listens: Listens,
    /// The files in its cache, at most [`ANNOUNCED`].
    pub files: Vec<Hash>,
    /// What moved since the agent started.
    pub moved: Moved,
}

/// Where a node gives its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listens {
    /// Nowhere: it only takes.
    Nowhere,
    /// At this UDP port of the address that the coordinator sees.
    Port(u16),
    /// Here, as its config says.
    At(SocketAddr),
}

/// Bytes of files that a node received and gave since its agent started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// From the coordinator, verified.
    pub from_coordinator: u64,
    /// From other nodes, verified.
    pub from_nodes: u64,
    /// To other nodes.
    pub to_nodes: u64,
}

/// What seals the grants that one giver honours.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantKey(pub [u8; 32]);

/// A secret: it stands in no log.
impl fmt::Debug for GrantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrantKey")
    }
}

/// The coordinator's leave to read one file from one giver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Who may read, by its certificate.
    pub reader: NodeId,
    /// What.
    pub file: Hash,
    /// Until when, by the coordinator's clock.
    pub expires: UnixMillis,
    /// BLAKE3 of the [`words`](Self::words), keyed with the giver's key.
    pub seal: Hash,
}

impl Grant {
    /// What is sealed: reader, file, and the end of its life, little-endian.
    pub fn words(reader: NodeId, file: Hash, expires: UnixMillis) -> [u8; 56] {
        let mut words = [0; 56];
        words[..16].copy_from_slice(&reader.bytes());
        words[16..48].copy_from_slice(&file.0);
        words[48..].copy_from_slice(&expires.0.to_le_bytes());
        words
    }
}

/// A node that has a file and gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Giver {
    /// Who: its certificate has to say so.
    pub node: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
    /// What to show there.
    pub grant: Grant,
}

/// A reader's request to a giver; one a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRequest {
    /// The leave to read it.
    pub grant: Grant,
    /// Which chunk of the grant's file.
    pub chunk: u32,
}

/// The giver's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareAnswer {
    /// This many bytes of the chunk follow. The reader compares them with the hash that its offer names.
    Bytes(u64),
    /// No, and why.
    Refused(Refusal),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_tells_every_grant_from_every_other() {
        let node = |n| NodeId(uuid::Uuid::from_u128(n));
        let words = Grant::words(node(1), Hash([2; 32]), UnixMillis(3));
        assert_ne!(words, Grant::words(node(2), Hash([2; 32]), UnixMillis(3)));
        assert_ne!(words, Grant::words(node(1), Hash([3; 32]), UnixMillis(3)));
        assert_ne!(words, Grant::words(node(1), Hash([2; 32]), UnixMillis(4)));
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", GrantKey([7; 32])), "GrantKey");
    }
}
