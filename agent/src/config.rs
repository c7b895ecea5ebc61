//! What an operator may say about an agent: read from TOML, unknown keys refused, checked as a whole.
//!
//! Every timer stands here, so that a test can run a whole life in a second. `configs/agent.toml` is the commented example.

mod check;
mod program;

use lorikeet_protocol::settings::{self, Fault, duration::deserialize as duration};
use serde::{Deserialize, Deserializer};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Everything about an agent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where identity, attempts, cache and reports lie.
    pub data_dir: PathBuf,
    /// What people call this node; the host name when absent.
    pub name: Option<String>,
    /// What jobs may ask for.
    pub labels: BTreeMap<String, String>,
    /// `host:port` of the coordinator's link, where it is no longer the one of the join string.
    pub coordinator: Option<String>,
    /// Whether workers are asked to save and leave when the agent stops, and do so by themselves when it is killed. For `lorikeet
    /// dev`; a service leaves them alone.
    pub stop_workers_on_exit: bool,
    /// Which devices are offered.
    pub devices: Devices,
    /// How workers run.
    pub worker: Worker,
    /// Base models and datasets on this disk.
    pub cache: Cache,
    /// Files from other nodes, and to them.
    pub share: Share,
    /// How the coordinator is reached.
    pub link: Link,
}

/// Which devices are offered.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Devices {
    /// What kind.
    pub kind: Choice,
    /// GPUs by UUID; empty: all.
    pub only: Vec<String>,
    /// Devices that are only declared, for tests; when there are any, nothing real is offered.
    pub fake: Vec<Fake>,
    /// How often devices are looked at.
    #[serde(deserialize_with = "duration")]
    pub probe: Duration,
    /// How often their state is sent even if nothing changed.
    #[serde(deserialize_with = "duration")]
    pub report: Duration,
    /// A device whose memory a dead worker of ours still holds after this long is not offered until it lets go.
    #[serde(deserialize_with = "duration")]
    pub release_grace: Duration,
    /// Program and arguments of the test that a device has to pass before it is offered again after a fault, and a GPU before it is offered
    /// at all; the device's name follows (`cpu` for the slot, and for a device that is only declared), and an exit code of 0 is a pass. The
    /// worker's own test when not given.
    pub burn_in: Option<Vec<String>>,
    /// Why the program that workers are made of cannot train on GPUs: not an operator's to say, but that of whoever starts the agent.
    /// `None`: it can.
    #[serde(skip)]
    pub gpus_unusable: Option<String>,
}

/// What kind of device is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// GPUs; the CPU slot where no GPU can be trained on.
    Auto,
    /// The CPU slot alone.
    Cpu,
    /// GPUs alone.
    Gpu,
}

/// A device that is only declared.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fake {
    /// Its name on this node.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// Its memory.
    #[serde(deserialize_with = "bytes")]
    pub memory: u64,
    /// Compute capability; absent: a CPU slot.
    #[serde(default)]
    pub compute: Option<(u8, u8)>,
    /// Why it cannot be trained on; absent: it can.
    #[serde(default)]
    pub unusable: Option<String>,
    /// A file with the ids of the processes that hold its memory, one a line, read at every look.
    #[serde(default)]
    pub held_by: Option<PathBuf>,
    /// A file that says how it feels, read at every look, a sign a line: `xid 79` (each such line is one report of its driver), `ecc 3`
    /// (memory errors so far that could not be corrected), `remap pending`, `remap failed`, `gone` (it is not there).
    #[serde(default)]
    pub signs: Option<PathBuf>,
    /// What it draws all the time; its counter of energy says so too. Absent: it says neither.
    #[serde(default)]
    pub power_watts: Option<u32>,
}

/// How workers run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// Program and arguments in front of the attempt directory; empty: this executable with `worker`.
    pub command: Vec<String>,
    /// CPU threads; absent: all cores.
    pub threads: Option<u32>,
    /// Variables set besides the few that are passed on.
    pub env: BTreeMap<String, String>,
    /// A worker group larger than this in main memory is killed; absent: planned memory × `memory_slack` on the CPU slot, nine
    /// tenths of the machine beside a GPU.
    #[serde(deserialize_with = "some_bytes")]
    pub memory_limit: Option<u64>,
    /// See `memory_limit`.
    pub memory_slack: f64,
    /// Between being asked to save and being killed.
    #[serde(deserialize_with = "duration")]
    pub save_grace: Duration,
    /// Between being asked to leave without saving and being killed.
    #[serde(deserialize_with = "duration")]
    pub discard_grace: Duration,
    /// Between being started and holding the lock.
    #[serde(deserialize_with = "duration")]
    pub start_grace: Duration,
    /// A worker that says nothing for this long, and for four times its longest pause so far, hangs and is ended as lost. Longer than
    /// any evaluation.
    #[serde(deserialize_with = "duration")]
    pub stall_after: Duration,
    /// Bytes of its own output, `worker.log`, that are kept: what is beyond goes, the oldest first.
    #[serde(deserialize_with = "bytes")]
    pub log_limit: u64,
    /// A worker that writes more bytes of events than this is stopped: its lines are kept until all of them are with the coordinator.
    #[serde(deserialize_with = "bytes")]
    pub events_limit: u64,
    /// How often the events file is looked at.
    #[serde(deserialize_with = "duration")]
    pub poll: Duration,
    /// How often the resident memory is looked at.
    #[serde(deserialize_with = "duration")]
    pub memory_poll: Duration,
    /// At most one progress report per attempt in this time, beside those that tell an evaluation.
    #[serde(deserialize_with = "duration")]
    pub progress: Duration,
}

/// Base models and datasets on this disk.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Bytes that the cache may hold, tokens among them; what is longest unused goes first.
    #[serde(deserialize_with = "bytes")]
    pub budget: u64,
    /// Chunks of 16 MiB fetched at the same time.
    pub parallel: usize,
    /// Bytes fetched in a second; absent: as many as the line takes.
    #[serde(deserialize_with = "some_bytes")]
    pub bandwidth: Option<u64>,
    /// Bytes that are read again in a second, to see whether they are still what they were; 0: none.
    #[serde(deserialize_with = "bytes")]
    pub scrub: u64,
}

/// Files from other nodes, and to them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Share {
    /// Whether nodes that have a file are asked for it too.
    pub fetch: bool,
    /// Where this node gives what is in its cache (UDP); absent: it does not.
    pub listen: Option<SocketAddr>,
    /// Where others reach that, if not at the address that the coordinator sees.
    pub address: Option<SocketAddr>,
    /// Bytes given in a second, to all together.
    #[serde(deserialize_with = "bytes")]
    pub bandwidth: u64,
}

/// How the coordinator is reached.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// For one attempt to connect, welcome included.
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// An idle connection sends a packet this often. A coordinator that was killed and is back answers the first packet with a
    /// reset, so this is how long an idle agent takes to notice.
    #[serde(deserialize_with = "duration")]
    pub keep_alive: Duration,
    /// A connection silent for this long is dead.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// The first wait before dialling again is at most this; each further one at most twice the last.
    #[serde(deserialize_with = "duration")]
    pub backoff_first: Duration,
    /// No wait is longer.
    #[serde(deserialize_with = "duration")]
    pub backoff_longest: Duration,
    /// A report that is not acknowledged for this long is sent again, its files offered again.
    #[serde(deserialize_with = "duration")]
    pub report_retry: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/lorikeet/agent"),
            name: None,
            labels: BTreeMap::new(),
            coordinator: None,
            stop_workers_on_exit: false,
            devices: Devices::default(),
            worker: Worker::default(),
            cache: Cache::default(),
            share: Share::default(),
            link: Link::default(),
        }
    }
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            kind: Choice::Auto,
            only: Vec::new(),
            fake: Vec::new(),
            probe: Duration::from_secs(5),
            report: Duration::from_secs(60),
            release_grace: Duration::from_secs(30),
            burn_in: None,
            gpus_unusable: Some("nobody has said that this program can train on GPUs".into()),
        }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            threads: None,
            env: BTreeMap::new(),
            memory_limit: None,
            memory_slack: 2.0,
            save_grace: Duration::from_secs(120),
            discard_grace: Duration::from_secs(3),
            start_grace: Duration::from_secs(30),
            stall_after: Duration::from_secs(30 * 60),
            // Ours prints a few lines; what a program of somebody's prints in days is read from its end.
            log_limit: 64 << 20,
            // Four million steps.
            events_limit: 1 << 30,
            poll: Duration::from_millis(50),
            memory_poll: Duration::from_secs(1),
            progress: Duration::from_secs(1),
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        // A full cache is read in three hours, with a hundredth of what a disk gives.
        Self { budget: 200 << 30, parallel: 4, bandwidth: None, scrub: 20 << 20 }
    }
}

impl Default for Share {
    fn default() -> Self {
        Self { fetch: true, listen: None, address: None, bandwidth: 100 << 20 }
    }
}

impl Default for Link {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(15),
            backoff_first: Duration::from_millis(500),
            backoff_longest: Duration::from_secs(30),
            report_retry: Duration::from_secs(30),
        }
    }
}

/// Why a config is none.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the agent's config {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// Not TOML, or keys, types and values that cannot be: all of them.
    #[error("read the agent's config {}:{}", path.display(), list(faults))]
    File {
        /// Which.
        path: PathBuf,
        /// With line and key.
        faults: Vec<Fault>,
    },
    /// Values that cannot be, of a config that is in no file.
    #[error("use the agent's config:{}", list(.0))]
    Values(Vec<Fault>),
}

/// Each on a line of its own.
fn list(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        let refused = |faults| ConfigError::File { path: path.to_owned(), faults };
        let (config, mut faults) = settings::read::<Self>(&text).map_err(|fault| refused(vec![fault]))?;
        let values = config.faults().into_iter();
        faults.extend(values.map(|fault| Fault { line: settings::line(&text, &fault.key), ..fault }));
        if faults.is_empty() { Ok(config) } else { Err(refused(faults)) }
    }

    /// Whether every value, alone and beside the others, makes sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        let faults = self.faults();
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::Values(faults)) }
    }
}

/// `200 GiB`, or a number of bytes.
fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(bytes),
        Size::Text(text) => settings::bytes::parse(&text).map_err(serde::de::Error::custom),
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

fn some_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    bytes(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_the_default_said_aloud() {
        let config: Config = toml::from_str(include_str!("../../configs/agent.toml")).unwrap();
        config.check().unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn an_empty_file_is_a_config() {
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
    }

    #[test]
    fn every_fault_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(
            &path,
            "name = \"a\"\n[worker]\nspeed = 3\nsave_grace = \"soon\"\npoll = \"0s\"\n[cache]\nbugdet = 1\n",
        )
        .unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        for fault in
            ["agent.toml", "line 3: worker.speed", "line 4: worker.save_grace", "line 5: worker.poll", "cache.bugdet"]
        {
            assert!(error.contains(fault), "{fault}: {error}");
        }
    }

    #[test]
    fn sizes_and_times_have_units() {
        let config: Config =
            toml::from_str("[cache]\nbudget = \"3 GiB\"\n[worker]\nsave_grace = \"2min\"\nmemory_limit = 4096")
                .unwrap();
        assert_eq!((config.cache.budget, config.worker.memory_limit), (3 << 30, Some(4096)));
        assert_eq!(config.worker.save_grace, Duration::from_secs(120));
        assert!(toml::from_str::<Config>("[worker]\nsave_grace = \"soon\"").is_err());
    }
}
