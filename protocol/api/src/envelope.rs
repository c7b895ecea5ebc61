//! What every answer is wrapped in, how lists are paged, and the codes of errors.

use crate::{job::MissingLines, jobfile::FieldError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rows of a page when the request does not say.
pub const DEFAULT_PAGE_SIZE: u32 = 20;
/// Rows of a page at most.
pub const MAX_PAGE_SIZE: u32 = 100;

/// A good answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<T> {
    /// Always true.
    success: bool,
    /// What was asked for.
    pub data: T,
    /// Of a list: where in it this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<Meta>,
}

impl<T> Envelope<T> {
    /// An answer that is no list.
    pub fn one(data: T) -> Self {
        Self { success: true, data, meta: None }
    }

    /// One page of a list.
    pub fn page(data: T, pagination: Pagination) -> Self {
        Self { success: true, data, meta: Some(Meta { pagination }) }
    }
}

/// A good answer that is made of the lines of attempts' events: metrics and logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LinesEnvelope<T> {
    /// Always true.
    success: bool,
    /// What was asked for.
    pub data: T,
    /// Of a list: where in it this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<Meta>,
    /// Lines that it would be made of too, and that are not here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingLines>,
}

impl<T> LinesEnvelope<T> {
    /// One page of a list.
    pub fn page(data: T, pagination: Pagination, missing: Vec<MissingLines>) -> Self {
        Self { success: true, data, meta: Some(Meta { pagination }), missing }
    }
}

/// What is said about an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Where in the list.
    pub pagination: Pagination,
}

/// A page's place in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pagination {
    /// Counts from 1.
    pub page: u32,
    /// Rows of a full page.
    pub page_size: u32,
    /// Rows of the whole list.
    pub total: u64,
    /// Whether a page follows.
    pub has_more: bool,
}

impl Pagination {
    /// Page `page` of a list of `total` rows.
    pub fn new(page: u32, page_size: u32, total: u64) -> Self {
        Self { page, page_size, total, has_more: u64::from(page) * u64::from(page_size) < total }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorEnvelope {
    /// Always false.
    success: bool,
    /// Why.
    pub error: ErrorBody,
}

impl From<ErrorBody> for ErrorEnvelope {
    fn from(error: ErrorBody) -> Self {
        Self { success: false, error }
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// Every field that is wrong, where fields are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<FieldError>,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl ErrorBody {
    /// A refusal that concerns no field.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new(), field: None }
    }

    /// Fields out of their range or of the wrong type; the message is the first one's.
    pub fn fields(details: Vec<FieldError>) -> Self {
        let first = details.first();
        let message = first.map_or_else(|| "the request is not valid".to_owned(), |fault| fault.message.clone());
        let field = first.map(|fault| fault.field.clone());
        Self { code: ErrorCode::ValidationError, message, details, field }
    }
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// A field is missing, unknown, of the wrong type or out of range.
    ValidationError,
    /// No token, or one that is unknown, expired or revoked.
    Unauthorized,
    /// The token's owner may not do this.
    Forbidden,
    /// There is nothing of this name that the caller may see.
    NotFound,
    /// There is no such method here.
    MethodNotAllowed,
    /// The thing is not in a state that allows this.
    Conflict,
    /// The same `Idempotency-Key` came with another body.
    IdempotencyMismatch,
    /// More bytes than allowed.
    PayloadTooLarge,
    /// It would cost more than is left.
    BudgetExceeded,
    /// Too often.
    RateLimited,
    /// The coordinator's disk is full.
    InsufficientStorage,
    /// Not now; try again.
    Unavailable,
    /// Our own bug.
    Internal,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The status line that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::ValidationError => 400,
            Self::Unauthorized => 401,
            Self::BudgetExceeded => 402,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict | Self::IdempotencyMismatch => 409,
            Self::PayloadTooLarge => 413,
            Self::RateLimited => 429,
            Self::Internal | Self::Unknown => 500,
            Self::Unavailable => 503,
            Self::InsufficientStorage => 507,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_success_and_a_refusal_says_why() {
        let page = Envelope::page(vec![1, 2], Pagination::new(1, 2, 3));
        assert_eq!(
            serde_json::to_string(&page).unwrap(),
            r#"{"success":true,"data":[1,2],"meta":{"pagination":{"page":1,"pageSize":2,"total":3,"hasMore":true}}}"#
        );
        let refusal = ErrorEnvelope::from(ErrorBody::new(ErrorCode::NotFound, "there is no such job"));
        assert_eq!(
            serde_json::to_string(&refusal).unwrap(),
            r#"{"success":false,"error":{"code":"NOT_FOUND","message":"there is no such job"}}"#
        );
    }

    #[test]
    fn a_code_of_a_later_version_is_read_as_unknown() {
        assert_eq!(serde_json::from_str::<ErrorCode>("\"TEAPOT\"").unwrap(), ErrorCode::Unknown);
    }
}
