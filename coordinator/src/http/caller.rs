//! Who asks: the bearer token of the request, as the driver knows it.

use super::{App, failure::Failure};
use crate::{
    access::{Actor, Context, Idempotency},
    cluster::command::{Answer, Query},
};
use axum::{
    extract::{ConnectInfo, FromRequestParts},
    http::{HeaderMap, header, request::Parts},
};
use lorikeet_api::ErrorCode;
use lorikeet_protocol::id::{Hash, RequestId};
use std::{net::SocketAddr, sync::Arc};
use uuid::Uuid;

/// What every token begins with, so that one that leaked is recognised.
pub(crate) const TOKEN_PREFIX: &str = "lk_";

/// Whoever sent the request, with a token that works.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) actor: Actor,
    /// Hash of the token, for who asks again later.
    pub(super) token: Hash,
    request: RequestId,
    from: String,
}

impl Caller {
    pub(super) fn context_with(&self, idempotency: Option<Idempotency>) -> Context {
        Context { actor: self.actor, request: self.request, from: self.from.clone(), idempotency }
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        // Asked for twice by one request: by an id in its path and by its body.
        if let Some(caller) = parts.extensions.get::<Self>() {
            return Ok(caller.clone());
        }
        let none = || Failure::new(ErrorCode::Unauthorized, "this needs a token: `Authorization: Bearer lk_…`");
        let token = bearer(&parts.headers).ok_or_else(none)?;
        if !token.starts_with(TOKEN_PREFIX) {
            let message = format!("this token is none of a coordinator: those begin with `{TOKEN_PREFIX}`");
            return Err(Failure::new(ErrorCode::Unauthorized, message));
        }
        // The token is 256 random bits and only its hash is looked up, so how long that takes tells nothing about it.
        let hash = hash_of(token);
        let actor = actor_of(app, hash).await?;
        let from = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_string());
        let request = parts.extensions.get::<RequestId>().copied().unwrap_or_else(|| RequestId(Uuid::now_v7()));
        let caller = Self { actor, token: hash, request, from: from.unwrap_or_default() };
        parts.extensions.insert(caller.clone());
        Ok(caller)
    }
}

/// Whose token it is, at this moment.
pub(super) async fn actor_of(app: &App, token: Hash) -> Result<Actor, Failure> {
    let answer = app.driver.query(Actor::System, Query::Authenticate(token)).await?;
    let Answer::Actor(Some(actor)) = answer else {
        return Err(Failure::new(ErrorCode::Unauthorized, "this token is unknown, expired or withdrawn"));
    };
    Ok(actor)
}

/// BLAKE3 of a token: all of it that is ever kept.
pub(crate) fn hash_of(token: &str) -> Hash {
    Hash(*blake3::hash(token.as_bytes()).as_bytes())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
