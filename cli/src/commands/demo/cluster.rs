//! The demo's coordinator and agent: two children with configs of their own, on free ports of the loopback.

use super::{child::Child, files::Files};
use crate::{client::Client, failure::Failure, output::Output, profile::Connection};
use lorikeet_api::{
    route,
    token::{CreateJoinToken, JoinToken},
};
use lorikeet_protocol::worker::{HOLDER, Holder};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long the agent may take to stop its worker and itself; its config gives the worker half of that.
const PATIENCE: Duration = Duration::from_secs(10);

/// What runs.
pub(super) struct Cluster {
    folder: PathBuf,
    base: PathBuf,
    /// What kind of device the agent offers.
    kind: &'static str,
    coordinator: Option<Child>,
    agent: Option<Child>,
}

/// What a coordinator says of itself in its data directory.
#[derive(Deserialize)]
struct Addresses {
    http: String,
}

impl Cluster {
    /// Nothing runs yet.
    pub(super) fn new(files: &Files, gpu: bool) -> Self {
        let kind = if gpu { "gpu" } else { "cpu" };
        Self { folder: files.folder().to_owned(), base: files.base(), kind, coordinator: None, agent: None }
    }

    /// Starts both and answers how to talk to them.
    pub(super) async fn start(&mut self, output: Output) -> Result<Client, Failure> {
        self.write("coordinator.toml", &self.coordinator_config()?)?;
        self.write("agent.toml", &self.agent_config()?)?;
        let coordinator =
            self.spawn("coordinator", &["coordinator", "--until-eof", "--config", &self.path("coordinator.toml")])?;
        self.coordinator.insert(coordinator).ready().await?;
        let client = self.client()?;
        output.note("the coordinator is ready");
        let token: JoinToken = client.post(route::JOIN_TOKENS, &[], &CreateJoinToken::default()).await?;
        let ticket = token.join_string.ok_or_else(|| Failure::bug("a new join token has no join string"))?;
        self.spawn("join", &["agent", "join", &ticket, "--config", &self.path("agent.toml")])?.done().await?;
        self.agent = Some(self.spawn("agent", &["agent", "--until-eof", "--config", &self.path("agent.toml")])?);
        Ok(client)
    }

    /// Until one of them ends by itself, which none should.
    pub(super) async fn died(&mut self) -> Failure {
        let (Some(coordinator), Some(agent)) = (&mut self.coordinator, &mut self.agent) else {
            return Failure::bug("the cluster was not started");
        };
        tokio::select! {
            failure = coordinator.died() => failure,
            failure = agent.died() => failure,
        }
    }

    /// The agent first, so that it can stop its worker and say so; then the coordinator; then whatever is left.
    pub(super) async fn stop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop(PATIENCE).await;
        }
        if let Some(coordinator) = self.coordinator.take() {
            coordinator.stop(PATIENCE).await;
        }
        self.kill_workers();
    }

    fn client(&self) -> Result<Client, Failure> {
        let read = |name: &str| {
            let path = self.folder.join("coordinator").join(name);
            fs::read_to_string(&path).map_err(|error| Failure::file("read", &path, &error))
        };
        let addresses: Addresses = serde_json::from_str(&read("addresses.json")?).map_err(Failure::bug)?;
        let token = Some(read("admin.token")?.trim().to_owned());
        let ca = addresses.http.starts_with("https").then(|| read("ca/ca.pem")).transpose()?;
        Client::new(&Connection { server: addresses.http, token, ca })
    }

    /// A worker outlives its agent on purpose. Here nothing may: one that is still there although its agent is gone is killed.
    fn kill_workers(&self) {
        let attempts = fs::read_dir(self.folder.join("agent/attempts")).into_iter().flatten().flatten();
        attempts.filter_map(|attempt| holder(&attempt.path())).for_each(|worker| {
            // It may have ended in this moment.
            let _ = kill_process_group(worker, Signal::KILL);
        });
    }

    fn coordinator_config(&self) -> Result<String, Failure> {
        let roots = [self.base.parent().unwrap_or(&self.base)];
        Ok(format!(
            "data = {}\nbase_roots = {}\n[http]\nlisten = \"127.0.0.1:0\"\n[link]\nlisten = \"127.0.0.1:0\"\n",
            quoted(&self.folder.join("coordinator"))?,
            serde_json::to_string(&roots).map_err(Failure::bug)?
        ))
    }

    fn agent_config(&self) -> Result<String, Failure> {
        Ok(format!(
            "data_dir = {}\nname = \"demo\"\nstop_workers_on_exit = true\n[devices]\nkind = {}\n[worker]\nsave_grace = \"5s\"\n",
            quoted(&self.folder.join("agent"))?,
            serde_json::to_string(self.kind).map_err(Failure::bug)?
        ))
    }

    fn spawn(&self, name: &'static str, args: &[&str]) -> Result<Child, Failure> {
        Child::start(name, args, &self.folder)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(|error| Failure::file("write", &path, &error))
    }
}

impl Drop for Cluster {
    /// After a panic; otherwise everything has been stopped.
    fn drop(&mut self) {
        (self.agent, self.coordinator) = (None, None);
        self.kill_workers();
    }
}

/// A path as TOML writes it, which for text is as JSON does.
fn quoted(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().ok_or_else(|| Failure::mistake(format!("{} is not UTF-8", path.display())))?;
    serde_json::to_string(text).map_err(Failure::bug)
}

/// The process that holds an attempt, if it is the very one that wrote so.
fn holder(attempt: &Path) -> Option<Pid> {
    let holder: Holder = serde_json::from_slice(&fs::read(attempt.join(HOLDER)).ok()?).ok()?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", holder.pid)).ok()?;
    // The name in parentheses may hold blanks; after it comes field 3, and the start time is field 22.
    let started: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    (started == holder.start_ticks).then(|| Pid::from_raw(holder.pid.cast_signed())).flatten()
}
