//! `lorikeet backup`: everything that a coordinator cannot make again, in one file that only its owner may read.

use super::{
    Context,
    service::{self, Signals},
};
use crate::{
    args::Backup as Args,
    client::Client,
    failure::{Failure, chain},
    interrupt,
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
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};
use tempfile::NamedTempFile;

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

/// From a directory at rest, else from the running coordinator. Ctrl-C leaves nothing behind.
pub(crate) fn run(context: &Context, args: &Args) -> Result<ExitCode, Failure> {
    let out = &args.out;
    if out.exists() {
        return Err(exists(out));
    }
    let (runtime, aside) = (service::runtime()?, Aside::beside(out)?);
    let head = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        tokio::select! {
            head = take(context, args, &aside) => head.map(Some),
            () = signals.wait() => Ok(None),
        }
    });
    // What still reads a directory must not be waited for; it writes to files that are gone.
    runtime.shutdown_background();
    let Some(head) = head? else { return Ok(ExitCode::from(interrupt::EXIT)) };
    let bytes = aside.keep(out)?;
    let (taken_at, full, generation) = (Timestamp(head.taken), head.full, head.generation);
    context.output.answer(&Written { file: out.clone(), bytes, taken_at, full, generation })?;
    Ok(ExitCode::SUCCESS)
}

fn exists(out: &Path) -> Failure {
    Failure::mistake(format!("{} exists already", out.display())).hint("name a file that does not")
}

async fn take(context: &Context, args: &Args, aside: &Aside) -> Result<Head, Failure> {
    if let Some(data) = &args.data {
        return at_rest(data.clone(), aside, args.full).await;
    }
    let client = Client::new(&Connection::find(&context.global)?)?;
    fetch(&client, aside, args.full).await?;
    backup::head_of(aside.file.path()).map_err(|error| Failure::unreachable(format!("failed to {}", chain(&error))))
}

async fn at_rest(data: PathBuf, aside: &Aside, full: bool) -> Result<Head, Failure> {
    let failed = |error: backup::BackupError| {
        Failure::mistake(format!("failed to {}", chain(&error)))
            .hint("while a coordinator runs on it, leave --data out: the backup is asked from it")
    };
    let scratch = tempfile::Builder::new()
        .prefix(".lorikeet-backup-")
        .tempdir_in(&aside.folder)
        .map_err(|error| Failure::file("write into", &aside.folder, &error))?;
    let (file, copies) = (aside.handle()?, scratch.path().to_owned());
    let taking = move || backup::take_at_rest(&data, &copies, full, BufWriter::new(&file));
    let taken = tokio::task::spawn_blocking(taking).await;
    taken.map_err(|error| Failure::bug(format!("take the backup: {error}")))?.map_err(failed)
}

async fn fetch(client: &Client, aside: &Aside, full: bool) -> Result<(), Failure> {
    let mut answer = client.download(route::BACKUP, &[("full", full.to_string())]).await?;
    let mut file = aside.handle()?;
    let broken = |error: reqwest::Error| Failure::unreachable(format!("the backup broke off: {}", chain(&error)));
    while let Some(part) = answer.chunk().await.map_err(broken)? {
        file.write_all(&part).map_err(|error| Failure::file("write", aside.file.path(), &error))?;
    }
    Ok(())
}

/// The file until it is whole, under a name that no other backup has; gone if it never is. Keys come into it: only its owner may
/// read it, from its first byte on.
struct Aside {
    file: NamedTempFile,
    folder: PathBuf,
}

impl Aside {
    fn beside(out: &Path) -> Result<Self, Failure> {
        let mut name = out.file_name().ok_or_else(|| Failure::mistake("--out names no file"))?.to_owned();
        name.push(".");
        let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(&name).suffix(".part").tempfile_in(folder);
        let file = file.map_err(|error| Failure::file("create a file beside", out, &error))?;
        Ok(Self { file, folder: folder.to_owned() })
    }

    fn handle(&self) -> Result<File, Failure> {
        self.file.as_file().try_clone().map_err(|error| Failure::file("open", self.file.path(), &error))
    }

    /// Gives it its name, unless another took that meanwhile.
    fn keep(self, out: &Path) -> Result<u64, Failure> {
        let failed = |error: io::Error| {
            let is_there = error.kind() == io::ErrorKind::AlreadyExists;
            if is_there { exists(out) } else { Failure::file("write", out, &error) }
        };
        self.file.as_file().sync_all().map_err(failed)?;
        let bytes = self.file.as_file().metadata().map_err(failed)?.len();
        self.file.persist_noclobber(out).map_err(|kept| failed(kept.error))?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_backups_to_one_file_do_not_share_a_byte_and_the_second_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("monday.tar");
        let (first, second) = (Aside::beside(&out).unwrap(), Aside::beside(&out).unwrap());
        first.handle().unwrap().write_all(b"first").unwrap();
        second.handle().unwrap().write_all(b"second").unwrap();
        assert_eq!(second.keep(&out).unwrap(), 6);
        let refused = first.keep(&out).unwrap_err();
        assert!(refused.message.contains("exists already"), "{}", refused.message);
        assert_eq!(std::fs::read(&out).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "what was not kept is gone");
    }
}
