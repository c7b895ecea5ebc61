//! What an inspection may use and reach. A file that needs more is refused by the kernel, and the coordinator sees a child that
//! died; what is not its business is out of reach for a file that turns the child against its own machine.

use crate::{
    args::Inspect,
    failure::{Failure, chain},
    output::Output,
};
use lorikeet_worker::{Fence, Raised};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::path::Path;

/// What may be written into a regular file; only the answer is, and that is bounded by its own lists.
const OUTPUT_BYTES: u64 = 64 << 20;
/// Open files: a base model has some hundred shards at most.
const FILES: u64 = 512;

/// Sets them for the rest of this process. Memory is private memory: mapped files do not count.
pub(super) fn set(memory_bytes: u64, seconds: u64) -> Result<(), Failure> {
    let limits = [
        (Resource::Data, memory_bytes),
        (Resource::Cpu, seconds),
        (Resource::Fsize, OUTPUT_BYTES),
        (Resource::Nofile, FILES),
        (Resource::Core, 0),
    ];
    for (resource, limit) in limits {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(resource, lower(resource, limit))
            .map_err(|error| Failure::bug(format!("set the limits of an inspection: {error}")))?;
    }
    Ok(())
}

/// For the rest of this process: the files that are to be judged, for reading, and no TCP.
pub(super) fn fence(output: Output, args: &Inspect) -> Result<(), Failure> {
    let fence = match args {
        Inspect::Dataset { file } => Fence::new().may_read(file),
        Inspect::Base { directory } => base(Fence::new(), directory),
        Inspect::Job { base: directory, dataset, validation } => {
            let fence = validation.iter().fold(Fence::new().may_read(dataset), Fence::may_read);
            base(fence, directory)
        }
    };
    match fence.raise().map_err(|error| Failure::bug(chain(&error)))? {
        Raised::FilesAndTcp => {}
        less @ (Raised::Files | Raised::Nothing) => output.note(&format!("this inspection reaches {less}")),
    }
    Ok(())
}

/// A base as Hugging Face's cache keeps it is a folder of links to files elsewhere.
fn base(fence: Fence, directory: &Path) -> Fence {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_symlink()).fold(fence.may_read(directory), Fence::may_read)
}

/// Never above what is allowed already: raising a limit takes a privilege.
fn lower(resource: Resource, wanted: Rlimit) -> Rlimit {
    let allowed = rustix::process::getrlimit(resource).maximum;
    let least = |limit: Option<u64>| limit.map(|limit| allowed.map_or(limit, |allowed| limit.min(allowed)));
    Rlimit { current: least(wanted.current), maximum: least(wanted.maximum) }
}
