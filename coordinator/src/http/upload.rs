//! `/api/uploads/{id}`: the core of tus 1.0 behind a signed link. HEAD says how much is safe, PATCH adds to it.
//!
//! An upload has one writer at a time. What arrived before a connection broke is synced by a task of its own, so the client
//! finds it when it asks again.

use super::{App, ask::Params, failure::Failure, sign::UploadLink};
use crate::{
    access::Actor,
    blob::{BlobError, Upload},
    clock::now,
    record::{Dataset, DatasetState},
};
use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use lorikeet_api::{ErrorCode, route};
use lorikeet_protocol::id::{DatasetId, UnixMillis};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

const OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const LENGTH: HeaderName = HeaderName::from_static("upload-length");
const RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
/// The version of tus that is spoken here.
const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");
/// A client that sends nothing for so long has gone; its upload waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a signed link carries.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Signature {
    expires: u64,
    signature: String,
}

/// A fresh link for a dataset's upload, and when it stops working.
pub(super) fn link(app: &App, dataset: &Dataset) -> (String, UnixMillis) {
    let expires = UnixMillis(now().0 + app.config.http.upload_ttl.as_millis() as u64);
    let link = UploadLink { id: dataset.id, owner: dataset.owner, size: dataset.size, expires };
    let base = app.config.http.public_url.as_deref().unwrap_or_default().trim_end_matches('/');
    let path = route::with_id(route::UPLOAD, dataset.id);
    (format!("{base}{path}?expires={}&signature={}", expires.0, app.signer.upload(&link)), expires)
}

/// How much of an upload is safe.
#[utoipa::path(head, path = route::UPLOAD, tag = "datasets", security(()), params(("id" = String, Path), ("expires" = u64, Query), ("signature" = String, Query)),
    responses((status = 200, description = "Upload-Offset and Upload-Length")))]
pub(super) async fn offset(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Params(signature): Params<Signature>,
) -> Result<Response, Failure> {
    let dataset = signed(&app, &id, &signature).await?;
    let offset = match dataset.manifest {
        Some(manifest) => manifest.size,
        None => app.blobs.upload_offset(dataset.id).await?,
    };
    Ok((StatusCode::OK, headers(offset), [(LENGTH, HeaderValue::from(dataset.size))]).into_response())
}

/// Adds to an upload.
#[utoipa::path(patch, path = route::UPLOAD, tag = "datasets", security(()), params(("id" = String, Path), ("expires" = u64, Query), ("signature" = String, Query)),
    request_body(content = String, content_type = "application/offset+octet-stream"), responses((status = 204, description = "Upload-Offset")))]
pub(super) async fn append(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Params(signature): Params<Signature>,
    sent: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let dataset = signed(&app, &id, &signature).await?;
    check_type(&sent)?;
    let from = number(&sent, &OFFSET).ok_or_else(|| Failure::field("Upload-Offset", "expected a number"))?;
    if dataset.state != DatasetState::Uploading {
        return Err(Failure::new(ErrorCode::Conflict, "everything of this dataset is here"));
    }
    let upload = app.blobs.resume_upload(dataset.id, dataset.size).await?;
    if upload.offset() != from {
        let message = format!("the upload goes on at byte {}, not at {from}", upload.offset());
        return Err(Failure::new(ErrorCode::Conflict, message));
    }
    let left = dataset.size - from;
    if number(&sent, &header::CONTENT_LENGTH).is_some_and(|length| length > left) {
        return Err(Failure::new(ErrorCode::PayloadTooLarge, format!("{left} bytes are left of what was declared")));
    }
    // A task of its own: when the client goes, the handler is dropped, and what came must still be synced.
    let receiving = app.tasks.spawn(receive(upload, body));
    let offset = receiving.await.map_err(|_| BlobError::Closed)??;
    Ok((StatusCode::NO_CONTENT, headers(offset)).into_response())
}

async fn receive(mut upload: Upload, body: Body) -> Result<u64, Failure> {
    let taken = take(&mut upload, body).await;
    // Even after a failure: what came whole is safe and need not come again.
    let offset = upload.sync().await?;
    taken.map(|()| offset)
}

async fn take(upload: &mut Upload, body: Body) -> Result<(), Failure> {
    let mut bytes = body.into_data_stream();
    let broken = |message: &str| Failure::new(ErrorCode::Unavailable, message);
    loop {
        match tokio::time::timeout(PATIENCE, bytes.next()).await {
            Ok(Some(Ok(part))) => upload.write(&part).await?,
            Ok(Some(Err(_))) => return Err(broken("the connection broke; ask how much is here and go on")),
            Ok(None) => return Ok(()),
            Err(_) => return Err(broken("nothing came for a minute; ask how much is here and go on")),
        }
    }
}

/// The dataset of a link that works. One that does not is as unknown as its dataset.
async fn signed(app: &App, id: &str, signature: &Signature) -> Result<Dataset, Failure> {
    let id: DatasetId = id.parse().map_err(|_| Failure::not_found("dataset"))?;
    let dataset = app.driver.dataset(Actor::System, id).await?;
    let expires = UnixMillis(signature.expires);
    let link = UploadLink { id, owner: dataset.owner, size: dataset.size, expires };
    if !app.signer.is_upload(&link, &signature.signature) {
        return Err(Failure::not_found("dataset"));
    }
    if expires <= now() {
        let message = "this upload link has expired; ask for a fresh one";
        return Err(Failure::new(ErrorCode::Forbidden, message));
    }
    Ok(dataset)
}

fn check_type(sent: &HeaderMap) -> Result<(), Failure> {
    let found = sent.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if found == Some("application/offset+octet-stream") {
        return Ok(());
    }
    Err(Failure::field("Content-Type", "expected application/offset+octet-stream"))
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

fn headers(offset: u64) -> [(HeaderName, HeaderValue); 2] {
    [(OFFSET, HeaderValue::from(offset)), (RESUMABLE, VERSION)]
}
