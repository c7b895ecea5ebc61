//! `/api/datasets`.

use super::{
    App,
    ask::{Ask, Id, Nothing, Params},
    caller::Caller,
    failure::Failure,
    page::{Answered, Paging, Search, one},
    upload,
};
use crate::{
    access::Actor,
    blob::BlobError,
    cluster::command::Command,
    history::{Keep, Page},
    record::{Dataset, DatasetState, Receipt},
};
use axum::{Json, extract::State, http::StatusCode};
use lorikeet_api::{
    Envelope, ErrorCode, FieldError, Timestamp,
    dataset::{
        self as api, ConfirmDataset, CreateDataset, DatasetCreated, DatasetStatus, MAX_SIZE_BYTES, ValidationStatus,
    },
    name, route,
};
use lorikeet_protocol::{
    file::FileManifest,
    id::{DatasetId, Hash},
};
use serde::Deserialize;
use std::{cmp::Ordering, sync::Arc, time::Duration};
use utoipa::ToSchema;
use uuid::Uuid;

/// Between two looks at an upload that somebody else confirms at the same time; a minute in all.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// How many looks. Whoever is at it may as well be an upload that goes on.
const BUSY_MOST: u32 = 600;

/// A training file to come: its record, and where its bytes go.
#[utoipa::path(post, path = route::DATASETS, tag = "datasets", request_body = CreateDataset,
    responses((status = 201, body = Envelope<DatasetCreated>)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Ask { context, caller, body }: Ask<CreateDataset>,
) -> Result<(StatusCode, Json<Envelope<DatasetCreated>>), Failure> {
    check(&body)?;
    app.space.check(body.size_bytes)?;
    let CreateDataset { name, file_name, size_bytes, format, description } = body;
    let id = DatasetId(Uuid::now_v7());
    let command = Command::CreateDataset { id, name, description, file_name, size: size_bytes, format };
    // The id is that of the first request under this key, if this one repeats it.
    let Receipt::Dataset(id) = app.driver.command(context, command).await? else {
        unreachable!("creating a dataset is answered with its id")
    };
    let dataset = app.driver.dataset(caller.actor, id).await?;
    Ok((StatusCode::CREATED, Json(Envelope::one(created(&app, dataset)))))
}

fn check(body: &CreateDataset) -> Result<(), Failure> {
    let mut faults = Vec::new();
    if !name::is_name(&body.name) {
        faults.push(FieldError::new("name", format!("{:?}", body.name), name::NAME));
    }
    let is_file_name = (1..=255).contains(&body.file_name.len()) && !matches!(body.file_name.as_str(), "." | "..");
    if !is_file_name || body.file_name.contains('/') || !name::is_plain(&body.file_name) {
        faults.push(FieldError::new("fileName", format!("{:?}", body.file_name), "a file name of 1 to 255 bytes"));
    }
    if !(1..=MAX_SIZE_BYTES).contains(&body.size_bytes) {
        faults.push(FieldError::new("sizeBytes", body.size_bytes, format!("1 to {MAX_SIZE_BYTES}")));
    }
    if body.description.as_ref().is_some_and(|text| text.chars().count() > 2_000) {
        faults.push(FieldError::plain("description", "description has more than 2000 characters"));
    }
    if faults.is_empty() { Ok(()) } else { Err(Failure::fields(faults)) }
}

fn created(app: &App, dataset: Dataset) -> DatasetCreated {
    let (upload_url, expires) = upload::link(app, &dataset);
    DatasetCreated { dataset: view(dataset), upload_url, expires_at: Timestamp(expires) }
}

/// What a list may be asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Filter {
    page: Option<u32>,
    page_size: Option<u32>,
    status: Option<DatasetStatus>,
    name: Option<String>,
    search: Option<Search>,
    sort: Option<Sort>,
}

/// A leading minus: the largest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
enum Sort {
    #[serde(rename = "created")]
    Oldest,
    #[serde(rename = "-created")]
    Newest,
    #[serde(rename = "name")]
    Name,
    #[serde(rename = "-name")]
    NameDown,
    #[serde(rename = "size")]
    Smallest,
    #[serde(rename = "-size")]
    Largest,
}

/// The caller's datasets, newest first.
#[utoipa::path(get, path = route::DATASETS, tag = "datasets",
    params(("page" = Option<u32>, Query), ("pageSize" = Option<u32>, Query), ("status" = Option<DatasetStatus>, Query),
        ("name" = Option<String>, Query, description = "the whole of a name"),
        ("search" = Option<String>, Query), ("sort" = inline(Option<Sort>), Query, description = "with a minus: largest first")),
    responses((status = 200, body = Envelope<Vec<api::Dataset>>)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Params(filter): Params<Filter>,
) -> Answered<Vec<api::Dataset>> {
    let paging = Paging::new(filter.page, filter.page_size)?;
    let Filter { status, name, search, .. } = filter;
    let wants_all = status.is_none() && name.is_none() && search.is_none();
    let keep = move |row: &Dataset| {
        status.is_none_or(|status| status == status_of(&row.state))
            && name.as_ref().is_none_or(|name| *name == row.name)
            && search.as_ref().is_none_or(|part| part.is_in(&row.name))
    };
    let keep: Option<Keep<Dataset>> = (!wants_all).then(|| Box::new(keep) as _);
    match filter.sort.unwrap_or(Sort::Newest) {
        Sort::Newest => {
            let listed = app.driver.datasets(caller.actor, paging.rows(), keep).await?;
            Ok(paging.answer(listed.rows.into_iter().map(view).collect(), listed.total))
        }
        sort @ (Sort::Oldest | Sort::Name | Sort::NameDown | Sort::Smallest | Sort::Largest) => {
            let all = app.driver.datasets(caller.actor, Page { offset: 0, limit: usize::MAX }, keep).await?;
            let mut rows = all.rows;
            rows.sort_by(|one, other| compare(sort, one, other));
            Ok(paging.cut(rows.into_iter().map(view).collect()))
        }
    }
}

fn compare(sort: Sort, one: &Dataset, other: &Dataset) -> Ordering {
    match sort {
        Sort::Oldest => one.id.cmp(&other.id),
        Sort::Newest => other.id.cmp(&one.id),
        Sort::Name => one.name.cmp(&other.name),
        Sort::NameDown => other.name.cmp(&one.name),
        Sort::Smallest => one.size.cmp(&other.size),
        Sort::Largest => other.size.cmp(&one.size),
    }
}

/// One dataset.
#[utoipa::path(get, path = route::DATASET, tag = "datasets", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<api::Dataset>)))]
pub(super) async fn show(State(app): State<Arc<App>>, caller: Caller, Id(id): Id<DatasetId>) -> Answered<api::Dataset> {
    one(view(app.driver.dataset(caller.actor, id).await?))
}

/// Deletes a dataset that no live job needs.
#[utoipa::path(delete, path = route::DATASET, tag = "datasets", params(("id" = String, Path)),
    responses((status = 204)))]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Id(id): Id<DatasetId>,
    Ask { context, .. }: Ask<Nothing>,
) -> Result<StatusCode, Failure> {
    app.driver.command(context, Command::DeleteDataset { id }).await?;
    match app.blobs.drop_upload(id).await {
        // A writer that is at it right now finds no dataset when it returns; the sweep takes what it leaves.
        Ok(()) | Err(BlobError::Busy { .. }) => Ok(StatusCode::NO_CONTENT),
        Err(error) => Err(error.into()),
    }
}

/// A fresh link for the bytes.
#[utoipa::path(post, path = route::DATASET_UPLOAD_URL, tag = "datasets", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<DatasetCreated>)))]
pub(super) async fn upload_url(
    State(app): State<Arc<App>>,
    Id(id): Id<DatasetId>,
    Ask { caller, .. }: Ask<Nothing>,
) -> Answered<DatasetCreated> {
    let dataset = app.driver.dataset(caller.actor, id).await?;
    if dataset.state != DatasetState::Uploading {
        return Err(Failure::new(ErrorCode::Conflict, "everything of this dataset is here"));
    }
    one(created(&app, dataset))
}

/// Everything was sent: checks length and hash, and starts validation.
#[utoipa::path(post, path = route::DATASET_CONFIRM, tag = "datasets", params(("id" = String, Path)), request_body = ConfirmDataset,
    responses((status = 200, body = Envelope<api::Dataset>)))]
pub(super) async fn confirm(
    State(app): State<Arc<App>>,
    Id(id): Id<DatasetId>,
    Ask { context, caller, body }: Ask<ConfirmDataset>,
) -> Answered<api::Dataset> {
    let mut busy = 0;
    let manifest = loop {
        match whole(&app, caller.actor, id, body.hash).await? {
            Ok(manifest) => break manifest,
            // Somebody else confirms the same, and what comes of that is the answer to both.
            Err(BlobError::Busy { .. }) if busy < BUSY_MOST => {
                busy += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error @ BlobError::Corrupt { .. }) => {
                // These bytes are of no use: the upload begins anew.
                app.blobs.drop_upload(id).await?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        }
    };
    app.driver.command(context, Command::ConfirmDataset { id, manifest }).await?;
    match app.blobs.drop_upload(id).await {
        // Whoever is at it drops it too.
        Ok(()) | Err(BlobError::Busy { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    one(view(app.driver.dataset(caller.actor, id).await?))
}

/// What a dataset's bytes are: as recorded, else as uploaded.
async fn whole(
    app: &App,
    actor: Actor,
    id: DatasetId,
    expected: Option<Hash>,
) -> Result<Result<FileManifest, BlobError>, Failure> {
    let dataset = app.driver.dataset(actor, id).await?;
    match dataset.manifest {
        Some(manifest) if expected.is_some_and(|hash| hash != manifest.hash) => {
            Err(Failure::new(ErrorCode::Conflict, "the dataset's bytes are here already, and are others"))
        }
        Some(manifest) => Ok(Ok(manifest)),
        None => Ok(app.blobs.complete_upload(id, dataset.size, expected).await),
    }
}

/// Validates again.
#[utoipa::path(post, path = route::DATASET_VALIDATE, tag = "datasets", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<api::Dataset>)))]
pub(super) async fn validate(
    State(app): State<Arc<App>>,
    Id(id): Id<DatasetId>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Answered<api::Dataset> {
    app.driver.command(context, Command::ValidateDataset { id }).await?;
    one(view(app.driver.dataset(caller.actor, id).await?))
}

/// How far validation is.
#[utoipa::path(get, path = route::DATASET_VALIDATION_STATUS, tag = "datasets", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<ValidationStatus>)))]
pub(super) async fn validation_status(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id<DatasetId>,
) -> Answered<ValidationStatus> {
    let api::Dataset { status, training_ready, errors, error_count, .. } =
        view(app.driver.dataset(caller.actor, id).await?);
    one(ValidationStatus { status, training_ready, errors, error_count })
}

fn status_of(state: &DatasetState) -> DatasetStatus {
    match state {
        DatasetState::Uploading => DatasetStatus::Uploading,
        DatasetState::Validating => DatasetStatus::Validating,
        DatasetState::Ready => DatasetStatus::Ready,
        DatasetState::Error => DatasetStatus::Error,
    }
}

/// The record as the API shows it.
pub(super) fn view(row: Dataset) -> api::Dataset {
    let status = status_of(&row.state);
    let found = row.findings.as_ref();
    let (conversations, pairs) = (found.map(|found| found.conversations), found.map(|found| found.pairs));
    let (training_pairs, average_turns) = (found.map(|f| f.trainable_pairs), found.map(|f| f.average_turns));
    let format = found.and_then(|found| found.format).or(row.declared_format);
    let findings = row.findings;
    let counted = findings.as_ref().map_or(0, |found| found.error_count);
    let (warnings, errors, samples) =
        findings.map(|found| (found.warnings, found.errors, found.samples)).unwrap_or_default();
    let error_count = counted + row.faults.len() as u64;
    api::Dataset {
        id: row.id,
        owner: row.owner,
        name: row.name,
        description: row.description,
        format,
        status,
        file_name: row.file_name,
        size_bytes: row.size,
        content_hash: row.manifest.map(|manifest| manifest.hash),
        conversations,
        pairs,
        training_pairs,
        average_turns,
        tokens: None,
        training_ready: status == DatasetStatus::Ready,
        warnings,
        errors: row.faults.into_iter().chain(errors).map(Into::into).collect(),
        error_count,
        samples: samples.into_iter().map(|sample| sample.into_iter().map(Into::into).collect()).collect(),
        created_at: Timestamp(row.created),
        uploaded_at: row.uploaded_at.map(Timestamp),
        validated_at: row.validated_at.map(Timestamp),
    }
}
