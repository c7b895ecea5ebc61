//! `/api/health`, `/api/version`, `/api/me`: the coordinator about itself, and the caller about the caller.

use super::{
    App,
    caller::Caller,
    failure::Failure,
    page::{Answered, one},
};
use crate::{
    access::{Actor, Role},
    cluster::command::Query,
};
use axum::{Json, extract::State, http::StatusCode};
use lorikeet_api::{
    Envelope, route,
    server::{self as api, Health, HealthStatus, Me, Version},
};
use std::sync::Arc;

/// Whether new work is taken; needs no token.
#[utoipa::path(get, path = route::HEALTH, tag = "server", security(()),
    responses((status = 200, body = Envelope<Health>), (status = 503, body = Envelope<Health>)))]
pub(super) async fn health(State(app): State<Arc<App>>) -> (StatusCode, Json<Envelope<Health>>) {
    let reason = trouble(&app).await;
    let (code, status) = match reason {
        None => (StatusCode::OK, HealthStatus::Ok),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, HealthStatus::Degraded),
    };
    (code, Json(Envelope::one(Health { status, reason })))
}

/// Why new work is not taken.
async fn trouble(app: &App) -> Option<String> {
    if app.leaving.is_cancelled() {
        return Some("the coordinator is shutting down".into());
    }
    if app.driver.query(Actor::System, Query::Barrier).await.is_err() {
        return Some("the coordinator's store does not answer".into());
    }
    if app.driver.is_reading_only() {
        return Some("the coordinator's disk is full: questions are answered, changes are not made".into());
    }
    app.space.check(0).err().map(|_| "the coordinator's disk is nearly full".into())
}

/// The versions of program and link; needs no token.
#[utoipa::path(get, path = route::VERSION, tag = "server", security(()), responses((status = 200, body = Envelope<Version>)))]
pub(super) async fn version(State(_app): State<Arc<App>>) -> Answered<Version> {
    one(Version { version: env!("CARGO_PKG_VERSION").into(), link: lorikeet_protocol::VERSION })
}

/// Whose token this is.
#[utoipa::path(get, path = route::ME, tag = "server", responses((status = 200, body = Envelope<Me>)))]
pub(super) async fn me(State(app): State<Arc<App>>, caller: Caller) -> Answered<Me> {
    let id = caller.actor.user().ok_or_else(|| Failure::not_found("user"))?;
    let user = app.driver.user(caller.actor, id).await?;
    let role = match user.role {
        Role::User => api::Role::User,
        Role::Admin => api::Role::Admin,
        Role::BillingAdmin => api::Role::BillingAdmin,
    };
    one(Me { id, email: user.email, name: user.name, role })
}
