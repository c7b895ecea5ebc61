//! `/api/tokens` and `/api/nodes/join-tokens`: secrets are shown once, where they are made, and never again.

use crate::timestamp::Timestamp;
use lorikeet_protocol::id::{TokenId, UserId};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use utoipa::ToSchema;

/// Seconds that a join string may work: a day at most.
pub const JOIN_TTL: RangeInclusive<u64> = 1..=86_400;
/// Seconds that a token may work: ten years at most, for what never ends is never looked after.
pub const TOKEN_TTL: RangeInclusive<u64> = 1..=3_650 * 86_400;

/// `POST /api/nodes/join-tokens`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateJoinToken {
    /// An hour when it is not given, a day at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// What makes one machine a node, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// `LK1.…`, for `lorikeet agent join`. Null in the replayed answer of a repeated request.
    pub join_string: Option<String>,
    /// When it stops working. Null where `join_string` is.
    pub expires_at: Option<Timestamp>,
}

/// `POST /api/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateToken {
    /// What it is for, 1–200 characters.
    pub name: String,
    /// Ninety days when it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A bearer token's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// `tok_…`
    #[schema(value_type = String)]
    pub id: TokenId,
    /// Whose.
    #[schema(value_type = String)]
    pub owner: UserId,
    /// What it is for.
    pub name: String,
    /// The token itself; only in the answer to the request that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
}
