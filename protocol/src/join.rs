//! How a machine becomes a node: one question, one answer, on the ALPN that asks for no client certificate.
//!
//! The join string a person carries over is `LK1.<base64url of JoinTicket>`. The agent checks the CA hash against the
//! certificate chain it is shown *before* it sends the secret; the secret is bound to the first public key that uses it, so
//! that the same machine may repeat a join whose answer was lost, and nobody else can.

use crate::id::{Hash, NodeId};
use serde::{Deserialize, Serialize};

/// What stands in front of a join string.
pub const PREFIX: &str = "LK1.";

/// What a join string says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTicket {
    /// `host:port` of the coordinator's link.
    pub address: String,
    /// BLAKE3 of the CA certificate (DER).
    pub ca_hash: Hash,
    /// The single-use secret.
    pub secret: [u8; 32],
}

/// The agent's question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// From the join string.
    pub secret: [u8; 32],
    /// PKCS #10 request, DER; its subject is ignored: the coordinator sets the node id.
    pub signing_request: Vec<u8>,
    /// What people will call the node: its host name, or what its config says.
    pub name: String,
}

/// The coordinator's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// The machine is a node now.
    Joined(Identity),
    /// It is not, and why: unknown, used or expired secret, or a request that does not verify.
    Refused {
        /// A sentence for the person at the machine.
        reason: String,
    },
}

/// What makes a machine a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its name for ever.
    pub node: NodeId,
    /// The node's certificate, DER.
    pub certificate: Vec<u8>,
    /// The CA's certificate, DER.
    pub ca: Vec<u8>,
}
