//! `lorikeet token …`: the caller's bearer tokens.

use super::{jobs, named};
use crate::{args::Token as Args, client::Client, failure::Failure, output::Output};
use lorikeet_api::{
    route::{self, with_id},
    token::{CreateToken, Token},
};

/// Makes, lists or withdraws.
pub(crate) async fn run(client: &Client, output: Output, args: Args) -> Result<(), Failure> {
    match args {
        Args::Add { name, ttl } => {
            let body = CreateToken { name, ttl_seconds: ttl.map(|ttl| ttl.as_secs()) };
            let made: Token = client.post(route::TOKENS, &[], &body).await?;
            output.answer(&made)?;
            output.note("the secret is shown this once");
            Ok(())
        }
        Args::List(page) => jobs::list::<Token>(client, output, route::TOKENS, page, None).await,
        Args::Revoke { token } => {
            let id = named::own_id::<Token>(client, output, &token).await?;
            client.delete(&with_id(route::TOKEN, id)).await?;
            output.note(&format!("{id} works no more"));
            Ok(())
        }
    }
}
