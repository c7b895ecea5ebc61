//! `lorikeet coordinator`: the one brain, as a service.

use super::service::{self, Signals};
use crate::{
    args::Service,
    failure::{Failure, chain},
    logging,
    output::Output,
};
use lorikeet_coordinator::{Coordinator, RunError, config::Config};

/// Until a signal, or until it can no longer do its work.
pub(crate) fn run(output: Output, args: &Service) -> Result<(), Failure> {
    logging::start("info");
    let config =
        Config::load(&args.config).map_err(|error| Failure::mistake(format!("failed to {}", chain(&error))))?;
    service::runtime()?.block_on(serve(output, config, args.until_eof))
}

async fn serve(output: Output, config: Config, until_eof: bool) -> Result<(), Failure> {
    let mut signals = Signals::listen()?.until_eof(until_eof)?;
    let mut coordinator = start(config).await?;
    let ready = format!("ready http={} link={}", coordinator.http_url(), coordinator.link_address());
    output.line(&ready)?;
    service::ready(&ready);
    let ended = tokio::select! {
        error = coordinator.join() => Err(ended(&error)),
        () = signals.wait() => Ok(()),
    };
    service::stopping();
    signals.or_at_once(coordinator.shutdown()).await;
    ended
}

/// Most of what keeps a coordinator from starting it was told: a port that is taken, a folder that is not writable.
pub(super) async fn start(config: Config) -> Result<Coordinator, Failure> {
    Coordinator::bind(config).await.map_err(|error| {
        let message = format!("failed to start the coordinator: {}", chain(&error));
        if error.is_bug() {
            return Failure::bug(message);
        }
        Failure::mistake(message).hint("its addresses and its data directory are said in its config")
    })
}

/// Why a running one ended: its machine's doing, as a full or broken disk, or ours.
pub(super) fn ended(error: &RunError) -> Failure {
    let message = format!("failed to {}", chain(error));
    if error.is_bug() {
        return Failure::bug(message);
    }
    Failure::mistake(message).hint("what is recorded is safe; start it again when the machine is well")
}
