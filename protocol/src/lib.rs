//! What the parts of Lorikeet say to each other: plain data, no I/O.
//!
//! A conversation, from the first word to the last:
//!
//! 1. A machine *joins* ([`join`]): over an ALPN of its own it shows a single-use secret and a signing request, and gets its
//!    node id and a certificate. It never needs the secret again.
//! 2. Its agent opens the *control* connection ([`agent`]): [`FromAgent::Hello`](agent::FromAgent::Hello) names its boot, its devices and
//!    the attempts that are alive on it; [`ToAgent::Welcome`](agent::ToAgent::Welcome) answers per attempt `adopt`, `stop` or `report`.
//! 3. The coordinator *offers* attempts; the agent accepts or declines, fetches what they need over the *blob* connection ([`blob`]),
//!    writes an attempt directory ([`worker`]) and starts a worker in it.
//! 4. What changes state comes back as numbered [`Report`](agent::Report)s, which the agent keeps on disk until acknowledged;
//!    metrics and logs come as lines of the worker's events file, acknowledged by their own sequence numbers.
//!
//! The coordinator's CA can be replaced while all of this goes on ([`Trusts`](agent::Trusts), `docs/design/0013`).
//! Files that a node's cache holds it may give to other nodes ([`share`]): the coordinator says who has what and seals the leave to read it.
//!
//! Nothing said under an older [`AttemptToken`](id::AttemptToken) is ever applied: the token fences.
//!
//! Whoever is not answered asks again, later and later ([`backoff`]).
//! Frames are a length and one encoded message ([`codec`]); the version of the conversation is in the ALPN names below.
//! How the files that operators write are judged is the same for all ([`settings`]).

pub mod agent;
pub mod backoff;
pub mod blob;
pub mod codec;
pub mod file;
pub mod health;
pub mod id;
pub mod inspect;
pub mod job;
pub mod join;
pub mod rate;
pub mod settings;
pub mod share;
pub mod worker;

use std::time::Duration;

/// A time for people: in days where there are several, for nobody sets a clock by the seconds of a year.
pub fn days(time: Duration) -> String {
    match time.as_secs() / 86_400 {
        0 | 1 => humantime::format_duration(Duration::from_secs(time.as_secs())).to_string(),
        days => format!("{days} days"),
    }
}

/// What every cause of an error says, joined by colons: `dial 127.0.0.1:7170: connection refused`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // Some libraries repeat their cause in their own words.
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

/// The version of the conversation. A coordinator speaks this one and the one before.
pub const VERSION: u8 = 1;

/// ALPN of the control connection: state, logs, metrics and telemetry.
pub const ALPN_CONTROL: &[u8] = b"lorikeet-control/1";
/// The same with the words about trust ([`Trusts`](agent::Trusts)). An agent offers both names, and a coordinator that knows this one
/// takes it.
pub const ALPN_CONTROL_TRUST: &[u8] = b"lorikeet-control/2";
/// The same again with the word about nodes that were sent away ([`Expelled`](agent::ToAgent::Expelled)).
pub const ALPN_CONTROL_EXPEL: &[u8] = b"lorikeet-control/3";
/// The same again with everything that a device says of itself ([`Telemetry`](agent::Telemetry)).
pub const ALPN_CONTROL_METER: &[u8] = b"lorikeet-control/4";
/// ALPN of the blob connection: bulk never starves heartbeats because it has a connection of its own.
pub const ALPN_BLOB: &[u8] = b"lorikeet-blob/1";
/// The same with the questions about other nodes' files ([`share`]). An agent offers both names, and a coordinator that knows this one
/// takes it.
pub const ALPN_BLOB_SHARE: &[u8] = b"lorikeet-blob/2";
/// ALPN of reading files from another node.
pub const ALPN_SHARE: &[u8] = b"lorikeet-share/1";
/// ALPN of joining: the only one that asks for no client certificate, and the only thing it can do.
pub const ALPN_JOIN: &[u8] = b"lorikeet-join/1";

/// The name in the coordinator's certificate. Agents verify this and the pinned CA, never the address they dialled.
pub const COORDINATOR_NAME: &str = "coordinator.lorikeet";
