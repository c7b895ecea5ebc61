//! Refusals on their way out: everything that can go wrong becomes an [`ErrorBody`] here and nowhere else.

use crate::{
    access::Refusal, blob::BlobError, inspector::InspectError, link::LinkError, series::SeriesError, space::Short,
};
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use lorikeet_api::{ErrorBody, ErrorCode, ErrorEnvelope, FieldError};

/// A refusal.
#[derive(Debug)]
pub(super) struct Failure(pub(super) Box<ErrorBody>);

impl Failure {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(ErrorBody::new(code, message)))
    }

    /// Fields that are wrong.
    pub(super) fn fields(faults: Vec<FieldError>) -> Self {
        Self(Box::new(ErrorBody::fields(faults)))
    }

    /// One field that is wrong.
    pub(super) fn field(field: &str, message: impl Into<String>) -> Self {
        Self::fields(vec![FieldError::plain(field, message)])
    }

    /// There is none, or it is another's: one sentence for both.
    pub(super) fn not_found(what: &'static str) -> Self {
        Refusal::not_found(what).into()
    }

    /// Our own bug or our own disk: the cause is for the log, not for the caller.
    pub(super) fn internal(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "{what}");
        Self::new(ErrorCode::Internal, "something went wrong here; the log has it under this request's id")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorEnvelope::from(*self.0))).into_response()
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NotFound { .. } => Self::new(ErrorCode::NotFound, message),
            Refusal::Forbidden { .. } => Self::new(ErrorCode::Forbidden, message),
            Refusal::Invalid { field, message } => Self::field(&field, message),
            Refusal::Conflict { .. } => Self::new(ErrorCode::Conflict, message),
            Refusal::IdempotencyMismatch => Self::new(ErrorCode::IdempotencyMismatch, message),
            Refusal::NoSpace => Self::new(ErrorCode::InsufficientStorage, message),
            Refusal::Unavailable => Self::new(ErrorCode::Unavailable, message),
            Refusal::Unreadable => Self::new(ErrorCode::Internal, message),
        }
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        match &error {
            BlobError::NoSpace { .. } => {
                tracing::warn!(error = &error as &dyn std::error::Error, "bytes were not kept");
                Self::new(ErrorCode::InsufficientStorage, "the coordinator's disk is full")
            }
            BlobError::TooLarge { .. } | BlobError::TooMany { .. } => {
                Self::new(ErrorCode::PayloadTooLarge, error.to_string())
            }
            BlobError::Incomplete { .. } | BlobError::Busy { .. } => Self::new(ErrorCode::Conflict, error.to_string()),
            BlobError::Corrupt { .. } => Self::field("hash", error.to_string()),
            BlobError::Closed => Refusal::Unavailable.into(),
            BlobError::Disk { .. }
            | BlobError::Missing { .. }
            | BlobError::Refused { .. }
            | BlobError::Changed { .. }
            | BlobError::Inconsistent { .. } => Self::internal("bytes were not kept or read", &error),
        }
    }
}

impl From<Short> for Failure {
    fn from(short: Short) -> Self {
        tracing::warn!(%short, "a request was refused for lack of room");
        Self::new(ErrorCode::InsufficientStorage, "the coordinator's disk has no room for this")
    }
}

impl From<SeriesError> for Failure {
    fn from(error: SeriesError) -> Self {
        match error {
            SeriesError::Closed => Refusal::Unavailable.into(),
            SeriesError::NoSpace(short) => short.into(),
            error @ SeriesError::Disk { .. } => Self::internal("lines were not read", &error),
        }
    }
}

impl From<InspectError> for Failure {
    fn from(error: InspectError) -> Self {
        match error {
            InspectError::Blob(error) => error.into(),
            InspectError::Crowded => Self::new(ErrorCode::RateLimited, error.to_string()),
            error @ InspectError::Start { .. } => Self::internal("an inspection did not start", &error),
            error @ (InspectError::TooSlow(_) | InspectError::NoAnswer { .. }) => {
                Self::new(ErrorCode::ValidationError, error.to_string())
            }
        }
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        if matches!(error, LinkError::Held) {
            return Self::new(ErrorCode::Conflict, error.to_string());
        }
        // Of the authority's files only administrators ask for anything, and the file that is in the way is theirs to mend.
        let why = lorikeet_protocol::chain(&error);
        tracing::error!(error = &error as &dyn std::error::Error, "a certificate or key was not made");
        Self::new(ErrorCode::Internal, format!("could not {why}; nothing was lost by it: mend that and ask again"))
    }
}
