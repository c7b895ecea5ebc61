//! What an inspection may use. A file that needs more is refused by the kernel, and the coordinator sees a child that died.

use crate::failure::Failure;
use rustix::process::{Resource, Rlimit, setrlimit};

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

/// Never above what is allowed already: raising a limit takes a privilege.
fn lower(resource: Resource, wanted: Rlimit) -> Rlimit {
    let allowed = rustix::process::getrlimit(resource).maximum;
    let least = |limit: Option<u64>| limit.map(|limit| allowed.map_or(limit, |allowed| limit.min(allowed)));
    Rlimit { current: least(wanted.current), maximum: least(wanted.maximum) }
}
