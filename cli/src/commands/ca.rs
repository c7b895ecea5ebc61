//! `lorikeet ca show`: the certificate authority's certificate and the hash that others pin.

use super::{Context, runtime};
use crate::{
    args::Ca,
    client::{self, tls},
    failure::{Failure, chain},
    profile::{self, Profile},
};
use lorikeet_api::{Envelope, route, server::CaCertificate};
use std::{fs, path::Path};

/// Where a coordinator keeps it, in its data directory.
const IN_DATA: &str = "ca/ca.pem";

/// From a data directory, else from the server.
pub(crate) fn run(context: &Context, args: Ca) -> Result<(), Failure> {
    let Ca::Show { data } = args;
    let certificate = match data {
        Some(data) => read(&data)?,
        None => runtime()?.block_on(fetch(&server(context)?))?,
    };
    context.output.answer(&certificate)
}

fn read(data: &Path) -> Result<CaCertificate, Failure> {
    let path = data.join(IN_DATA);
    let pem =
        fs::read_to_string(&path).map_err(|error| Failure::file("read the certificate authority", &path, &error))?;
    let hash = tls::hash(&pem)?;
    Ok(CaCertificate { pem, hash })
}

/// Needs no token, so it needs no more than an address.
fn server(context: &Context) -> Result<String, Failure> {
    if let Some(server) = &context.global.server {
        return Ok(server.clone());
    }
    let profile = profile::path(&context.global).map(|path| Profile::read(&path)).transpose()?.flatten();
    let profile = profile.ok_or_else(|| {
        Failure::mistake("no server is named").hint("give --server URL, or --data DIR on the coordinator's machine")
    })?;
    Ok(profile.server)
}

/// What a server calls its authority. Nothing is verified and nothing is told: the hash is for the caller to compare.
pub(super) async fn fetch(server: &str) -> Result<CaCertificate, Failure> {
    let url = client::address(server)?.join(route::CA).map_err(Failure::bug)?;
    let http = client::builder().tls_backend_preconfigured(tls::unverified()?).build().map_err(Failure::bug)?;
    let unreachable = |error: reqwest::Error| {
        Failure::unreachable(format!("reach {server}: {}", chain(&error))).hint("is the coordinator running there?")
    };
    let bytes = http.get(url).send().await.map_err(unreachable)?.bytes().await.map_err(unreachable)?;
    let answer = serde_json::from_slice::<Envelope<CaCertificate>>(&bytes);
    let told = answer
        .map_err(|error| Failure::unreachable(format!("{server} does not answer like a coordinator: {error}")))?;
    // What it says of its hash is only words.
    let hash = tls::hash(&told.data.pem)?;
    Ok(CaCertificate { pem: told.data.pem, hash })
}
