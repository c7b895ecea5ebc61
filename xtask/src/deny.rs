//! The `deny` step of `check`: licences, banned crates and sources by `deny.toml`, and advisories where their database
//! can be fetched. Versions with a known advisory are bans as well, so a machine without a way to the database still
//! refuses them.

use std::time::Duration;

use anyhow::Result;

use crate::check::Done;
use crate::program::{Program, present};
use crate::tree::Tree;

/// Long enough for the database on a slow line, short enough for a network that swallows packets.
const FETCH_LIMIT: Duration = Duration::from_secs(90);

/// Asks cargo-deny; that the database cannot be had is a note, never a fault.
pub(crate) fn run(tree: &Tree) -> Result<Done> {
    if !present("cargo deny --version") {
        return Ok(Done::Missing("cargo-deny"));
    }
    Program::new(tree.root(), "cargo deny --locked check licenses bans sources").run()?;
    if !Program::new(tree.root(), "cargo deny fetch db").succeeds_within(FETCH_LIMIT) {
        return Ok(Done::Noted("advisories not checked: their database could not be fetched".into()));
    }
    Program::new(tree.root(), "cargo deny --locked check --disable-fetch advisories").run().map(|()| Done::Passed)
}
