//! What a process that reads users' files can reach: what it was given, the system's own libraries, and nothing else of the disk; no
//! TCP; no signal to anybody outside.
//!
//! Landlock does it, without any privilege: from [`Fence::raise`] on the kernel refuses this thread, and every thread it
//! starts, whatever was not allowed. A file that was opened before stays open, so locks and logs are taken first. A kernel
//! without Landlock, or with an older one, gives less, and [`Raised`] says how much; UDP is taken away by the newest alone.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    Scope, path_beneath_rules,
};

/// The newest rules that are asked for; an older kernel takes what it knows of them.
const RULES: ABI = ABI::V10;

/// What a program of ours needs of the system whatever it does: shared libraries (NVIDIA's are opened late), what `/proc` and
/// `/sys` say of memory and processors, random numbers.
const SYSTEM: [&str; 10] = [
    "/usr",
    "/lib",
    "/lib64",
    "/opt",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc",
    "/sys",
    "/dev/urandom",
    "/dev/zero",
];

/// Where else libraries are looked for: by the loader, and NVIDIA's by us.
const LIBRARY_FOLDERS: [&str; 4] = ["LD_LIBRARY_PATH", "CUDA_LIB_DIR", "CUDA_HOME", "CUDA_PATH"];
/// NCCL's beside one of these, where both came as Python wheels (`cuda-lazy`).
const NCCL_BESIDE: &str = "../../nccl/lib";

/// Where processes of one machine share memory by name.
const SHARED_MEMORY: &str = "/dev/shm";
/// What the system hands out ports from, and where it says so.
const PASSING_PORTS: RangeInclusive<u16> = 32768..=60999;
const PASSING_PORTS_FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The fence cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("restrict this process to its own files")]
pub struct FenceError(#[from] pub(crate) RulesetError);

/// Paths that stay in reach, with everything below them. One that is not there needs no permission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fence {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    meets_ranks: bool,
}

/// What the kernel took of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raised {
    /// Files, TCP, and signals where the kernel knows them.
    FilesAndTcp,
    /// Files alone: Linux before 6.7.
    Files,
    /// Nothing: Linux before 5.13, or one whose Landlock is switched off.
    Nothing,
}

impl Fence {
    /// Nothing but the system's own files.
    pub fn new() -> Fence {
        Fence::default()
    }

    /// This as well, for reading.
    pub fn may_read(mut self, path: impl Into<PathBuf>) -> Fence {
        self.read.push(path.into());
        self
    }

    /// This as well, for reading and writing.
    pub fn may_write(mut self, path: impl Into<PathBuf>) -> Fence {
        self.write.push(path.into());
        self
    }

    /// What NCCL needs between the processes of a job on several GPUs: memory by name, a port that the system chooses to listen at, and
    /// TCP to such ports. Landlock knows ports and no addresses, so theirs on other machines are among them; services listen elsewhere.
    pub fn may_meet_ranks(mut self) -> Fence {
        self.meets_ranks = true;
        self
    }

    /// Raises it around this thread and all that it starts. There is no way back.
    pub fn raise(self) -> Result<Raised, FenceError> {
        let (read, all) = (AccessFs::from_read(RULES), AccessFs::from_all(RULES));
        let named = LIBRARY_FOLDERS.iter().filter_map(std::env::var_os);
        let listed = named.flat_map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>());
        let libraries = listed.filter(|path| path.is_absolute()).flat_map(|path| [path.join(NCCL_BESIDE), path]);
        let shared = self.meets_ranks.then(|| PathBuf::from(SHARED_MEMORY));
        let ports = self.meets_ranks.then(ports).into_iter().flatten();
        let ruleset = Ruleset::default().handle_access(all)?.handle_access(AccessNet::from_all(RULES))?;
        let status = ruleset
            .scope(Scope::from_all(RULES))?
            .create()?
            .add_rules(path_beneath_rules(SYSTEM, read))?
            .add_rules(path_beneath_rules(libraries, read))?
            .add_rules(path_beneath_rules(self.read, read))?
            .add_rules(path_beneath_rules(devices().chain(self.write).chain(shared), all))?
            .add_rules(ports.map(Ok::<NetPort, RulesetError>))?
            .restrict_self()?;
        Ok(match status.landlock {
            LandlockStatus::Available { effective_abi, .. } if effective_abi >= ABI::V4 => Raised::FilesAndTcp,
            LandlockStatus::Available { .. } => Raised::Files,
            LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => Raised::Nothing,
        })
    }
}

/// Any port that the system chooses, to listen at; and all of those, to call, but where services listen.
fn ports() -> impl Iterator<Item = NetPort> {
    let text = std::fs::read_to_string(PASSING_PORTS_FILE).unwrap_or_default();
    let mut bounds = text.split_whitespace().map_while(|word| word.parse().ok());
    let range = bounds
        .next()
        .zip(bounds.next())
        .map_or(PASSING_PORTS, |(first, last): (u16, u16)| first.max(*PASSING_PORTS.start())..=last);
    let call = range.map(|port| NetPort::new(port, AccessNet::ConnectTcp));
    std::iter::once(NetPort::new(0, AccessNet::BindTcp)).chain(call)
}

/// `/dev/null` and the GPUs; which of them are used is decided elsewhere.
fn devices() -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let is_gpu = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nvidia"));
    entries.map(|entry| entry.path()).filter(is_gpu).chain([PathBuf::from("/dev/null")])
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Raised::FilesAndTcp => "only the files it was given, no TCP",
            Raised::Files => "only the files it was given; this kernel cannot take the network away (Linux 6.7 can)",
            Raised::Nothing => "unrestricted: this kernel has no Landlock (Linux 5.13 and later have it), or it is off",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{ErrorKind, Result};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    #[test]
    fn behind_the_fence_there_is_only_what_was_given() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let [given, own, other] = ["given", "own", "other"].map(|name| folder.path().join(name));
        for path in [&given, &own, &other] {
            fs::create_dir(path).and_then(|()| fs::write(path.join("file"), "text")).expect("written");
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        // a thread, for it is all that the fence encloses
        let behind = thread::spawn(move || {
            let raised = Fence::new().may_read(&given).may_write(&own).may_read("/nowhere").raise().expect("raised");
            assert_eq!(fs::read_to_string(given.join("file")).expect("given"), "text");
            fs::write(own.join("new"), "text")
                .and_then(|()| fs::rename(own.join("new"), own.join("kept")))
                .expect("its own");
            assert!(fs::read("/proc/self/status").is_ok_and(|text| !text.is_empty()));
            let files = [
                fs::read(other.join("file")).map(drop),
                fs::write(given.join("file"), ""),
                fs::write(other.join("new"), ""),
            ];
            (raised, files.map(denied), denied(TcpStream::connect(address).map(drop)))
        });
        let (raised, files, tcp) = behind.join().expect("its assertions hold");
        let expected = match raised {
            Raised::FilesAndTcp => ([true; 3], true),
            Raised::Files => ([true; 3], false),
            Raised::Nothing => ([false; 3], false),
        };
        assert_eq!((files, tcp), expected, "{raised}");
    }

    #[test]
    fn ranks_meet_behind_their_fences_and_services_stay_out_of_reach() {
        let range = PASSING_PORTS;
        let service = (20_000..*range.start()).find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
        let service = service.and_then(|service| service.local_addr().ok()).expect("a free port below");
        let name = PathBuf::from(SHARED_MEMORY).join(format!("lorikeet-fence-{}", std::process::id()));
        let given = name.clone();
        let behind = thread::spawn(move || {
            let raised = Fence::new().may_meet_ranks().raise().expect("raised");
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port that the system chooses");
            let met = TcpStream::connect(listener.local_addr().expect("its address")).map(drop);
            let shared = fs::write(&given, "text").and_then(|()| fs::remove_file(&given));
            (
                raised,
                met,
                shared,
                denied(TcpStream::connect(service).map(drop)),
                denied(fs::read("/etc/hostname").map(drop)),
            )
        });
        let (raised, met, shared, service, file) = behind.join().expect("its assertions hold");
        met.and(shared).expect("ranks meet");
        assert_eq!((service, file), (raised == Raised::FilesAndTcp, raised != Raised::Nothing), "{raised}");
    }

    fn denied(result: Result<()>) -> bool {
        result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }
}
