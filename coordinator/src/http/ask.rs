//! What is asked: the body of a POST, PATCH or DELETE with its caller and its `Idempotency-Key`, an id in the path, a query string.

use super::{App, MAX_BODY, caller::Caller, failure::Failure};
use crate::access::{Context, Idempotency};
use axum::{
    RequestPartsExt,
    body::to_bytes,
    extract::{FromRequest, FromRequestParts, MatchedPath, Path, Query, Request, State},
    http::{HeaderMap, Method, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use lorikeet_api::{
    ErrorCode, FieldError, JobFile,
    base::AddBase,
    ca::FinishRotation,
    dataset::{ConfirmDataset, CreateDataset},
    job::{CancelJob, PatchJob},
    model::PatchModel,
    node::DrainNode,
    token::{CreateJoinToken, CreateToken},
};
use lorikeet_protocol::id::{BaseId, DatasetId, Hash, IdError, JobId, ModelId, NodeId, SweepId, TokenId};
use serde::de::DeserializeOwned;
use std::{collections::HashSet, str::FromStr, sync::Arc};
use tokio::time::timeout;
use utoipa::openapi::{
    OpenApi, PathItem, RefOr,
    path::{Operation, Parameter, ParameterIn},
};

/// Longer keys are no keys of any client library.
pub(super) const MAX_KEY: usize = 255;

/// A request with a body.
pub(super) struct Ask<T> {
    /// Who asks, and with which key.
    pub(super) context: Context,
    pub(super) caller: Caller,
    pub(super) body: T,
}

/// A body without content.
pub(super) struct Nothing;

/// Something that a body can be.
pub(super) trait Body: Sized {
    fn read(bytes: &[u8]) -> Result<Self, Vec<FieldError>>;
}

impl Body for JobFile {
    fn read(bytes: &[u8]) -> Result<Self, Vec<FieldError>> {
        Self::from_json(bytes)
    }
}

impl Body for Nothing {
    fn read(bytes: &[u8]) -> Result<Self, Vec<FieldError>> {
        match bytes.trim_ascii() {
            b"" | b"{}" | b"null" => Ok(Self),
            _ => Err(vec![FieldError::plain("", "this takes no body")]),
        }
    }
}

macro_rules! json_bodies {
    ($($name:ty),*) => {$(
        impl Body for $name {
            fn read(bytes: &[u8]) -> Result<Self, Vec<FieldError>> {
                json(bytes)
            }
        }
    )*};
}

json_bodies!(
    CreateDataset,
    ConfirmDataset,
    AddBase,
    FinishRotation,
    CancelJob,
    PatchJob,
    DrainNode,
    PatchModel,
    CreateJoinToken,
    CreateToken
);

/// No body at all is an object without keys.
fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Vec<FieldError>> {
    let bytes = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut text).map_err(|error| {
        let path = error.path().to_string();
        let field = field_of(error.inner()).unwrap_or(if path == "." { String::new() } else { path });
        FieldError::plain(field, in_words(error.inner()))
    });
    let ended = |value| text.end().map(|()| value).map_err(|error| FieldError::plain("", in_words(&error)));
    read.and_then(ended).map_err(|fault| vec![fault])
}

/// The field that serde names in its message, if it names one; of a wrong value it quotes the value instead.
fn field_of(error: &serde_json::Error) -> Option<String> {
    let message = error.to_string();
    let names = ["unknown field", "missing field", "duplicate field"].iter().any(|words| message.starts_with(words));
    message.split('`').nth(1).filter(|_| names).map(ToOwned::to_owned)
}

/// Where a text is no JSON its line and column help; where a value is wrong its field is named, and what would be right is said in words.
fn in_words(error: &serde_json::Error) -> String {
    let message = error.to_string();
    if !error.is_data() {
        return message;
    }
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let expected = match expected {
        "u8" => "a whole number from 0 to 255",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "a string" => "a text",
        "a boolean" => "true or false",
        other => other,
    };
    format!("{found}, expected {expected}")
}

impl<T: Body> FromRequest<Arc<App>> for Ask<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Failure> {
        let (mut parts, body) = request.into_parts();
        let caller = parts.extract_with_state::<Caller, _>(app).await?;
        let key = key(&parts.headers)?;
        let within = app.config.http.timeout;
        let late =
            |_| Failure::new(ErrorCode::Unavailable, format!("the body of the request did not come in {within:?}"));
        let bytes = timeout(within, to_bytes(body, MAX_BODY)).await.map_err(late)?.map_err(unread)?;
        let idempotency = key.map(|key| Idempotency { key, body: hash(&parts, &bytes) });
        let body = T::read(&bytes).map_err(Failure::fields)?;
        Ok(Self { context: caller.context_with(idempotency), caller, body })
    }
}

/// A body that is too long, or one that is not whole.
fn unread(error: axum::Error) -> Failure {
    if error.into_inner().is::<http_body_util::LengthLimitError>() {
        Failure::new(ErrorCode::PayloadTooLarge, format!("a body is {MAX_BODY} bytes at most"))
    } else {
        Failure::field("", "the body broke off, or is not framed as its headers say")
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Failure> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().map(str::trim).filter(|key| !key.is_empty() && key.len() <= MAX_KEY);
    let wrong = || Failure::field("Idempotency-Key", format!("expected 1 to {MAX_KEY} printable ASCII characters"));
    key.map(|key| Some(key.to_owned())).ok_or_else(wrong)
}

/// Of method, path with query, and body: each behind its length, so that no two requests look alike.
fn hash(parts: &Parts, body: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    for part in [parts.method.as_str().as_bytes(), path.as_bytes(), body] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Hash(*hasher.finalize().as_bytes())
}

/// An id in the path of somebody with a token. What is no id is as unknown as one that was never given out.
pub(super) struct Id<T>(pub(super) T);

/// What the ids in paths stand for, in the words of `access.rs`.
pub(super) trait Named: FromStr<Err = IdError> {
    const WHAT: &'static str;
}

impl Named for DatasetId {
    const WHAT: &'static str = "dataset";
}

impl Named for BaseId {
    const WHAT: &'static str = "base model";
}

impl Named for JobId {
    const WHAT: &'static str = "job";
}

impl Named for SweepId {
    const WHAT: &'static str = "sweep";
}

impl Named for ModelId {
    const WHAT: &'static str = "model";
}

impl Named for TokenId {
    const WHAT: &'static str = "token";
}

impl Named for NodeId {
    const WHAT: &'static str = "node";
}

impl<T: Named> FromRequestParts<Arc<App>> for Id<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        // First, so that nobody without a token learns even what an id looks like.
        parts.extract_with_state::<Caller, _>(app).await?;
        let text = parts.extract::<Path<String>>().await.map_err(|_| Failure::not_found(T::WHAT))?;
        text.0.parse().map(Self).map_err(|_| Failure::not_found(T::WHAT))
    }
}

/// A query string; unknown keys are refused.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned + 'static> FromRequestParts<Arc<App>> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Failure> {
        let query = parts.extract::<Query<T>>().await;
        query.map(|query| Self(query.0)).map_err(|error| of_query(&error.body_text()))
    }
}

/// axum says `Failed to deserialize query string: page: invalid digit found in string`, or what else serde says of a key.
fn of_query(text: &str) -> Failure {
    let text = text.split_once("query string: ").map_or(text, |(_, text)| text);
    let (field, message) = match text.split_once(": ") {
        Some((field, message)) if field.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
            (field, message)
        }
        Some(_) | None => (text.split('`').nth(1).unwrap_or_default(), text),
    };
    let message = match message {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            "expected a whole number, 0 or more"
        }
        "number too large to fit in target type" => "expected a smaller number",
        message => message,
    };
    Failure::field(field, message)
}

/// Routes without a query, by method and path as the document of the API has them. A key that nobody reads is refused there, as a
/// list refuses one that it does not know: who asks for a page must not take everything for it.
#[derive(Debug, Clone)]
pub(super) struct Queryless(Arc<HashSet<(Method, String)>>);

impl Queryless {
    pub(super) fn of(document: &OpenApi) -> Self {
        let mut routes = HashSet::new();
        for (path, item) in &document.paths.paths {
            let PathItem { get, post, patch, delete, .. } = item;
            let methods = [(Method::GET, get), (Method::POST, post), (Method::PATCH, patch), (Method::DELETE, delete)];
            for (method, operation) in methods {
                let silent = operation.as_ref().is_some_and(|operation| !has_query(operation));
                routes.extend(silent.then(|| (method, path.clone())));
            }
        }
        Self(Arc::new(routes))
    }

    pub(super) async fn check(
        State(routes): State<Self>,
        matched: MatchedPath,
        request: Request,
        next: Next,
    ) -> Response {
        let key = request.uri().query().and_then(|query| query.split(['=', '&']).next()).filter(|key| !key.is_empty());
        match key {
            Some(key) if routes.0.contains(&(request.method().clone(), matched.as_str().to_owned())) => {
                Failure::field(key, format!("unknown field `{key}`, this takes no query")).into_response()
            }
            Some(_) | None => next.run(request).await,
        }
    }
}

fn has_query(operation: &Operation) -> bool {
    let is_query = |parameter: &RefOr<Parameter>| {
        matches!(parameter, RefOr::T(Parameter { parameter_in: ParameterIn::Query, .. }))
    };
    operation.parameters.iter().flatten().any(is_query)
}
