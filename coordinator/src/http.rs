//! The HTTP API: one file per resource, each of which translates, asks the driver and answers. Nothing is decided here.
//!
//! ```text
//! connection ─ a place ─ TLS (beyond loopback) ─ request id ─ panic caught ─ route ─ in time ─ caller ─ bounded body ─ handler
//! ```
//!
//! Every answer is an envelope of `lorikeet-api`, refusals included. Routes that carry bytes or wait for a child process have
//! no overall time limit, but each has limits of its own. The OpenAPI document is made from the same handlers that answer, so a
//! route that is not in it does not exist.

mod ask;
mod backup;
mod base;
mod ca;
mod caller;
mod curve;
mod dataset;
mod document;
mod door;
mod download;
mod ends;
mod failure;
mod frame;
mod job;
mod job_events;
mod job_series;
mod job_view;
mod job_why;
mod learnt;
mod log_places;
mod model;
mod node;
mod page;
mod place;
mod server;
mod sign;
mod sweep;
mod token;
mod upload;

pub(crate) use caller::hash_of;
pub(crate) use curve::Curves;
pub(crate) use log_places::LogPlaces;
pub(crate) use node::join_string;
pub(crate) use sign::Signer;
pub(crate) use token::new_secret;

use crate::{
    blob::Blobs,
    config::Config,
    driver::Handle,
    inspector::Inspector,
    link::{telemetry::Newest, trust::Trust},
    series::Series,
    space::Space,
};
use axum::{Router, middleware};
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use door::Door;
use lorikeet_api::Presets;
use lorikeet_protocol::id::UserId;
use place::Places;
use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Layer, util::MapRequestLayer};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

/// A job file or a list of faults is some KiB; uploads have their own limit, the declared size.
const MAX_BODY: usize = 1 << 20;
/// Open event streams: each holds a task and wakes once a second at most.
const STREAMS: usize = 256;
/// Those of one user: enough for a wall of screens, and a quarter of all.
const STREAMS_EACH: usize = 64;
/// Downloads at once: each holds two chunks of 16 MiB.
const DOWNLOADS: usize = 32;
/// Those of one user: a quarter of all.
const DOWNLOADS_EACH: usize = 8;
/// A TLS handshake is two round trips.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Who connects has something to ask; one who does not would only hold a place.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Why there is no HTTP.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The port is taken or the address not ours.
    #[error("listen for HTTP on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server ended.
    #[error("serve HTTP")]
    Serve(#[source] io::Error),
}

/// What every handler may use.
pub(crate) struct App {
    pub(crate) driver: Handle,
    pub(crate) blobs: Blobs,
    /// Of the data directory.
    pub(crate) space: Space,
    pub(crate) telemetry: Newest,
    pub(crate) series: Series,
    pub(crate) log_places: LogPlaces,
    pub(crate) curves: Curves,
    pub(crate) inspector: Inspector,
    pub(crate) trust: Trust,
    pub(crate) signer: Signer,
    pub(crate) presets: Presets,
    pub(crate) config: Config,
    /// What join strings carry.
    pub(crate) link_address: String,
    /// Work that goes on when its client has gone.
    pub(crate) tasks: TaskTracker,
    pub(crate) streams: Arc<Places<UserId>>,
    pub(crate) downloads: Arc<Places<UserId>>,
    /// One backup at a time: each makes a copy of the store.
    pub(crate) backup: Arc<Semaphore>,
    /// Cancelled when the coordinator goes down.
    pub(crate) leaving: CancellationToken,
}

impl App {
    /// How many streams may be open.
    pub(crate) fn streams() -> Arc<Places<UserId>> {
        Places::new(STREAMS, STREAMS_EACH)
    }

    /// How many downloads may be under way.
    pub(crate) fn downloads() -> Arc<Places<UserId>> {
        Places::new(DOWNLOADS, DOWNLOADS_EACH)
    }
}

/// The listening server.
pub(crate) struct Http {
    address: SocketAddr,
    handle: axum_server::Handle<SocketAddr>,
    task: JoinHandle<io::Result<()>>,
}

/// Every route, and the document that describes them.
fn routes() -> (Router<Arc<App>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(document::Document::openapi())
        .routes(routes!(dataset::create, dataset::list))
        .routes(routes!(dataset::show, dataset::delete))
        .routes(routes!(dataset::upload_url))
        .routes(routes!(dataset::validate))
        .routes(routes!(dataset::validation_status))
        .routes(routes!(base::add, base::list))
        .routes(routes!(base::show, base::delete))
        .routes(routes!(job::list))
        .routes(routes!(job::show, job::patch))
        .routes(routes!(job::cancel))
        .routes(routes!(job::pause))
        .routes(routes!(job::resume))
        .routes(routes!(job::release))
        .routes(routes!(job::checkpoint))
        .routes(routes!(job::retry))
        .routes(routes!(job_why::why))
        .routes(routes!(job::checkpoints))
        .routes(routes!(job_series::metrics))
        .routes(routes!(job_series::logs))
        .routes(routes!(sweep::list))
        .routes(routes!(sweep::show))
        .routes(routes!(sweep::cancel))
        .routes(routes!(model::list))
        .routes(routes!(model::show, model::patch, model::delete))
        .routes(routes!(node::list))
        .routes(routes!(node::invite))
        .routes(routes!(node::show, node::retire))
        .routes(routes!(node::cordon))
        .routes(routes!(node::drain))
        .routes(routes!(node::open))
        .routes(routes!(node::revoke))
        .routes(routes!(token::create, token::list))
        .routes(routes!(token::revoke))
        .routes(routes!(server::me))
        .routes(routes!(server::health))
        .routes(routes!(server::version))
        .routes(routes!(ca::certificate))
        .routes(routes!(ca::show, ca::begin))
        .routes(routes!(ca::finish))
        .split_for_parts()
}

/// Routes that take as long as bytes or a child process take.
fn patient_routes() -> (Router<Arc<App>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::new()
        .routes(routes!(dataset::confirm))
        .routes(routes!(upload::offset, upload::append))
        .routes(routes!(sweep::submit))
        .routes(routes!(job::submit))
        .routes(routes!(job_events::follow))
        .routes(routes!(model_download))
        .routes(routes!(backup::take))
        .split_for_parts()
}

use download::__path_download as __path_model_download;
use download::download as model_download;

/// The whole service.
pub(crate) fn service(app: Arc<App>) -> Router {
    let (quick, document) = routes();
    let (patient, more) = patient_routes();
    let document = document::complete(document.merge_from(more));
    let quick = quick.layer(middleware::from_fn_with_state(Arc::clone(&app), frame::in_time));
    let queryless = ask::Queryless::of(&document);
    let routed = quick
        .merge(patient)
        .route_layer(middleware::from_fn_with_state(queryless, ask::Queryless::check))
        .route(lorikeet_api::route::OPENAPI, axum::routing::get(async move || axum::Json(document)))
        .fallback(frame::no_route)
        .method_not_allowed_fallback(frame::no_method)
        .with_state(app)
        .layer(CatchPanicLayer::custom(frame::panicked))
        .layer(middleware::from_fn(frame::identify));
    // A second name of a route is the same route: rewritten before anything looks at the path.
    Router::new().fallback_service(MapRequestLayer::new(frame::one_name).layer(routed))
}

impl Http {
    /// Binds and begins to serve: HTTPS with `tls`, plain without; plain is for loopback alone.
    pub(crate) fn bind(
        listen: SocketAddr,
        app: Arc<App>,
        tls: Option<rustls::ServerConfig>,
    ) -> Result<Self, HttpError> {
        let failed = |source| HttpError::Bind { address: listen, source };
        assert!(tls.is_some() || listen.ip().is_loopback(), "plain HTTP is for loopback alone");
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let handle = axum_server::Handle::new();
        let (door, idle) = (Door::new(&app.config.http, app.leaving.clone()), app.config.http.idle);
        let make = service(app).into_make_service_with_connect_info::<SocketAddr>();
        let complaining = door.clone();
        let server = axum_server::from_tcp(listener).map_err(failed)?.handle(handle.clone());
        // Out of descriptors it waits a moment and goes on.
        let server = server.accept_error_handler(move |_, error| complaining.complain(error));
        let mut server = server.first_request_timeout(FIRST_REQUEST.min(idle)).acceptor(door.clone());
        server.http_builder().http1().header_read_timeout(idle);
        server.http_builder().http2().keep_alive_interval(idle).keep_alive_timeout(idle);
        let task = match tls {
            None => tokio::spawn(server.serve(make)),
            Some(config) => {
                let config = RustlsConfig::from_config(Arc::new(config));
                let acceptor = RustlsAcceptor::new(config).handshake_timeout(HANDSHAKE).acceptor(door);
                tokio::spawn(server.acceptor(acceptor).serve(make))
            }
        };
        Ok(Self { address, handle, task })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it has ended by itself, and how.
    pub(crate) async fn ended(&mut self) -> HttpError {
        let ended = (&mut self.task).await;
        HttpError::Serve(match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => io::Error::other("the server ended"),
        })
    }

    /// Accepts nobody any more, lets requests end, and cuts what has not ended in time.
    pub(crate) async fn shutdown(mut self, within: Duration) {
        self.handle.graceful_shutdown(Some(within));
        if self.task.is_finished() {
            return;
        }
        if let Err(error) = (&mut self.task).await {
            tracing::warn!(%error, "the HTTP server ended badly");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
