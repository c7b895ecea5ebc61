//! `/api/base-models`.

use super::{
    App,
    ask::{Ask, Id, Nothing},
    caller::Caller,
    failure::Failure,
    page::{Answered, Paging, one},
};
use crate::{
    access::Actor,
    cluster::command::Command,
    record::{Base, BaseState, Receipt},
};
use axum::{Json, extract::State, http::StatusCode};
use lorikeet_api::{
    Envelope, FieldError, Timestamp,
    base::{AddBase, BaseModel, BaseStatus},
    model::FileView,
    name, route,
};
use lorikeet_protocol::id::BaseId;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

/// Registers a directory under one of the `base_roots`; only an ADMIN may.
#[utoipa::path(post, path = route::BASES, tag = "base models", request_body = AddBase,
    responses((status = 201, body = Envelope<BaseModel>)))]
pub(super) async fn add(
    State(app): State<Arc<App>>,
    Ask { context, caller, body }: Ask<AddBase>,
) -> Result<(StatusCode, Json<Envelope<BaseModel>>), Failure> {
    // Before anything of the file system is looked at: it is not for others to learn from.
    caller.actor.require_admin("register base models")?;
    if !name::is_name(&body.name) {
        return Err(Failure::fields(vec![FieldError::new("name", format!("{:?}", body.name), name::NAME)]));
    }
    let path = under_root(&app.config.base_roots, Path::new(&body.path))?;
    let command = Command::RegisterBase { id: BaseId(Uuid::now_v7()), name: body.name, path };
    let Receipt::Base(id) = app.driver.command(context, command).await? else {
        unreachable!("registering a base model is answered with its id")
    };
    Ok((StatusCode::CREATED, Json(Envelope::one(view(app.driver.base(id).await?, caller.actor)))))
}

/// The real path, links followed, if it is a directory below one of the roots.
fn under_root(roots: &[PathBuf], path: &Path) -> Result<PathBuf, Failure> {
    let wrong = |expected: &str| Failure::fields(vec![FieldError::new("path", path.display(), expected)]);
    if roots.is_empty() {
        let folder = path.parent().unwrap_or(path).display();
        let message = format!(
            "the coordinator's config names no base_roots; add base_roots = [\"{folder}\"] to it and restart it"
        );
        return Err(Failure::fields(vec![FieldError::plain("path", message)]));
    }
    let real = path.canonicalize().map_err(|error| wrong(&format!("a directory ({error})")))?;
    let below = |root: &PathBuf| root.canonicalize().is_ok_and(|root| real.starts_with(root));
    if !path.is_absolute() || !roots.iter().any(below) {
        let names: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
        return Err(wrong(&format!("an absolute path below {}", names.join(" or "))));
    }
    if real.is_dir() { Ok(real) } else { Err(wrong("a directory")) }
}

/// Base models that jobs may name.
#[utoipa::path(get, path = route::BASES, tag = "base models", params(("page" = Option<u32>, Query), ("pageSize" = Option<u32>, Query)),
    responses((status = 200, body = Envelope<Vec<BaseModel>>)))]
pub(super) async fn list(State(app): State<Arc<App>>, caller: Caller, paging: Paging) -> Answered<Vec<BaseModel>> {
    let listed = app.driver.bases(paging.rows()).await?;
    let rows = listed.rows.into_iter().map(|row| view(row, caller.actor)).collect();
    Ok(paging.answer(rows, listed.total))
}

/// One base model.
#[utoipa::path(get, path = route::BASE, tag = "base models", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<BaseModel>)))]
pub(super) async fn show(State(app): State<Arc<App>>, caller: Caller, Id(id): Id<BaseId>) -> Answered<BaseModel> {
    one(view(app.driver.base(id).await?, caller.actor))
}

/// Forgets a base model that no live job needs; its files stay. Only an ADMIN may.
#[utoipa::path(delete, path = route::BASE, tag = "base models", params(("id" = String, Path)), responses((status = 204)))]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Id(id): Id<BaseId>,
    Ask { context, .. }: Ask<Nothing>,
) -> Result<StatusCode, Failure> {
    app.driver.command(context, Command::RemoveBase { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn view(row: Base, actor: Actor) -> BaseModel {
    let findings = row.findings;
    let found = findings.as_ref();
    BaseModel {
        id: row.id,
        name: row.name,
        path: actor.sees_everything().then(|| row.path.display().to_string()),
        status: match row.state {
            BaseState::Validating => BaseStatus::Validating,
            BaseState::Ready => BaseStatus::Ready,
            BaseState::Error => BaseStatus::Error,
            BaseState::Changed => BaseStatus::Changed,
        },
        architecture: found.map(|found| found.architecture.clone()),
        parameters: found.map(|found| found.parameters),
        dtype: found.map(|found| found.dtype.clone()),
        vocabulary: found.map(|found| found.vocabulary),
        chat_template: found.map(|found| found.chat_template),
        size_bytes: row.files.iter().map(|file| file.manifest.size).sum(),
        files: row.files.iter().map(FileView::from).collect(),
        errors: row.faults.into_iter().map(Into::into).collect(),
        added_by: row.owner,
        created_at: Timestamp(row.created),
    }
}
