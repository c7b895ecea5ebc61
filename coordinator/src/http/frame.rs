//! What surrounds every request: its id, its time limit, and answers for what no handler answers.

use super::{App, failure::Failure};
use axum::{
    extract::{Request, State},
    http::{HeaderValue, Uri, header, uri::PathAndQuery},
    middleware::Next,
    response::{IntoResponse, Response},
};
use lorikeet_api::{ErrorCode, route};
use lorikeet_protocol::id::RequestId;
use std::{any::Any, sync::Arc};
use tracing::Instrument;
use uuid::Uuid;

/// Gives the request an id: in the log, in the audit record and in the answer it is the same.
pub(super) async fn identify(mut request: Request, next: Next) -> Response {
    let id = RequestId(Uuid::now_v7());
    request.extensions_mut().insert(id);
    let span = tracing::debug_span!("request", %id, method = %request.method(), path = request.uri().path());
    let mut response = next.run(request).instrument(span).await;
    let headers = response.headers_mut();
    headers.insert("x-request-id", HeaderValue::from_str(&id.to_string()).expect("an id is plain ASCII"));
    // Answers differ by caller, and a body is never anything but what its type says.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Cuts a request that takes too long; what it asked for may still be done.
pub(super) async fn in_time(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let answered = tokio::time::timeout(app.config.http.timeout, next.run(request)).await;
    answered.unwrap_or_else(|_| {
        Failure::new(ErrorCode::Unavailable, "this took too long; ask again with the same Idempotency-Key")
            .into_response()
    })
}

pub(super) async fn no_route() -> Failure {
    Failure::new(ErrorCode::NotFound, "there is no such route")
}

pub(super) async fn no_method() -> Failure {
    Failure::new(ErrorCode::MethodNotAllowed, "this route has no such method")
}

pub(super) fn panicked(cause: Box<dyn Any + Send + 'static>) -> Response {
    let text = cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("of an unknown kind"), "a handler panicked");
    Failure::new(ErrorCode::Internal, "something went wrong here; the log has it under this request's id")
        .into_response()
}

/// `/api/jobs…` is `/api/training-jobs…`.
pub(super) fn one_name<B>(mut request: axum::http::Request<B>) -> axum::http::Request<B> {
    let uri = request.uri();
    let rest = uri.path().strip_prefix(route::JOBS_ALIAS).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    if let Some(rest) = rest {
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let renamed = PathAndQuery::try_from(format!("{}{rest}{query}", route::JOBS));
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = renamed.ok().or(parts.path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}
