//! A cluster in a folder: one coordinator, some agents, a base model and a dataset, with timers of fractions of a second.

use crate::{
    Api, base, conversations,
    process::{Process, run, run_inside, workers_below},
    until,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Everything a story needs.
#[derive(Debug)]
pub struct Lab {
    folder: TempDir,
    /// The running coordinator.
    pub coordinator: Process,
    /// Its API.
    pub api: Api,
    /// What its config says about time.
    timers: &'static str,
}

/// Any free port.
const LOOPBACK: &str = "127.0.0.1:0";

/// Fractions of a second, so that a story sees leases run out.
const SHORT: &str = "[timers]\nheartbeat = \"200ms\"\nlease = \"1s\"\noffer = \"2s\"\nback_off = \"100ms\"\nback_off_limit = \"1s\"\nshutdown = \"2s\"\n";

/// The same for an agent's link.
const SHORT_LINK: &str = "[link]\nbackoff_first = \"50ms\"\nbackoff_longest = \"300ms\"\nidle_timeout = \"1s\"\nkeep_alive = \"200ms\"\nreport_retry = \"1s\"\n";

impl Lab {
    /// A coordinator with the base model `tiny` and the dataset `chats` registered and ready.
    pub fn start() -> Self {
        Self::start_in(&std::env::temp_dir())
    }

    /// The same, its folder below another.
    pub fn start_in(place: &Path) -> Self {
        Self::start_with(place, LOOPBACK, SHORT)
    }

    /// The same with the timers that it has by default: what a measurement wants.
    pub fn start_as_in_production() -> Self {
        Self::start_with(&std::env::temp_dir(), LOOPBACK, "")
    }

    /// The same, reached by agents at an address of this machine.
    pub fn start_at(address: std::net::IpAddr) -> Self {
        Self::start_with(&std::env::temp_dir(), &std::net::SocketAddr::new(address, 0).to_string(), SHORT)
    }

    fn start_with(place: &Path, link: &str, timers: &'static str) -> Self {
        let folder = tempfile::tempdir_in(place).expect("a temporary folder");
        let root = folder.path();
        base::write(&root.join("bases/tiny"));
        conversations::write(&root.join("chats.jsonl"), 120);
        configure(root, LOOPBACK, link, timers);
        let coordinator = launch(root);
        let api = connect(root);
        let lab = Self { folder, coordinator, api, timers };
        lab.cli(&["base", "add", "tiny", &lab.path("bases/tiny")]);
        lab.cli(&["dataset", "add", &lab.path("chats.jsonl"), "--name", "chats"]);
        lab
    }

    /// A path in the lab's folder.
    pub fn path(&self, name: &str) -> String {
        self.root().join(name).display().to_string()
    }

    /// The lab's folder.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a client command as the administrator.
    pub fn cli(&self, words: &[&str]) -> String {
        let server = ["--server", &self.api.server, "--token", &self.api.token];
        run(&[&server[..], words].concat())
    }

    /// Makes a machine a node and starts its agent.
    pub fn agent(&self, name: &str) -> Agent {
        self.agent_on(name, &Machine::default())
    }

    /// The same for a machine that is special.
    pub fn agent_on(&self, name: &str, machine: &Machine) -> Agent {
        let data = machine.data.clone().unwrap_or_else(|| self.root().join(name));
        let config = self.root().join(format!("{name}.toml"));
        let coordinator = machine.link.map_or_else(String::new, |link| format!("coordinator = \"{link}\"\n"));
        let devices = (0..machine.gpus).map(|number| {
            let (id, signs) = (format!("GPU-{number}"), signs(self.root(), name, &format!("GPU-{number}")));
            format!(
                "[[devices.fake]]\nid = {id:?}\nname = \"declared\"\nmemory = \"80GiB\"\ncompute = [9, 0]\nsigns = {signs:?}\npower_watts = {WATTS}\n"
            )
        });
        let short = if machine.as_in_production { "" } else { SHORT_LINK };
        let share = if machine.gives { "[share]\nlisten = \"127.0.0.1:0\"\n" } else { "" };
        let text = format!(
            "{coordinator}data_dir = {data:?}\nname = {name:?}\n[devices]\nkind = \"cpu\"\nprobe = \"500ms\"\n{}{}[worker]\nthreads = 1\npoll = \"20ms\"\nprogress = \"100ms\"\n{}{share}{short}",
            machine.devices,
            devices.collect::<String>(),
            machine.worker
        );
        fs::write(&config, text).expect("the folder is ours");
        let token: Value = serde_json::from_str(&self.cli(&["node", "token", "--output", "json"])).expect("JSON");
        let join = token["joinString"].as_str().expect("a join string").to_owned();
        let config = config.display().to_string();
        let network = machine.network.clone();
        run_inside(network.as_deref(), &["agent", "join", &join, "--config", &config]);
        let words = ["agent", "--config", &config];
        let process = Process::start_inside(network.as_deref(), self.root(), name, &words);
        Agent { name: name.into(), config, data, process, root: self.root().into(), network }
    }

    /// Kills the coordinator and starts it again on the same ports.
    pub fn restart_coordinator(&mut self) {
        self.kill_coordinator();
        self.start_coordinator();
    }

    /// Where the coordinator's link listens.
    pub fn link(&self) -> std::net::SocketAddr {
        let (_, link) = addresses(self.root()).expect("it is up");
        link.parse().expect("an address")
    }

    /// The coordinator dies, and stays away until [`Lab::start_coordinator`].
    pub fn kill_coordinator(&mut self) {
        let addresses = addresses(self.root()).expect("it was up");
        self.coordinator.kill();
        let plain = |address: &str| address.rsplit("//").next().unwrap_or(address).to_owned();
        configure(self.root(), &plain(&addresses.0), &plain(&addresses.1), self.timers);
        fs::remove_file(self.root().join("coordinator/addresses.json")).expect("it was there");
    }

    /// On the ports it had.
    pub fn start_coordinator(&mut self) {
        self.coordinator = launch(self.root());
    }

    /// Makes one machine a node.
    pub fn join_string(&self) -> String {
        let (_, token) = self.api.post("/api/nodes/join-tokens", &serde_json::json!({}), None).expect("it is up");
        token["data"]["joinString"].as_str().expect("a join string").to_owned()
    }

    /// The job file of a run of `steps` steps: dropout and shuffling on, a checkpoint every `every` steps.
    pub fn job_file(&self, name: &str, steps: u64, every: u64) -> String {
        self.job_file_bearing(name, steps, every, "3s")
    }

    /// The same for a job that bears so long a silence of its node.
    pub fn job_file_bearing(&self, name: &str, steps: u64, every: u64, lost_after: &str) -> String {
        let text = format!(
            "name = {name:?}\nbase = \"tiny\"\ndataset = \"chats\"\n[training]\nmax_steps = {steps}\nbatch_size = 4\nmicro_tokens = 256\nmax_seq_length = 256\n\
             learning_rate = 1e-3\ncheckpoint_every = {every}\neval_every = 1000\nvalidation_fraction = 0.1\nshuffle = true\nseed = 7\n[lora]\nrank = 4\nalpha = 8\ndropout = 0.1\n\
             [policy]\nlost_after = {lost_after:?}\n"
        );
        let path = self.root().join(format!("{name}.toml"));
        fs::write(&path, text).expect("the folder is ours");
        path.display().to_string()
    }

    /// Submits a job file and gives its id.
    pub fn submit(&self, file: &str) -> String {
        let job: Value = serde_json::from_str(&self.cli(&["submit", file, "--output", "json"])).expect("JSON");
        job["id"].as_str().expect("an id").to_owned()
    }

    /// The same job without a cluster, uninterrupted; gives its attempt directory.
    pub fn reference(&self, steps: u64, every: u64) -> PathBuf {
        let out = self.root().join("reference");
        let set = |pair: String| ["--set".to_owned(), pair];
        let settings: Vec<String> = [
            format!("training.max_steps={steps}"),
            "training.batch_size=4".into(),
            "training.micro_tokens=256".into(),
            "training.max_seq_length=256".into(),
            "training.learning_rate=1e-3".into(),
            format!("training.checkpoint_every={every}"),
            "training.eval_every=1000".into(),
            "training.validation_fraction=0.1".into(),
            "training.shuffle=true".into(),
            "training.seed=7".into(),
            "lora.rank=4".into(),
            "lora.alpha=8".into(),
            "lora.dropout=0.1".into(),
        ]
        .into_iter()
        .flat_map(set)
        .collect();
        let (base, dataset, folder) = (self.path("bases/tiny"), self.path("chats.jsonl"), out.display().to_string());
        let mut words = vec!["train", "--base", &base, "--dataset", &dataset, "--out", &folder, "--threads", "2"];
        words.extend(settings.iter().map(String::as_str));
        run(&words);
        out
    }

    /// BLAKE3 of the weights of the adapter that a job made.
    pub fn adapter_hash(&self, job: &str) -> blake3::Hash {
        let out = self.root().join(format!("pulled-{job}"));
        self.cli(&["adapter", "pull", job, "--out", &out.display().to_string()]);
        hash_of(&out)
    }
}

/// BLAKE3 of an adapter directory's weights.
pub fn hash_of(folder: &Path) -> blake3::Hash {
    blake3::hash(&fs::read(folder.join("adapter_model.safetensors")).expect("an adapter has weights"))
}

/// What is special about a machine.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// Where it dials, if not the address in its join string: a [`Proxy`](crate::proxy::Proxy).
    pub link: Option<std::net::SocketAddr>,
    /// So many declared GPUs in the place of its CPU slot.
    pub gpus: usize,
    /// In a network of its own: the name of a namespace.
    pub network: Option<String>,
    /// With the link's own timers: what a measurement wants.
    pub as_in_production: bool,
    /// It gives what is in its cache to other machines.
    pub gives: bool,
    /// More lines of `[devices]`.
    pub devices: String,
    /// More lines of `[worker]`.
    pub worker: String,
    /// Where its files lie, if not in the lab.
    pub data: Option<PathBuf>,
}

/// An agent and its machine.
#[derive(Debug)]
pub struct Agent {
    /// What people call it.
    pub name: String,
    config: String,
    /// Where its files lie.
    pub data: PathBuf,
    /// The running agent.
    pub process: Process,
    root: PathBuf,
    network: Option<String>,
}

impl Agent {
    /// Its workers, whoever their parent is now.
    pub fn workers(&self) -> Vec<u32> {
        workers_below(&self.data)
    }

    /// From now on a declared GPU says this of itself, a sign a line.
    pub fn says(&self, gpu: &str, words: &str) {
        let path = signs(&self.root, &self.name, gpu);
        let aside = path.with_extension("aside");
        fs::write(&aside, words).and_then(|()| fs::rename(&aside, &path)).expect("the folder is ours");
    }

    /// The power goes: agent and workers die at once, and the disk with them.
    pub fn destroy(&mut self) {
        self.process.kill();
        self.workers().into_iter().for_each(|pid| crate::process::signal(pid, rustix::process::Signal::KILL));
        until("its workers to be gone", || self.workers().is_empty().then_some(()));
        fs::remove_dir_all(&self.data).expect("the folder is ours");
    }

    /// The agent alone dies and starts again; its workers go on.
    pub fn restart(&mut self) {
        self.process.kill();
        let words = ["agent", "--config", &self.config];
        self.process = Process::start_inside(self.network.as_deref(), &self.root, &self.name, &words);
    }
}

impl Drop for Agent {
    /// A story that ended well has seen its workers end.
    fn drop(&mut self) {
        self.process.kill();
        let left = self.workers();
        left.iter().for_each(|pid| crate::process::signal(*pid, rustix::process::Signal::KILL));
        if !std::thread::panicking() {
            assert!(left.is_empty(), "workers of {} were left behind: {left:?}", self.name);
        }
    }
}

/// What a declared GPU draws.
pub const WATTS: u32 = 300;

/// Where a declared GPU's signs stand.
fn signs(root: &Path, machine: &str, gpu: &str) -> PathBuf {
    root.join(format!("{machine}-{gpu}.signs"))
}

fn configure(root: &Path, http: &str, link: &str, timers: &str) {
    let (data, bases) = (root.join("coordinator"), root.join("bases"));
    let text = format!(
        "data = {data:?}\nbase_roots = [{bases:?}]\n[http]\nlisten = {http:?}\n[link]\nlisten = {link:?}\n\
         {timers}[storage]\nkeep_free = \"1MiB\"\n"
    );
    fs::write(root.join("coordinator.toml"), text).expect("the folder is ours");
}

fn launch(root: &Path) -> Process {
    let config = root.join("coordinator.toml").display().to_string();
    let mut process = Process::start(root, "coordinator", &["coordinator", "--config", &config]);
    until("the coordinator to be ready", || {
        assert!(
            process.runs(),
            "the coordinator ended: {}",
            fs::read_to_string(root.join("coordinator.log")).unwrap_or_default()
        );
        addresses(root)
    });
    process
}

fn addresses(root: &Path) -> Option<(String, String)> {
    let text = fs::read_to_string(root.join("coordinator/addresses.json")).ok()?;
    let value: Value = serde_json::from_str(&text).ok()?;
    Some((value["http"].as_str()?.to_owned(), value["link"].as_str()?.to_owned()))
}

fn connect(root: &Path) -> Api {
    let (server, _) = addresses(root).expect("it is ready");
    let token = fs::read_to_string(root.join("coordinator/admin.token")).expect("the first start wrote it");
    Api::new(server, token.trim().to_owned())
}
