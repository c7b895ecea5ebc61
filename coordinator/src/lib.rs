//! The one brain: accepts jobs, places attempts, remembers everything.
//!
//! ```text
//!  person ── http ──┐                       ┌── store (redb)
//!                   ├── driver ── turn ── Cluster
//!  agent ─── link ──┘    │                  └── inspector (child processes)
//!     └── blob, series   └── only door to all of it
//! ```
//!
//! [`Coordinator`] owns every task and thread of these: [`bind`](Coordinator::bind) starts them, [`join`](Coordinator::join)
//! waits for one to fail, [`shutdown`](Coordinator::shutdown) takes them down in order – accept nobody, tell the others, let
//! work end, close the store last.

pub mod access;
pub mod backup;
mod base;
pub mod blob;
mod clock;
pub mod cluster;
pub mod config;
mod dataset;
mod discreet;
pub mod driver;
mod felt;
pub mod guard;
pub mod health;
pub mod history;
pub mod http;
pub mod inbox;
pub mod inspector;
pub mod link;
mod model;
pub mod record;
mod rotation;
mod secret;
pub mod serial;
pub mod series;
pub mod space;
mod start;
pub mod store;
mod sweep;
pub mod turn;

pub use start::StartError;

use blob::Blobs;
use config::{Config, ConfigError};
use driver::{Driver, DriverError, Handle};
use http::{App, Curves, Http, HttpError, LogPlaces, Signer};
use inspector::Inspector;
use link::{Link, Services, telemetry::Newest, trust::Trust};
use lorikeet_protocol::{id::Hash, join::JoinTicket};
use series::Series;
use space::Space;
use start::Folders;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use store::Store;
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Everything that runs.
pub struct Coordinator {
    http: Http,
    http_url: String,
    link: Link,
    link_address: String,
    trust: Trust,
    driver: Handle,
    deciding: JoinHandle<Result<(), DriverError>>,
    /// Ends the driver, last.
    stop: CancellationToken,
    /// Tells everybody else that it is time to go.
    leaving: CancellationToken,
    tasks: TaskTracker,
    /// Those that work in the background; each ends only in a shutdown.
    parts: JoinSet<&'static str>,
    series: Series,
    series_thread: std::thread::JoinHandle<()>,
    admin_token: PathBuf,
    patience: Duration,
}

/// Why a running coordinator ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Decisions can no longer be recorded.
    #[error("decide: the driver has ended")]
    Driver(#[source] Option<DriverError>),
    /// Requests are no longer answered.
    #[error("answer requests")]
    Http(#[source] HttpError),
    /// Another part of it has ended.
    #[error("go on: {0} has ended")]
    Part(&'static str),
}

impl RunError {
    /// Whether nobody but us could put it right: not this machine's disks and ports.
    pub fn is_ours(&self) -> bool {
        match self {
            Self::Driver(Some(DriverError::Commit(_))) | Self::Http(_) => false,
            Self::Driver(Some(DriverError::WriterGone) | None) | Self::Part(_) => true,
        }
    }
}

impl Coordinator {
    /// Opens or makes everything under `config.data`, binds both addresses, and begins.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        config.check()?;
        inspector::program::check(&config.inspect).await.map_err(|fault| ConfigError::Values(vec![fault]))?;
        start::refuse_taken(&config)?;
        let folders = Folders::make(&config.data)?;
        folders.refuse_without_store()?;
        let store = Store::open(&folders.state())?;
        folders.refuse_without_authority(&store)?;
        let trust = Trust::open(&folders.make_ca()?)?;
        Folders::tell_strangers(&store, &trust.now())?;
        let (upload_key, share_key) = (folders.key("upload"), folders.key("share"));
        let signer = Signer::open(&upload_key).map_err(StartError::file(&upload_key))?;
        let share_key = secret::open(&share_key).map_err(StartError::file(&share_key))?;
        let blobs = Blobs::open(&folders.blobs(), &folders.staging(), &config.base_roots, config.storage.keep_free)?;
        let (series, series_thread) = Series::open(&folders.series(), start::series_limits(&config.storage))?;
        let inspector = Inspector::new(&config.inspect, blobs.clone())?;
        let (stop, leaving, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let (telemetry, space) = (Newest::default(), Space::new(&config.data, config.storage.keep_free));

        let Driver { handle: driver, inspections, task: deciding } =
            Driver::start(store, start::settings(&config), stop.clone())?;
        start::first_admin(&driver, &config.admin_email, &folders.admin_token()).await?;
        start::warn_of_strangers(&driver, &config).await?;
        let mut parts = JoinSet::new();
        let inspecting = inspector.clone().serve(inspections, driver.clone(), leaving.clone());
        parts.spawn(async move { part("inspector", inspecting).await });
        let keep = sweep::Keep::from(&config.storage);
        let sweeping = sweep::run(driver.clone(), blobs.clone(), series.clone(), keep, leaving.clone());
        parts.spawn(async move { part("sweep", sweeping).await });
        let overlap = config.link.certificate_ttl;
        let rotating = rotation::run(driver.clone(), trust.clone(), overlap, leaving.clone());
        parts.spawn(async move { part("rotation", rotating).await });

        let services = Services {
            driver: driver.clone(),
            blobs: blobs.clone(),
            series: series.clone(),
            trust: trust.clone(),
            share_key,
            certificate_ttl: config.link.certificate_ttl,
            attempt_limit: config.storage.attempt_limit,
            telemetry: telemetry.clone(),
            bandwidth: config.link.bandwidth,
        };
        let link = Link::bind(config.link.listen, services)?;
        let link_address = start::link_address(&config.link, link.address());
        let tls = start::https(&config.http, &trust)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (listen, public_url, patience) =
            (config.http.listen, config.http.public_url.clone(), config.timers.shutdown);
        let app = App {
            driver: driver.clone(),
            blobs,
            space,
            telemetry,
            series: series.clone(),
            log_places: LogPlaces::default(),
            curves: Curves::default(),
            inspector,
            trust: trust.clone(),
            signer,
            presets: lorikeet_api::Presets::embedded(),
            config,
            link_address: link_address.clone(),
            tasks: tasks.clone(),
            streams: App::streams(),
            downloads: App::downloads(),
            backup: Arc::new(Semaphore::new(1)),
            leaving: leaving.clone(),
        };
        let http = Http::bind(listen, Arc::new(app), tls)?;
        let http_url = public_url.unwrap_or_else(|| format!("{scheme}://{}", start::reachable(http.address())));
        start::announce(&folders.addresses(), &http_url, &link_address)?;
        tracing::info!(http = %http_url, link = %link_address, "ready");
        Ok(Self {
            http,
            http_url,
            link,
            link_address,
            trust,
            driver,
            deciding,
            stop,
            leaving,
            tasks,
            parts,
            series,
            series_thread,
            admin_token: folders.admin_token(),
            patience,
        })
    }

    /// Where HTTP listens.
    pub fn http_address(&self) -> SocketAddr {
        self.http.address()
    }

    /// What clients are told to call it.
    pub fn http_url(&self) -> &str {
        &self.http_url
    }

    /// Where agents are accepted (UDP).
    pub fn link_address(&self) -> SocketAddr {
        self.link.address()
    }

    /// What join strings tell agents to dial.
    pub fn link_name(&self) -> &str {
        &self.link_address
    }

    /// BLAKE3 of the certificate (DER) of the CA that signs.
    pub fn ca_hash(&self) -> Hash {
        self.trust.now().issuing().hash()
    }

    /// The file that holds the first ADMIN's token.
    pub fn admin_token_path(&self) -> &Path {
        &self.admin_token
    }

    /// A string that makes one machine a node, for an hour; for a coordinator and an agent in one process.
    pub async fn join_string(&self) -> Result<String, StartError> {
        let secret = start::invite(&self.driver).await?;
        let ticket = JoinTicket { address: self.link_address.clone(), ca_hash: self.ca_hash(), secret };
        http::join_string(&ticket).map_err(StartError::JoinString)
    }

    /// Until something that it cannot do without has failed. Shutting down is still in order afterwards.
    pub async fn join(&mut self) -> RunError {
        tokio::select! {
            ended = &mut self.deciding => RunError::Driver(ended.ok().and_then(Result::err)),
            error = self.http.ended() => RunError::Http(error),
            () = self.link.ended() => RunError::Part("the link to the agents"),
            () = self.series.ended() => RunError::Part("the thread that keeps lines"),
            Some(ended) = self.parts.join_next() => RunError::Part(ended.unwrap_or("a part that panicked")),
        }
    }

    /// Down in order. Afterwards nothing of it runs any more and the store is closed.
    pub async fn shutdown(mut self) {
        self.leaving.cancel();
        tokio::join!(self.http.shutdown(self.patience), self.link.shutdown(self.patience));
        self.tasks.close();
        if tokio::time::timeout(self.patience, self.tasks.wait()).await.is_err() {
            tracing::warn!("some work did not end in {:?}", self.patience);
        }
        while !self.parts.is_empty()
            && let Ok(Some(_)) = tokio::time::timeout(self.patience, self.parts.join_next()).await
        {}
        self.stop.cancel();
        drop((self.driver, self.series));
        if !self.deciding.is_finished() {
            match tokio::time::timeout(driver::STOP_WITHIN, self.deciding).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the driver ended badly")
                }
                Ok(Err(_)) | Err(_) => tracing::error!("the driver did not end"),
            }
        }
        // It ends with the last handle, and those went with the tasks above.
        let waiting = tokio::task::spawn_blocking(move || self.series_thread.join());
        if tokio::time::timeout(self.patience, waiting).await.is_err() {
            tracing::warn!("the series did not end in {:?}", self.patience);
        }
    }
}

/// Says its name when it ends.
async fn part(name: &'static str, work: impl Future<Output = ()>) -> &'static str {
    work.await;
    name
}

#[cfg(test)]
mod tests;
