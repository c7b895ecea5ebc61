//! What an inspection may use. A file that needs more is refused by the kernel, and the coordinator sees a child that died.

use crate::failure::Failure;
use rustix::process::{Resource, Rlimit, setrlimit};

/// Private memory: several times what the largest honest dataset needs, which is streamed. Mapped files do not count.
const MEMORY_BYTES: u64 = 4 << 30;
/// Processor time: ten gigabytes are tokenised in less.
const SECONDS: u64 = 3_600;
/// What may be written into a regular file; only the answer is, and that is bounded by its own lists.
const OUTPUT_BYTES: u64 = 64 << 20;
/// Open files: a base model has some hundred shards at most.
const FILES: u64 = 512;

/// Sets them for the rest of this process.
pub(super) fn set() -> Result<(), Failure> {
    let limits = [
        (Resource::Data, MEMORY_BYTES),
        (Resource::Cpu, SECONDS),
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

/// Never above what is allowed already: raising a limit takes a privilege.
fn lower(resource: Resource, wanted: Rlimit) -> Rlimit {
    let allowed = rustix::process::getrlimit(resource).maximum;
    let least = |limit: Option<u64>| limit.map(|limit| allowed.map_or(limit, |allowed| limit.min(allowed)));
    Rlimit { current: least(wanted.current), maximum: least(wanted.maximum) }
}
