//! `lorikeet agent` and `lorikeet agent join`: a machine of the cluster, as a service.

use super::{
    gpu,
    service::{self, Signals},
};
use crate::{
    args::{Agent as Args, AgentCommand},
    failure::{Failure, chain},
    logging,
    output::Output,
};
use lorikeet_agent::{Agent, AgentError, Blame, Config, IdentityError, JoinError};
use std::path::Path;

/// Serves, or joins.
pub(crate) fn run(output: Output, args: Args) -> Result<(), Failure> {
    match (args.command, args.config) {
        (Some(AgentCommand::Join { ticket, config }), _) => join(output, &ticket, config.as_deref()),
        (None, Some(config)) => {
            logging::start("info");
            let mut config = load(&config)?;
            config.devices.gpus_unusable = gpu::unusable();
            service::runtime()?.block_on(serve(output, config, args.until_eof))
        }
        (None, None) => Err(Failure::bug("an agent without a config is refused by its arguments")),
    }
}

fn load(path: &Path) -> Result<Config, Failure> {
    Config::load(path).map_err(|error| Failure::mistake(format!("failed to {}", chain(&error))))
}

fn join(output: Output, ticket: &str, config: Option<&Path>) -> Result<(), Failure> {
    let loaded = config.map_or_else(|| Ok(Config::default()), load)?;
    let folder = Agent::identity_folder(&loaded);
    Agent::read_ticket(ticket).map_err(failed)?;
    output.note(&format!("joining; who this machine is will be kept in {}", folder.display()));
    let node = service::runtime()?.block_on(Agent::join(ticket, &loaded)).map_err(|error| {
        let of_the_folder = matches!(error, AgentError::Join(JoinError::Identity(IdentityError::Disk(_))));
        match config {
            None if of_the_folder => {
                failed(error).hint("name the agent's config with --config FILE: its data_dir is used")
            }
            _ => failed(error),
        }
    })?;
    let next = match config {
        Some(config) => format!("start its agent with `lorikeet agent --config {}`", config.display()),
        None => {
            format!("start its agent with a config that says data_dir = \"{}\"", loaded.data_dir.display())
        }
    };
    output.note(&format!("this machine is {node}; {next}"));
    Ok(())
}

async fn serve(output: Output, config: Config, until_eof: bool) -> Result<(), Failure> {
    let mut signals = Signals::listen()?.until_eof(until_eof)?;
    let mut agent = Agent::start(config).await.map_err(failed)?;
    let ready = format!("ready node={}", agent.node());
    output.line(&ready)?;
    service::ready(&ready);
    let ended = tokio::select! {
        ended = agent.wait() => ended.map_err(failed),
        () = signals.wait() => Ok(()),
    };
    service::stopping();
    let left = signals.or_at_once(agent.shutdown()).await.map_err(failed);
    ended.and(left)
}

/// Whose doing it was is the agent's to say; where nobody answered or somebody said no is told apart for scripts.
pub(super) fn failed(error: AgentError) -> Failure {
    let message = format!("failed to {}", chain(&error));
    let failure = match (&error, error.blame()) {
        (AgentError::Join(JoinError::Refused(_)), _) => Failure::refused(message),
        (AgentError::Join(JoinError::Identity(_)), Blame::Machine) => Failure::mistake(message),
        (AgentError::Join(_), Blame::Machine) => Failure::unreachable(message),
        (_, Blame::Person | Blame::Machine) => Failure::mistake(message),
        (_, Blame::Bug) => Failure::bug(message),
    };
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
