//! `/api/ca` and `/api/ca/rotation`: the certificate authority, and the way to the next one.

use crate::timestamp::Timestamp;
use lorikeet_protocol::id::{Hash, NodeId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /api/ca`; needs no token: a certificate is no secret, and who pins it compares the hash first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaCertificate {
    /// The certificate of the CA that signs.
    pub pem: String,
    /// BLAKE3 of its DER form: what `login --ca-hash` and join strings carry.
    #[schema(value_type = String)]
    pub hash: Hash,
}

/// `GET /api/ca/rotation`; the answer to POST, which begins one, and to `…/finish` as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// In one word.
    pub phase: RotationPhase,
    /// The CA in force; during a rotation the older one.
    pub current: CaFacts,
    /// The one that follows it and signs already.
    pub next: Option<CaFacts>,
    /// When the rotation began.
    pub began_at: Option<Timestamp>,
    /// From when on it is finished by itself, unless nodes would be cut off.
    pub finishes_at: Option<Timestamp>,
    /// What it waits for, in words; empty: for nothing, or there is none.
    pub waits_for: Vec<String>,
    /// Every node that was not retired.
    pub nodes: Vec<NodeTrust>,
}

/// Where a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RotationPhase {
    /// There is one CA.
    Settled,
    /// Two are trusted, and the newer one signs.
    Overlap,
}

/// A CA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaFacts {
    /// BLAKE3 of its certificate (DER).
    #[schema(value_type = String)]
    pub hash: Hash,
    /// Its last moment.
    pub expires_at: Timestamp,
    /// Whole days until then.
    pub days_left: u64,
}

/// What a node trusts, as its agent said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTrust {
    /// `node_…`
    #[schema(value_type = String)]
    pub id: NodeId,
    /// Its host name, or what its config says.
    pub name: String,
    /// Hashes of the CAs that it trusts; empty: its agent has not said.
    #[schema(value_type = Vec<String>)]
    pub trusts: Vec<Hash>,
    /// The CA that signed the certificate it holds.
    #[schema(value_type = Option<String>)]
    pub holds: Option<Hash>,
    /// Why it would be cut off if only the newest CA were trusted; `null`: it would not.
    pub behind: Option<String>,
}

/// `POST /api/ca/rotation/finish`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FinishRotation {
    /// Also if nodes are cut off by it: they have to join again.
    #[serde(default)]
    pub force: bool,
}
