//! `lorikeet dataset …`: training files, here and on the server.

mod preview;

use super::{Context, inspect, jobs, named};
use crate::{
    args::Dataset as Args,
    client::Client,
    failure::Failure,
    file,
    output::{
        Output,
        progress::BytesProgress,
        table::dataset::{fault_line, fault_lines},
    },
};
use lorikeet_api::{
    dataset::{ConfirmDataset, CreateDataset, Dataset, DatasetCreated, DatasetFault, DatasetStatus},
    route::{self, with_id},
};
use lorikeet_protocol::{id::Hash, inspect::Fault};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Between two looks at a dataset that is being validated.
const POLL: Duration = Duration::from_millis(200);

/// Does what was asked of datasets.
pub(crate) fn run(context: &Context, args: Args) -> Result<(), Failure> {
    let output = context.output;
    match args {
        Args::Check { file, base } => check(output, &file, base.as_deref()),
        Args::Preview { file, base, supervise, max_seq_length } => {
            preview::run(output, &preview::Asked { file, base, supervise, max_seq_length })
        }
        Args::Add { file, name, description, no_wait } => {
            let new = New { file, name, description };
            context.ask(async |client| {
                let dataset = add(&client, output, &new, !no_wait).await?;
                output.answer(&dataset)?;
                judge(&dataset)
            })
        }
        Args::List(page) => {
            context.ask(async |client| jobs::list::<Dataset>(&client, output, route::DATASETS, page, None).await)
        }
        Args::Show { dataset } => context.ask(async |client| {
            // Who would look at one looks at what can be used, and who cleans up does not mean that.
            let id = named::id_fitting(&client, output, &dataset, is_usable).await?;
            output.answer(&client.get::<Dataset>(&with_id(route::DATASET, id), &[]).await?)
        }),
        Args::Delete { dataset } => context.ask(async |client| delete(&client, output, &dataset).await),
    }
}

async fn delete(client: &Client, output: Output, dataset: &str) -> Result<(), Failure> {
    let id = named::own_id::<Dataset>(client, output, dataset).await?;
    let found: Dataset = client.get(&with_id(route::DATASET, id), &[]).await?;
    client.delete(&with_id(route::DATASET, found.id)).await?;
    output.note(&format!("deleted {} ({})", found.id, found.name));
    Ok(())
}

/// Needs no server.
fn check(output: Output, file: &Path, base: Option<&Path>) -> Result<(), Failure> {
    let unusable =
        |faults: Vec<_>| Failure::mistake(format!("{} cannot be used:{}", file.display(), fault_lines(&faults)));
    let found = inspect::check(file, base).map_err(unusable)?;
    output.answer(&found)?;
    faultless(file, &found.errors, found.error_count)
}

/// The first fault in one line, and how many there are.
fn faultless(file: &Path, faults: &[Fault], count: u64) -> Result<(), Failure> {
    let Some(first) = faults.first() else { return Ok(()) };
    let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
    Err(Failure::mistake(format!("{}: {}{more}", file.display(), fault_line(first))))
}

/// A file that should become a dataset.
pub(crate) struct New {
    pub(crate) file: PathBuf,
    /// The file's name when not given.
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
}

/// Uploads a file; waits, if told to, until it is validated.
pub(crate) async fn add(client: &Client, output: Output, new: &New, to_its_end: bool) -> Result<Dataset, Failure> {
    let (size, hash) = measure(&new.file)?;
    let request = request(new, size)?;
    let known = named::all::<Dataset>(client, &request.name).await?.own;
    let twins = || known.iter().filter(|known| known.content_hash == Some(hash));
    if let Some(other) = known.iter().find(|known| is_usable(known) && known.content_hash != Some(hash)) {
        let words = format!("{} has this name and other content: a job has to name one of them by its id", other.id);
        output.note(&words);
    }
    let mut dataset = match twins().find(|twin| is_usable(twin)).or_else(|| twins().next()) {
        Some(twin) => {
            output.note(&format!("nothing is uploaded: {} has this name and the same content already", twin.id));
            if new.description.is_some() && new.description != twin.description {
                output.note("its description stays as it was");
            }
            again(client, twin).await?
        }
        None => {
            let created = open(client, output, request, &known).await?;
            let bar = BytesProgress::new("uploading", size);
            client.upload(&created, &new.file, size, |bytes| bar.at(bytes)).await?;
            bar.finish();
            let confirm = with_id(route::DATASET_CONFIRM, created.dataset.id);
            client.post(&confirm, &[], &ConfirmDataset { hash: Some(hash) }).await?
        }
    };
    while to_its_end && dataset.status == DatasetStatus::Validating {
        tokio::time::sleep(POLL).await;
        dataset = client.get(&with_id(route::DATASET, dataset.id), &[]).await?;
    }
    Ok(dataset)
}

/// Whether a job that names it would be trained on it, now or once it is judged.
fn is_usable(dataset: &Dataset) -> bool {
    matches!(dataset.status, DatasetStatus::Validating | DatasetStatus::Ready)
}

/// One that is here already; one with faults is judged anew, by what the server knows by now.
async fn again(client: &Client, twin: &Dataset) -> Result<Dataset, Failure> {
    match twin.status {
        DatasetStatus::Error => {
            client.post(&with_id(route::DATASET_VALIDATE, twin.id), &[], &super::job::NoBody {}).await
        }
        DatasetStatus::Uploading | DatasetStatus::Validating | DatasetStatus::Ready => Ok(twin.clone()),
    }
}

/// A file that cannot be trained on was the wrong one to upload.
pub(crate) fn judge(dataset: &Dataset) -> Result<(), Failure> {
    match dataset.status {
        DatasetStatus::Ready | DatasetStatus::Validating | DatasetStatus::Uploading => Ok(()),
        DatasetStatus::Error => {
            let faults: Vec<Fault> = dataset.errors.iter().map(fault).collect();
            let failure = faultless(Path::new(&dataset.file_name), &faults, dataset.error_count).err();
            let failure = failure.unwrap_or_else(|| Failure::mistake(format!("{}: it has faults", dataset.file_name)));
            Err(failure.hint("see the file's faults above, or `lorikeet dataset check FILE`"))
        }
    }
}

fn fault(DatasetFault { line, path, message }: &DatasetFault) -> Fault {
    Fault { line: *line, path: path.clone(), message: message.clone() }
}

fn request(new: &New, size_bytes: u64) -> Result<CreateDataset, Failure> {
    let file_name = new.file.file_name().and_then(|name| name.to_str());
    let file_name =
        file_name.ok_or_else(|| Failure::mistake(format!("{} has no name in UTF-8", new.file.display())))?;
    let stem = Path::new(file_name).file_stem().and_then(|stem| stem.to_str()).unwrap_or(file_name);
    let name = new.name.clone().unwrap_or_else(|| stem.to_owned());
    let description = new.description.clone();
    Ok(CreateDataset { name, file_name: file_name.to_owned(), size_bytes, format: None, description })
}

/// A new record; or, when the same file was begun before and broke off, that record and a fresh address for the rest.
async fn open(
    client: &Client,
    output: Output,
    request: CreateDataset,
    known: &[Dataset],
) -> Result<DatasetCreated, Failure> {
    let same = |dataset: &&Dataset| {
        dataset.status == DatasetStatus::Uploading
            && (&dataset.file_name, dataset.size_bytes) == (&request.file_name, request.size_bytes)
    };
    match known.iter().find(same) {
        Some(begun) => {
            output.note(&format!("going on with the upload of {}", begun.id));
            client.post(&with_id(route::DATASET_UPLOAD_URL, begun.id), &[], &super::job::NoBody {}).await
        }
        None => client.post(route::DATASETS, &[], &request).await,
    }
}

/// Size and hash of a file.
pub(super) fn measure(path: &Path) -> Result<(u64, Hash), Failure> {
    let mut hasher = blake3::Hasher::new();
    let read = io::copy(&mut file::open("read", path)?, &mut hasher);
    let size = read.map_err(|error| Failure::file("read", path, &error))?;
    Ok((size, Hash(*hasher.finalize().as_bytes())))
}
