//! `lorikeet nodes` and `lorikeet node token`.

use crate::{args::Node as Args, client::Client, failure::Failure, output::Output};
use lorikeet_api::{
    node::Node,
    route,
    token::{CreateJoinToken, JoinToken},
};

/// All machines: they are few enough for one list.
pub(crate) async fn list(client: &Client, output: Output) -> Result<(), Failure> {
    output.answer(&client.all::<Node>(route::NODES, &[]).await?)
}

/// A join string for the next machine.
pub(crate) async fn run(client: &Client, output: Output, args: Args) -> Result<(), Failure> {
    let Args::Token { ttl } = args;
    let body = CreateJoinToken { ttl_seconds: ttl.map(|ttl| ttl.as_secs()) };
    let token: JoinToken = client.post(route::JOIN_TOKENS, &[], &body).await?;
    output.answer(&token)
}
