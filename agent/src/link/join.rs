//! How this machine becomes a node: one question on an ALPN of its own.
//!
//! The join string names the CA by its hash. The handshake ends before a single byte of the secret leaves if the coordinator
//! cannot show that CA and a certificate of it, so a machine in the middle learns nothing.

use super::{
    Timers, dial,
    frame::{self, FrameError},
    identity::{Identity, IdentityError, Key},
    tls::{self, PinnedHash, TlsError, dated::ClockOff},
};
use crate::disk;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use lorikeet_protocol::{
    ALPN_JOIN, codec,
    id::{Hash, NodeId},
    join::{JoinAnswer, JoinRequest, JoinTicket, PREFIX},
};
use std::path::Path;

/// Why this machine did not become a node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// What was given is no join string.
    #[error("read the join string: expected `{PREFIX}` and what `lorikeet node token` printed, {0}")]
    Malformed(String),
    /// Somebody else answers at that address, or the string is of another coordinator.
    #[error(
        "trust the coordinator at {address}: its CA has the hash {found}, the join string says {expected}; nothing was sent to it"
    )]
    WrongCa {
        /// Where.
        address: String,
        /// What the join string says.
        expected: Hash,
        /// What was shown.
        found: Hash,
    },
    /// The coordinator said no.
    #[error("join: the coordinator refused: {0}")]
    Refused(String),
    /// The coordinator is who it should be, and its certificate is not of now.
    #[error("trust the coordinator at {address}: {off}")]
    Clock {
        /// Where.
        address: String,
        /// By how much.
        off: ClockOff,
    },
    /// No answer.
    #[error("reach the coordinator at {address}: {cause}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        cause: String,
    },
    /// The coordinator's answer makes no sense.
    #[error("read the coordinator's answer to the join")]
    Answer(#[from] FrameError),
    /// The identity's folder.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS cannot begin.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What a join string says.
pub(crate) fn parse(text: &str) -> Result<JoinTicket, JoinError> {
    let wrong = |found: &dyn std::fmt::Display| JoinError::Malformed(found.to_string());
    let text = text.trim();
    let body = text.strip_prefix(PREFIX).ok_or_else(|| wrong(&"found another beginning"))?;
    let torn = &"found one that is not whole, or was changed on its way";
    let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| wrong(torn))?;
    // The ticket is a frame's body, version byte first, without the length.
    codec::decode(&bytes).map_err(|_| wrong(torn))
}

/// Joins and keeps the identity in `folder`. The secret works once: whether the folder can be written to is seen before it is shown.
pub(crate) async fn join(text: &str, name: &str, folder: &Path, timers: &Timers) -> Result<NodeId, JoinError> {
    let ticket = parse(text)?;
    Identity::refuse_existing(folder)?;
    let key = Key::load_or_create(folder)?;
    disk::check_writable(folder).map_err(IdentityError::Disk)?;
    let request = JoinRequest { secret: ticket.secret, signing_request: key.signing_request()?, name: name.to_owned() };
    let verifier = PinnedHash::new(ticket.ca_hash);
    let config = tls::stranger(verifier.clone(), ALPN_JOIN, timers)?;
    let answer = ask(&ticket.address, config, &request, &verifier, timers).await?;
    match answer {
        JoinAnswer::Refused { reason } => Err(JoinError::Refused(reason)),
        JoinAnswer::Joined(joined) => {
            if Hash(*blake3::hash(&joined.ca).as_bytes()) != ticket.ca_hash {
                return Err(JoinError::Refused("its answer holds another CA".into()));
            }
            Identity::store(folder, &ticket.address, &joined)?;
            Ok(Identity::load(folder)?.node)
        }
    }
}

async fn ask(
    address: &str,
    config: quinn::ClientConfig,
    request: &JoinRequest,
    verifier: &PinnedHash,
    timers: &Timers,
) -> Result<JoinAnswer, JoinError> {
    let unreachable = |cause: String| match (verifier.stranger(), verifier.off()) {
        (Some(found), _) => JoinError::WrongCa { address: address.to_owned(), expected: verifier.expected(), found },
        (None, Some(off)) => JoinError::Clock { address: address.to_owned(), off },
        (None, None) => JoinError::Unreachable { address: address.to_owned(), cause },
    };
    let endpoint = dial::endpoint().map_err(|error| unreachable(error.to_string()))?;
    let connection = dial::connect(&endpoint, address, config, timers.connect_timeout)
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| unreachable(error.to_string()))?;
        frame::write(&mut send, request).await?;
        let _ = send.finish();
        Ok(frame::read(&mut receive).await?)
    };
    let answer = tokio::time::timeout(timers.connect_timeout, exchange).await;
    connection.close(0u32.into(), b"joined");
    endpoint.wait_idle().await;
    answer.unwrap_or_else(|_| Err(unreachable("no answer in time".into())))
}
