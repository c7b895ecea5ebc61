//! `lorikeet ca …`: the certificate authority's certificate, the hash that others pin, and the way to the next one.

use super::{Context, runtime};
use crate::{
    args::Ca,
    client::{self, Client, tls},
    failure::{Failure, chain},
    output::Output,
    profile::{self, Connection, Profile},
};
use lorikeet_api::{
    Envelope,
    ca::{CaCertificate, FinishRotation, Rotation, RotationPhase},
    route,
};
use std::{fs, path::Path};

/// Where a coordinator keeps it, in its data directory: the one that signs is the first of these that is there.
const IN_DATA: [&str; 2] = ["ca/next.pem", "ca/ca.pem"];

/// Shows it, or asks for what is to become of it.
pub(crate) fn run(context: &Context, args: Ca) -> Result<(), Failure> {
    let output = context.output;
    match args {
        Ca::Show { data: Some(data) } => output.answer(&read(&data)?),
        Ca::Show { data: None } => output.answer(&runtime()?.block_on(fetch(&server(context)?))?),
        Ca::Status => {
            context.ask(async |client| output.answer(&client.get::<Rotation>(route::CA_ROTATION, &[]).await?))
        }
        Ca::Rotate => context.ask(async |client| rotate(&client, output).await),
        Ca::Finish { force } => context.ask(async |client| {
            let finished: Rotation = client.post(route::CA_ROTATION_FINISH, &[], &FinishRotation { force }).await?;
            output.answer(&finished)
        }),
    }
}

async fn rotate(client: &Client, output: Output) -> Result<(), Failure> {
    let began: Rotation = client.post(route::CA_ROTATION, &[], &super::job::NoBody {}).await?;
    output.answer(&began)?;
    if began.phase == RotationPhase::Overlap {
        output.note("take a backup now: one of before the rotation knows only the older authority");
    }
    Ok(())
}

/// Pins the authority that follows the pinned one, where the server has shown that it does. Nothing is asked of a person, and what
/// fails here is tried again by the next command.
pub(super) async fn follow(context: &Context, connection: &Connection, client: &Client) {
    let Some(shown) = client.followed_by() else { return };
    let Ok(told) = client.get::<CaCertificate>(route::CA, &[]).await else { return };
    let Some(path) = profile::path(&context.global) else { return };
    let Ok(Some(known)) = Profile::read(&path) else { return };
    // What it says of its hash is only words.
    let is_shown = tls::hash(&told.pem).is_ok_and(|hash| hash == shown);
    if is_shown && known.ca.is_some() && known.ca == connection.ca {
        match (Profile { ca: Some(told.pem), ..known }).write(&path) {
            Ok(()) => {
                context.output.note(&format!("the coordinator's certificate authority is rotated; {shown} is pinned"))
            }
            Err(failure) => context.output.note(&format!("the next certificate authority was not pinned: {failure}")),
        }
    }
}

fn read(data: &Path) -> Result<CaCertificate, Failure> {
    let path = IN_DATA.map(|name| data.join(name)).into_iter().find(|path| path.exists());
    let path = path.unwrap_or_else(|| data.join(IN_DATA[1]));
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
