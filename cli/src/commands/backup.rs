//! `lorikeet backup`: everything that a coordinator cannot make again, in one file that only its owner may read.

use super::Context;
use crate::{
    args::Backup as Args,
    client::Client,
    failure::{Failure, chain},
    output::{
        View,
        table::{fields, moment, size},
    },
    profile::Connection,
};
use lorikeet_api::{Timestamp, route};
use lorikeet_coordinator::backup::{self, Head};
use serde::Serialize;
use std::{
    fs::{self, File, OpenOptions},
    io::{BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// What was written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    file: PathBuf,
    bytes: u64,
    taken_at: Timestamp,
    full: bool,
    generation: u32,
}

impl View for Written {
    fn table(&self) -> String {
        fields([
            ("file", Some(self.file.display().to_string())),
            ("size", Some(size(self.bytes))),
            ("taken", Some(moment(self.taken_at))),
            ("holds", Some(if self.full { "state, keys and files" } else { "state and keys" }.to_owned())),
            ("generation", Some(self.generation.to_string())),
        ])
    }
}

/// From a directory at rest, else from the running coordinator.
pub(crate) fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let out = &args.out;
    if out.exists() {
        return Err(Failure::mistake(format!("{} exists already", out.display())).hint("name a file that does not"));
    }
    let aside = Aside::beside(out)?;
    let head = match &args.data {
        Some(data) => at_rest(data, &aside, args.full)?,
        None => {
            let client = Client::new(&Connection::find(&context.global)?)?;
            super::runtime()?.block_on(fetch(&client, &aside, args.full))?;
            backup::head_of(&aside.path)
                .map_err(|error| Failure::unreachable(format!("failed to {}", chain(&error))))?
        }
    };
    let bytes = aside.keep(out)?;
    let (taken_at, full, generation) = (Timestamp(head.taken), head.full, head.generation);
    context.output.answer(&Written { file: out.clone(), bytes, taken_at, full, generation })
}

fn at_rest(data: &Path, aside: &Aside, full: bool) -> Result<Head, Failure> {
    let failed = |error: backup::BackupError| {
        Failure::mistake(format!("failed to {}", chain(&error)))
            .hint("while a coordinator runs on it, leave --data out: the backup is asked from it")
    };
    let scratch = tempfile::Builder::new()
        .prefix(".lorikeet-backup-")
        .tempdir_in(aside.folder())
        .map_err(|error| Failure::file("write into", aside.folder(), &error))?;
    let file = aside.open()?;
    let head = backup::take_at_rest(data, scratch.path(), full, BufWriter::new(&file)).map_err(failed)?;
    Ok(head)
}

async fn fetch(client: &Client, aside: &Aside, full: bool) -> Result<(), Failure> {
    let mut answer = client.download(route::BACKUP, &[("full", full.to_string())]).await?;
    let mut file = aside.open()?;
    let broken = |error: reqwest::Error| Failure::unreachable(format!("the backup broke off: {}", chain(&error)));
    while let Some(part) = answer.chunk().await.map_err(broken)? {
        file.write_all(&part).map_err(|error| Failure::file("write", &aside.path, &error))?;
    }
    Ok(())
}

/// The file until it is whole; gone if it never is.
struct Aside {
    path: PathBuf,
}

impl Aside {
    fn beside(out: &Path) -> Result<Self, Failure> {
        let mut name = out.file_name().ok_or_else(|| Failure::mistake("--out names no file"))?.to_owned();
        name.push(".part");
        Ok(Self { path: out.with_file_name(name) })
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Keys come into it: nobody else may read it, from its first byte on.
    fn open(&self) -> Result<File, Failure> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path);
        file.map_err(|error| Failure::file("create", &self.path, &error))
    }

    fn keep(self, out: &Path) -> Result<u64, Failure> {
        let kept = || {
            let file = File::open(&self.path)?;
            file.sync_all()?;
            let bytes = file.metadata()?.len();
            fs::rename(&self.path, out)?;
            File::open(self.folder())?.sync_all()?;
            Ok(bytes)
        };
        kept().map_err(|error: std::io::Error| Failure::file("write", out, &error))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // After `keep` it is no longer there.
        let _ = fs::remove_file(&self.path);
    }
}
