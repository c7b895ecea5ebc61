//! What the coordinator is told before it starts: one TOML file, every key optional, unknown keys refused.
//!
//! The defaults suit one machine on its own: loopback for HTTP, so that no certificate is needed to begin. Tests change the
//! addresses to port 0 and the timers to fractions of a second. The file is judged as a whole, so that a person sees every
//! fault at once; `configs/coordinator.toml` is the commented example, and a test parses it.
//!
//! ```text
//! config/check.rs    which values cannot be
//! ```

mod check;

use lorikeet_api::FieldError;
use lorikeet_protocol::settings as unit;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where everything is kept.
    pub data: PathBuf,
    /// Base models may be registered from below these directories, and from nowhere else.
    pub base_roots: Vec<PathBuf>,
    /// Address of the first ADMIN, made at the first start.
    pub admin_email: String,
    /// The HTTP API.
    pub http: Http,
    /// The link to the agents.
    pub link: Link,
    /// How long is how long.
    pub timers: Timers,
    /// The child process that reads users' files.
    pub inspect: Inspect,
    /// Whose jobs start, and how many.
    pub scheduler: Scheduler,
    /// What may be stored.
    pub storage: Storage,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Beyond loopback it speaks HTTPS, always.
    pub listen: SocketAddr,
    /// What clients are told to call it, when that differs from `listen`: `https://lorikeet.example:7170`.
    pub public_url: Option<String>,
    /// PEM chain; without one the coordinator's own CA issues a certificate.
    pub certificate: Option<PathBuf>,
    /// PEM key of that certificate.
    pub key: Option<PathBuf>,
    /// Names and addresses that a certificate of our own CA is valid for, besides `localhost` and the address listened on.
    pub names: Vec<String>,
    /// Connections that may be open at once; never more than half of the descriptors that the process may open.
    pub connections: usize,
    /// Those of them that may come from one address: a proxy's users share one.
    pub connections_per_address: usize,
    /// A connection that asks nothing for this long, or does not end its question's headers, is closed.
    #[serde(with = "unit::duration")]
    pub idle: Duration,
    /// A request that is not an upload, a download or a stream is answered within this.
    #[serde(with = "unit::duration")]
    pub timeout: Duration,
    /// How long an upload URL works.
    #[serde(with = "unit::duration")]
    pub upload_ttl: Duration,
}

/// `[link]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// UDP.
    pub listen: SocketAddr,
    /// `host:port` that join strings carry, when that differs from `listen`.
    pub advertise: Option<String>,
    /// How long a node's certificate is valid; its agent renews it at half of that.
    #[serde(with = "unit::duration")]
    pub certificate_ttl: Duration,
    /// Bytes of base models and datasets that leave for all agents together, in a second; without it as many as the line takes.
    #[serde(deserialize_with = "some_bytes")]
    pub bandwidth: Option<u64>,
}

/// `[timers]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timers {
    /// Agents say something at least this often.
    #[serde(with = "unit::duration")]
    pub heartbeat: Duration,
    /// After this long without a word a node is unreachable.
    #[serde(with = "unit::duration")]
    pub lease: Duration,
    /// An offer without an answer is withdrawn after this.
    #[serde(with = "unit::duration")]
    pub offer: Duration,
    /// The first pause after an infrastructure failure; each further one doubles it.
    #[serde(with = "unit::duration")]
    pub back_off: Duration,
    /// The longest such pause.
    #[serde(with = "unit::duration")]
    pub back_off_limit: Duration,
    /// How long shutting down may take before connections are cut.
    #[serde(with = "unit::duration")]
    pub shutdown: Duration,
}

/// `[scheduler]`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scheduler {
    /// Jobs of one user that may hold devices at once; without it, any number.
    pub jobs_per_user: Option<u32>,
    /// Devices that one user may hold at once; without it, any number.
    pub gpus_per_user: Option<u32>,
    /// A job makes another save its state and leave when its priority is higher by this or more; without it, never.
    pub preemption_margin: Option<u8>,
    /// By e-mail address: how many times as much device time a user gets as one who is not named, where both want more than there is.
    #[serde(deserialize_with = "weights")]
    pub weights: BTreeMap<String, f64>,
}

/// `[inspect]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Inspect {
    /// The `lorikeet` binary, an absolute path; without it, the one that runs.
    pub program: Option<PathBuf>,
    /// Memory one inspection may use.
    #[serde(with = "unit::bytes")]
    pub memory: u64,
    /// How long one may take.
    #[serde(with = "unit::duration")]
    pub timeout: Duration,
    /// How many run at once.
    pub at_once: usize,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// New work is refused when less than this is free on the disk of `data`.
    #[serde(with = "unit::bytes")]
    pub keep_free: u64,
    /// What one attempt may have uploaded that no report names yet: the checkpoint or adapter on its way, and those whose reports wait.
    #[serde(with = "unit::bytes")]
    pub attempt_limit: u64,
    /// What the metrics and logs of one job may take: of the last quarter only numbers are kept, beyond it nothing.
    #[serde(with = "unit::bytes")]
    pub series_limit: u64,
    /// The same for those of all jobs together.
    #[serde(with = "unit::bytes")]
    pub series_total: u64,
    /// An unreferenced file is removed after this long.
    #[serde(with = "unit::duration")]
    pub unreferenced: Duration,
    /// Metrics and logs of a job go this long after its end; without it never.
    #[serde(deserialize_with = "some_duration")]
    pub keep_series: Option<Duration>,
    /// A job goes this long after its end, with its attempts, checkpoints, metrics and logs; its model stays. Without it never.
    #[serde(deserialize_with = "some_duration")]
    pub keep_jobs: Option<Duration>,
    /// Audit records go after this long; without it never.
    #[serde(deserialize_with = "some_duration")]
    pub keep_audit: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::from("/var/lib/lorikeet/coordinator"),
            base_roots: vec![PathBuf::from("/var/lib/lorikeet/bases")],
            admin_email: "admin@localhost".into(),
            http: Http::default(),
            link: Link::default(),
            timers: Timers::default(),
            inspect: Inspect::default(),
            scheduler: Scheduler::default(),
            storage: Storage::default(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7170),
            public_url: None,
            certificate: None,
            key: None,
            names: Vec::new(),
            connections: 2_000,
            connections_per_address: 400,
            idle: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            upload_ttl: Duration::from_secs(3600),
        }
    }
}

impl Default for Link {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7171),
            advertise: None,
            certificate_ttl: Duration::from_secs(7 * 24 * 3600),
            bandwidth: None,
        }
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(5),
            lease: Duration::from_secs(30),
            offer: Duration::from_secs(10),
            back_off: Duration::from_secs(1),
            back_off_limit: Duration::from_secs(60),
            shutdown: Duration::from_secs(10),
        }
    }
}

impl Default for Inspect {
    fn default() -> Self {
        Self { program: None, memory: 4 << 30, timeout: Duration::from_secs(600), at_once: 2 }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            keep_free: 1 << 30,
            attempt_limit: 512 << 30,
            // Ten million steps, over all its attempts.
            series_limit: 4 << 30,
            // Of ten thousand jobs of ten thousand steps a third.
            series_total: 64 << 30,
            unreferenced: Duration::from_secs(24 * 3600),
            keep_series: None,
            keep_jobs: None,
            keep_audit: None,
        }
    }
}

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the config {path}", path = .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file that is not TOML, or holds keys, types or values that cannot be: all of them.
    #[error("read the config {path}:{}", list(.1), path = .0.display())]
    File(PathBuf, Vec<FieldError>),
    /// The same, of a config that is in no file.
    #[error("use the config:{}", list(.0))]
    Values(Vec<FieldError>),
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read(path.to_owned(), error))?;
        Self::parse(&text).map_err(|faults| ConfigError::File(path.to_owned(), faults))
    }

    /// Reads and checks a text; every fault with its line.
    pub fn parse(text: &str) -> Result<Self, Vec<FieldError>> {
        let plain = |fault: unit::Fault| FieldError {
            line: fault.line,
            ..FieldError::plain(fault.key.clone(), unit::Fault { line: None, ..fault }.to_string())
        };
        let (config, faults) = unit::read::<Self>(text).map_err(|fault| vec![plain(fault)])?;
        let mut faults: Vec<_> = faults.into_iter().map(plain).collect();
        let values = config.faults().into_iter();
        faults.extend(values.map(|fault| FieldError { line: unit::line(text, &fault.field), ..fault }));
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    unit::duration::deserialize(deserializer).map(Some)
}

/// Addresses are compared as users are: in small letters.
fn weights<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let mut weights = BTreeMap::new();
    for (user, weight) in BTreeMap::<String, toml::Value>::deserialize(deserializer)? {
        let number = weight.as_float().or_else(|| weight.as_integer().map(|whole| whole as f64));
        let number = number.ok_or_else(|| D::Error::custom(format!("{user}: expected a number, found {weight}")))?;
        if weights.insert(user.to_lowercase(), number).is_some() {
            return Err(D::Error::custom(format!("{user} is named twice, in large letters and in small ones")));
        }
    }
    Ok(weights)
}

fn some_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    unit::bytes::deserialize(deserializer).map(Some)
}

/// Each on a line of its own.
fn list(faults: &[FieldError]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_parses_and_says_the_defaults() {
        let example = include_str!("../../configs/coordinator.toml");
        assert_eq!(Config::parse(example).unwrap(), Config::default());
    }

    #[test]
    fn every_commented_key_of_the_example_is_a_real_one() {
        let example = include_str!("../../configs/coordinator.toml");
        let all: String =
            example.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n").collect();
        let config = Config::parse(&all).unwrap();
        assert_eq!(config.http.names, ["lorikeet.example"]);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = list(&Config::parse("[http]\nlisten = \"127.0.0.1:1\"\nport = 3\n").unwrap_err());
        assert!(error.contains("line 3: http.port"), "{error}");
    }

    #[test]
    fn every_wrong_value_is_named_at_once() {
        let text = "admin_email = \"nobody\"\n[timers]\nheartbeat = \"5s\"\nlease = \"6s\"\nheartbeet = \"1s\"\n[inspect]\nat_once = 0\n\
            [scheduler]\npreemption_margin = 0\n[storage]\nkeep_free = \"1Gb\"\nunreferenced = \"30\"\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coordinator.toml");
        std::fs::write(&path, text).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        for field in [
            "coordinator.toml",
            "line 1: admin_email",
            "line 4: timers.lease",
            "line 5: timers.heartbeet",
            "line 7: inspect.at_once",
            "line 9: scheduler.preemption_margin",
            "line 12: storage.unreferenced",
        ] {
            assert!(error.contains(field), "{field} in {error}");
        }
    }

    #[test]
    fn a_weight_belongs_to_an_address_and_is_a_number_in_bounds() {
        let weights = |text: &str| Config::parse(&format!("[scheduler.weights]\n{text}")).map(|c| c.scheduler.weights);
        let read = weights("\"Ada@Example.org\" = 2\n\"b@example.org\" = 0.5\n").unwrap();
        assert_eq!(read, [("ada@example.org".to_owned(), 2.0), ("b@example.org".to_owned(), 0.5)].into());
        for (text, expected) in [
            ("\"a@b\" = 0\n", "line 2: scheduler.weights.a@b is 0, expected 0.001 to 1000"),
            ("\"x@y\" = 1\n\"a@b\" = -1.5\n", "line 3: scheduler.weights.a@b is -1.5"),
            ("\"a@b\" = nan\n", "scheduler.weights.a@b is NaN, expected"),
            ("\"a@b\" = inf\n", "scheduler.weights.a@b is inf, expected"),
            ("alice = 2\n", "line 2: scheduler.weights.alice is alice, expected the e-mail address"),
            ("\"a@b\" = \"much\"\n", "scheduler.weights: a@b: expected a number, found \"much\""),
            ("\"a@b\" = 1\n\"A@b\" = 2\n", "is named twice"),
        ] {
            let error = list(&weights(text).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_size_and_a_time_carry_their_unit() {
        let config = Config::parse("[inspect]\nmemory = \"512MiB\"\ntimeout = \"1m 30s\"\n").unwrap();
        assert_eq!((config.inspect.memory, config.inspect.timeout), (512 << 20, Duration::from_secs(90)));
        assert!(Config::parse("[inspect]\nmemory = 5\n").is_err());
        assert!(list(&Config::parse("[inspect]\ntimeout = \"soon\"\n").unwrap_err()).contains("soon"));
    }
}
