//! `lorikeet coordinator`: the one brain, as a service.

use super::service::{self, Signals};
use crate::{
    args::Service,
    failure::{Failure, chain},
    logging,
    output::Output,
};
use lorikeet_coordinator::{Coordinator, config::Config};

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
        error = coordinator.join() => Err(blamed(error.is_ours(), format!("failed to {}", chain(&error)))),
        () = signals.wait() => Ok(()),
    };
    service::stopping();
    signals.or_at_once(coordinator.shutdown()).await;
    ended
}

/// A coordinator that does not start was mostly told something that cannot be: a port that is taken, a folder that is not writable.
pub(super) async fn start(config: Config) -> Result<Coordinator, Failure> {
    Coordinator::bind(config)
        .await
        .map_err(|error| blamed(error.is_ours(), format!("failed to start the coordinator: {}", chain(&error))))
}

fn blamed(ours: bool, message: String) -> Failure {
    if ours {
        return Failure::bug(message);
    }
    Failure::mistake(message).hint("its addresses and its data directory are said in its config")
}
