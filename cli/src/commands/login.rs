//! `lorikeet login`: whom to trust and who we are, remembered in the profile.
//!
//! The authority's hash is compared before the token leaves this machine; only then is the server asked who the token is.

use super::{Context, ca};
use crate::{
    args::Login,
    client::{self, Client},
    failure::Failure,
    profile::{self, Connection, Profile},
};
use lorikeet_api::{route, server::Me};
use std::{
    fs,
    io::{self, IsTerminal, Read},
    path::Path,
};

/// Checks everything, then writes the profile.
pub(crate) async fn run(context: &Context, args: Login) -> Result<(), Failure> {
    let server = profile::plain(&args.url).to_owned();
    let secure = client::address(&server)?.scheme() == "https";
    let ca = match args.ca_hash {
        Some(expected) if secure => {
            let found = ca::fetch(&server).await?;
            if found.hash != expected {
                return Err(Failure::mistake(format!(
                    "the certificate authority of {server} is {}, expected {expected}",
                    found.hash
                ))
                .hint("compare with `lorikeet ca show --data DIR` on the coordinator's machine; somebody may be in between, or it was rotated"));
            }
            Some(found.pem)
        }
        Some(_) | None => None,
    };
    let token = token(context, args.token_file.as_deref())?;
    let connection = Connection { server: server.clone(), token: Some(token.clone()), ca: ca.clone() };
    let me: Me = Client::new(&connection)?.get(route::ME, &[]).await?;
    let path = profile::path(&context.global).ok_or_else(|| {
        Failure::mistake("there is no home directory").hint("name a file with --profile or LORIKEET_PROFILE")
    })?;
    Profile { server, token: Some(token), ca }.write(&path)?;
    context.output.note(&format!("you are {} ({}); written to {}", me.name, me.email, path.display()));
    Ok(())
}

/// From the flag or the environment, else a file, else standard input.
fn token(context: &Context, file: Option<&Path>) -> Result<String, Failure> {
    let text = match (&context.global.token, file) {
        (_, Some(path)) => fs::read_to_string(path).map_err(|error| Failure::file("read the token", path, &error))?,
        (Some(token), None) => token.clone(),
        (None, None) => {
            if io::stdin().is_terminal() {
                context.output.note("paste the token, then press Enter and Ctrl-D:");
            }
            let mut text = String::new();
            let read = io::stdin().take(4_096).read_to_string(&mut text);
            read.map_err(|error| Failure::mistake(format!("read the token from standard input: {error}")))?;
            text
        }
    };
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(Failure::mistake("what was given is no token: it is empty or has blanks in it")
            .hint("give it with --token-file FILE, or on standard input; a coordinator keeps its first one in DATA/admin.token"));
    }
    Ok(token.to_owned())
}
