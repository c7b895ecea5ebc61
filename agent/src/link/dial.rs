//! From `host:port` to a connection: every address of the name is tried in turn, within one limit of time.

use lorikeet_protocol::COORDINATOR_NAME;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use std::{io, net::SocketAddr, time::Duration};

/// TLS wants a name to ask for. Nobody goes by it: a node is known by the id in its certificate.
const NODE_NAME: &str = "node.lorikeet";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("find the address of {address}: {cause}")]
    Name {
        /// As given.
        address: String,
        /// What the resolver said.
        cause: String,
    },
    /// No UDP socket.
    #[error("open a UDP socket")]
    Socket(#[from] io::Error),
    /// An address that no packet can be sent to.
    #[error("dial {0}")]
    Address(SocketAddr, #[source] quinn::ConnectError),
    /// The handshake failed.
    #[error("shake hands with {0}: {1}")]
    Handshake(SocketAddr, ConnectionError),
    /// Nobody answered in time.
    #[error("connect to {address}: no answer within {after:?}")]
    Silence {
        /// As given.
        address: String,
        /// The limit.
        after: Duration,
    },
}

/// A socket of our own, for both families where the machine has both.
pub(super) fn endpoint() -> io::Result<Endpoint> {
    let any = |text: &str| text.parse::<SocketAddr>().expect("an address written here");
    Endpoint::client(any("[::]:0")).or_else(|_| Endpoint::client(any("0.0.0.0:0")))
}

/// A connection, handshake done.
pub(super) async fn connect(
    endpoint: &Endpoint,
    address: &str,
    config: ClientConfig,
    limit: Duration,
) -> Result<Connection, DialError> {
    let silence = || DialError::Silence { address: address.to_owned(), after: limit };
    tokio::time::timeout(limit, any_of(endpoint, address, config)).await.unwrap_or_else(|_| Err(silence()))
}

async fn any_of(endpoint: &Endpoint, address: &str, config: ClientConfig) -> Result<Connection, DialError> {
    let name = |cause: String| DialError::Name { address: address.to_owned(), cause };
    let found = tokio::net::lookup_host(address).await.map_err(|error| name(error.to_string()))?;
    let mut last = name("the name has none".into());
    for socket in found {
        match one(endpoint, socket, COORDINATOR_NAME, config.clone()).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Another node that gives files; which one it is its certificate has to say.
pub(super) async fn node(
    endpoint: &Endpoint,
    socket: SocketAddr,
    config: ClientConfig,
    limit: Duration,
) -> Result<Connection, DialError> {
    let silence = || DialError::Silence { address: socket.to_string(), after: limit };
    tokio::time::timeout(limit, one(endpoint, socket, NODE_NAME, config)).await.unwrap_or_else(|_| Err(silence()))
}

async fn one(
    endpoint: &Endpoint,
    socket: SocketAddr,
    name: &str,
    config: ClientConfig,
) -> Result<Connection, DialError> {
    let connecting = endpoint.connect_with(config, socket, name).map_err(|error| DialError::Address(socket, error))?;
    connecting.await.map_err(|error| DialError::Handshake(socket, error))
}
