//! `lorikeet restore`: a coordinator's data directory, from a backup.

use super::Context;
use crate::{
    args::Restore as Args,
    failure::{Failure, chain},
    output::{
        View,
        table::{count, fields, moment},
    },
};
use lorikeet_api::Timestamp;
use lorikeet_coordinator::backup::{self, Verified};
use lorikeet_protocol::id::Hash;
use serde::Serialize;
use std::path::PathBuf;

/// Files named in a table; the JSON has all of them.
const SHOWN: usize = 20;

/// What was done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    data: PathBuf,
    taken_at: Timestamp,
    generation: u32,
    records: u64,
    files: Option<Files>,
}

#[derive(Debug, Serialize)]
struct Files {
    named: u64,
    whole: u64,
    missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct Missing {
    hash: Hash,
    kind: String,
    found: &'static str,
}

impl View for Done {
    fn table(&self) -> String {
        let mut text = fields([
            ("restored", Some(self.data.display().to_string())),
            ("as of", Some(moment(self.taken_at))),
            ("generation", Some(self.generation.to_string())),
            ("records", Some(count(self.records))),
            ("files", self.files.as_ref().map(|files| format!("{} of {} are whole", files.whole, files.named))),
        ]);
        let missing = self.files.iter().flat_map(|files| &files.missing);
        for Missing { hash, kind, found } in missing.clone().take(SHOWN) {
            text += &format!("\n{found}: {kind} {hash}");
        }
        let more = missing.count().saturating_sub(SHOWN);
        if more > 0 {
            text += &format!("\nand {more} more; --output json names them all");
        }
        text
    }
}

/// Restores, and says what is missing.
pub(crate) fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let done = backup::restore(&args.from, &args.data, args.verify)
        .map_err(|error| Failure::mistake(format!("failed to {}", chain(&error))))?;
    let files = done.verified.map(files);
    let missing = files.as_ref().map_or(0, |files| files.missing.len());
    let (taken_at, generation, records) = (Timestamp(done.head.taken), done.generation, done.rows);
    context.output.answer(&Done { data: args.data.clone(), taken_at, generation, records, files })?;
    context.output.note("revoke again what was revoked since the backup was taken; then start the coordinator");
    if missing > 0 {
        let found = format!("{missing} of the files that the records name are missing or changed");
        return Err(
            Failure::mistake(found).hint("the rest is restored; datasets can be uploaded and bases added again")
        );
    }
    Ok(())
}

fn files(verified: Verified) -> Files {
    let missing = verified.missing.into_iter().map(|file| Missing {
        hash: file.hash,
        kind: file.kind.to_string(),
        found: if file.is_changed { "changed" } else { "missing" },
    });
    Files { named: verified.named, whole: verified.whole, missing: missing.collect() }
}
