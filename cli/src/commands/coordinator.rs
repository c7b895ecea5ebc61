//! `lorikeet coordinator`: the one brain, as a service.

use super::service::{self, Signals};
use crate::{
    args::{Coordinator as Args, CoordinatorCommand},
    failure::{Failure, chain},
    logging,
    output::{
        Output, View,
        table::{fields, size},
    },
};
use lorikeet_coordinator::{Coordinator, config::Config, store::Store};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Serves, or tends what a stopped one left.
pub(crate) fn run(output: Output, args: Args) -> Result<(), Failure> {
    match (args.command, args.config) {
        (Some(CoordinatorCommand::Compact { data }), _) => compact(output, &data),
        (None, Some(config)) => {
            logging::start("info");
            let config =
                Config::load(&config).map_err(|error| Failure::mistake(format!("failed to {}", chain(&error))))?;
            service::runtime()?.block_on(serve(output, config, args.until_eof))
        }
        (None, None) => Err(Failure::bug("a coordinator without a config is refused by its arguments")),
    }
}

/// What a compaction came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Compacted {
    store: PathBuf,
    before_bytes: u64,
    after_bytes: u64,
}

impl View for Compacted {
    fn table(&self) -> String {
        let sizes = format!("{} before, {} now", size(self.before_bytes), size(self.after_bytes));
        fields([("store", Some(self.store.display().to_string())), ("size", Some(sizes))])
    }
}

fn compact(output: Output, data: &Path) -> Result<(), Failure> {
    let store = data.join("state.redb");
    let (before_bytes, after_bytes) = Store::compact(&store).map_err(|error| {
        Failure::mistake(format!("failed to {}", chain(&error)))
            .hint("stop the coordinator first; --data names its data directory")
    })?;
    output.answer(&Compacted { store, before_bytes, after_bytes })
}

/// Until a signal, or until it can no longer do its work.
async fn serve(output: Output, config: Config, until_eof: bool) -> Result<(), Failure> {
    let mut signals = Signals::listen()?.until_eof(until_eof)?;
    let mut coordinator = start(config).await?;
    let ready = format!("ready http={} link={}", coordinator.http_url(), coordinator.link_name());
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
    Coordinator::bind(config).await.map_err(|error| {
        let failure = blamed(error.is_ours(), format!("failed to start the coordinator: {}", chain(&error)));
        error.hint().into_iter().fold(failure, Failure::hint)
    })
}

fn blamed(ours: bool, message: String) -> Failure {
    if ours {
        return Failure::bug(message);
    }
    Failure::mistake(message).hint("its addresses and its data directory are said in its config")
}
