//! Who asks, and whether they may: the only place where that is judged.
//!
//! What belongs to another does not exist for the asker: every refusal for lack of ownership is [`Refusal::NotFound`], word for
//! word the answer to an id that was never given out.

use lorikeet_protocol::id::{Hash, RequestId, TokenId, UserId};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// What a user may do beyond their own rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Role {
    /// Sees and changes what they own.
    User,
    /// Sees and changes everything.
    Admin,
    /// Reads all costs, and nothing else of others.
    BillingAdmin,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A person, by one of their tokens.
    User {
        /// Who.
        id: UserId,
        /// What they may.
        role: Role,
        /// With which token.
        token: TokenId,
    },
    /// The coordinator itself: first start, shutdown, clean-up.
    System,
}

impl Actor {
    /// Whether rows of `owner` exist for this actor.
    pub fn sees(&self, owner: UserId) -> bool {
        match self {
            Self::System | Self::User { role: Role::Admin, .. } => true,
            Self::User { id, .. } => *id == owner,
        }
    }

    /// Whether everything exists for this actor.
    pub fn sees_everything(&self) -> bool {
        matches!(self, Self::System | Self::User { role: Role::Admin, .. })
    }

    /// The row, if it exists for this actor.
    pub fn find<T>(&self, row: Option<T>, owner: impl Fn(&T) -> UserId, what: &'static str) -> Result<T, Refusal> {
        row.filter(|row| self.sees(owner(row))).ok_or(Refusal::NotFound { what: what.into() })
    }

    /// Refuses everybody but administrators.
    pub fn require_admin(&self, what: &'static str) -> Result<(), Refusal> {
        if self.sees_everything() { Ok(()) } else { Err(Refusal::Forbidden { what: what.into() }) }
    }

    /// Who will own what this actor makes. The coordinator itself owns nothing.
    pub fn owner(&self) -> Result<UserId, Refusal> {
        match self {
            Self::User { id, .. } => Ok(*id),
            Self::System => Err(Refusal::Forbidden { what: "own rows as the system".into() }),
        }
    }

    /// The user in audit records; `None` is the coordinator itself.
    pub fn user(&self) -> Option<UserId> {
        match self {
            Self::User { id, .. } => Some(*id),
            Self::System => None,
        }
    }
}

/// A request around its command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Who asks.
    pub actor: Actor,
    /// For log, audit record and answer.
    pub request: RequestId,
    /// From which address.
    pub from: String,
    /// Repeats of this request are answered, not done again.
    pub idempotency: Option<Idempotency>,
}

impl Refusal {
    /// There is none.
    pub fn not_found(what: &'static str) -> Self {
        Self::NotFound { what: what.into() }
    }

    /// A value that cannot be.
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    /// It does not fit what is there.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict { message: message.into() }
    }
}

/// What makes a request repeatable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The `Idempotency-Key` header.
    pub key: String,
    /// Of method, path and body: the same key with another is a conflict.
    pub body: Hash,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// There is none, or it is another's.
    #[error("no such {what}")]
    NotFound {
        /// Kind of row.
        what: Cow<'static, str>,
    },
    /// Only an administrator may.
    #[error("only an administrator may {what}")]
    Forbidden {
        /// What was tried.
        what: Cow<'static, str>,
    },
    /// A value that cannot be.
    #[error("{field}: {message}")]
    Invalid {
        /// Which field.
        field: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// It does not fit what is there.
    #[error("{message}")]
    Conflict {
        /// What is there.
        message: String,
    },
    /// The key was used for another request.
    #[error("this Idempotency-Key was used for another request")]
    IdempotencyMismatch,
    /// The coordinator's disk is full.
    #[error("the coordinator's disk is full")]
    NoSpace,
    /// The coordinator is leaving.
    #[error("the coordinator is shutting down")]
    Unavailable,
    /// What it names is in the store, and does not read.
    #[error("what this names cannot be read from the coordinator's store; its log says which row")]
    Unreadable,
}
