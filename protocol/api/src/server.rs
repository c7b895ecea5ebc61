//! `/api/health`, `/api/version`, `/api/me`: the coordinator about itself, and the caller about the caller.

use lorikeet_protocol::id::UserId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /api/health`; needs no token. 200 while new work is taken, 503 otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// In one word.
    pub status: HealthStatus,
    /// Why new work is refused.
    pub reason: Option<String>,
}

/// Whether new work is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HealthStatus {
    /// It is.
    Ok,
    /// It is not: no space, or on its way down.
    Degraded,
}

/// `GET /api/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Of the program.
    pub version: String,
    /// Of the link between coordinator and agents.
    pub link: u8,
}

/// `GET /api/me`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Me {
    /// `usr_…`
    #[schema(value_type = String)]
    pub id: UserId,
    /// Case-folded.
    pub email: String,
    /// What people say.
    pub name: String,
    /// What may be done.
    pub role: Role,
}

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Role {
    /// Sees and changes its own.
    User,
    /// Everything.
    Admin,
    /// Reads all costs and nothing else of others.
    BillingAdmin,
}
