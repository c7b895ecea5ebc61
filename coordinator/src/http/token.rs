//! `/api/tokens`.

use super::{
    App,
    ask::{Ask, Id, Nothing},
    caller::{Caller, TOKEN_PREFIX, hash_of},
    failure::Failure,
    page::{Answered, Paging},
};
use crate::{
    clock::now,
    cluster::command::Command,
    record::{self, Receipt},
};
use axum::{Json, extract::State, http::StatusCode};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use lorikeet_api::{
    Envelope, ErrorCode, FieldError, Timestamp, name, route,
    token::{CreateToken, TOKEN_TTL, Token},
};
use lorikeet_protocol::id::{TokenId, UnixMillis};
use std::sync::Arc;
use uuid::Uuid;

/// Ninety days.
const DEFAULT_TTL: u64 = 90 * 86_400;

/// A new secret in its printed form.
pub(crate) fn new_secret() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)))
}

/// A token for the caller; its secret is told this once.
#[utoipa::path(post, path = route::TOKENS, tag = "tokens", request_body = CreateToken,
    responses((status = 201, body = Envelope<Token>)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Ask { context, caller, body }: Ask<CreateToken>,
) -> Result<(StatusCode, Json<Envelope<Token>>), Failure> {
    let ttl = body.ttl_seconds.unwrap_or(DEFAULT_TTL);
    let mut faults = Vec::new();
    if !name::is_name(&body.name) {
        faults.push(FieldError::new("name", format!("{:?}", body.name), name::NAME));
    }
    if !TOKEN_TTL.contains(&ttl) {
        faults.push(FieldError::new("ttlSeconds", ttl, format!("1 to {}", TOKEN_TTL.end())));
    }
    if !faults.is_empty() {
        return Err(Failure::fields(faults));
    }
    let secret = new_secret()?;
    let (id, user) = (TokenId(Uuid::now_v7()), caller.actor.owner()?);
    let expires = Some(UnixMillis(now().0 + ttl * 1_000));
    let command = Command::CreateToken { id, user, name: body.name, hash: hash_of(&secret), expires };
    let Receipt::Token(made) = app.driver.command(context, command).await? else {
        unreachable!("making a token is answered with its id")
    };
    let row = app.driver.read(move |store| store.get::<record::Token>(&made.bytes())).await?;
    let row = caller.actor.find(row, |row| row.owner, "token")?;
    // A repeated request gets the record again, and never the secret.
    let secret = (made == id).then_some(secret);
    Ok((StatusCode::CREATED, Json(Envelope::one(Token { secret, ..view(row) }))))
}

/// The caller's tokens, for an administrator everybody's; without their secrets.
#[utoipa::path(get, path = route::TOKENS, tag = "tokens", params(("page" = Option<u32>, Query), ("pageSize" = Option<u32>, Query)),
    responses((status = 200, body = Envelope<Vec<Token>>)))]
pub(super) async fn list(State(app): State<Arc<App>>, caller: Caller, paging: Paging) -> Answered<Vec<Token>> {
    let listed = app.driver.tokens(caller.actor, paging.rows()).await?;
    Ok(paging.answer(listed.rows.into_iter().map(view).collect(), listed.total))
}

/// Withdraws a token: it works no more, and what it opened ends.
#[utoipa::path(delete, path = route::TOKEN, tag = "tokens", params(("id" = String, Path)), responses((status = 204)))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Id(id): Id<TokenId>,
    Ask { context, .. }: Ask<Nothing>,
) -> Result<StatusCode, Failure> {
    app.driver.command(context, Command::RevokeToken { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn view(row: record::Token) -> Token {
    Token {
        id: row.id,
        owner: row.owner,
        name: row.name,
        secret: None,
        created_at: Timestamp(row.created),
        expires_at: row.expires.map(Timestamp),
    }
}

/// What a secret that could not be drawn is to a caller.
impl From<getrandom::Error> for Failure {
    fn from(error: getrandom::Error) -> Self {
        tracing::error!(%error, "the system gives no random numbers");
        Self::new(ErrorCode::Unavailable, "the system gives no random numbers")
    }
}
