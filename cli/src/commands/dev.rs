//! `lorikeet dev`: coordinator and one agent in this process, on free ports of the loopback, for trying things out.
//!
//! Workers are real processes, and end with it, even if it is killed: they hold the end of a pipe that ends with it.

use super::{
    agent, coordinator, gpu, program,
    service::{self, Signals},
};
use crate::{
    args::Dev,
    failure::{Failure, Kind, chain},
    logging,
    output::Output,
};
use lorikeet_agent::{Agent, AgentError, IdentityError};
use lorikeet_coordinator::{Coordinator, config as coordinator_config};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// Until a signal.
pub(crate) fn run(output: Output, args: &Dev) -> Result<(), Failure> {
    logging::start("warn");
    let folder = Folder::open(args.dir.as_deref())?;
    service::runtime()?.block_on(serve(output, folder.path()))
}

/// A folder that was named stays; one of our own goes with us.
enum Folder {
    Named(PathBuf),
    Own(tempfile::TempDir),
}

impl Folder {
    fn open(named: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = named else {
            let own = tempfile::Builder::new().prefix("lorikeet-dev-").tempdir();
            return own.map(Self::Own).map_err(|error| Failure::mistake(format!("make a temporary folder: {error}")));
        };
        fs::create_dir_all(path).map_err(|error| Failure::file("create", path, &error))?;
        path.canonicalize().map(Self::Named).map_err(|error| Failure::file("open", path, &error))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Named(path) => path,
            Self::Own(own) => own.path(),
        }
    }
}

async fn serve(output: Output, folder: &Path) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let mut coordinator = coordinator::start(coordinator_config(folder)).await.map_err(elsewhere)?;
    let ended = match start_agent(&coordinator, folder).await {
        Ok(agent) => both(output, folder, &mut coordinator, agent, &mut signals).await,
        Err(failure) => Err(failure),
    };
    signals.or_at_once(coordinator.shutdown()).await;
    ended
}

/// Here the ports are free ones and there is no config: what can be in the way is the folder.
fn elsewhere(failure: Failure) -> Failure {
    if failure.kind == Kind::Bug {
        failure
    } else {
        failure.hint("does another run in this folder? --dir names another")
    }
}

/// Until a signal, or until one of them can no longer do its work; the agent is gone afterwards.
async fn both(
    output: Output,
    folder: &Path,
    coordinator: &mut Coordinator,
    mut agent: Agent,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let welcomed = output.line(&welcome(coordinator, folder));
    let ended = tokio::select! {
        error = coordinator.join() => Err(Failure::bug(format!("failed to {}", chain(&error)))),
        ended = agent.wait() => ended.map_err(agent::failed),
        () = signals.wait() => Ok(()),
    };
    output.note("stopping");
    let left = signals.or_at_once(agent.shutdown()).await.map_err(agent::failed);
    welcomed.and(ended).and(left)
}

/// Joins first, unless it has before.
async fn start_agent(coordinator: &Coordinator, folder: &Path) -> Result<Agent, Failure> {
    let mut config = lorikeet_agent::Config {
        data_dir: folder.join("agent"),
        name: Some("dev".into()),
        stop_workers_on_exit: true,
        devices: lorikeet_agent::Devices { gpus_unusable: gpu::unusable(), ..Default::default() },
        ..lorikeet_agent::Config::default()
    };
    // The port is new at every start; the identity stays.
    config.coordinator = Some(coordinator.link_address().to_string());
    match Agent::start(config.clone()).await {
        Err(AgentError::Identity(IdentityError::NotJoined(_))) => {}
        started => return started.map_err(agent::failed),
    }
    let ticket = coordinator.join_string().await.map_err(|error| Failure::bug(chain(&error)))?;
    Agent::join(&ticket, &config).await.map_err(agent::failed)?;
    Agent::start(config).await.map_err(agent::failed)
}

fn coordinator_config(folder: &Path) -> coordinator_config::Config {
    let mut config = coordinator_config::Config { data: folder.join("coordinator"), ..Default::default() };
    // Whoever starts this may read every file it could name.
    config.base_roots = vec![PathBuf::from("/")];
    config.http.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.link.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config
}

fn welcome(coordinator: &Coordinator, folder: &Path) -> String {
    format!(
        "coordinator and agent run; everything lies in {}\n\n  \
         export LORIKEET_SERVER={}\n  export LORIKEET_TOKEN=$(cat {})\n\n  \
         {lorikeet} nodes\n  {lorikeet} base add NAME DIRECTORY\n  {lorikeet} dataset add FILE --name NAME\n  \
         {lorikeet} submit JOB.toml --follow\n\nCtrl-C stops both.",
        folder.display(),
        coordinator.http_url(),
        coordinator.admin_token_path().display(),
        lorikeet = program(),
    )
}
