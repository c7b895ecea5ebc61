//! The door: how many connections there are, in all and from one address, and how long one may refuse to be written to.
//!
//! Descriptors are shared with the store, the files and the agents' link, so HTTP leaves them half of what the process may
//! open. A connection beyond the bounds is closed without a word: whoever holds the others learns nothing by it. How long one
//! may ask nothing is hyper's own timer, set in `http.rs`.

use super::place::{Place, Places};
use crate::config;
use axum_server::accept::Accept;
use rustix::process::{Resource, getrlimit};
use std::{
    future::{Future, Ready, ready},
    io::{self, IoSlice},
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// A client that takes no byte of an answer for so long has gone, whatever TCP still believes.
const STALL: Duration = Duration::from_secs(60);
/// The same while the coordinator leaves: who has stopped looking at a stream would hold that up to its last moment.
const STALL_AT_THE_END: Duration = Duration::from_secs(1);
/// Between two complaints about connections that were not taken: a flood must not fill the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Lets connections in.
#[derive(Debug, Clone)]
pub(super) struct Door {
    places: Arc<Places<IpAddr>>,
    leaving: CancellationToken,
    complained: Arc<Mutex<Option<Instant>>>,
}

impl Door {
    pub(super) fn new(config: &config::Http, leaving: CancellationToken) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.and_then(|most| usize::try_from(most).ok());
        let all = config.connections.min(descriptors.unwrap_or(usize::MAX) / 2);
        let places = Places::new(all, config.connections_per_address);
        Self { places, leaving, complained: Arc::default() }
    }

    /// Says, not too often, that connections are not taken.
    pub(super) fn complain(&self, error: &io::Error) {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY) {
            *complained = Some(Instant::now());
            tracing::warn!(%error, "connections are not accepted");
        }
    }

    fn enter(&self, stream: TcpStream) -> io::Result<Visitor> {
        let address = stream.peer_addr()?.ip();
        let place = self.places.take(origin(address)).map_err(|full| {
            let error = io::Error::other(format!("{address} is turned away: {full:?} connections are open"));
            self.complain(&error);
            error
        })?;
        Ok(Visitor { stream, stalled: None, leaving: self.leaving.clone(), _place: place })
    }
}

/// Whom an address stands for: behind IPv6 one household has 2^64 of them.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !(u128::MAX >> 64)).into(),
        four @ IpAddr::V4(_) => four,
    }
}

impl<S> Accept<TcpStream, S> for Door {
    type Stream = Visitor;
    type Service = S;
    type Future = Ready<io::Result<(Visitor, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.enter(stream).map(|visitor| (visitor, service)))
    }
}

/// A connection with its place.
pub(super) struct Visitor {
    stream: TcpStream,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    leaving: CancellationToken,
    _place: Place<IpAddr>,
}

impl Visitor {
    fn patient<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let leaving = &self.leaving;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(patience(leaving.clone())));
        let over = stalled.as_mut().poll(cx);
        if over.is_ready() {
            self.stalled = None;
        }
        over.map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Until a client that takes nothing was waited for long enough.
async fn patience(leaving: CancellationToken) {
    tokio::select! {
        () = sleep(STALL) => {}
        () = async { leaving.cancelled().await; sleep(STALL_AT_THE_END).await } => {}
    }
}

impl AsyncRead for Visitor {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.patient(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.patient(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_household_is_one_origin_and_two_of_the_old_kind_are_two() {
        let of = |text: &str| origin(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
