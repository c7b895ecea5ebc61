//! `lorikeet adapter …`: what came out, fetched and made into other files.

mod export;
mod merge;

use super::{Context, job, jobs, named, train::absolute};
use crate::{
    args::Adapter as Args,
    client::Client,
    failure::Failure,
    interrupt::Interrupt,
    output::{Output, progress::BytesProgress, table::size},
};
use lorikeet_api::{
    job::Job,
    model::Model,
    route::{self, with_id},
};
use lorikeet_protocol::{
    file::is_plain_path,
    id::{Hash, ModelId},
};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Lists, shows or fetches; merges and exports without a server.
pub(crate) fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let output = context.output;
    match args {
        Args::List(page) => {
            context.ask(async |client| jobs::list::<Model>(&client, output, route::MODELS, page, None).await)
        }
        Args::Show { adapter } => context.ask(async |client| output.answer(&find(&client, output, &adapter).await?)),
        Args::Pull { adapter, out } => context.ask(async |client| {
            let model = find(&client, output, &adapter).await?;
            let interrupt = Interrupt::listen()?;
            interrupt.or(pull(&client, &model, &out)).await?;
            output.note(&format!("{} files, {} in {}", model.files.len(), size(model.size_bytes), out.display()));
            output.answer(&model)
        }),
        Args::Merge(args) => merge::run(output, &args),
        Args::Export(args) => export::run(output, &args),
    }
}

/// By its id, or by the job that made it.
async fn find(client: &Client, output: Output, adapter: &str) -> Result<Model, Failure> {
    let id = match adapter.parse::<ModelId>() {
        Ok(id) => id,
        Err(_) => {
            let has_made_one = |job: &Job| job.model.is_some();
            let job = job::show(client, named::id_fitting(client, output, adapter, has_made_one).await?).await?;
            job.model.ok_or_else(|| {
                Failure::refused(format!("{} has made no adapter", job.id)).hint("is it done? see `lorikeet jobs`")
            })?
        }
    };
    client.get(&with_id(route::MODEL, id), &[]).await
}

/// Fetches every file of a model, checks each against the record, and only then gives the folder its name.
pub(crate) async fn pull(client: &Client, model: &Model, out: &Path) -> Result<(), Failure> {
    let out = &vacant(out)?;
    let aside = aside(out)?;
    let tar = fetch(client, model, &aside).await?;
    let unpacked = aside.path().join("files");
    unpack(tar, model, &unpacked)?;
    place(&unpacked, out)
}

/// An empty folder may stand in the way; whatever else came meanwhile stays.
fn place(files: &Path, out: &Path) -> Result<(), Failure> {
    let came = [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::AlreadyExists, io::ErrorKind::NotADirectory];
    fs::rename(files, out).map_err(|error| {
        if came.contains(&error.kind()) {
            let message = format!("{} was made by somebody else while the files were fetched", out.display());
            return Failure::mistake(message).hint("look at what is there, or name a folder that does not exist yet");
        }
        Failure::file("write", out, &error)
    })
}

/// Where a new folder may stand: nothing is there, or an empty folder, which it takes the place of. So it cannot be the one in which
/// somebody stands: they would see nothing of it.
fn vacant(out: &Path) -> Result<PathBuf, Failure> {
    let refused = |what: &str| {
        let failure = Failure::mistake(format!("{} {what}", out.display()));
        Err(failure.hint("name a folder that does not exist yet"))
    };
    match fs::read_dir(out).map(Iterator::count) {
        Ok(0) => {
            let here = |error: io::Error| Failure::file("find", out, &error);
            let (resolved, working) = (out.canonicalize().map_err(here)?, Path::new(".").canonicalize().map_err(here)?);
            if working == resolved {
                return refused("is the working directory, which a new one would take the place of");
            }
            Ok(resolved)
        }
        Ok(_) => refused("is not empty"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => absolute(out),
        Err(error) => Err(Failure::file("read", out, &error)),
    }
}

/// A folder beside the target, so that renaming stays on one file system.
fn aside(out: &Path) -> Result<tempfile::TempDir, Failure> {
    let parent = out.parent().unwrap_or(out);
    let make = || {
        fs::create_dir_all(parent)?;
        tempfile::Builder::new().prefix(".lorikeet-pull-").tempdir_in(parent)
    };
    make().map_err(|error| Failure::file("write into", parent, &error))
}

async fn fetch(client: &Client, model: &Model, aside: &tempfile::TempDir) -> Result<File, Failure> {
    let path = with_id(route::MODEL_DOWNLOAD, model.id);
    let mut answer = client.download(&path, &[("artifact", "all".to_owned())]).await?;
    let broken = |error: reqwest::Error| {
        Failure::unreachable(format!("the download broke off: {}", crate::failure::chain(&error)))
    };
    let bar = BytesProgress::new("fetching", model.size_bytes);
    let name = aside.path().join("adapter.tar");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&name)
        .map_err(|error| Failure::file("create", &name, &error))?;
    // The tar is as large as its files and a little more; a server that sends for ever is cut off.
    let most = model.size_bytes + (1 << 20) + 2_048 * model.files.len() as u64;
    let mut bytes = 0;
    while let Some(part) = answer.chunk().await.map_err(broken)? {
        bytes += part.len() as u64;
        if bytes > most {
            return Err(Failure::refused("the server sends more than the adapter's files"));
        }
        io::Write::write_all(&mut file, &part).map_err(|error| Failure::file("write", &name, &error))?;
        bar.at(bytes);
    }
    bar.finish();
    file.seek(SeekFrom::Start(0)).map_err(|error| Failure::file("read", &name, &error))?;
    drop(fs::remove_file(&name));
    Ok(file)
}

/// The tar's files: those of the record and no others, each of its size and hash.
fn unpack(tar: File, model: &Model, folder: &Path) -> Result<(), Failure> {
    let damaged =
        |what: &str| Failure::refused(format!("the download is damaged: {what}")).hint("run the command again");
    let mut missing: Vec<_> = model.files.iter().collect();
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().map_err(|error| damaged(&error.to_string()))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| damaged(&error.to_string()))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().map_err(|error| damaged(&error.to_string()))?.to_string_lossy().into_owned();
        let place = missing.iter().position(|file| file.path == path && is_plain_path(&path));
        let expected =
            missing.swap_remove(place.ok_or_else(|| damaged(&format!("{path} is none of the adapter's files")))?);
        let target = folder.join(&path);
        let found = write(&mut entry, &target).map_err(|error| Failure::file("write", &target, &error))?;
        if found != expected.hash {
            return Err(damaged(&format!("{path} is not what its hash says")));
        }
    }
    match missing.first() {
        Some(file) => Err(damaged(&format!("{} is missing", file.path))),
        None => Ok(()),
    }
}

fn write(from: &mut impl Read, target: &Path) -> io::Result<Hash> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::create_new(target)?;
    let mut hasher = blake3::Hasher::new();
    let mut part = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut part)?;
        if read == 0 {
            break;
        }
        hasher.update(&part[..read]);
        io::Write::write_all(&mut file, &part[..read])?;
    }
    file.sync_all()?;
    Ok(Hash(*hasher.finalize().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_that_fetch_into_one_place_the_later_one_is_told_what_is_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let (out, [first, second]) =
            (folder.path().join("adapter"), ["first", "second"].map(|name| folder.path().join(name)));
        for files in [&first, &second] {
            fs::create_dir(files).unwrap();
            fs::write(files.join("of"), files.display().to_string()).unwrap();
        }
        place(&first, &out).unwrap();
        let failure = place(&second, &out).unwrap_err();
        assert!(
            failure.message.ends_with("adapter was made by somebody else while the files were fetched"),
            "{failure}"
        );
        assert_eq!(fs::read_to_string(out.join("of")).unwrap(), first.display().to_string());
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(place(&second, &folder.path().join("file")).unwrap_err().message.contains("somebody else"));
    }
}
