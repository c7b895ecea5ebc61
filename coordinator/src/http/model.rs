//! `/api/models`.

use super::{
    App,
    ask::{Ask, Id, Nothing},
    caller::Caller,
    failure::Failure,
    page::{Answered, Paging, one},
};
use crate::{
    cluster::command::Command,
    driver::Handle,
    record::{Base, Dataset, Job, Model},
    store::{Store, StoreError},
};
use axum::{extract::State, http::StatusCode};
use lorikeet_api::{
    Envelope, JobFile, Timestamp,
    model::{self as api, FileView, ModelStatus, PatchModel},
    route,
};
use lorikeet_protocol::id::ModelId;
use std::sync::Arc;

/// The caller's models, newest first.
#[utoipa::path(get, path = route::MODELS, tag = "models", params(("page" = Option<u32>, Query), ("pageSize" = Option<u32>, Query)),
    responses((status = 200, body = Envelope<Vec<api::Model>>)))]
pub(super) async fn list(State(app): State<Arc<App>>, caller: Caller, paging: Paging) -> Answered<Vec<api::Model>> {
    let listed = app.driver.models(caller.actor, paging.rows()).await?;
    Ok(paging.answer(views(&app.driver, listed.rows).await?, listed.total))
}

/// One model.
#[utoipa::path(get, path = route::MODEL, tag = "models", params(("id" = String, Path)), responses((status = 200, body = Envelope<api::Model>)))]
pub(super) async fn show(State(app): State<Arc<App>>, caller: Caller, Id(id): Id<ModelId>) -> Answered<api::Model> {
    shown(&app, caller, id).await
}

async fn shown(app: &App, caller: Caller, id: ModelId) -> Answered<api::Model> {
    let row = app.driver.model(caller.actor, id).await?;
    let mut views = views(&app.driver, vec![row]).await?;
    one(views.pop().ok_or_else(|| Failure::not_found("model"))?)
}

/// Renames or describes a model.
#[utoipa::path(patch, path = route::MODEL, tag = "models", params(("id" = String, Path)), request_body = PatchModel,
    responses((status = 200, body = Envelope<api::Model>)))]
pub(super) async fn patch(
    State(app): State<Arc<App>>,
    Id(id): Id<ModelId>,
    Ask { context, caller, body }: Ask<PatchModel>,
) -> Answered<api::Model> {
    let command = Command::PatchModel { id, name: body.name, description: body.description };
    app.driver.command(context, command).await?;
    shown(&app, caller, id).await
}

/// Deletes a model.
#[utoipa::path(delete, path = route::MODEL, tag = "models", params(("id" = String, Path)), responses((status = 204)))]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Id(id): Id<ModelId>,
    Ask { context, .. }: Ask<Nothing>,
) -> Result<StatusCode, Failure> {
    app.driver.command(context, Command::DeleteModel { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn views(driver: &Handle, models: Vec<Model>) -> Result<Vec<api::Model>, Failure> {
    let read = move |store: &Store| models.into_iter().filter_map(|row| view(store, row).transpose()).collect();
    Ok(driver.read(read).await?)
}

/// `None` only for a model whose job was never recorded, which the turn that records both makes impossible.
fn view(store: &Store, row: Model) -> Result<Option<api::Model>, StoreError> {
    let spec = match row.spec.clone() {
        Some(spec) => Some(*spec),
        None => store.get::<Job>(&row.job.bytes())?.map(|job| job.spec),
    };
    let Some(spec) = spec else { return Ok(None) };
    let base = store.get::<Base>(&row.base.bytes())?.map_or(spec.base.clone(), |base| base.name);
    let dataset = store.get::<Dataset>(&row.dataset.bytes())?;
    let files: Vec<FileView> = row.files.iter().map(FileView::from).collect();
    Ok(Some(api::Model {
        id: row.id,
        owner: row.owner,
        job: row.job,
        job_name: Some(spec.name.clone()),
        name: row.name,
        version: row.version,
        description: row.description,
        status: ModelStatus::Stored,
        base,
        dataset: dataset.as_ref().map_or(spec.dataset.clone(), |dataset| dataset.name.clone()),
        dataset_id: row.dataset,
        dataset_hash: dataset.and_then(|dataset| dataset.manifest).map(|manifest| manifest.hash),
        size_bytes: files.iter().map(|file| file.size_bytes).sum(),
        files,
        // Written by a worker: shown as it is when it is JSON, and not at all otherwise.
        summary: row.summary.and_then(|text| serde_json::from_str(&text).ok()),
        configuration: JobFile::from(&spec),
        created_at: Timestamp(row.created),
    }))
}
